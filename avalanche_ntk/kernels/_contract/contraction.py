"""From two pieces to kernel entries, by the cheapest exact form.

With `J[n,r] = Σ_t a[n,t] ⊗ g[r,n,t]` the entry `Σ_r <J[n,r], J'[m,r]>` has two exact forms:

* explicit: form J for a slice of W and multiply, `J J'ᵀ`;
* ghost: `Σ_{t,s} (a[n,t]·a'[m,s]) (Σ_r g[r,n,t]·g'[r,m,s])`, where W's size never appears.

For one position the ghost form is `(A Aᵀ) ∘ (G Gᵀ)`. A cost model (multiply-adds at the matrix rate, plus memory
traffic for elementwise work) chooses; all intermediate blocks stay below `workspace` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.ghost import ELEMENTWISE, blocks, ghost, input_cost, share
from avalanche_ntk.kernels._contract.patches import Patches
from avalanche_ntk.kernels._contract.pieces import Dense, Lookup, Outer, Piece, Size, all_rows, some_rows
from avalanche_ntk.kernels._device.profile import PROCESSOR, Profile, profile_of

CHUNK = 8192  # products in one running sum
HALVED = 48  # number of samples from which two products for one triangle cost less than one for the square
_TRAFFIC = 28.0  # cost of writing an entry of an explicit gradient and reading it again, in multiply-adds
_HOLD = 4  # number of tiles from which patches are kept between tiles
_CONVOLVED = 0.5  # time of a multiply-add in a convolution of oneDNN, in those of a matrix product
_PATCHES = 30.0  # cost of making an entry of a patch, in multiply-adds


@dataclass
class Tally:
    """Statistics of the work done: multiply-adds, forms used by parameter, largest block."""

    flops: float = 0.0
    forms: dict[str, str] = field(default_factory=dict)
    peak: int = 0
    last: tuple[Any, tuple[Tensor, Tensor], Tensor] | None = None
    input_grams: dict[str, Tensor] | None = None
    room: float = 0.0  # numbers that `input_grams` may still store
    steps: int = 1  # how often the same parameters return with other outputs
    scratch: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, list[Size]] = field(default_factory=dict)

    def note(self, name: str, pieces: list[Piece | None]) -> None:
        """Record the sizes of a parameter's pieces."""
        self.sizes[name] = [Size.of(piece) for piece in pieces if piece is not None]

    def block(self, *tensors: Tensor) -> None:
        """Record the size of simultaneous blocks."""
        self.peak = max(self.peak, sum(t.numel() * t.element_size() for t in tensors))

    def memory(self, role: str, numbers: int, like: Tensor) -> Tensor:
        """Flat memory, reused by the next parameter, since new memory is slow (page by page)."""
        held = self.scratch.get(role)
        if held is None or held.numel() < numbers or held.dtype != like.dtype or held.device != like.device:
            self.scratch.pop(role, None)
            del held
            self.scratch[role] = held = like.new_empty(numbers)
        return held[:numbers]


def contract(
    p: Piece, q: Piece, full: bool, workspace: int, tally: Tally, force: str | None = None, name: str = ""
) -> tuple[Tensor, str]:
    """Kernel of two pieces of the same parameter.

    Args:
        p: Piece of the first batch.
        q: Piece of the second batch (the same object for a self-kernel).
        full: Keep output pairs apart.
        workspace: Bytes that intermediate blocks may take.
        tally: Statistics to update.
        force: `explicit` or `ghost` to force a form.
        name: The parameter's name, the key in `tally.input_grams` of Gram matrices that do not depend on the outputs.

    Returns:
        `(N, M)` summed over outputs, or `(N, M, R, R)`, and the form used.
    """
    if isinstance(p, Outer) and isinstance(q, Outer) and p.a_first == q.a_first:
        return _outer(p, q, full, workspace, tally, force, name)
    if isinstance(p, Lookup) and isinstance(q, Lookup):
        return _lookup(p, q, full, workspace, tally), "lookup"
    # of two batches one may have a single position, or its samples in columns, and the other not
    left = p.dense((-1,))
    return _gram(left, left if p is q else q.dense((-1,)), full, tally), "dense"


