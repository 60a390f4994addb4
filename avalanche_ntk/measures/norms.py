"""The size of a kernel."""

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.measures._undefined import nan_when_undefined
from avalanche_ntk.measures.view import KernelView, view_of


@nan_when_undefined
def kernel_norm(k: ArrayLike | KernelView) -> float:
    """Frobenius norm, `‖Θ‖_F = √(Σ Θ[n,m]²)`, in squared units of (output / parameter).

    Args:
        k: Kernel `(N, M)`.

    Returns:
        The norm. NaN with a warning if an entry is not finite.

    Raises:
        ArgumentError: Not a matrix.

    >>> kernel_norm([[3.0, 0.0], [0.0, 4.0]])
    5.0
    """
    return view_of(k).frobenius


@nan_when_undefined
def kernel_trace(k: ArrayLike | KernelView) -> float:
    """Trace, `tr Θ = Σ_n Θ[n,n]`: the sum of the squared norms of all per-sample gradients.

    Args:
        k: Self-kernel `(N, N)`.

    Returns:
        The trace. NaN with a warning if an entry is not finite.

    Raises:
        ArgumentError: Not a square matrix.

    >>> kernel_trace([[3.0, 1.0], [1.0, 4.0]])
    7.0
    """
    view = view_of(k)
    view.require_square("kernel_trace")
    view.require_finite()
    return float(np.trace(view.matrix))
