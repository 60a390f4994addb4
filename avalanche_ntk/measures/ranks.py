"""Rank measures used in studies of plasticity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, count_non_finite, working_epsilon
from avalanche_ntk.measures._undefined import Undefined, undefined, warn_undefined
from avalanche_ntk.measures.spectrum import entropy_rank
from avalanche_ntk.measures.view import KernelView, view_of


@dataclass(frozen=True)
class KernelRanks:
    """Four ranks of a kernel with eigenvalues λ_1 ≥ … ≥ λ_N; NaN if undefined.

    Attributes:
        numerical: Number of `λ_i > N ε λ_1`, ε the machine epsilon of the kernel's dtype.
        approximate: Least k with `Σ_{i≤k} λ_i ≥ (1−δ) Σ λ_i`.
        participation: `(Σ λ)² / Σ λ²`, which is `(tr Θ)² / ‖Θ‖_F²`.
        effective: `exp(−Σ p_i log p_i)`, `p_i = λ_i / Σ λ`.
    """

    numerical: float
    approximate: float
    participation: float
    effective: float


@dataclass(frozen=True)
class FeatureRanks:
    """Five ranks of features Φ with singular values σ_1 ≥ …; NaN if undefined.

    Attributes:
        numerical: Number of `σ_i > max(N, D) ε σ_1`, ε the machine epsilon of the features' dtype.
        approximate: Least k with `Σ_{i≤k} σ_i² ≥ (1−δ) Σ σ_i²`.
        srank: Least k with `Σ_{i≤k} σ_i ≥ (1−δ) Σ σ_i`.
        participation: `(Σ σ²)² / Σ σ⁴`, that of the feature kernel `Φ Φᵀ`.
        effective: `exp(−Σ p_i log p_i)`, `p_i = σ_i / Σ σ`.
    """

    numerical: float
    approximate: float
    srank: float
    participation: float
    effective: float


def kernel_ranks(k: ArrayLike | KernelView, *, centred: bool = False, delta: float = 0.01) -> KernelRanks:
    """Numerical, approximate, participation and effective rank of a kernel, uncentred or centred (`HΘH`).

    Args:
        k: Self-kernel `(N, N)`.
        centred: Whether to centre it first; `effective` is then `effective_rank`.
        delta: δ, the share of the sum that the approximate rank may omit.

    Returns:
        The ranks; all NaN with a warning if the kernel is zero, constant and centred, or not finite.

    Raises:
        ArgumentError: Not a square matrix, or δ outside (0, 1).

    Source: Yang et al. 2020 (approximate; Tang et al. 2025 use it for the NTK); Roy & Vetterli 2007 (effective); the
        participation ratio comes from physics.

    >>> found = kernel_ranks([[2.0, 0.0], [0.0, 1.0]], delta=0.4)
    >>> found.numerical, found.approximate, round(found.participation, 6), round(found.effective, 6)
    (2.0, 1.0, 1.8, 1.889882)
    """
    view = view_of(k)
    n = view.require_square("kernel_ranks")
    _require_share(delta)
    try:
        view.require_finite()
        values = np.clip(view.centred_eigenvalues if centred else view.eigenvalues, 0.0, None)
        if values[0] <= 4 * view.epsilon * view.frobenius:
            undefined(f"the {'centred ' if centred else ''}kernel has no positive eigenvalue above working precision")
    except Undefined as reason:
        warn_undefined("kernel_ranks", reason)
        return KernelRanks(*[math.nan] * 4)
    values = values / values[0]
    return KernelRanks(
        numerical=float(np.count_nonzero(values > n * view.epsilon)),
        approximate=_least(values, delta),
        participation=_participation(values),
        effective=entropy_rank(values),
    )


def feature_ranks(features: ArrayLike, *, centred: bool = False, delta: float = 0.01) -> FeatureRanks:
    """Numerical, approximate, stable (srank), participation and effective rank of features.

    Args:
        features: Φ, shape `(N, D)`: N samples, D units.
        centred: Whether to subtract each unit's mean over samples first.
        delta: δ, the share of the sum that the approximate rank and srank may omit.

    Returns:
        The ranks; all NaN with a warning if the features are zero, constant and centred, or not finite.

    Raises:
        ArgumentError: Not a matrix, or δ outside (0, 1).

    Source: Yang et al. 2020 (approximate); Kumar et al. 2021 (srank); Roy & Vetterli 2007 (effective).

    >>> found = feature_ranks([[3.0, 0.0], [0.0, 1.0]], delta=0.2)
    >>> found.numerical, found.approximate, found.srank, round(found.participation, 6), round(found.effective, 6)
    (2.0, 1.0, 2.0, 1.219512, 1.754765)
    """
    phi = as_float64(features, "features")
    if phi.ndim != 2 or phi.size == 0:
        raise ArgumentError(f"feature_ranks needs features of shape (N, D), found {phi.shape}.")
    _require_share(delta)
    epsilon = working_epsilon(features)
    try:
        if bad := count_non_finite(phi):
            undefined(f"the features have {bad} non-finite entries of {phi.size}")
        largest = float(np.abs(phi).max())
        if largest == 0:
            undefined("the features are exactly zero")
        phi = phi / largest
        used = phi - phi.mean(axis=0) if centred else phi
        values = np.linalg.svd(used, compute_uv=False)
        if values[0] <= 4 * epsilon * np.linalg.norm(phi):
            undefined("nothing is left of the features after centring")
    except Undefined as reason:
        warn_undefined("feature_ranks", reason)
        return FeatureRanks(*[math.nan] * 5)
    values = values / values[0]
    return FeatureRanks(
        numerical=float(np.count_nonzero(values > max(phi.shape) * epsilon)),
        approximate=_least(values**2, delta),
        srank=_least(values, delta),
        participation=_participation(values**2),
        effective=entropy_rank(values),
    )


def _least(values: Array, delta: float) -> float:
    """Least k whose leading values make up all but a share δ of the sum, up to rounding."""
    sums = np.cumsum(values)
    return float(np.argmax(sums >= (1 - delta) * sums[-1] * (1 - 1e-12)) + 1)


def _participation(values: Array) -> float:
    return float(values.sum() ** 2 / np.sum(values**2))


def _require_share(delta: float) -> None:
    if not 0 < delta < 1:
        raise ArgumentError(f"delta must be a share between 0 and 1, found {delta!r}. Use 0.01, for example.")
