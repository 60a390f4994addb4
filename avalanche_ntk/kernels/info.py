"""Ways to compute a kernel, and the record of how one was computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np
from scipy.linalg import eigvalsh
from torch import Tensor


class Method(str, Enum):
    """How the kernel is computed. All are exact; they differ in what they cost and where they can go.

    With N samples, C outputs, P parameters, T positions a sample (1 for a plain layer, pixels or tokens otherwise):

    * `AUTO`: the graph engine, the cheaper of the two forms for every use of every parameter, and per-sample Jacobians
      for what the graph does not show. Right for nearly everything.
    * `GHOST`: the graph engine with Gram products over pairs of positions, `N²T²(A + C·B)` for a weight of A·B
      entries (A channels, not patches, for a convolution). Wins where T is small and layers are wide; never forms a
      weight gradient.
    * `EXPLICIT`: the graph engine with per-sample gradients formed in slices, `C·A·B·(N·T + N²)`. Wins where T is
      large and layers are narrow (early convolutions).
    * `JACOBIAN`: `torch.func` (`vmap` of `vjp`), `N·C·P` numbers in chunks. The textbook way; tens to hundreds of
      times slower.
    * `LOOP`: one forward pass and C backward passes for every sample alone. Slowest, and goes wherever a backward pass
      goes (data-dependent branches, `.item()`, custom functions).
    """

    AUTO = "auto"
    GHOST = "ghost"
    EXPLICIT = "explicit"
    JACOBIAN = "jacobian"
    LOOP = "loop"


@dataclass
class KernelInfo:
    """How a kernel was computed, and how good it is.

    Attributes:
        methods: Parameter → the form that was used: `gram` (one position), `ghost`, `explicit`, `dense`, `lookup`,
            `masked`
            (a node without a rule, by its own backward), `jacobian` or `loop` (generic paths), `unused` (no gradient).
        reasons: Parameter → why it took a generic path.
        flops: Multiply-adds of the contraction (forward and backward passes not counted).
        peak_bytes: Estimate of the largest memory taken beyond the forward pass.
        asymmetry: `‖K − Kᵀ‖ / ‖K‖` before a self-kernel was made symmetric; None for a cross-kernel.
        block: Samples in one block.
        checks: What was compared: `all samples` by themselves, `some samples`, or the plan was `trusted`.
        plan_not_kept: Why the plan is made anew in every measurement; empty where it is kept.
        processes: How many processes shared the measurement; forms, work and bytes are those of this one.
        standard_error: `(N, M)` standard error of an estimated kernel; None for an exact one.
        symmetric: The self-kernels that this is about as symmetric float64 matrices, of at most 4096 rows.
    """

    methods: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    flops: float = 0.0
    peak_bytes: int = 0
    asymmetry: float | None = None
    block: int = 0
    checks: str = "trusted"
    plan_not_kept: str = ""
    processes: int = 1
    standard_error: Tensor | None = field(default=None, repr=False)
    symmetric: list[np.ndarray] = field(default_factory=list, repr=False, compare=False)

    @property
    def min_eigenvalue(self) -> float | None:
        """Smallest eigenvalue of a self-kernel; None for another kernel and for one of many rows."""
        return min((values[0] for values in self._eigenvalues), default=None)

    @property
    def max_eigenvalue(self) -> float | None:
        """Largest eigenvalue of a self-kernel; None for another kernel and for one of many rows."""
        return max((values[-1] for values in self._eigenvalues), default=None)

    @cached_property
    def _eigenvalues(self) -> list[list[float]]:
        return [eigvalsh(matrix, check_finite=False).tolist() for matrix in self.symmetric]
