"""Measures of a kernel's eigenvalues and eigenvectors."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, as_labels, count_non_finite
from avalanche_ntk.measures._undefined import Undefined, nan_when_undefined, undefined, warn_undefined
from avalanche_ntk.measures.view import KernelView, view_of


def eigenvalues(k: ArrayLike | KernelView) -> Array:
    """Eigenvalues of the symmetrised kernel `(Θ + Θᵀ)/2`, in descending order.

    Args:
        k: Self-kernel `(N, N)`.

    Returns:
        Shape `(N,)`; all NaN, with a warning, if an entry of the kernel is not finite.

    Raises:
        ArgumentError: Not a square matrix.

    >>> eigenvalues([[2.0, 1.0], [1.0, 2.0]]).round(12)
    array([3., 1.])
    """
    view = view_of(k)
    n = view.require_square("eigenvalues")
    try:
        values: Array = view.eigenvalues.copy()
        return values
    except Undefined as reason:
        warn_undefined("eigenvalues", reason)
        return np.full(n, np.nan)


@nan_when_undefined
def spectral_norm(k: ArrayLike | KernelView) -> float:
    """Spectral norm, `λ_max(Θ)`, the largest eigenvalue of the symmetrised kernel.

    Args:
        k: Self-kernel `(N, N)`, positive semidefinite like every self-kernel.

    Returns:
        The largest eigenvalue; NaN with a warning if an entry is not finite.

    Raises:
        ArgumentError: Not a square matrix.

    Source: "Reactivation: Empirical NTK Dynamics Under Task Shifts" (arXiv 2507.16039).

    >>> round(spectral_norm([[2.0, 1.0], [1.0, 2.0]]), 12)
    3.0
    """
    view = view_of(k)
    view.require_square("spectral_norm")
    return float(view.eigenvalues[0])


@nan_when_undefined
def sharpness_ratio(lambda_max: float, learning_rate: float, *, samples: int = 1) -> float:
    """`λ_max` relative to `2/η`, the stability limit of plain gradient descent: `η λ_max / (2 samples)`.

    For the loss `½ Σ_n ‖f(x_n) − y_n‖²` the non-zero eigenvalues of the Gauss–Newton Hessian are those of the full
    kernel, and gradient descent with step `η` is stable if `λ_max < 2/η`, that is, if this ratio is below 1. For a loss
    that is a mean over samples, divide by their number. Momentum, other losses and the `trace` kernel (an upper bound
    of the full kernel's `λ_max`) shift the limit.

    Args:
        lambda_max: Spectral norm of the kernel.
        learning_rate: `η` of plain SGD.
        samples: Number of samples averaged by the loss; 1 for a sum.

    Returns:
        The ratio, dimensionless; NaN with a warning if `lambda_max` is not finite.

    Raises:
        ArgumentError: A learning rate that is negative or not finite, or fewer than 1 sample.

    Source: Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability".

    >>> sharpness_ratio(40.0, 0.1)
    2.0
    """
    if not 0 <= learning_rate < math.inf:
        raise ArgumentError(f"learning_rate must be a finite number, 0 or more, found {learning_rate!r}.")
    if samples < 1:
        raise ArgumentError(f"samples must be 1 or more, found {samples!r}. Pass 1 for a loss that is a sum.")
    if not math.isfinite(lambda_max):
        undefined(f"λ_max is {lambda_max}")
    return float(lambda_max) * learning_rate / (2 * samples)


@nan_when_undefined
def effective_rank(k: ArrayLike | KernelView) -> float:
    """Effective rank, `exp(−Σ p_i log p_i)` with `p_i = λ_i / Σ λ`, of the centred kernel `HΘH`.

    Negative eigenvalues, due to rounding, count as zero.

    Args:
        k: Self-kernel `(N, N)`.

    Returns:
        A number from 1 (one direction) to N − 1 (equal eigenvalues). NaN with a warning if the centred kernel is zero
        (zero, constant, one sample) or an entry is not finite.

    Raises:
        ArgumentError: Not a square matrix.

    Source: Roy & Vetterli 2007, "The effective rank", section 2.

    >>> import numpy as np
    >>> round(effective_rank(np.eye(5)), 12)
    4.0
    """
    view = view_of(k)
    n = view.require_square("effective_rank")
    problem = view.problem(centred=True)
    if n == 1 and view.non_finite == 0:
        undefined("the kernel has one sample: nothing is left of it after centring")
    # The centred kernel of two samples has no direction, but rank one.
    if problem is not None and n > 2:
        undefined(f"the kernel {problem}")
    values = np.clip(view.centred_eigenvalues, 0.0, None)
    largest = float(values[0])
    if largest <= 4 * view.epsilon * view.frobenius:
        undefined("the centred kernel has no positive eigenvalue above working precision")
    return entropy_rank(values / largest)


def entropy_rank(values: Array) -> float:
    """Return `exp(−Σ p_i log p_i)`, `p_i = v_i / Σ v`, of n numbers of 0 or more that are not all 0.

    >>> round(entropy_rank(np.ones(5)), 12)
    5.0
    """
    p = values / values.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


@nan_when_undefined
def condition_number(k: ArrayLike | KernelView, *, tolerance: float | None = None) -> float:
    """Condition number, `λ_max / λ_min` over the numerically positive spectrum.

    Eigenvalues above `tolerance · λ_max` count as positive; smaller ones are rounding.

    Args:
        k: Self-kernel `(N, N)`.
        tolerance: By default `N ε`, ε the machine epsilon of the kernel's dtype (as in `matrix_rank`).

    Returns:
        A number of 1 or more; NaN with a warning if no eigenvalue is positive or an entry is not finite.

    Raises:
        ArgumentError: Not a square matrix, or a tolerance outside [0, 1).

    >>> round(condition_number([[2.0, 1.0], [1.0, 2.0]]), 12)
    3.0
    """
    view = view_of(k)
    n = view.require_square("condition_number")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ArgumentError(f"tolerance must be a share of λ_max, from 0 to below 1, found {tolerance!r}.")
    values = view.eigenvalues
    largest = float(values[0])
    if largest <= 0:
        undefined("the kernel has no positive eigenvalue")
    share = n * view.epsilon if tolerance is None else tolerance
    return largest / float(values[values > share * largest][-1])


@dataclass(frozen=True)
class EigenspaceRotation:
    """Rotation of a top eigenspace.

    Attributes:
        value: Mean squared cosine of the principal angles: 1 unchanged, 0 orthogonal; NaN if undefined.
        degenerate: True if the eigenvalues on both sides of the cut are equal within noise in one of the kernels: the
            eigenspace, and so the value, is then arbitrary.
        gap: The smaller of the two relative gaps `(λ_k − λ_{k+1}) / ‖K‖_F`; NaN if undefined.
    """

    value: float
    degenerate: bool
    gap: float


def eigenspace_rotation(k: ArrayLike | KernelView, reference: ArrayLike | KernelView, rank: int) -> EigenspaceRotation:
    """Eigenspace rotation: mean squared cosine of the principal angles between two top-k eigenspaces.

    With orthonormal bases `U`, `V` of the spaces the cosines are the singular values of `UᵀV`, so the mean of their
    squares is `‖UᵀV‖_F² / k`.

    Args:
        k: Self-kernel `(N, N)` now.
        reference: Self-kernel `(N, N)` of the same probe, for instance at the last boundary.
        rank: Dimension k of the eigenspaces, 1 ≤ k.

    Returns:
        Value, flag and gap. The flag is set if a gap is below 10 machine epsilons of the kernel's norm. The value is
        NaN, with a warning, if a kernel is zero or non-finite, or k ≥ N, where both are the whole space.

    Raises:
        ArgumentError: Not square matrices of equal shape, or `rank` < 1.

    Source: Björck & Golub 1973 (principal angles).

    >>> rotation = eigenspace_rotation([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]], rank=1)
    >>> rotation.value, rotation.degenerate
    (0.0, False)
    """
    now, then = view_of(k), view_of(reference)
    n = now.require_square("eigenspace_rotation")
    then.require_square("eigenspace_rotation")
    if now.shape != then.shape:
        raise ArgumentError(
            f"eigenspace_rotation needs two kernels of the same shape, found {now.shape} and {then.shape}. "
            "Compare kernels only on the same probe, in the same order."
        )
    require_rank(rank)
    try:
        if rank >= n:
            undefined(f"the {rank} leading eigenvectors of a {n}×{n} kernel span the whole space")
        gaps = []
        for which, view in (("first", now), ("second", then)):
            if view.non_finite or view.frobenius == 0:
                undefined(f"the {which} kernel {view.problem(centred=False) or 'is exactly zero'}")
            gaps.append(float(view.eigenvalues[rank - 1] - view.eigenvalues[rank]) / view.frobenius)
    except Undefined as reason:
        warn_undefined("eigenspace_rotation", reason)
        return EigenspaceRotation(math.nan, False, math.nan)
    overlap = now.eigh[1][:, :rank].T @ then.eigh[1][:, :rank]
    value = min(1.0, float(np.vdot(overlap, overlap)) / rank)
    degenerate = any(gap <= 10 * view.epsilon for gap, view in zip(gaps, (now, then), strict=True))
    return EigenspaceRotation(value, degenerate, min(gaps))


def require_rank(rank: int) -> None:
    """Check that a number of eigenvectors is 1 or more.

    Raises:
        ArgumentError: It is not.
    """
    if rank < 1:
        raise ArgumentError(f"rank must be a number of eigenvectors, 1 or more, found {rank!r}.")


@dataclass(frozen=True)
class ModeResponse:
    """The residual in the kernel's eigenbasis.

    Attributes:
        eigenvalues: `λ_i`, shape `(N,)`, descending.
        power: `(u_iᵀ r)²`, shape `(N,)`, in the same order; it sums to `‖r‖²`.
    """

    eigenvalues: Array
    power: Array


def mode_response(k: ArrayLike | KernelView, residual: ArrayLike) -> ModeResponse:
    """Mode response: `λ_i` and `(u_iᵀ r)²` of the residual `r`.

    Under gradient flow on a static kernel each `u_iᵀ r` decays as `exp(−λ_i t)`, so these pairs show how fast each part
    of the residual is learnt. For a repeated eigenvalue only the sum of the powers is meaningful. For the kernel with
    the labels' signs pass `label_signed_kernel(k, labels)`.

    Args:
        k: Self-kernel `(N, N)`.
        residual: `f(X) − y`, shape `(N,)`, or `(N, C)`, with powers summed over the outputs.

    Returns:
        Eigenvalues and powers; all NaN, with a warning, if an entry of the kernel or the residual is not finite.

    Raises:
        ArgumentError: Not a square matrix, or a residual without N rows.

    Source: Pezeshki et al. 2021, "Gradient Starvation"; Jacot et al. 2018, section 5.

    >>> response = mode_response([[2.0, 0.0], [0.0, 1.0]], [3.0, 4.0])
    >>> response.power
    array([ 9., 16.])
    """
    view = view_of(k)
    n = view.require_square("mode_response")
    r = as_float64(residual, "the residual")
    if r.ndim not in (1, 2) or r.shape[0] != n:
        raise ArgumentError(
            f"the residual must have shape ({n},) or ({n}, C) for a kernel of {n} samples, found {r.shape}. "
            "Pass f(X) − y of the same probe."
        )
    try:
        view.require_finite()
        if bad := count_non_finite(r):
            undefined(f"the residual has {bad} non-finite entries of {r.size}")
    except Undefined as reason:
        warn_undefined("mode_response", reason)
        return ModeResponse(np.full(n, np.nan), np.full(n, np.nan))
    values, vectors = view.eigh
    return ModeResponse(values.copy(), np.sum((vectors.T @ r.reshape(n, -1)) ** 2, axis=1))


def label_signed_kernel(k: ArrayLike | KernelView, labels: ArrayLike) -> Array:
    """Label-signed kernel `YΘY`, `Y = diag(±1)`, for two classes; the class with the larger label has the sign +1.

    Args:
        k: Self-kernel `(N, N)`.
        labels: Class of each sample, shape `(N,)`, two different values.

    Returns:
        Shape `(N, N)`; all NaN, with a warning, if there is only one class.

    Raises:
        ArgumentError: Not a square matrix, labels of another length, or more than two classes.

    Source: Pezeshki et al. 2021, "Gradient Starvation", section 3.

    >>> label_signed_kernel([[2.0, 1.0], [1.0, 2.0]], [0, 1])
    array([[ 2., -1.],
           [-1.,  2.]])
    """
    view = view_of(k)
    n = view.require_square("label_signed_kernel")
    y = as_labels(labels, n)
    classes = np.unique(y)
    if len(classes) > 2:
        raise ArgumentError(
            f"label_signed_kernel needs two classes, found {len(classes)}. Restrict kernel and labels to two of them."
        )
    if len(classes) < 2:
        warn_undefined("label_signed_kernel", "all samples have the same label")
        return np.full((n, n), np.nan)
    sign = np.where(y == classes[1], 1.0, -1.0)
    signed: Array = sign[:, None] * view.matrix * sign[None, :]
    return signed
