"""Splitting of a measurement, by combinations of outputs or by rows of the kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_ntk.kernels._function.batch import Batch


@dataclass(frozen=True)
class Part:
    """Some rows of a kernel; for a self-kernel, only the columns from the first of these rows on.

    Attributes:
        rows: Samples of the first batch.
        columns: Samples of the second one.
    """

    rows: slice
    columns: slice

    def batches(self, b1: Batch, b2: Batch | None) -> tuple[Batch, Batch | None]:
        """Return the batches of this part; None for the second if it equals the first."""
        if b2 is None and self.rows == self.columns:
            return b1.part(self.rows), None
        return b1.part(self.rows), (b1 if b2 is None else b2).part(self.columns)

    def own(self, kernel: Tensor) -> Tensor:
        """Return this part of a self-kernel with its leading square made symmetric."""
        size = self.rows.stop - self.rows.start
        kernel = kernel.clone()
        square = kernel[:, :size]
        kernel[:, :size] = (square + transposed(square)) / 2
        return kernel

    def put(self, into: Tensor, kernel: Tensor, mirrored: bool) -> None:
        """Write the kernel of this part to its position and, for a self-kernel, to the mirrored one."""
        if mirrored:
            kernel = self.own(kernel)
            into[self.columns, self.rows] = transposed(kernel)
        into[self.rows, self.columns] = kernel


def transposed(kernel: Tensor) -> Tensor:
    """Return a kernel `(N, M)` or `(N, M, C, C)` with its batches exchanged."""
    return kernel.permute(1, 0, 3, 2) if kernel.dim() == 4 else kernel.T


def parts(n: int, m: int | None, size: int) -> list[Part]:
    """Split a kernel into parts of `size` rows.

    Args:
        n: Samples of the first batch.
        m: Samples of the second batch; None for a self-kernel.
        size: Rows of a part.

    Returns:
        The parts, in order.
    """
    return [_part(i, min(i + size, n), n, m) for i in range(0, n, size)]


def part_of(rank: int, size: int, n: int, m: int | None) -> Part | None:
    """Return the rows of one process, with about equally many entries each; None if there are too few rows.

    For a self-kernel, whose rows get shorter, the first `k` of `size` processes have `n (1 − √(1 − k/size))` rows.
    """
    bounds = [n * (k / size if m is not None else 1 - (1 - k / size) ** 0.5) for k in (rank, rank + 1)]
    first, last = round(bounds[0]), round(bounds[1])
    return _part(first, last, n, m) if last > first else None


def _part(first: int, last: int, n: int, m: int | None) -> Part:
    return Part(slice(first, last), slice(first, n) if m is None else slice(0, m))


def own_rows(rows: Tensor, rank: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the combinations of outputs of one process, and their indices."""
    index = torch.arange(rank, len(rows), size, device=rows.device)
    return rows[index], index
