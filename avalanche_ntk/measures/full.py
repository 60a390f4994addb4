"""Full kernels `(N, M, C, C)`: as a matrix, and reduced to one number per pair of samples."""

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError, unknown_name
from avalanche_ntk.measures._arrays import Array, as_float64


def _full(theta: ArrayLike) -> Array:
    array = as_float64(theta, "a full kernel")
    if array.ndim != 4 or array.shape[2] != array.shape[3] or array.size == 0:
        raise ArgumentError(
            f"a full kernel must have shape (N, M, C, C), found {array.shape}. Compute it with reduction='full'."
        )
    return array


def as_matrix(theta: ArrayLike) -> Array:
    """Return a full kernel as a matrix, with row `n·C + c` and column `m·C + d` for `Θ[n, m, c, d]`.

    Args:
        theta: Full kernel `(N, M, C, C)`.

    Returns:
        Shape `(N·C, M·C)`, float64; a positive semidefinite matrix for a self-kernel.

    Raises:
        ArgumentError: Not of that shape.

    >>> import numpy as np
    >>> as_matrix(np.arange(8.0).reshape(1, 2, 2, 2))
    array([[0., 1., 4., 5.],
           [2., 3., 6., 7.]])
    """
    full = _full(theta)
    n, m, c, d = full.shape
    matrix: Array = full.transpose(0, 2, 1, 3).reshape(n * c, m * d)
    return matrix


def reduce_full(theta: ArrayLike, reduction: str) -> Array:
    """Reduce a full kernel: `trace` is `Σ_c Θ[n,m,c,c]`, `sum_logits` is `Σ_{c,d} Θ[n,m,c,d]`.

    Args:
        theta: Full kernel `(N, M, C, C)`.
        reduction: `"trace"` or `"sum_logits"`.

    Returns:
        Shape `(N, M)`, float64.

    Raises:
        ArgumentError: Not of that shape, or an unknown reduction.

    Source: Mohamadi et al. 2022, "A Fast, Well-Founded Approximation to the Empirical Neural Tangent Kernel".

    >>> import numpy as np
    >>> reduce_full(np.arange(8.0).reshape(1, 2, 2, 2), "trace")
    array([[ 3., 11.]])
    """  # noqa: DOC501
    full = _full(theta)
    if reduction == "trace":
        trace: Array = np.einsum("nmcc->nm", full)
        return trace
    if reduction == "sum_logits":
        total: Array = full.sum(axis=(2, 3))
        return total
    raise unknown_name("reduction", reduction, ["trace", "sum_logits"])
