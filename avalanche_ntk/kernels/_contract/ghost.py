"""Products of per-sample gradients that are never formed: `Σ_{t,s} (a[n,t]·a'[m,s]) (Σ_r g[r,n,t]·g'[r,m,s])`.

Positions come before samples in every block, so that shifted sums (see `patches`) and the last sum over positions are
contiguous in memory. The block size depends on the device (`profile`).
"""

from __future__ import annotations

from math import ceil

from torch import Tensor

from avalanche_ntk.kernels._contract.patches import Patches, gram, gram_cost
from avalanche_ntk.kernels._contract.pieces import Outer, some_rows
from avalanche_ntk.kernels._device.profile import profile_of

LEAST = 128  # rows of a block below which products get slow
ELEMENTWISE = 24.0  # cost of multiplying and summing one pair of positions, in multiply-adds of a matrix product


def blocks(n: int, m: int, t: int, s: int, same: bool, room: int) -> tuple[int, int]:
    """Samples of both sides of a block with at most `room` pairs of positions.

    Returns:
        `(rows, columns)`; small enough that computing one triangle of a self-kernel saves work.
    """
    pairs = max(1, room // (t * s))
    if same:
        side = max(1, min(n, int(pairs**0.5)))
        side = min(side, max(ceil(n / 4), ceil(LEAST / t)))
        return side, side
    rows = max(1, min(n, int(pairs**0.5)))
    return rows, max(1, min(m, pairs // rows))


def share(n: int, side: int) -> float:
    """Return the share of pairs of samples covered by blocks on and above the diagonal."""
    starts = range(0, n, side)
    return sum(min(side, n - i) * (n - i) for i in starts) / (n * n)


def input_cost(a: Tensor | Patches, b: Tensor | Patches) -> float:
    """Return the cost of one entry of the Gram matrix of the sides without outputs, in multiply-adds."""
    if isinstance(a, Patches) and isinstance(b, Patches):
        return min(gram_cost(a, b), float(a.shape[2]))
    return float(a.shape[2])


def _spread(a: Tensor | Patches, b: Tensor | Patches, numbers: int) -> tuple[Tensor | Patches, Tensor | Patches]:
    """Both sides in the form for blocks: expanded patches or their reordered pixels, if `numbers` suffice."""
    same = a is b
    if isinstance(a, Patches) and isinstance(b, Patches) and gram_cost(a, b) < a.shape[2]:
        left = a.positions_first() if a.x.numel() * (1 if same else 2) <= numbers else a
        return left, left if same else (b.positions_first() if left is not a else b)
    sizes = [x.shape[0] * x.shape[1] * x.shape[2] for x in ((a,) if same else (a, b))]
    if sum(sizes) > numbers:
        return a, b
    rows = some_rows(a, slice(0, a.shape[0])).contiguous()
    return rows, rows if same else some_rows(b, slice(0, b.shape[0])).contiguous()


def _block(a: Tensor | Patches, samples: slice, by_pixels: bool) -> Tensor | Patches:
    """Return the block of some samples: `(T·n, A)`, or pixels."""
    if by_pixels:
        assert isinstance(a, Patches)
        return a.some(samples)
    rows = some_rows(a, samples).transpose(0, 1)
    return rows.reshape(-1, rows.shape[2])


def _left(a: Tensor | Patches, b: Tensor | Patches, size: tuple[int, int, int, int]) -> Tensor:
    """Return the Gram matrix of two blocks, `(T, n, S, m)`."""
    if isinstance(a, Patches) and isinstance(b, Patches):
        return gram(a, b)
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return (a @ b.T).view(size)


def ghost(
    p: Outer, q: Outer, full: bool, workspace: int, known: Tensor | None = None, fill: bool = False
) -> tuple[Tensor, int]:
    """The kernel of two pieces in blocks of samples; one triangle only for a self-kernel.

    Args:
        p: Piece of the first batch.
        q: Piece of the second batch (the same object for a self-kernel).
        full: Keep output pairs apart.
        workspace: Bytes that blocks may take.
        known: `(T, N, S, M)` Gram matrix of the sides without outputs, shared with other outputs.
        fill: Whether it is still to be computed and written.

    Returns:
        `(N, M)` or `(N, M, R, R)` (for a self-kernel the lower triangle may be empty), and the bytes of the largest
        blocks.
    """
    same = p is q
    n, t, _ = p.a.shape
    m, s, _ = q.a.shape
    r = p.g.shape[0]
    item = p.g.element_size()
    out = p.g.new_zeros((n, m, r, r) if full else (n, m))
    pg = _signals(p, full)
    qg = pg if same else _signals(q, full)
    pa, qa = p.a, q.a
    if known is None or fill:
        pa, qa = _spread(pa, qa, workspace // 4 // item)
    by_pixels = isinstance(pa, Patches) and isinstance(qa, Patches) and gram_cost(pa, qa) < pa.shape[2]
    square = r * r if full else 1
    rows, cols = blocks(n, m, t, s, same, min(workspace // max(1, 4 * item), profile_of(p.g.device).pairs) // square)
    peak = 0
    for i in range(0, n, rows):
        some = slice(i, min(i + rows, n))
        ni = some.stop - i
        a = None if known is not None and not fill else _block(pa, some, by_pixels)
        g = pg[:, some].flatten(0, -2)
        for k in range(i if same else 0, m, cols):
            others = slice(k, min(k + cols, m))
            mk = others.stop - k
            if a is None:
                assert known is not None
                left = known[:, some, :, others]
            else:
                b = a if same and k == i else _block(qa, others, by_pixels)
                left = _left(a, b, (t, ni, s, mk))
                if known is not None:
                    known[:, some, :, others] = left
            right = g @ (g if same and k == i else qg[:, others].flatten(0, -2)).T
            peak = max(peak, (left.numel() + 2 * right.numel()) * item)
            if full:
                pairs = right.view(t, ni, r, s, mk, r).mul_(left.reshape(t, ni, 1, s, mk, 1))
                out[some, others] = pairs.sum((0, 3)).transpose(1, 2)
            else:
                out[some, others] = right.view(t, ni, s, mk).mul_(left).sum((0, 2))
    return out, peak


def _signals(p: Outer, full: bool) -> Tensor:
    """Signals with positions first.

    Returns:
        `(T, N, R·B)`, or `(T, N, R, B)` where output pairs are kept apart.
    """
    g = p.g.permute(2, 1, 0, 3)
    return g.contiguous() if full else g.reshape(*g.shape[:2], -1).contiguous()
