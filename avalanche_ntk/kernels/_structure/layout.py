"""Layouts: which entries of a flattened activation belong to which sample, as measured.

A tensor that carries N samples has one dimension of size `a·N·b`: sample-major `(N·b)`, token-major `(a·N)` as in
torch's attention, or both. Shapes at two batch sizes show which dimension grows. The order within it is found from two
backward passes whose cotangents differ by a known weight for every sample: the ratio of the two signals *is* the
sample's weight. An entry that depends on two samples has no such ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_ntk.kernels._device.profile import profile_of


@dataclass(frozen=True)
class Layout:
    """Dimension `dim` of a tensor is `(before, N, after)`, flattened."""

    dim: int
    before: int = 1
    after: int = 1

    def fits(self, shape: tuple[int, ...], n: int) -> bool:
        """Return whether a tensor of this shape can hold n samples in this order.

        Returns:
            True if it can.
        """
        return len(shape) > self.dim and shape[self.dim] == self.before * n * self.after

    def samples_first(self, g: Tensor, n: int) -> Tensor:
        """View `(R, *shape)` as `(R, N, *shape)`, with the sample dimension replaced by `before·after`.

        Returns:
            A view if strides allow, otherwise a copy.
        """
        d = self.dim + 1
        split = g.reshape(*g.shape[:d], self.before, n, self.after, *g.shape[d + 1 :])
        moved = split.movedim(d + 1, 1)
        return moved.reshape(*moved.shape[: d + 1], self.before * self.after, *moved.shape[d + 3 :])


def candidates(small: tuple[int, ...], large: tuple[int, ...], n_small: int, n_large: int) -> list[Layout] | None:
    """Layouts consistent with a tensor's shapes at two batch sizes.

    Returns:
        None if the shape does not depend on the batch size, otherwise the possible layouts (possibly none).
    """
    if small == large:
        return None
    if len(small) != len(large):
        return []
    grown = [d for d in range(len(small)) if small[d] != large[d]]
    if len(grown) != 1:
        return []
    d = grown[0]
    if large[d] % n_large or small[d] % n_small or large[d] // n_large != small[d] // n_small:
        return []
    inner = large[d] // n_large
    return [Layout(d, a, inner // a) for a in range(1, inner + 1) if inner % a == 0]


def sample_of(
    plain: Tensor,
    weighted: Tensor,
    weights: Tensor,
    dim: int,
    precision: torch.dtype | None = None,
    sizes: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample of each entry from the ratio of two signals.

    Args:
        plain: Signals of a cotangent that is the same for every sample.
        weighted: Signals of the same cotangent times `weights[n]`.
        weights: `(N,)` well separated positive numbers, ascending.
        dim: Dimension of the samples.
        precision: Precision of the signals, if ratios must equal weights up to rounding; by default within 2 %.
        sizes: Magnitude of the signals at each position of `dim` and in total, if only some signals are given.

    Returns:
        `(index, clear)`: the sample of each entry, -1 if the ratio is no sample's weight; and which entries are large
        enough for a decision, relative to those at the same position of `dim`, since samples may differ much in
        magnitude.
    """
    if not plain.numel():
        return torch.zeros_like(plain, dtype=torch.long), torch.zeros_like(plain, dtype=torch.bool)
    size = plain.abs()
    others = [d for d in range(plain.dim()) if d != dim]
    near, most = (size.amax(others, keepdim=True) if others else size, size.max()) if sizes is None else sizes
    clear = (size > 1e-3 * near) & (size > (1e-11 if size.dtype == torch.float64 else 1e-5) * most)
    ratio = torch.where(clear, weighted / torch.where(clear, plain, torch.ones_like(plain)), torch.zeros_like(plain))
    real = (ratio.real if ratio.is_complex() else ratio).contiguous()
    index = torch.searchsorted(((weights[1:] + weights[:-1]) / 2).to(real), real)
    tolerance: Tensor | float = 0.02
    if precision is not None:  # entries that are small relative to their sample have less relative accuracy
        eps = max(torch.finfo(precision).eps, 1e-10)
        tolerance = (200 * eps * near / torch.where(clear, size, near)).clamp(1e3 * eps, 0.02)
    known = (ratio - weights[index]).abs() < tolerance * weights[index]
    return torch.where(known, index, torch.full_like(index, -1)), clear


def consistent(layout: Layout, index: Tensor, clear: Tensor, label: Tensor) -> bool:
    """Return whether every clear entry belongs to the layout's sample.

    Args:
        layout: The layout.
        index: The measured sample of each entry.
        clear: Which entries are clear.
        label: `(N,)` expected index of each sample's entries.

    Returns:
        True if all agree.
    """
    expected = label.repeat_interleave(layout.after).repeat(layout.before)
    expected = expected.reshape([-1 if d == layout.dim else 1 for d in range(index.dim())])
    return not bool(((index != expected) & clear).any())


def holds(
    layout: Layout, plain: Tensor, weighted: Tensor, weights: Tensor, label: Tensor, precision: torch.dtype
) -> bool:
    """Return whether the signals of a batch agree with a layout, processed in parts.

    Args:
        layout: The layout.
        plain: See `sample_of`.
        weighted: See `sample_of`.
        weights: See `sample_of`.
        label: `(N,)` index of each sample's weight.
        precision: See `sample_of`.

    Returns:
        True if all agree.
    """
    if not plain.numel():
        return True
    d = layout.dim
    plain, weighted = (t.movedim(d, 0).flatten(1) if t.dim() > 1 else t[:, None] for t in (plain, weighted))
    step = max(1, profile_of(plain.device).looked // max(1, plain.shape[0]))
    rows = Layout(0, layout.before, layout.after)
    near = plain.abs().amax(1, keepdim=True)
    sizes = near, near.max()
    return all(
        consistent(rows, *sample_of(p, w, weights, 0, precision, sizes), label)
        for p, w in zip(plain.split(step, 1), weighted.split(step, 1), strict=True)
    )
