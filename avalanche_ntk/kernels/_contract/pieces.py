"""Pieces: the per-sample gradients of one use of a parameter, factored if possible.

For cotangents r = 1…R and samples n = 1…N the gradient of a used tensor W is `J[n, r]`, of W's shape. Three forms:

* `Outer`: `J[n,r] = Σ_t a[n,t] ⊗ g[r,n,t]` over positions t (one for a plain Linear layer, pixels, tokens, time steps);
* `Lookup`: the same where `a` is a one-hot row index (an embedding table), so J is never formed;
* `Dense`: J itself, for what is small (biases, norm scales, gains).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.patches import Patches, gram_cost
from avalanche_ntk.kernels._device.profile import profile_of


@dataclass
class Dense:
    """Explicit gradients.

    Attributes:
        j: `(N, R, *W.shape)`.
    """

    j: Tensor

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """Return `(N, R, *shape)`."""
        return self.j.reshape(*self.j.shape[:2], *shape)

    @property
    def kind(self) -> str:
        """Name of the form in reports."""
        return "dense"


def some_rows(a: Tensor | Patches, samples: slice, memory: Tensor | None = None) -> Tensor:
    """Return the rows `(n, T, A)` of some samples; entries of patches are in the order that is fastest to make."""
    return a[samples] if isinstance(a, Tensor) else a.make_fast(samples, memory)


def all_rows(a: Tensor | Patches) -> Tensor:
    """Return the rows `(N, T, A)` of all samples, with entries ordered as in the weight."""
    return a if isinstance(a, Tensor) else a.make(slice(0, a.shape[0]))


@dataclass
class Outer:
    """Sum over positions of outer products.

    Attributes:
        a: `(N, T, A)` the side that does not depend on the output.
        g: `(R, N, T, B)` the side that does.
        a_first: W is laid out as `(A, B)`; otherwise `(B, A)`.
        ones: Whether all of `a` is 1 (a bias).
    """

    a: Tensor | Patches
    g: Tensor
    a_first: bool = True
    ones: bool = False

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """Return `(N, R, *shape)`."""
        (n, t, a), r = self.a.shape, self.g.shape[0]
        eq = "nta,rntb->nrab" if self.a_first else "nta,rntb->nrba"
        if isinstance(self.a, Tensor):
            return torch.einsum(eq, self.a, self.g).reshape(n, r, *shape)
        step = max(1, profile_of(self.g.device).patches // (t * a))  # samples whose patches are made at a time
        parts = [torch.einsum(eq, self.a.make(slice(i, i + step)), self.g[:, i : i + step]) for i in range(0, n, step)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(n, r, *shape)

    @property
    def kind(self) -> str:
        """Name of the form in reports."""
        return "outer"


@dataclass
class Lookup:
    """Rows of a table: `J[n,r] = Σ_t e_{ids[n,t]} ⊗ g[r,n,t]`; a negative id is a row without gradient.

    Attributes:
        ids: `(N, T)` integers.
        g: `(R, N, T, D)`.
        rows: Number of rows of the table.
    """

    ids: Tensor
    g: Tensor
    rows: int = field(default=0)

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """Return `(N, R, *shape)`."""
        r, n, t, d = self.g.shape
        out = self.g.new_zeros(n, self.rows, r * d)
        keep = (self.ids >= 0).to(self.g.dtype)[..., None]
        src = self.g.permute(1, 2, 0, 3).reshape(n, t, r * d) * keep
        out.scatter_add_(1, self.ids.clamp(min=0)[..., None].expand(n, t, r * d), src)
        return out.reshape(n, self.rows, r, d).permute(0, 2, 1, 3).reshape(n, r, *shape)

    @property
    def kind(self) -> str:
        """Name of the form in reports."""
        return "lookup"


Piece = Dense | Outer | Lookup


def outputs_of(piece: Piece) -> int:
    """Return R."""
    return piece.j.shape[1] if isinstance(piece, Dense) else piece.g.shape[0]


def with_outputs(piece: Piece, rows: slice) -> Piece:
    """Return the piece of some outputs."""
    return Dense(piece.j[:, rows]) if isinstance(piece, Dense) else replace(piece, g=piece.g[rows])


def in_kind(piece: Piece, kind: torch.dtype) -> Piece:
    """Convert a piece to another dtype; complex pieces become real for a real parameter.

    The gradient of a real parameter is the real part of the complex one, and `Re(a⊗g)` is `Re a⊗Re g − Im a⊗Im g`:
    twice the positions.

    Returns:
        The piece itself if nothing changes.
    """
    real = not kind.is_complex
    if isinstance(piece, Dense):
        j = piece.j.real if real else piece.j
        return piece if piece.j.dtype == kind else Dense(j.to(kind))
    if isinstance(piece, Lookup):
        g = piece.g.real if real else piece.g
        return piece if piece.g.dtype == kind else Lookup(piece.ids, g.to(kind), piece.rows)
    a, g = piece.a, piece.g
    if isinstance(a, Patches):
        return piece if g.dtype == a.x.dtype == kind else Outer(replace(a, x=a.x.to(kind)), g.to(kind), piece.a_first)
    if a.dtype == g.dtype == kind:
        return piece
    if real and a.is_complex() and g.is_complex():
        a, g = torch.cat([a.real, a.imag], 1), torch.cat([g.real, -g.imag], 2)
    elif real:
        a, g = a.real, g.real
    return Outer(a.to(kind), g.to(kind), piece.a_first)


def merge(pieces: list[Piece], shape: tuple[int, ...]) -> Piece:
    """Merge several uses of the same tensor: more positions, or a sum of explicit gradients.

    Returns:
        One piece.
    """
    if len(pieces) == 1:
        return pieces[0]
    outers = [p for p in pieces if isinstance(p, Outer)]
    if len(outers) == len(pieces) and len({p.a_first for p in outers}) == 1:
        return Outer(
            torch.cat([all_rows(p.a) for p in outers], 1), torch.cat([p.g for p in outers], 2), outers[0].a_first
        )
    lookups = [p for p in pieces if isinstance(p, Lookup)]
    if len(lookups) == len(pieces):
        return Lookup(torch.cat([p.ids for p in lookups], 1), torch.cat([p.g for p in lookups], 2), lookups[0].rows)
    total = pieces[0].dense(shape)
    for p in pieces[1:]:
        total = total + p.dense(shape)
    return Dense(total)


@dataclass(frozen=True)
class Size:
    """Size of a parameter's pieces, in numbers per sample.

    Attributes:
        fixed: Size of the part that does not depend on the output.
        factors: Size of the part that does, per output.
        explicit: Size of explicit gradients, per output; None for a table, for which none are formed.
        t: Positions.
        a: Columns of the side without outputs.
        b: Columns of the side with them.
        gram: Cost of one entry of the Gram matrix of the sides without outputs, in multiply-adds.
        by_convolution: Whether explicit gradients are made by convolutions, see `Patches`.
    """

    fixed: int
    factors: int
    explicit: int | None
    t: int = 1
    a: int = 0
    b: int = 0
    gram: float = 0.0
    by_convolution: bool = False

    @staticmethod
    def of(piece: Piece) -> Size:
        """Return the size of a piece."""
        if isinstance(piece, Dense):
            each = prod(piece.j.shape[2:])
            return Size(0, each, each)
        if isinstance(piece, Lookup):
            return Size(piece.ids.shape[1], prod(piece.g.shape[2:]), None, piece.ids.shape[1])
        (_, t, a), b = piece.a.shape, piece.g.shape[3]
        if isinstance(piece.a, Patches):
            gram = min(gram_cost(piece.a, piece.a), float(a))
            return Size(prod(piece.a.x.shape[1:]), t * b, a * b, t, a, b, gram, piece.a.by_convolution)
        return Size(t * a, t * b, a * b, t, a, b, float(a))
