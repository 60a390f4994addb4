"""Overlap of the gradients of different tasks' probes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array
from avalanche_ntk.measures._undefined import nan_when_undefined, undefined
from avalanche_ntk.measures.view import KernelView, view_of


@nan_when_undefined
def task_overlap(
    cross: ArrayLike | KernelView, self_i: ArrayLike | KernelView, self_j: ArrayLike | KernelView
) -> float:
    """Task overlap, `‖Θ(X_i,X_j)‖_F² / (‖Θ(X_i,X_i)‖_F ‖Θ(X_j,X_j)‖_F)`.

    With the second-moment matrices `F_i = J_iᵀJ_i` of the tasks' gradients this is the cosine of `F_i` and `F_j`.

    Args:
        cross: Cross kernel `Θ(X_i, X_j)`, `(N, M)`.
        self_i: Self-kernel `Θ(X_i, X_i)`, `(N, N)`.
        self_j: Self-kernel `Θ(X_j, X_j)`, `(M, M)`.

    Returns:
        A number in [0, 1] for a kernel of one output and for full kernels as matrices: 0 if all gradients are
        orthogonal, 1 if both tasks have the same second moments up to a factor. (For the `trace` kernel, the kernel of
        gradients stacked over outputs, it is in [0, 1] too.) NaN with a warning if a self-kernel is zero or any kernel
        is not finite.

    Raises:
        ArgumentError: Self-kernels that are not square, or shapes that do not fit together.

    Source: after Doan et al. 2021, "A Theoretical Analysis of Catastrophic Forgetting through the NTK Overlap Matrix".

    >>> round(task_overlap([[2.0], [0.0]], [[4.0, 0.0], [0.0, 3.0]], [[1.0]]), 12)
    0.8
    """
    between, first, second = view_of(cross), view_of(self_i), view_of(self_j)
    n, m = first.require_square("task_overlap"), second.require_square("task_overlap")
    if between.shape != (n, m):
        raise ArgumentError(
            f"task_overlap needs a cross kernel of shape ({n}, {m}), one row per sample of the first self-kernel and "
            f"one column per sample of the second, found {between.shape}. Pass Θ(X_i, X_j), Θ(X_i, X_i), Θ(X_j, X_j)."
        )
    for which, view in (("cross kernel", between), ("first self-kernel", first), ("second self-kernel", second)):
        if view.non_finite:
            undefined(f"the {which} has {view.non_finite} non-finite entries of {view.matrix.size}")
    for which, view in (("first", first), ("second", second)):
        if view.frobenius == 0:
            undefined(f"the {which} self-kernel is exactly zero, as for a dead network")
    # Factor by factor, so that no square overflows.
    return (between.frobenius / first.frobenius) * (between.frobenius / second.frobenius)


def overlap_matrix(
    self_kernels: Sequence[ArrayLike | KernelView], cross_kernels: Mapping[tuple[int, int], ArrayLike | KernelView]
) -> Array:
    """Matrix of `task_overlap` for every pair of tasks' probes.

    Args:
        self_kernels: `Θ(X_i, X_i)` of each task.
        cross_kernels: `Θ(X_i, X_j)` under the key `(i, j)`, for every pair i ≠ j in one of the two orders.

    Returns:
        Shape `(T, T)`, symmetric, with ones on the diagonal; NaN with a warning if undefined.

    Raises:
        ArgumentError: A pair is missing, or a kernel does not fit.

    Source: after Doan et al. 2021.

    >>> overlap_matrix([[[2.0]], [[2.0]]], {(0, 1): [[1.0]]})
    array([[1.  , 0.25],
           [0.25, 1.  ]])
    """
    views = [view_of(k) for k in self_kernels]
    overlaps = np.empty((len(views), len(views)))
    for i, first in enumerate(views):
        overlaps[i, i] = task_overlap(first, first, first)
        for j in range(i + 1, len(views)):
            if (i, j) in cross_kernels:
                overlaps[i, j] = task_overlap(cross_kernels[i, j], first, views[j])
            elif (j, i) in cross_kernels:
                overlaps[i, j] = task_overlap(cross_kernels[j, i], views[j], first)
            else:
                raise ArgumentError(
                    f"overlap_matrix needs a cross kernel for every pair of {len(views)} tasks, "
                    f"found none for ({i}, {j}). Add Θ(X_{i}, X_{j}) under that key."
                )
            overlaps[j, i] = overlaps[i, j]
    return overlaps
