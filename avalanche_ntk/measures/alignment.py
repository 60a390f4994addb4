"""Alignment of a kernel with the labels."""

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, as_labels, as_numpy, count_non_finite
from avalanche_ntk.measures._undefined import nan_when_undefined, undefined
from avalanche_ntk.measures.spectrum import require_rank
from avalanche_ntk.measures.view import KernelView, view_of


def one_hot(labels: ArrayLike, classes: ArrayLike | None = None) -> Array:
    """One-hot matrix `Y[n, c] = 1` where sample n is of class c.

    Args:
        labels: Class of each sample, shape `(N,)`.
        classes: The classes, one per column; by default those that occur, in ascending order.

    Returns:
        Shape `(N, C)`, float64.

    Raises:
        ArgumentError: Labels that are not a vector, or one that is not among `classes`.

    >>> one_hot([7, 3, 7])
    array([[0., 1.],
           [1., 0.],
           [0., 1.]])
    """
    y = as_labels(labels)
    columns = np.unique(y) if classes is None else as_labels(classes)
    missing = sorted(set(y.tolist()) - set(columns.tolist()))
    if missing:
        raise ArgumentError(
            f"labels hold {missing}, which are not among the classes {columns.tolist()}. Pass every class that occurs."
        )
    return np.asarray(y[:, None] == columns[None, :], dtype=np.float64)


def are_targets(labels: ArrayLike) -> bool:
    """Return whether labels are numeric targets: floating-point numbers, or of shape `(N, K)`."""
    array = as_numpy(labels)
    return array.ndim == 2 or array.dtype.kind == "f"


def label_matrix(labels: ArrayLike, samples: int | None = None) -> Array:
    """Matrix Y of the label kernel `Y Yᵀ`: numeric targets unchanged, classes one-hot.

    Args:
        labels: Class of each sample, shape `(N,)`, or numeric targets: floating-point numbers `(N,)`, or `(N, K)`.
        samples: The expected N.

    Returns:
        Shape `(N, K)`, float64.

    Raises:
        ArgumentError: Not one label or row per sample, or not real numbers.

    >>> label_matrix([0.5, 2.0])
    array([[0.5],
           [2. ]])
    """
    if not are_targets(labels):
        return one_hot(as_labels(labels, samples))
    rows = as_float64(labels, "numeric targets")
    if rows.ndim not in (1, 2) or rows.size == 0:
        raise ArgumentError(
            f"numeric targets must have the shape (N,) or (N, K), found {rows.shape}. Pass one row per sample."
        )
    if samples is not None and len(rows) != samples:
        raise ArgumentError(
            f"labels must be one per sample: the kernel has {samples} samples, found {len(rows)} labels. "
            "Pass the labels of the same probe, in the same order."
        )
    return rows.reshape(len(rows), -1)


def _centred_labels(labels: ArrayLike, n: int) -> Array:
    y = label_matrix(labels, n)
    if bad := count_non_finite(y):
        undefined(f"the labels have {bad} non-finite entries of {y.size}")
    if (y == y[0]).all():
        undefined("all samples have the same label")
    centred: Array = y - y.mean(axis=0)
    return centred


@nan_when_undefined
def kernel_alignment(k: ArrayLike | KernelView, labels: ArrayLike) -> float:
    """Kernel alignment, `A = CKA(Θ, YYᵀ)`; `Y` holds the numeric targets of the samples, for classes one-hot rows.

    Computed as `<HΘH, (HY)(HY)ᵀ> = tr((HY)ᵀ HΘH (HY))`.

    Args:
        k: Self-kernel `(N, N)`.
        labels: Class of each sample, shape `(N,)`; or numeric targets, floating-point numbers `(N,)` or `(N, K)`.

    Returns:
        A number in [0, 1] for a positive semidefinite kernel: 1 if it separates the classes perfectly. NaN with a
        warning if all labels are equal, there are only two samples, or the kernel is zero, constant or non-finite.

    Raises:
        ArgumentError: Not a square matrix, or not one label per sample.

    Source: Cortes et al. 2012; Baratin et al. 2021; "Reactivation" (arXiv 2507.16039).

    >>> import numpy as np
    >>> y = np.array([0, 0, 1, 1])
    >>> round(kernel_alignment(np.equal.outer(y, y).astype(float), y), 12)
    1.0
    """
    view = view_of(k)
    y = _centred_labels(labels, view.require_square("kernel_alignment"))
    unit = view.unit(centred=True)
    # ‖YYᵀ‖_F = ‖YᵀY‖_F, and the latter is only C × C.
    value = float(np.vdot(y, unit @ y) / np.linalg.norm(y.T @ y))
    return min(1.0, max(-1.0, value))


@nan_when_undefined
def eigenvector_alignment(k: ArrayLike | KernelView, labels: ArrayLike, rank: int) -> float:
    """Eigenvector alignment, `Σ_{i≤k} Σ_c <u_i, y_c>² / ‖Y‖²` with centred `Y`, one-hot for classes.

    The share of the (centred) labels in the span of the kernel's k leading eigenvectors. The eigenvectors are those of
    `Θ` itself, not of the centred kernel; one that is constant over the samples contributes nothing.

    Args:
        k: Self-kernel `(N, N)`.
        labels: Class of each sample, shape `(N,)`; or numeric targets, floating-point numbers `(N,)` or `(N, K)`.
        rank: Number k of leading eigenvectors; 1, 5 and 20 are the usual ones.

    Returns:
        A number in [0, 1]. NaN with a warning if all labels are equal, the kernel is zero or non-finite, or k ≥ N,
        where the eigenvectors span the whole space.

    Raises:
        ArgumentError: Not a square matrix, not one label per sample, or `rank` < 1.

    Source: Baratin et al. 2021; Ortiz-Jiménez et al. 2021, "What can linearized neural networks actually say about
    generalization?".

    >>> import numpy as np
    >>> round(eigenvector_alignment(np.diag([4.0, 3.0, 2.0, 1.0]), [0, 0, 1, 1], rank=1), 12)
    0.25
    """
    view = view_of(k)
    n = view.require_square("eigenvector_alignment")
    require_rank(rank)
    y = _centred_labels(labels, n)
    if rank >= n:
        undefined(f"the {rank} leading eigenvectors of a {n}×{n} kernel span the whole space")
    view.require_finite()
    if view.frobenius == 0:
        undefined("the kernel is exactly zero, as for a dead network")
    projection = view.eigh[1][:, :rank].T @ y
    return min(1.0, float(np.vdot(projection, projection) / np.vdot(y, y)))
