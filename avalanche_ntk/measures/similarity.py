"""Similarity, distance and velocity of kernels of the same probe."""

import math

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, epsilon
from avalanche_ntk.measures._undefined import nan_when_undefined, undefined
from avalanche_ntk.measures.view import KernelView, centre, view_of

__all__ = [
    "centre",
    "centred_kernel_alignment",
    "distance_floor",
    "drift_at_rest",
    "kernel_distance",
    "kernel_velocity",
    "uncentred_alignment",
]


def _units(measure: str, a: ArrayLike | KernelView, b: ArrayLike | KernelView, centred: bool) -> tuple[Array, Array]:
    first, second = view_of(a), view_of(b)
    if first.shape != second.shape:
        raise ArgumentError(
            f"{measure} needs two kernels of the same shape, found {first.shape} and {second.shape}. "
            "Compare kernels only on the same probe, in the same order."
        )
    for which, view in (("first", first), ("second", second)):
        problem = view.problem(centred)
        if problem is not None:
            undefined(f"the {which} kernel {problem}")
    return first.unit(centred), second.unit(centred)


def _cosine(a: Array, b: Array) -> float:
    # Rounding may exceed the interval by about 1e-16.
    return min(1.0, max(-1.0, float(np.vdot(a, b))))


def _distance(a: Array, b: Array) -> float:
    difference = a - b
    return 0.5 * float(np.vdot(difference, difference))


@nan_when_undefined
def centred_kernel_alignment(a: ArrayLike | KernelView, b: ArrayLike | KernelView) -> float:
    """Centred kernel alignment, `CKA(A,B) = <HAH, HBH> / (‖HAH‖ ‖HBH‖)`.

    Args:
        a: Kernel `(N, M)`.
        b: Kernel `(N, M)` of the same samples in the same order.

    Returns:
        A number in [−1, 1], in [0, 1] for positive semidefinite kernels; 1 if the centred kernels are proportional. NaN
        with a warning if a kernel has no direction: zero, constant, non-finite, or only two samples (every centred
        kernel is then a multiple of the same matrix).

    Raises:
        ArgumentError: Not matrices of equal shape.

    Source: Cortes et al. 2012, definition 4; Kornblith et al. 2019, equation 4.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(4, 2))
    >>> round(centred_kernel_alignment(x @ x.T, 7 * x @ x.T + 3), 12)
    1.0
    """
    return _cosine(*_units("centred_kernel_alignment", a, b, True))


@nan_when_undefined
def uncentred_alignment(a: ArrayLike | KernelView, b: ArrayLike | KernelView) -> float:
    """Alignment without centring, `<A,B> / (‖A‖ ‖B‖)`.

    Args:
        a: Kernel `(N, M)`.
        b: Kernel `(N, M)` of the same samples in the same order.

    Returns:
        A number in [−1, 1]; NaN with a warning if a kernel is zero, non-finite or a single number.

    Raises:
        ArgumentError: Not matrices of equal shape.

    Source: Cristianini et al. 2001; the cosine of Fort et al. 2020.

    >>> uncentred_alignment([[1.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 4.0]])
    0.6
    """
    return _cosine(*_units("uncentred_alignment", a, b, False))


@nan_when_undefined
def kernel_distance(a: ArrayLike | KernelView, b: ArrayLike | KernelView, *, centred: bool = True) -> float:
    """Kernel distance, `S(A,B) = 1 − CKA(A,B)`, computed without cancellation as `½ ‖Ā/‖Ā‖ − B̄/‖B̄‖‖²`.

    Both forms are equal. The second keeps its relative precision for nearly equal kernels, so distances of 1e-10 (the
    lazy regime) are accurate.

    Args:
        a: Kernel `(N, M)`.
        b: Kernel `(N, M)` of the same samples in the same order.
        centred: False replaces `Ā = HAH` by `A`, the form of Fort et al. 2020.

    Returns:
        A number in [0, 2], in [0, 1] for positive semidefinite kernels; NaN with a warning if the alignment is
        undefined.

    Raises:
        ArgumentError: Not matrices of equal shape.

    Source: "Reactivation: Empirical NTK Dynamics Under Task Shifts" (arXiv 2507.16039); Fort et al. 2020 (uncentred).

    >>> round(kernel_distance([[1.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 4.0]], centred=False), 12)
    0.4
    """
    return _distance(*_units("kernel_distance", a, b, centred))


