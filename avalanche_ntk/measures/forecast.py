"""Forecasts of forgetting from a kernel frozen at a boundary, and their errors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, count_non_finite
from avalanche_ntk.measures._undefined import Undefined, nan_when_undefined, undefined, warn_undefined
from avalanche_ntk.measures.view import KernelView, view_of


def forgetting_forecast(
    cross: ArrayLike | KernelView,
    own: ArrayLike | KernelView,
    residual: ArrayLike,
    *,
    steps: float | None = None,
    step_size: float | None = None,
    samples: float = 1,
    flow: bool = False,
) -> Array:
    """Change of the old task's outputs when the new task is learnt with the squared loss and a static kernel.

    With `r = Y_new − f_b(X_new)` and the loss `1/(2n) Σ ‖f − y‖²`, n the argument `samples`:

    - to convergence, `Θ(X_old,X_new) Θ(X_new,X_new)⁺ r`;
    - after t steps of gradient descent of size η, `Θ_on Θ_nn⁻¹ (I − (I − (η/n) Θ_nn)^t) r`;
    - with `flow`, after the time that t such steps take, `Θ_on Θ_nn⁻¹ (I − exp(−(η t/n) Θ_nn)) r`.

    `torch.nn.MSELoss` is the mean over samples and outputs without the factor ½: there n is half the number of targets.
    Exact for full-batch steps if the model is linear in the trained parameters.

    Args:
        cross: `Θ(X_old, X_new)`, shape `(R, Q)`; full kernels as matrices (`as_matrix`).
        own: `Θ(X_new, X_new)`, shape `(Q, Q)`.
        residual: `r`, shape `(Q,)`; or `(Q, C)` with a kernel that is the same for C outputs, one column each.
        steps: t; None for convergence.
        step_size: η; required with `steps`.
        samples: n.
        flow: Whether time is continuous.

    Returns:
        Shape `(R,)` or `(R, C)`, in the outputs' units. All NaN, with a warning, if a number is not finite, for example
        if steps of this size diverge.

    Raises:
        ArgumentError: Shapes that do not fit, steps without a step size, or a negative number.

    Source: Hidekel & Raviv 2026 (arXiv 2606.18024); Doan et al. 2021, theorem 1; Karakida & Akaho 2022.

    >>> forgetting_forecast([[1.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]], [4.0, 5.0])
    array([2.])
    """
    between, new = view_of(cross), view_of(own)
    q = new.require_square("forgetting_forecast")
    r = as_float64(residual, "the residual")
    if between.shape[1] != q or r.ndim not in (1, 2) or len(r) != q:
        raise ArgumentError(
            f"forgetting_forecast needs Θ(X_old, X_new) of shape (R, {q}) and a residual of shape ({q},) or ({q}, C) "
            f"beside a Θ(X_new, X_new) of shape {new.shape}, found {between.shape} and {r.shape}. "
            "Pass full kernels as matrices (as_matrix)."
        )
    _require_time(steps, step_size, samples)
    try:
        for what, bad in (
            ("the cross kernel", between.non_finite),
            ("the kernel", new.non_finite),
            ("the residual", count_non_finite(r)),
        ):
            if bad:
                undefined(f"{what} has {bad} non-finite entries")
        values, vectors = new.eigh
        learnt = _learnt(values, q * new.epsilon, steps, step_size, samples, flow)
        with np.errstate(over="ignore", invalid="ignore"):
            change = between.matrix @ (vectors @ (learnt.reshape(-1, *[1] * (r.ndim - 1)) * (vectors.T @ r)))
        if count_non_finite(change):
            undefined(f"{steps} steps of size {step_size} diverge: they must be below 2n/λ_max")
    except Undefined as reason:
        warn_undefined("forgetting_forecast", reason)
        return np.full((between.shape[0], *r.shape[1:]), math.nan)
    return np.asarray(change)


def _learnt(
    values: Array, tolerance: float, steps: float | None, step_size: float | None, samples: float, flow: bool
) -> Array:
    """Learnt share of the residual divided by λ, by eigenvalue λ; its limit is `ηt/n` for λ = 0."""
    positive = values > tolerance * max(float(values[0]), 0.0)
    safe = np.where(positive, values, 1.0)
    if steps is None or step_size is None:
        return np.where(positive, 1 / safe, 0.0)
    rate = step_size / samples * safe
    with np.errstate(over="ignore", divide="ignore"):
        if flow:
            share = -np.expm1(-rate * steps)
        else:
            # Below one, use the logarithm, without cancellation for tiny η λ.
            small = -np.expm1(steps * np.log1p(-np.minimum(rate, 0.5)))
            share = np.where(rate <= 0.5, small, 1 - (1 - rate) ** steps)
    return np.where(positive, share / safe, step_size / samples * steps)


def _require_time(steps: float | None, step_size: float | None, samples: float) -> None:
    if (steps is None) != (step_size is None):
        raise ArgumentError(
            f"steps and step_size belong together, found steps={steps!r} and step_size={step_size!r}. "
            "Give both, or neither for convergence."
        )
    if samples <= 0 or (steps is not None and steps < 0) or (step_size is not None and step_size < 0):
        raise ArgumentError(
            f"steps and step_size must be 0 or more and samples above 0, found steps={steps!r}, "
            f"step_size={step_size!r}, samples={samples!r}."
        )


@nan_when_undefined
def mode_share(k: ArrayLike | KernelView, change: ArrayLike, rank: int) -> float:
    """Share of a change in the leading modes, `Σ_{i≤k} ‖u_iᵀ Δ‖² / ‖Δ‖²`, u_i eigenvectors of `Θ`.

    Args:
        k: Self-kernel of the old task's probe, `(R, R)`; a full kernel as a matrix.
        change: Δ, shape `(R,)`, or `(R, C)` with a kernel that is the same for C outputs.
        rank: k, the number of leading eigenvectors.

    Returns:
        A number in [0, 1]; NaN with a warning if nothing changed, a number is not finite, or k ≥ R, where the
        eigenvectors span the whole space.

    Raises:
        ArgumentError: Shapes that do not fit, or `rank` < 1.

    Source: Hidekel & Raviv 2026 (arXiv 2606.18024).

    >>> round(mode_share([[2.0, 0.0], [0.0, 1.0]], [3.0, 4.0], 1), 12)
    0.36
    """
    view = view_of(k)
    n = view.require_square("mode_share")
    delta = as_float64(change, "the change")
    if delta.ndim not in (1, 2) or len(delta) != n:
        raise ArgumentError(f"mode_share needs a change of shape ({n},) or ({n}, C), found {delta.shape}.")
    if rank < 1:
        raise ArgumentError(f"rank must be a number of eigenvectors, 1 or more, found {rank!r}.")
    if rank >= n:
        undefined(f"the {rank} leading eigenvectors of a {n}×{n} kernel span the whole space")
    if bad := count_non_finite(delta):
        undefined(f"the change has {bad} non-finite entries of {delta.size}")
    total = float(np.vdot(delta, delta))
    if total == 0:
        undefined("nothing has changed")
    led = view.eigh[1][:, :rank].T @ delta
    return min(1.0, float(np.vdot(led, led)) / total)


@nan_when_undefined
def forecast_error(forecast: ArrayLike, change: ArrayLike) -> float:
    """Relative error of a forecast, `‖Δ̂ − Δ‖ / ‖Δ‖`: 0 if exact, 1 if no better than predicting no change.

    Args:
        forecast: Δ̂, any shape.
        change: Δ, the actual change, the same shape.

    Returns:
        The error; NaN with a warning if nothing changed or a number is not finite.

    Raises:
        ArgumentError: Different shapes, or empty.

    >>> forecast_error([3.0, 0.0], [3.0, 4.0])
    0.8
    """
    told, found = as_float64(forecast, "the forecast"), as_float64(change, "the change")
    if told.shape != found.shape or told.size == 0:
        raise ArgumentError(
            f"forecast_error needs two non-empty arrays of the same shape, found {told.shape} and {found.shape}."
        )
    if bad := count_non_finite(told) + count_non_finite(found):
        undefined(f"{bad} numbers are not finite")
    size = float(np.linalg.norm(found))
    if size == 0:
        undefined("nothing has changed")
    return float(np.linalg.norm(told - found)) / size


@nan_when_undefined
def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two series; equal numbers share their mean rank.

    Args:
        a: n numbers.
        b: n numbers.

    Returns:
        A number in [−1, 1]; NaN with a warning if a number is not finite or one series is constant.

    Raises:
        ArgumentError: Series of different lengths.

    Source: Spearman 1904.

    >>> rank_correlation([1.0, 2.0, 5.0], [9.0, 3.0, 1.0])
    -1.0
    """
    first, second = as_float64(a, "a series"), as_float64(b, "a series")
    if first.ndim != 1 or first.shape != second.shape:
        raise ArgumentError(f"rank_correlation needs two series of n numbers, found {first.shape} and {second.shape}.")
    if bad := count_non_finite(first) + count_non_finite(second):
        undefined(f"{bad} numbers are not finite")
    if min(len(np.unique(first)), len(np.unique(second))) < 2:
        undefined("a series is constant")
    r, s = (_ranks(one) for one in (first, second))
    value = float(np.vdot(r, s) / math.sqrt(float(np.vdot(r, r)) * float(np.vdot(s, s))))
    return max(-1.0, min(1.0, value))


def _ranks(numbers: Array) -> Array:
    """Mean ranks minus their mean."""
    _, place, count = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place] - (len(numbers) + 1) / 2)
