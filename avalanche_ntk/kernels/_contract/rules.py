"""One rule per kind of use: from an autograd node and the signal at its output to per-sample gradients.

A rule is a function `(Site) -> Piece`, registered under the node's name; adding one is one function. It may raise
`NoRule` for a variant that it does not cover, and the use then goes through `masked`, which is exact for every node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.patches import Patches, unfolded
from avalanche_ntk.kernels._contract.pieces import Dense, Lookup, Outer, Piece
from avalanche_ntk.kernels._structure.graph import NotKept, kept
from avalanche_ntk.kernels._structure.layout import Layout


class NoRule(Exception):
    """This variant of a node has no rule."""


class Inseparable(Exception):
    """The gradient of this node is not a sum over samples."""


@dataclass
class Site:
    """Where a parameter enters the computation.

    Attributes:
        node: The autograd node that consumes it.
        slot: Which of the node's inputs it is.
        g: `(R, *output shape)` backpropagated signals at the node's output.
        layout: Where the samples are in that output.
        n: Number of samples.
        shape: Shape of the consumed tensor W.

    Where numbers are complex, gradients are those of autograd: the factor that W meets is conjugated.
    """

    node: Any
    slot: int
    g: Tensor
    layout: Layout
    n: int
    shape: tuple[int, ...]

    def kept(self, *names: str) -> Any:
        """Return what the node keeps for its backward pass under one of these names.

        Raises:
            NoRule: It keeps none of them: another version of torch, or another device, may name it otherwise.
        """
        try:
            return kept(self.node, *names)
        except NotKept as exc:
            raise NoRule from exc

    def positions(self, t: Tensor, features: int) -> Tensor:
        """Bring `(R, *shape)` to `(R, N, T, features…)`; the last `features` dimensions stay.

        Returns:
            A view where strides allow.
        """
        first = self.layout.samples_first(t, self.n)
        keep = first.shape[first.dim() - features :]
        return first.reshape(first.shape[0], self.n, prod(first.shape[2 : first.dim() - features]), *keep)


Rule = Callable[[Site], Piece]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for autograd nodes of these names.

    Returns:
        The decorator.
    """

    def register(fn: Rule) -> Rule:
        for name in names:
            RULES[name] = fn
        return fn

    return register


def _need(condition: bool) -> None:
    if not condition:
        raise NoRule


def _product(s: Site, left: Tensor | None, right: Tensor | None, left_slot: int, scale: float) -> Piece:
    """The product `left @ right`: samples are rows of it (W on the right) or columns (W on the left).

    Returns:
        An `Outer` piece.
    """
    g = s.g if scale == 1 else s.g * scale
    if s.slot == left_slot + 1:  # W = right, (in, out); samples among the rows
        _need(s.layout.dim == 0 and left is not None)
        assert left is not None
        return Outer(s.positions(left.conj()[None], 1)[0], s.positions(g, 1), a_first=True)
    _need(s.layout.dim == 1 and right is not None)  # W = left, (out, in); samples among the columns
    assert right is not None
    turned = Site(s.node, s.slot, g, Layout(0, s.layout.before, s.layout.after), s.n, s.shape)
    return Outer(turned.positions(right.conj().T[None], 1)[0], turned.positions(g.transpose(1, 2), 1), a_first=False)


@rule("MmBackward0")
def mm(s: Site) -> Piece:
    """`self @ mat2`."""
    return _product(s, s.kept("self") if s.slot == 1 else None, s.kept("mat2") if s.slot == 0 else None, 0, 1)


@rule("AddmmBackward0")
def addmm(s: Site) -> Piece:
    """`beta·bias + alpha·(mat1 @ mat2)`."""
    if s.slot == 0:
        beta = float(s.kept("beta"))
        if s.g.shape[1] == s.n and beta == 1 and s.shape == tuple(s.g.shape[2:]):
            # one position: the bias is a weight whose input is 1, and shares the weight's Gram matrix of signals
            return Outer(s.g.new_ones(s.n, 1, 1), s.g.unsqueeze(2), a_first=True)
        return broadcast(s, None, beta)
    alpha = float(s.kept("alpha"))
    return _product(s, s.kept("mat1") if s.slot == 2 else None, s.kept("mat2") if s.slot == 1 else None, 1, alpha)


