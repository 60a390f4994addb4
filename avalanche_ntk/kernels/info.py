"""Methods of computing a kernel, and the record of a computation."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np
from scipy.linalg import eigvalsh
from torch import Tensor


class Method(str, Enum):
    """Method of computing the kernel. All are exact; they differ in cost and in the models they support.

    With N samples, C outputs, P parameters, T positions per sample (1 for a plain layer, pixels or tokens otherwise):

    * `AUTO`: the graph engine with the cheaper of the two forms for each use of a parameter, and per-sample Jacobians
      for parameters that the graph does not show. Suits nearly all models.
    * `GHOST`: the graph engine with Gram products over pairs of positions, `N²T²(A + C·B)` for a weight of A·B entries
      (A channels, not patches, for a convolution). Fastest for small T and wide layers; never forms a weight gradient.
    * `EXPLICIT`: the graph engine with per-sample gradients formed in slices, `C·A·B·(N·T + N²)`. Fastest for large T
      and narrow layers (early convolutions).
    * `JACOBIAN`: `torch.func` (`vmap` of `vjp`), `N·C·P` numbers in chunks. The textbook method; tens to hundreds of
      times slower.
    * `LOOP`: one forward pass and C backward passes per sample. Slowest, but works wherever a backward pass works
      (data-dependent branches, `.item()`, custom functions).
    """

    AUTO = "auto"
    GHOST = "ghost"
    EXPLICIT = "explicit"
    JACOBIAN = "jacobian"
    LOOP = "loop"


@dataclass
class KernelInfo:
    """How a kernel was computed, and its accuracy.

    Attributes:
        methods: Parameter → the form that was used: `gram` (one position), `ghost`, `explicit`, `dense`, `lookup`,
            `masked`
            (a node without a rule, by its own backward), `jacobian` or `loop` (generic paths), `unused` (no gradient).
        reasons: Parameter → why it used a generic method.
        flops: Multiply-adds of the contraction, without forward and backward passes.
        peak_bytes: Estimate of the peak memory beyond the forward pass.
        asymmetry: `‖K − Kᵀ‖ / ‖K‖` before a self-kernel was made symmetric; None for a cross-kernel.
        block: Samples in one block.
        checks: The comparisons made: `all samples` separately, `some samples`, or none (the plan was `trusted`).
        plan_not_kept: Why the plan is remade in every measurement; empty if it is kept.
        processes: Number of processes that shared the measurement; forms, work and bytes are those of this one.
        standard_error: `(N, M)` standard error of an estimated kernel; None for an exact one.
        symmetric: The self-kernels, as symmetric float64 matrices of at most 4096 rows.
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
        """Smallest eigenvalue of a self-kernel; None for a cross-kernel or for too many rows."""
        return min((values[0] for values in self._eigenvalues), default=None)

    @property
    def max_eigenvalue(self) -> float | None:
        """Largest eigenvalue of a self-kernel; None for a cross-kernel or for too many rows."""
        return max((values[-1] for values in self._eigenvalues), default=None)

    @cached_property
    def _eigenvalues(self) -> list[list[float]]:
        return [eigvalsh(matrix, check_finite=False).tolist() for matrix in self.symmetric]
