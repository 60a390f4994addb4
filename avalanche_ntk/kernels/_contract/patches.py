"""Patches of a convolution (its inputs at each output position), expanded and unexpanded.

Row `(n, p)` of a convolution's patches is `[x[n, c, s·p + o]]` over channels c and kernel offsets o. The rows are
`kernel size` times larger than x. Their Gram matrix does not need them: with the Gram matrix of pixels
`Q[u, v] = Σ_c x[n, c, u]·x'[m, c, v]`, the patches' is `Σ_o Q[s·p + o, s·q + o]`, a sum over diagonal shifts, which is
made one dimension after the other. For a stride s, offsets with the same remainder read the same sub-lattice of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import torch
from torch import Tensor

from avalanche_ntk.kernels._device.profile import by_onednn

STRIP = 4096  # positions that one convolution sums over
LARGE = 2**21  # multiply-adds per sample and output from which convolutions are faster than matrix products
SHIFT = 6.0  # cost of adding one shifted copy, in multiply-adds of a matrix product


def unfolded(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], out: list[int]
) -> Tensor:
    """Patches of `(batch, channels, *size)` that a convolution reads at each of `out` positions, as a view.

    Returns:
        `(batch, channels, *kernel, *out)`.
    """
    nd = len(kernel)
    extent = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(out, stride, kernel, dilation, strict=True)]
    pad: list[int] = []
    for size, p, e in reversed(list(zip(x.shape[2:], padding, extent, strict=True))):
        pad += [p, max(0, e - size - p)]
    if any(pad):
        x = torch.nn.functional.pad(x, pad)
    st = x.stride()
    view = x.as_strided(
        (x.shape[0], x.shape[1], *kernel, *out),
        (st[0], st[1], *(st[2 + i] * dilation[i] for i in range(nd)), *(st[2 + i] * stride[i] for i in range(nd))),
        x.storage_offset(),
    )
    return view


@dataclass
class Patches:
    """Rows `(N, T, A)` of a convolution's patches, T output positions, A = channels × kernel entries.

    Attributes:
        x: `(N, channels, *size)` input of the convolution.
        kernel: Size of the kernel, one number per dimension like the following.
        stride: Steps between positions.
        padding: Zeros before the first pixel.
        dilation: Steps between kernel entries.
        out: Size of the output.
        filters: Columns B of the weight, if known.
    """

    x: Tensor
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    out: list[int]
    filters: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows: `(N, T, A)`."""
        return self.x.shape[0], prod(self.out), self.x.shape[1] * prod(self.kernel)

    @property
    def channels_last(self) -> bool:
        """Whether a pixel's channels are contiguous in memory."""
        return self.x.stride(1) == 1

    def make(self, samples: slice) -> Tensor:
        """Return the rows of some samples, `(n, T, A)`; A is (channels, kernel), as in the weight."""
        p = unfolded(self.x[samples], self.kernel, self.stride, self.padding, self.dilation, self.out)
        return p.reshape(p.shape[0], self.shape[2], self.shape[1]).transpose(1, 2)

    def make_fast(self, samples: slice, memory: Tensor | None = None) -> Tensor:
        """Return the rows of some samples, `(n, T, A)`; A is (kernel, channels).

        Args:
            samples: The samples.
            memory: Flat tensor to write to; reused memory is faster than new memory.
        """
        p = unfolded(self.x[samples], self.kernel, self.stride, self.padding, self.dilation, self.out)
        nd = len(self.kernel)
        kernel, out = range(2, 2 + nd), range(2 + nd, 2 + 2 * nd)
        last = self.channels_last
        p = p.permute(0, *out, *kernel, 1) if last else p.permute(0, *kernel, 1, *out)
        if memory is not None:
            p = memory[: p.numel()].view(p.shape).copy_(p)
        n, t, a = p.shape[0], self.shape[1], self.shape[2]
        return p.reshape(n, t, a) if last else p.reshape(n, a, t).transpose(1, 2)

    def some(self, samples: slice) -> Patches:
        """Return the patches of some samples."""
        return replace(self, x=self.x[samples])

    def positions_first(self) -> Patches:
        """Return the same patches with pixels before samples in memory, as `gram` reads them."""
        nd = len(self.kernel)
        x = self.x.permute(*range(2, 2 + nd), 0, 1).contiguous().permute(nd, nd + 1, *range(nd))
        return replace(self, x=x)

    @property
    def by_convolution(self) -> bool:
        """Whether weight gradients are computed by convolutions of oneDNN, which need no patches.

        They are faster than matrix products if there is enough work per sample.
        """
        large = prod(self.shape[1:]) * self.filters >= LARGE
        return large and len(self.kernel) == 2 and by_onednn(self.x)

    def weight_gradients(self, g: Tensor, samples: slice, into: Tensor) -> None:
        """Form the gradients of a weight for some samples and one output, by convolutions of inputs with signals.

        Positions are summed in strips: a running sum of many thousands loses a digit.

        Args:
            g: `(N, B, *out)` signals.
            samples: The samples.
            into: `(n, B, A)`, A being (kernel, channels), where they are written.
        """
        x, g = self.x[samples], g[samples]
        (k, _), (s, _), (p, q), (d, _) = self.kernel, self.stride, self.padding, self.dilation
        rows = max(1, STRIP // self.out[1])
        strips = -(-self.out[0] // rows)
        if strips > 1 and p:
            x, p = torch.nn.functional.pad(x, (0, 0, p, p)), 0
        weight = x.new_empty(g.shape[1], x.shape[1], *self.kernel)
        for i in range(x.shape[0]):
            for strip in range(strips):
                top, bottom = strip * rows, min((strip + 1) * rows, self.out[0])
                part = x if strips == 1 else x[:, :, top * s : (bottom - 1) * s + (k - 1) * d + 1]
                _, made, _ = torch.ops.aten.convolution_backward(
                    g[i : i + 1, :, top:bottom],
                    part[i : i + 1],
                    weight,
                    None,
                    self.stride,
                    [p, q],
                    self.dilation,
                    False,
                    [0, 0],
                    1,
                    [False, True, False],
                )
                made = made.movedim(1, -1).reshape(into[i].shape)
                into[i] = made if not strip else into[i] + made

    def lattices(self) -> Iterator[tuple[tuple[int, ...], tuple[list[int], ...]]]:
        """Return the sub-lattices of pixels that are read: their first pixels, and the shifts of positions on them."""
        by_dimension = []
        for k, s, p, d in zip(self.kernel, self.stride, self.padding, self.dilation, strict=True):
            shifts: dict[int, list[int]] = {}
            for i in range(k):
                shifts.setdefault((i * d - p) % s, []).append((i * d - p) // s)
            by_dimension.append(list(shifts.items()))
        for chosen in product(*by_dimension):
            yield tuple(first for first, _ in chosen), tuple(shifts for _, shifts in chosen)

    def pixels(self, first: tuple[int, ...]) -> Tensor:
        """Return the pixels of a sub-lattice, positions before samples, `(*size, N, channels)`."""
        lattice = (slice(f, None, s) for f, s in zip(first, self.stride, strict=True))
        every = slice(None)
        index = (every, every, *lattice)
        nd = len(self.kernel)
        return self.x[index].permute(*range(2, 2 + nd), 0, 1)


def gram_cost(a: Patches, b: Patches) -> float:
    """Cost of one entry of `gram` in multiply-adds, including shifted sums."""
    total = 0.0
    channels = a.x.shape[1]
    pairs = prod(a.out) * prod(b.out)
    for first, shifts in a.lattices():
        u = prod(-(-(size - f) // s) for size, f, s in zip(a.x.shape[2:], first, a.stride, strict=True))
        v = prod(-(-(size - f) // s) for size, f, s in zip(b.x.shape[2:], first, b.stride, strict=True))
        total += channels * u * v / pairs + SHIFT * sum(1 + len(found) for found in shifts)
    return total


def gram(a: Patches, b: Patches) -> Tensor:
    """Gram matrix of the patches of two batches, without expanding them.

    Args:
        a: Patches of the first batch.
        b: Patches of the second batch, of the same convolution.

    Returns:
        `(T, N, S, M)`: positions before samples.
    """
    total: Tensor | None = None
    nd = len(a.kernel)
    for first, shifts in a.lattices():
        pa, pb = a.pixels(first), b.pixels(first)
        if not pa.numel() or not pb.numel():  # only padding is read there
            continue
        q = pa.reshape(-1, pa.shape[-1]) @ pb.reshape(-1, pb.shape[-1]).T
        q = q.view(*pa.shape[:-1], *pb.shape[:-1])
        for d, found in enumerate(shifts):
            q = _diagonal(q, d, nd + 1 + d, found, a.out[d], b.out[d])
        total = q if total is None else total.add_(q)
    size = (a.shape[1], a.shape[0], b.shape[1], b.shape[0])
    return a.x.new_zeros(size) if total is None else total.view(size)


def _diagonal(q: Tensor, d: int, e: int, shifts: list[int], rows: int, columns: int) -> Tensor:
    """`Σ_k q[…, i + k, …, j + k, …]` over shifts k of the dimensions d and e; outside of q there are zeros.

    Returns:
        A tensor whose dimensions d and e have the sizes `rows` and `columns`.
    """
    if shifts == [0] and q.shape[d] == rows and q.shape[e] == columns:
        return q
    shape = list(q.shape)
    shape[d], shape[e] = rows, columns
    out: Tensor | None = None
    # the shift with the largest overlap comes first: if it covers everything, no zeros have to be written
    for k in sorted(shifts, key=abs):
        i, j = range(max(0, -k), min(rows, q.shape[d] - k)), range(max(0, -k), min(columns, q.shape[e] - k))
        whole = len(i) == rows and len(j) == columns
        if not i or not j:
            continue
        part = q.narrow(d, i.start + k, len(i)).narrow(e, j.start + k, len(j))
        if out is None:
            if whole:
                out = part.clone(memory_format=torch.contiguous_format)
                continue
            out = q.new_zeros(shape)
        out.narrow(d, i.start, len(i)).narrow(e, j.start, len(j)).add_(part)
    return q.new_zeros(shape) if out is None else out