def _batched_product(s: Site, left: Tensor | None, right: Tensor | None, left_slot: int, scale: float) -> Piece:
    """`left @ right` matrix by matrix, where the batch is not the samples' (heads, groups, an ensemble's members).

    Returns:
        An `Outer` piece for one matrix, else explicit gradients.
    """
    _need(s.layout.dim in (1, 2))
    signal = s.g if scale == 1 else s.g * scale
    if s.slot == left_slot + 1:
        _need(s.layout.dim == 1 and left is not None)
        assert left is not None
        a, g, a_first = left, signal, True
    else:
        _need(s.layout.dim == 2 and right is not None)
        assert right is not None
        a, g, a_first = right.transpose(1, 2), signal.transpose(2, 3), False
    turned = Site(s.node, s.slot, g, Layout(1, s.layout.before, s.layout.after), s.n, s.shape)
    a = turned.layout.samples_first(a.conj()[None], s.n)[0]  # (N, groups, T, A)
    g = turned.layout.samples_first(g, s.n)  # (R, N, groups, T, B)
    if a.shape[1] == 1:
        return Outer(a[:, 0], g[:, :, 0], a_first)
    return Dense(torch.einsum("nhta,rnhtb->nrhab" if a_first else "nhta,rnhtb->nrhba", a, g))


@rule("BmmBackward0")
def bmm(s: Site) -> Piece:
    """`self @ mat2`, matrix by matrix."""
    return _batched_product(s, s.kept("self") if s.slot == 1 else None, s.kept("mat2") if s.slot == 0 else None, 0, 1)


@rule("BaddbmmBackward0")
def baddbmm(s: Site) -> Piece:
    """`beta·self + alpha·(batch1 @ batch2)`, matrix by matrix."""
    if s.slot == 0:
        return broadcast(s, None, _scalar(s.kept("beta")))
    left, right = s.kept("batch1") if s.slot == 2 else None, s.kept("batch2") if s.slot == 1 else None
    return _batched_product(s, left, right, 1, _scalar(s.kept("alpha")))


@rule("TrilinearBackward0")
def bilinear(s: Site) -> Piece:
    """`x1ᵀ W[o] x2`, as `nn.Bilinear` calls it: a linear layer whose inputs are the products of both."""
    dims = [list(s.kept(k)) for k in ("expand1", "expand2", "expand3", "sumdim")]
    _need(s.slot == 1 and dims == [[1, 3], [0], [1, 2], [2, 3]] and s.layout.dim == 0)
    a = (s.kept("i1").unsqueeze(2) * s.kept("i3").unsqueeze(1)).flatten(1).conj()
    return Outer(s.positions(a[None], 1)[0], s.positions(s.g, 1), a_first=False)


@rule("MvBackward0")
def mv(s: Site) -> Piece:
    """`matrix @ vector` with the vector as W."""
    _need(s.slot == 1 and s.layout.dim == 0)
    return Outer(s.positions(s.kept("self").conj()[None], 1)[0], s.positions(s.g[..., None], 1), a_first=True)