def _gram(j: Tensor, k: Tensor, full: bool, tally: Tally) -> Tensor:
    """`J J'ᵀ` of `(N, R, P)` and `(M, R, P)`.

    Returns:
        `(N, M)` or `(N, M, R, R)`.
    """
    n, r, p = j.shape
    m, rk = k.shape[:2]
    tally.flops += n * m * r * p * (rk if full else 1)
    tally.block(j, k)
    if full:
        return inner(j.reshape(n * r, p), k.reshape(m * rk, p)).reshape(n, r, m, rk).transpose(1, 2)
    return inner_self(j.reshape(n, r * p)) if j is k else inner(j.reshape(n, r * p), k.reshape(m, rk * p))


def inner(j: Tensor, k: Tensor) -> Tensor:
    """`J J'ᵀ` of rows that may be millions long, summed in two levels.

    One running float32 sum over millions of products loses three digits; sums of some thousands, added up as in a tree,
    lose none that matter.

    Returns:
        `(N, M)`.
    """
    n, length = j.shape
    m = k.shape[0]
    if length <= 2 * CHUNK or j.dtype != torch.float32:
        return j @ k.T
    chunks = length // CHUNK
    at_once = max(1, min(chunks, 2**22 // max(1, n * m)))
    total = j[:, chunks * CHUNK :] @ k[:, chunks * CHUNK :].T
    for start in range(0, chunks, at_once):
        count = min(at_once, chunks - start)
        part = slice(start * CHUNK, (start + count) * CHUNK)
        left = j[:, part].reshape(n, count, CHUNK).transpose(0, 1)
        right = left if j is k else k[:, part].reshape(m, count, CHUNK).transpose(0, 1)
        total += torch.bmm(left, right.transpose(1, 2)).sum(0)
    return total


def inner_self(j: Tensor) -> Tensor:
    """`J Jᵀ`, one triangle of it for many rows.

    Returns:
        `(N, N)`.
    """
    n = j.shape[0]
    if n < HALVED:
        return inner(j, j)
    out = j.new_empty(n, n)
    half = n // 2
    out[:half] = inner(j[:half], j)
    out[half:, half:] = inner(j[half:], j[half:])
    return mirror(out)


@dataclass(frozen=True)
class Cost:
    """Cost of a form: multiply-adds of matrix products, and total time in the same unit."""

    flops: float
    time: float


def costs(
    size: Size,
    n: int,
    m: int | None,
    r: int,
    full: bool,
    workspace: int,
    item: int,
    gram: float | None = None,
    profile: Profile = PROCESSOR,
) -> tuple[Cost, Cost]:
    """Return the costs of the explicit and the ghost form of two pieces.

    Args:
        size: Size of both pieces.
        n: Samples of the first batch.
        m: Samples of the second batch; None for a self-kernel.
        r: Outputs.
        full: Output pairs are kept apart.
        workspace: Bytes that blocks may take.
        item: Bytes of a number.
        gram: Cost of one entry of the Gram matrix of the sides without outputs, if it differs from that of `size`.
        profile: Profile of the device; rates were measured on a CPU.
    """
    same, other = m is None, n if m is None else m
    t, a, b = size.t, size.a, size.b
    columns = r if full else 1
    products = n * other * columns * (0.75 if same and n >= HALVED and not full else 1)
    made = n + (0 if same else other)
    rows = made * t
    flops = float(a * b * r) * (rows + products)
    time = flops + _TRAFFIC * float(a * b * r) * made
    if size.by_convolution:
        time -= (1 - _CONVOLVED) * float(a * b * r) * rows
    elif size.fixed < t * a:  # patches
        held = n * t * a <= _spare(workspace, same, item)
        tiles = 1 if held else ceil(made * a * r * b / max(1, min(workspace // 2 // item, profile.tile)))
        time += _PATCHES * rows * a * tiles
    explicit = Cost(flops, time)
    side, _ = blocks(n, other, t, t, same, min(workspace // max(1, 4 * item), profile.pairs) // columns**2)
    pairs = float(n * other * t * t) * (share(n, side) if same else 1.0)
    flops = pairs * ((size.gram if gram is None else gram) + b * r * columns)
    return explicit, Cost(flops, flops + pairs * ELEMENTWISE * columns**2)


def _outer(
    p: Outer, q: Outer, full: bool, workspace: int, tally: Tally, force: str | None, name: str
) -> tuple[Tensor, str]:
    n, t, _ = p.a.shape
    m, s, _ = q.a.shape
    same = p is q
    if t == 1 and s == 1 and force != "explicit":
        return _rank_one(p, q, full, tally, name), "gram"
    keeping = tally.input_grams if name and not full else None
    if keeping is not None and name not in keeping and n * t * m * s > tally.room:
        keeping = None
    gram = input_cost(p.a, q.a) / (1 if keeping is None else tally.steps)
    size = replace(Size.of(p), t=max(1, round((t * s) ** 0.5)))
    profile, item = profile_of(p.g.device), p.g.element_size()
    explicit, product = costs(size, n, None if same else m, p.g.shape[0], full, workspace, item, gram, profile)
    form = force or ("explicit" if explicit.time <= product.time else "ghost")
    if form == "explicit":
        tally.flops += explicit.flops
        return _explicit(p, q, same, full, workspace, tally), form
    tally.flops += product.flops
    known, fill = None, False
    if keeping is not None:
        fill = name not in keeping
        if fill:
            keeping[name] = p.g.new_empty(t, n, s, m)
            tally.room -= n * t * m * s
        known = keeping[name]
    out, peak = ghost(p, q, full, workspace, known, fill)
    tally.peak = max(tally.peak, peak)
    return mirror(out) if same else out, form


def _rank_one(p: Outer, q: Outer, full: bool, tally: Tally, name: str) -> Tensor:
    """`(A A'ᵀ) ∘ (G G'ᵀ)`.

    Returns:
        `(N, M)` or `(N, M, R, R)`.
    """
    n, _, a = p.a.shape
    m = q.a.shape[0]
    r, b = p.g.shape[0], p.g.shape[3]
    tally.flops += n * m * (a + b * r * (r if full else 1))
    pa, qa = all_rows(p.a), all_rows(q.a)
    ones = p.ones and q.ones
    keeping = tally.input_grams if name else None
    kept = None if keeping is None else keeping.get(name)
    left = kept
    if left is None and not (ones and not full):
        left = inner(pa.reshape(n, a), qa.reshape(m, a))
        if keeping is not None:
            keeping[name] = kept = left
    if full:
        assert left is not None
        g = p.g.reshape(r, n, b).transpose(0, 1).reshape(n * r, b)
        h = g if p is q else q.g.reshape(r, m, b).transpose(0, 1).reshape(m * r, b)
        right = (g @ h.T).reshape(n, r, m, r).transpose(1, 2)
        return left[:, :, None, None] * right
    right = _signal_gram(p.g, q.g, tally)
    if left is None:
        return right
    tally.block(left, right)
    return left.mul_(right) if kept is None else left * right


def _signal_gram(g: Tensor, h: Tensor, tally: Tally) -> Tensor:
    """`Σ_r G_r H_rᵀ` for one position; the last one is kept, because a weight and its bias need the same.

    The signals are kept with it: otherwise their memory could be reused for other signals.

    Returns:
        `(N, M)`.
    """
    key = (g.data_ptr(), h.data_ptr(), tuple(g.shape), g.stride(), tuple(h.shape), h.stride())
    told = all(key[:2])  # devices without addresses give 0 for all
    if told and tally.last is not None and tally.last[0] == key:
        return tally.last[2]
    r, n, _, b = g.shape
    m = h.shape[1]
    if r == 1 or b >= 128:
        out = g[0, :, 0] @ h[0, :, 0].T
        for k in range(1, r):
            out.addmm_(g[k, :, 0], h[k, :, 0].T)
    else:
        left = g.transpose(0, 1).reshape(n, r * b)
        right = left if g is h else h.transpose(0, 1).reshape(m, r * b)
        out = inner(left, right)
    tally.last = (key, (g, h), out)
    return out


def _explicit(p: Outer, q: Outer, same: bool, full: bool, workspace: int, tally: Tally) -> Tensor:
    """`Σ_tiles J J'ᵀ`, with J formed for some outputs and columns of g at a time, in the same memory.

    Returns:
        `(N, M)` or `(N, M, R, R)`.
    """
    n, _, a = p.a.shape
    m = q.a.shape[0]
    r, b = p.g.shape[0], p.g.shape[3]
    item, tile = p.g.element_size(), profile_of(p.g.device).tile
    one = (n + (0 if same else m)) * a  # numbers of one column of one output
    spare = _spare(workspace, same, item)
    left, right = p.a, q.a
    convolved = isinstance(p.a, Patches) and p.a.by_convolution
    if not convolved and one * r * b > _HOLD * min(workspace // 2 // item, tile):  # keep rows for the next tile
        left = _held(p.a, spare, tally, "left")
        right = left if same else _held(q.a, spare, tally, "right")
    held = convolved or (isinstance(left, Tensor) and isinstance(right, Tensor))
    # patches that are remade for every tile require large tiles
    room = max(1, min(workspace // 2 // item, tile if held or one * r * b <= _HOLD * tile else workspace) // one)
    if full:
        outputs, width = r, max(1, min(b, room // r))
    else:
        outputs, width = max(1, min(r, room // b)), min(b, room)
    width = ceil(b / ceil(b / width))  # even tiles: a narrow last one is slow
    j = tally.memory("j", n * outputs * width * a, p.g)
    k = j if same else tally.memory("k", m * outputs * width * a, p.g)
    tally.block(j, *(() if same else (k,)))
    total = p.g.new_zeros((n * r, m * r) if full else (n, m))
    for first in range(0, r, outputs):
        some = slice(first, min(first + outputs, r))
        for start in range(0, b, width):
            columns = slice(start, min(start + width, b))
            gradients = _gradients(left, p.g, some, columns, j, spare, tally)
            others = gradients if same else _gradients(right, q.g, some, columns, k, spare, tally)
            if full:
                total += inner(gradients.reshape(n * r, -1), others.reshape(m * r, -1))
            elif same and n >= HALVED:
                half = n // 2
                total[:half] += inner(gradients[:half], gradients)
                total[half:, half:] += inner(gradients[half:], gradients[half:])
            else:
                total += inner(gradients, others)
    if full:
        return total.reshape(n, r, m, r).transpose(1, 2)
    return mirror(total) if same and n >= HALVED else total


def explicit_gradients(piece: Outer, workspace: int, tally: Tally) -> Dense:
    """Form all explicit gradients of a piece.

    Returns:
        `(N, R, A·B)`, entries in the order that is fastest to make; the same for all blocks of samples.
    """
    n, _, a = piece.a.shape
    r, b = piece.g.shape[0], piece.g.shape[3]
    j = piece.g.new_empty(n * r * b * a)
    spare = _spare(workspace, True, piece.g.element_size())
    tally.flops += float(n * piece.a.shape[1]) * a * b * r
    return Dense(_gradients(piece.a, piece.g, slice(0, r), slice(0, b), j, spare, tally).view(n, r, b * a))


def _spare(workspace: int, same: bool, item: int) -> int:
    """Return the number of patch entries that may be held on each side."""
    return workspace // (4 if same else 8) // item


def _held(a: Tensor | Patches, room: int, tally: Tally, role: str) -> Tensor | Patches:
    """Return all rows if they take at most `room` numbers, otherwise the unexpanded patches."""
    size = a.shape[0] * a.shape[1] * a.shape[2]
    if isinstance(a, Tensor) or size > room:
        return a
    return a.make_fast(slice(0, a.shape[0]), tally.memory(role, size, a.x))


def _gradients(
    a: Tensor | Patches, g: Tensor, outputs: slice, columns: slice, memory: Tensor, room: int, tally: Tally
) -> Tensor:
    """Explicit gradients of some outputs for some columns of g, written into `memory`.

    Returns:
        `(N, R·width·A)`.
    """
    n, t, size = a.shape
    r, w = outputs.stop - outputs.start, columns.stop - columns.start
    j = memory[: n * r * w * size].view(n, r * w, size)
    if isinstance(a, Patches) and a.by_convolution:
        signals = g.transpose(2, 3).unflatten(3, a.out)
        for k in range(r):
            a.weight_gradients(signals[outputs.start + k, :, columns], slice(0, n), j[:, k * w : (k + 1) * w])
        return j.view(n, -1)
    step, some = n, min(room, profile_of(g.device).tile // 4)
    rows = None
    if isinstance(a, Patches):
        step = max(1, min(n, some // (t * max(size, r * w))))
        rows = tally.memory("rows", step * t * size, g)
    elif r > 1:
        step = max(1, min(n, some // max(1, t * r * w)))
    for i in range(0, n, step):
        samples = slice(i, min(i + step, n))
        part = g[outputs, samples, :, columns]  # (r, n, T, w)
        if r == 1:
            left = part[0].transpose(1, 2)
        elif g.stride(-1) == 1 or w == 1:  # rows are positions: gather (n, T, r·w)
            left = part.permute(1, 2, 0, 3).reshape(-1, t, r * w).transpose(1, 2)
        else:
            left = part.permute(1, 0, 3, 2).reshape(-1, r * w, t)
        torch.bmm(left, some_rows(a, samples, rows), out=j[samples])
    return j.view(n, -1)


def mirror(out: Tensor) -> Tensor:
    """Complete a self-kernel computed only in blocks on and above the diagonal.

    Returns:
        The symmetric kernel.
    """
    n = out.shape[0]
    upper = torch.ones(n, n, dtype=torch.bool, device=out.device).triu()
    if out.dim() == 2:
        return torch.where(upper, out, out.T)
    return torch.where(upper[:, :, None, None], out, out.permute(1, 0, 3, 2))


def _lookup(p: Lookup, q: Lookup, full: bool, workspace: int, tally: Tally) -> Tensor:
    """`Σ_{t,s} [id = id'] g·g'`: the table is never formed.

    Returns:
        `(N, M)` or `(N, M, R, R)`.
    """
    r, n, t, d = p.g.shape
    m, s = q.ids.shape
    item = p.g.element_size()
    tally.flops += n * m * t * s * d * r * (r if full else 1)
    out = p.g.new_zeros((n, m, r, r) if full else (n, m))
    g = p.g.permute(1, 2, 0, 3)
    h = q.g.permute(1, 2, 0, 3)
    hh = h.reshape(m * s * r, d) if full else h.reshape(m * s, r * d)
    rows = max(1, min(n, workspace // max(1, 3 * t * m * s * item * (r * r if full else 1))))
    for i in range(0, n, rows):
        ni = min(rows, n - i)
        ids = p.ids[i : i + ni]
        hit = (ids[:, :, None, None] == q.ids[None, None]) & (ids >= 0)[:, :, None, None]
        if full:
            right = (g[i : i + ni].reshape(ni * t * r, d) @ hh.T).reshape(ni, t, r, m, s, r)
            out[i : i + ni] = (right * hit.reshape(ni, t, 1, m, s, 1)).sum((1, 4)).transpose(1, 2)
        else:
            right = (g[i : i + ni].reshape(ni * t, r * d) @ hh.T).reshape(ni, t, m, s)
            out[i : i + ni] = right.mul_(hit).sum((1, 3))
        tally.block(right)
    return out
