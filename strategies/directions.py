"""Orthonormal directions in the space of a model's parameters, which may grow meanwhile."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Directions shorter than this share of the longest are rounding errors of dependent ones.
TOLERANCE = 1e-10

Shapes = Mapping[str, tuple[int, ...]]


def orthonormal(columns: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Return an orthonormal basis of the columns' span, in float64, by the singular value decomposition.

    Args:
        columns: Shape `(P, K)`.
        tolerance: Singular values below this share of the largest are taken for 0.

    Returns:
        Shape `(P, R)`, R the rank; the leading direction first.

    Example:
        >>> orthonormal(torch.tensor([[2.0, 4.0], [0.0, 0.0]])).abs()
        tensor([[1.],
                [0.]], dtype=torch.float64)
    """
    u, s, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    basis: Tensor = u[:, s > tolerance * s.max()] if s.numel() and s.max() > 0 else u[:, :0]
    return basis


def outside(columns: Tensor, basis: Tensor) -> Tensor:
    """Return what is left of columns without their parts in the span of an orthonormal basis: `c − B Bᵀ c`.

    Twice, as Gram–Schmidt needs it: what one pass leaves of nearly dependent columns is not orthogonal to rounding.
    """
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    return columns


class Directions:
    """Stored directions by parameter name: `(K, *shape)` each, orthonormal as rows over all parameters together.

    A model may change between tasks. A parameter that is new has the part 0 in every stored direction; one that has
    grown (the rows of a head) has 0 in its new entries, the old ones being the leading block, where Avalanche's growing
    layers keep them. Both leave the directions orthonormal. One that is gone, frozen or smaller is left out, and what
    is left of the directions is orthonormalised again.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def basis(self, shapes: Shapes, device: torch.device | str = "cpu") -> Tensor:
        """Return the directions as columns in the flattened, concatenated parameters of the given names and shapes.

        Args:
            shapes: The model's trainable parameters now, in order.
            device: Where to put the result while nothing is stored.

        Returns:
            Orthonormal, float64, shape `(P, R)`; R is smaller than the number stored where parameters were lost.
        """
        rows: list[Tensor] = []
        whole = self.parts.keys() <= set(shapes)
        device = next(iter(self.parts.values())).device if self.parts else device
        for name, shape in shapes.items():
            row = torch.zeros((self.count, *shape), dtype=torch.float64, device=device)
            old = self.parts.get(name)
            if old is not None and old.dim() == row.dim():
                inside = (slice(None), *(slice(0, min(a, b)) for a, b in zip(old.shape[1:], shape, strict=True)))
                row[inside] = old[inside]
                whole = whole and all(a <= b for a, b in zip(old.shape[1:], shape, strict=True))
            elif old is not None:
                whole = False
            rows.append(row.reshape(self.count, torch.Size(shape).numel()))
        nothing = torch.zeros((0, self.count), dtype=torch.float64, device=device)
        columns = torch.cat(rows, 1).T if rows else nothing
        return columns if whole else orthonormal(columns)

    def add(self, columns: Tensor, shapes: Shapes) -> int:
        """Store what is new in some columns, orthonormalised against those that are stored.

        Args:
            columns: Shape `(P, K)`, in the layout of `shapes`.
            shapes: The model's trainable parameters now, in order.

        Returns:
            The number of directions that were added; less than K where the columns depend on each other or on what is
            stored.
        """
        known = self.basis(shapes, columns.device)
        columns = columns.double()
        scale = float(columns.norm(dim=0).max()) if columns.numel() else 0.0
        rest = outside(columns, known)
        # What is left of a column that lies in the stored span is rounding, however large it is beside the others.
        rest = rest[:, rest.norm(dim=0) > TOLERANCE * scale]
        new = orthonormal(rest)
        # Small singular directions have lost some of their orthogonality to what is stored: once more.
        new = torch.linalg.qr(outside(new, known))[0] if new.shape[1] else new
        everything = torch.cat([known, new], 1).T
        self.count = everything.shape[0]
        sizes = [int(torch.Size(shape).numel()) for shape in shapes.values()]
        pieces = everything.split(sizes, 1)
        self.parts = {
            name: piece.reshape(self.count, *shape).clone()
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }
        return int(new.shape[1])