@rule("ConvolutionBackward0")
def convolution(s: Site) -> Piece:
    """Convolutions of 1–3 dimensions, strided, padded, dilated, grouped, transposed."""
    _need(s.layout.dim == 0)
    if s.slot == 2:
        return broadcast(s, None, 1.0, dims=(1,))
    _need(s.slot == 1)
    x, groups, transposed = s.kept("input"), int(s.kept("groups")), bool(s.kept("transposed"))
    stride, padding, dilation = list(s.kept("stride")), list(s.kept("padding")), list(s.kept("dilation"))
    _need(x is not None and x.dim() > 2)
    nd = x.dim() - 2
    stride, padding, dilation = ([v[0]] * nd if len(v) == 1 else v for v in (stride, padding, dilation))
    kernel = list(s.shape[2:])
    r, batch = s.g.shape[:2]
    if transposed:
        # y = Wᵀ-convolution of x: the weight's gradient pairs every input pixel with the patch of the signal it feeds
        a = x.reshape(batch, groups, x.shape[1] // groups, -1).transpose(2, 3)
        flat = s.g.reshape(r * batch, *s.g.shape[2:])
        p = unfolded(flat, kernel, stride, padding, dilation, list(x.shape[2:]))
        g = p.reshape(r, batch, groups, -1, a.shape[2]).transpose(3, 4)
        a_first = True
    else:
        out = list(s.g.shape[3:])
        if groups == 1 and s.layout == Layout(0) and batch == s.n:
            g = s.g.flatten(3).transpose(2, 3)
            return Outer(Patches(x, kernel, stride, padding, dilation, out), g, a_first=False)
        if all(k == 1 for k in kernel) and all(v == 1 for v in stride) and not any(padding):
            p = x
        else:
            p = unfolded(x, kernel, stride, padding, dilation, out)
        a = p.reshape(batch, groups, -1, s.g[0, 0, 0].numel()).transpose(2, 3)
        g = s.g.reshape(r, batch, groups, s.g.shape[2] // groups, -1).transpose(3, 4)
        a_first = False
    a = s.layout.samples_first(a[None], s.n)[0]  # (N, frames, groups, T, A)
    g = s.layout.samples_first(g, s.n)  # (R, N, frames, groups, T, B)
    if groups == 1:
        return Outer(_join(a[:, :, 0], 1), _join(g[:, :, :, 0], 2), a_first)
    return Dense(torch.einsum("nfhta,rnfhtb->nrhab" if a_first else "nfhta,rnfhtb->nrhba", a, g))


def _join(t: Tensor, dim: int) -> Tensor:
    """Merge dimensions `dim` and `dim + 1`, without a copy where the first has size 1.

    Returns:
        The merged tensor.
    """
    return t.squeeze(dim) if t.shape[dim] == 1 else t.flatten(dim, dim + 1)


def broadcast(s: Site, factor: Tensor | None, scale: float = 1.0, dims: tuple[int, ...] | None = None) -> Piece:
    """W enters elementwise, times `factor`, broadcast over the output: sum what it was broadcast over.

    Args:
        s: The site.
        factor: Broadcasts against the output, or None for 1.
        scale: A further scalar.
        dims: Output dimension of each of W's; by default the trailing ones, as torch broadcasts.

    Returns:
        A `Dense` piece.
    """
    out = s.g.shape[1:]
    if dims is None:
        dims = tuple(range(len(out) - len(s.shape), len(out)))
    _need(len(dims) == len(s.shape) and all(d >= 0 and k in (1, out[d]) for d, k in zip(dims, s.shape, strict=True)))
    kept = [d for d, size in zip(dims, s.shape, strict=True) if size != 1]
    # the samples' dimension may be one of W's only where W has one copy a sample, which is no parameter
    _need(s.layout.dim not in kept)
    gone = [1 + d for d in range(len(out)) if d not in kept]
    if factor is None:
        first = s.layout.samples_first(s.g, s.n)  # (R, N, *out) with the samples' dimension before·after
        size = [first.shape[1 + d] for d in gone]
        first = first.flatten(2) if prod(size) == 1 else first.sum([1 + d for d in gone])
        j = first.reshape(s.g.shape[0], s.n, *s.shape).transpose(0, 1)
        return Dense(j if scale == 1 else j * scale)
    factor = s.layout.samples_first(factor.expand(out)[None], s.n)[0]
    rows = []
    for g in s.g:  # one output at a time: the product with `factor` stays small
        first = s.layout.samples_first(g[None], s.n)[0]
        rows.append((first * factor.conj()).sum(gone).reshape(s.n, *s.shape))
    j = torch.stack(rows, 1)
    return Dense(j if scale == 1 else j * scale)


def _scalar(value: Any) -> float:
    return float(value.item() if isinstance(value, Tensor) else value)


@rule("AddBackward0")
def add(s: Site) -> Piece:
    """`self + alpha·other`."""
    return broadcast(s, None, _scalar(s.kept("alpha")) if s.slot == 1 else 1.0)


@rule("SubBackward0")
def sub(s: Site) -> Piece:
    """`self - alpha·other`."""
    return broadcast(s, None, -_scalar(s.kept("alpha")) if s.slot == 1 else 1.0)


@rule("MulBackward0")
def mul(s: Site) -> Piece:
    """`self·other`."""
    factor = s.kept("other") if s.slot == 0 else s.kept("self")
    _need(factor is not None)
    return broadcast(s, factor)


@rule("DivBackward0")
def div(s: Site) -> Piece:
    """`self / other`."""
    other = s.kept("other")
    if s.slot == 0:
        return broadcast(s, other.reciprocal())
    return broadcast(s, -s.kept("self") / (other * other))


@rule("ExpandBackward0")
def expand(s: Site) -> Piece:
    """A parameter repeated for every sample (class tokens, `matmul(W, x)` with a batch of x)."""
    return broadcast(s, None)


@rule("RepeatBackward0")
def repeat(s: Site) -> Piece:
    """A parameter tiled for every sample, along its own dimension (instance norm) or a new one."""
    first = s.layout.samples_first(s.g, s.n)  # (R, N, *out) with the samples' dimension before·after
    w = (1,) * (first.dim() - 2 - len(s.shape)) + tuple(s.shape)
    _need(s.layout.before == 1 and all(o % k == 0 for o, k in zip(first.shape[2:], w, strict=True)))
    folded = first.reshape(*first.shape[:2], *(v for o, k in zip(first.shape[2:], w, strict=True) for v in (o // k, k)))
    j = folded.sum(list(range(2, folded.dim(), 2)))
    return Dense(j.transpose(0, 1).reshape(s.n, s.g.shape[0], *s.shape))


@rule("PreluKernelBackward0")
def prelu(s: Site) -> Piece:
    """`max(x, 0) + w·min(x, 0)`."""
    _need(s.slot == 1)
    return broadcast(s, s.kept("self").clamp(max=0))


@rule("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")
def batch_norm(s: Site) -> Piece:
    """Batch norm by running statistics (in eval mode)."""
    if s.slot == 2:
        return broadcast(s, None, dims=(1,))
    x = s.kept("input")
    _need(s.slot == 1 and not bool(s.kept("training")))
    view = (1, -1) + (1,) * (x.dim() - 2)
    invstd = (s.kept("running_var") + float(s.kept("eps", "epsilon"))).rsqrt()
    piece = broadcast(s, x - s.kept("running_mean").view(view), dims=(1,))
    assert isinstance(piece, Dense)
    return Dense(piece.j * invstd.view(s.shape))  # after the sum over positions: one pass over x less


@rule("NativeLayerNormBackward0")
def layer_norm(s: Site) -> Piece:
    """Layer norm."""
    if s.slot == 2:
        return broadcast(s, None)
    _need(s.slot == 1)
    return broadcast(s, (s.kept("input") - s.kept("result1")) * s.kept("result2"))


@rule("NativeGroupNormBackward0")
def group_norm(s: Site) -> Piece:
    """Group norm."""
    if s.slot == 2:
        return broadcast(s, None, dims=(1,))
    _need(s.slot == 1)
    x, groups = s.kept("input"), int(s.kept("group"))
    xs = x.reshape(x.shape[0], groups, -1)
    normed = (xs - s.kept("result1").reshape(-1, groups, 1)) * s.kept("result2").reshape(-1, groups, 1)
    return broadcast(s, normed.reshape(x.shape), dims=(1,))


def _ids(indices: Tensor, padding: int, rows: int) -> Tensor:
    return indices if padding < 0 else torch.where(indices == padding, torch.full_like(indices, -1), indices)


@rule("EmbeddingBackward0")
def embedding(s: Site) -> Piece:
    """Embedding tables, dense or sparse gradients."""
    if bool(s.kept("scale_grad_by_freq")):
        raise Inseparable("a row's gradient is scaled by its frequency in the batch")
    rows = int(s.shape[0])
    padding = int(s.kept("padding_idx"))
    padding = padding - 2**64 if padding >= 2**63 else padding
    ids = _ids(s.kept("indices"), padding, rows)
    at = s.layout.samples_first(ids.unsqueeze(-1)[None], s.n)[0].reshape(s.n, -1)
    return Lookup(at, s.positions(s.g, 1), rows)


def _rows_taken(s: Site, ids: Tensor) -> Piece:
    """Rows of W, one for each of `ids`, whose dimensions are the output's first."""
    _need(s.layout.dim < ids.dim())
    rows = int(s.shape[0])
    g = s.g.reshape(*s.g.shape[: 1 + ids.dim()], prod(s.shape[1:]))
    at = s.positions((ids % rows)[None, ..., None], 1)[0].squeeze(-1)
    return Lookup(at, s.positions(g, 1), rows)


@rule("IndexBackward0")
def index(s: Site) -> Piece:
    """`W[ids]` with whole numbers: a table of rows."""
    indices = s.kept("indices")
    _need(indices[0] is not None and all(i is None for i in indices[1:]) and indices[0].dtype == torch.int64)
    return _rows_taken(s, indices[0])


@rule("IndexSelectBackward0")
def index_select(s: Site) -> Piece:
    """`W.index_select(0, ids)`."""
    _need(int(s.kept("dim")) == 0)
    return _rows_taken(s, s.kept("index"))


@rule("EmbeddingBagBackward0")
def embedding_bag(s: Site) -> Piece:
    """Sums and means of embedding rows, one bag a sample."""
    mode = int(s.kept("mode"))
    if bool(s.kept("scale_grad_by_freq")):
        raise Inseparable("a row's gradient is scaled by its frequency in the batch")
    _need(s.slot == 0 and mode in (0, 1))
    _need(s.layout == Layout(0) and s.g.shape[1] == s.n)
    indices, offset2bag, size = s.kept("indices"), s.kept("result1"), s.kept("result2")
    _need(offset2bag.numel() == indices.numel())
    padding = int(s.kept("padding_idx"))
    padding = padding - 2**64 if padding >= 2**63 else padding
    ids = _ids(indices, padding, int(s.shape[0]))
    weight = torch.ones(indices.shape, dtype=s.g.dtype, device=s.g.device)
    if mode == 1:
        weight = weight / size[offset2bag].to(s.g.dtype).clamp(min=1)
    if s.kept("per_sample_weights") is not None:
        weight = weight * s.kept("per_sample_weights").reshape(-1)
    counts = torch.bincount(offset2bag, minlength=s.n)
    longest = max(int(counts.max()), 1)
    at = torch.full((s.n, longest), -1, dtype=ids.dtype, device=ids.device)
    w = s.g.new_zeros(s.n, longest)
    start = torch.cumsum(counts, 0) - counts
    column = torch.arange(ids.numel(), device=ids.device) - start[offset2bag]
    at[offset2bag, column] = ids
    w[offset2bag, column] = weight
    return Lookup(at, s.g[:, :, None, :] * w[None, :, :, None], int(s.shape[0]))


def masked(s: Site) -> Piece:
    """Any node at all: its own backward, given the signal of one sample at a time. Exact, and N·R times its cost.

    Returns:
        A `Dense` piece.
    """
    d = s.layout.dim + 1
    r = s.g.shape[0]
    shape = s.g.shape
    split = s.g.reshape(*shape[:d], s.layout.before, s.n, s.layout.after, *shape[d + 1 :])
    only = torch.zeros_like(split)  # and its gradient's place: memory for each sample anew would be scattered
    found: Tensor | None = None
    for n in range(s.n):
        mine = only.select(d + 1, n)
        mine.copy_(split.select(d + 1, n))
        for k in range(r):
            grads = s.node(only.reshape(shape)[k])
            w = grads[s.slot] if isinstance(grads, tuple) else grads
            _need(w is not None)
            # a node called by hand returns the gradient before torch sums it over broadcast dimensions
            w = w.to_dense().sum_to_size(s.shape)
            found = w.new_empty(s.n, r, *s.shape) if found is None else found
            found[n, k] = w
        mine.zero_()
    assert found is not None  # there is a sample, and an output
    return Dense(found)


def piece_of(s: Site, name: str) -> tuple[Piece, str]:
    """Apply the node's rule, or the one for every node.

    Returns:
        The piece and the name of the way taken.
    """
    found = RULES.get(name)
    if found is not None:
        try:
            return found(s), "rule"
        except NoRule:
            pass
    return masked(s), "masked"