@nan_when_undefined
def kernel_velocity(
    a: ArrayLike | KernelView, b: ArrayLike | KernelView, elapsed: float, *, centred: bool = True
) -> float:
    """Kernel velocity, `v = S(Θ_i, Θ_{i+1}) / (t_{i+1} − t_i)`.

    Args:
        a: The earlier kernel `(N, M)`.
        b: The later kernel `(N, M)`.
        elapsed: `t_{i+1} − t_i`, in training iterations (or in epochs, for a result per epoch).
        centred: As in `kernel_distance`.

    Returns:
        Distance per unit of `elapsed`; NaN with a warning if the distance is undefined or no time has passed.

    Raises:
        ArgumentError: Negative or non-finite `elapsed`, or kernels that are not matrices of equal shape.

    Source: "Reactivation: Empirical NTK Dynamics Under Task Shifts" (arXiv 2507.16039).

    >>> round(kernel_velocity([[1.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 4.0]], 8, centred=False), 12)
    0.05
    """
    if not 0 <= elapsed < math.inf:
        raise ArgumentError(
            f"elapsed must be a finite number of iterations, 0 or more, found {elapsed!r}. Pass t_b − t_a."
        )
    units = _units("kernel_velocity", a, b, centred)
    if elapsed == 0:
        undefined("no training iteration lies between the two kernels")
    return _distance(*units) / elapsed


def distance_floor(
    n: int, dtype: object = "float32", *, relative_error: float | None = None, gain: float = 1.0
) -> float:
    """Distance due to rounding of the kernels alone: below it, S is noise.

    Two evaluations of the same kernel, `A + E₁` and `A + E₂`, have independent errors of relative size
    `ε = ‖E‖/‖A‖`. To first order their unit vectors differ by `(E₁ − E₂)/‖A‖` without its component along `A`, one of
    the `d = N(N+1)/2` dimensions of the symmetric matrices, hence

        E[S] = ½ E‖(E₁ − E₂)_⊥‖² / ‖A‖² = ε² (1 − 1/d).

    S is then `ε²/d` times a chi-square variable with `d − 1` degrees of freedom, with standard deviation `ε² √(2/d)`
    (for errors of equal size everywhere; more if a few large entries dominate). The floor is the upper end `ε² (1 + 3
    √(2/d))`, which noise exceeds about once in a few hundred comparisons. By default `ε` is four machine epsilons.
    Rounding the entries once gives about a fifth of an epsilon; a product over 1024 features in two orders of
    summation, or the kernel of a ResNet-18, gives one to two; centring amplifies the error.

    Args:
        n: Number of samples N.
        dtype: Floating-point type of the kernel's computation.
        relative_error: `ε`, if measured, for example against a float64 reference.
        gain: Amplification of the relative error by centring, `‖A‖ / ‖HAH‖`, if known to be large.

    Returns:
        The floor of S; divide by the iterations of an interval for the floor of a velocity.

    Raises:
        ArgumentError: `n` < 1, an unknown dtype, a `relative_error` below 0 or a `gain` below 1.

    Source: first-order perturbation, above.

    >>> print(f"{distance_floor(64, 'float32'):.2e}")
    2.49e-13
    """
    if n < 1:
        raise ArgumentError(f"n must be the number of samples, 1 or more, found {n}.")
    if relative_error is not None and not 0 <= relative_error < math.inf:
        raise ArgumentError(f"relative_error must be a finite number, 0 or more, found {relative_error!r}.")
    if not 1 <= gain < math.inf:
        raise ArgumentError(f"gain must be ‖A‖/‖HAH‖, finite and 1 or more, found {gain!r}.")
    error = (4 * epsilon(dtype) if relative_error is None else relative_error) * gain
    return error**2 * (1 + 3 * math.sqrt(4 / (n * (n + 1))))


@nan_when_undefined
def drift_at_rest(
    a: ArrayLike | KernelView,
    b: ArrayLike | KernelView,
    losses: ArrayLike,
    *,
    tolerance: float = 0.05,
    centred: bool = True,
) -> float:
    """Drift at rest, `S(Θ_t, Θ_{t+τ})` once the loss is flat: the baseline for boundaries.

    The loss counts as flat if the means of the first and the second half of `losses` differ by at most `tolerance`
    times the larger of the two.

    Args:
        a: Kernel at `t`.
        b: Kernel at `t + τ`.
        losses: The training losses from `t` to `t + τ`, at least 2.
        tolerance: Largest relative change of the mean loss that counts as flat.
        centred: As in `kernel_distance`.

    Returns:
        The distance; NaN with a warning if the loss is not flat or the distance is undefined.

    Raises:
        ArgumentError: Fewer than two losses, a negative tolerance, or kernels that are not matrices of equal shape.

    Source: the stationary drift of the NTK–NNGP analysis of trained networks; the flatness criterion is our own.

    >>> round(drift_at_rest([[1.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 4.0]], [0.1, 0.1, 0.1], centred=False), 12)
    0.4
    """
    series = as_float64(losses, "losses")
    if series.ndim != 1 or series.size < 2:
        raise ArgumentError(
            f"losses must be a series of at least 2 numbers, found shape {series.shape}. "
            "Pass the training losses between the two kernels."
        )
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance must be 0 or more, found {tolerance!r}.")
    units = _units("drift_at_rest", a, b, centred)
    if not np.isfinite(series).all():
        undefined("a loss is not finite")
    half = series.size // 2
    early, late = float(series[:half].mean()), float(series[half:].mean())
    if abs(early - late) > tolerance * max(abs(early), abs(late)):
        undefined(f"the loss is not flat: its mean goes from {early:.6g} to {late:.6g}")
    return _distance(*units)
