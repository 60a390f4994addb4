"""Activations of single units over a probe: their similarity, change and periodicity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, count_non_finite, working_epsilon
from avalanche_ntk.measures._undefined import Undefined, nan_when_undefined, undefined, warn_undefined


@dataclass(frozen=True)
class NeuronSimilarity:
    """Similarity of the units of a layer.

    Attributes:
        mean: Mean of |cos| over all pairs of different units that have a direction, in [0, 1]; NaN when undefined.
        max: Maximum of |cos|.
        silent: Number of units without a direction: zero on the whole probe, or constant when centred.
    """

    mean: float
    max: float
    silent: int


@dataclass(frozen=True)
class NeuronPeriodicity:
    """Periods of units over an ordered probe.

    Attributes:
        period: Dominant period of each unit in samples, shape `(D,)`; NaN for a flat unit.
        share: Share of its variance at that period, in [0, 1], shape `(D,)`; NaN for a flat unit.
        fraction: Share of periodic units among all D; NaN if every unit is flat.
        flat: Number of flat units.
    """

    period: Array
    share: Array
    fraction: float
    flat: int


def neuron_similarity(activations: ArrayLike, *, centred: bool = False) -> NeuronSimilarity:
    """Mean and maximum over pairs of units i < j of `|<h_i, h_j>| / (‖h_i‖ ‖h_j‖)`, h_i unit i over the N samples.

    Uncentred it is the cosine with which Ayinde et al. find redundant features; for non-negative units, as after a
    ReLU, it is large whenever both are active. Centred, `h_i − mean(h_i)`, it is the absolute Pearson correlation of
    the units.

    Args:
        activations: Shape `(N, D)`: N samples, D units.
        centred: Whether to subtract each unit's mean over the probe first.

    Returns:
        Mean, maximum, and the number of units left out. NaN with a warning if fewer than two units have a direction, an
        entry is not finite, or N is too small (below 2; centred below 3, where each pair has |cos| 1).

    Raises:
        ArgumentError: `activations` is not a matrix of numbers.

    Source: Ayinde, Inanc & Zurada 2019, "On Correlation of Features Extracted by Deep Neural Networks".

    >>> neuron_similarity([[3.0, 4.0, 0.0], [0.0, 3.0, 0.0]])
    NeuronSimilarity(mean=0.8, max=0.8, silent=1)
    """
    h = _activations(activations, "neuron_similarity")
    silent = 0
    try:
        units, alive = _directions(h, centred, working_epsilon(activations))
        silent = int(np.count_nonzero(~alive))
        n = int(np.count_nonzero(alive))
        if n < 2:
            undefined(f"{n} of {h.shape[1]} units has a direction, and a pair needs two")
    except Undefined as reason:
        warn_undefined("neuron_similarity", reason)
        return NeuronSimilarity(math.nan, math.nan, silent)
    directed = units[:, alive]
    cosines = np.minimum(np.abs(directed.T @ directed)[np.triu_indices(n, k=1)], 1.0)
    return NeuronSimilarity(float(cosines.mean()), float(cosines.max()), silent)


@nan_when_undefined
def tuning_similarity(now: ArrayLike, before: ArrayLike, *, centred: bool = False) -> float:
    """Mean over units of the cosine between a unit's activations now and before, on the same probe in the same order.

    1 if no unit's tuning has changed except for its gain; unlike a kernel it detects when units exchange roles. Centred
    it is the tuning-curve correlation used to measure representational drift.

    Args:
        now: Shape `(N, D)`: N samples, D units.
        before: The same units on the same samples, shape `(N, D)`.
        centred: Whether to subtract each unit's mean over the probe first.

    Returns:
        A number in [−1, 1], over the units that have a direction both times; NaN with a warning if there is none, an
        entry is not finite, or N is too small (as in `neuron_similarity`).

    Raises:
        ArgumentError: The shapes differ, or an argument is not a matrix of numbers.

    Source: the signal correlation of tuning curves, as in Driscoll et al. 2017; Rule, O'Leary & Harvey 2019.

    >>> round(tuning_similarity([[3.0, 1.0], [4.0, 0.0]], [[1.0, 2.0], [0.0, 0.0]]), 12)
    0.8
    """
    h, g = _activations(now, "tuning_similarity"), _activations(before, "tuning_similarity")
    if h.shape != g.shape:
        raise ArgumentError(
            f"tuning_similarity compares the same units on the same samples, found shapes {h.shape} and {g.shape}. "
            "Pass activations of one layer on one probe."
        )
    new, live = _directions(h, centred, working_epsilon(now))
    old, lived = _directions(g, centred, working_epsilon(before))
    both = live & lived
    if not both.any():
        undefined("no unit has a direction both now and before")
    return float(np.clip((new * old).sum(axis=0)[both], -1.0, 1.0).mean())


def neuron_periodicity(activations: ArrayLike, *, threshold: float = 0.5) -> NeuronPeriodicity:
    """Dominant period of each unit, from its power spectrum over a probe whose samples are a sequence in equal steps.

    With `H_k = Σ_n (h[n] − mean(h)) exp(−2πi kn/N)`, `P_k = 2 |H_k|²` for 0 < k < N/2 and `P_k = |H_k|²` for k = N/2,
    the share `P_k / Σ_k P_k` is the part of the unit's variance explained by frequency k (Parseval). The frequency k*
    with the largest share (the lowest of equal ones) gives the period `N/k*`; its share is the statistic g of Fisher's
    test. A unit counts as periodic if that share is at least `threshold` and the probe holds two periods or more (k* ≥
    2): a trend has most of its power at k = 1.

    Args:
        activations: Shape `(N, D)`: N samples in order, D units.
        threshold: Least share of a periodic unit, in (0, 1].

    Returns:
        Periods in samples, shares, and the share of periodic units. A flat unit, constant to working precision, has
        neither period nor share and is not periodic. If all are flat, N < 4 or an entry is not finite, everything is
        NaN with a warning.

    Raises:
        ArgumentError: `activations` is not a matrix of numbers, or the threshold is out of range.

    Source: Schuster 1898 for the periodogram; Fisher 1929, "Tests of significance in harmonic analysis". Nanda et al.
        2023 use the variance at one frequency as a measure of periodic units.

    >>> found = neuron_periodicity([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 1.0]] * 2)
    >>> found.period.tolist(), found.fraction, found.flat
    ([4.0, nan], 0.5, 1)
    """
    h = _activations(activations, "neuron_periodicity")
    if not 0 < threshold <= 1:
        raise ArgumentError(f"threshold must lie in (0, 1], found {threshold}. Use 0.5, for example.")
    n, units = h.shape
    period, share = np.full(units, math.nan), np.full(units, math.nan)
    flat = units
    try:
        _require(h, 4, "a period needs at least four samples in order")
        directions, varies = _directions(h, True, working_epsilon(activations))
        flat = int(np.count_nonzero(~varies))
        if flat == units:
            undefined("every unit is flat over the probe")
    except Undefined as reason:
        warn_undefined("neuron_periodicity", reason)
        return NeuronPeriodicity(period, share, math.nan, flat)
    power = np.abs(np.fft.rfft(directions[:, varies], axis=0)[1:]) ** 2
    power[: (n - 1) // 2] *= 2.0  # all but the Nyquist frequency count twice
    power /= power.sum(axis=0)
    # Shares that are equal up to rounding are a tie.
    peak = np.argmax(power >= power.max(axis=0) * (1 - 1e-9), axis=0)
    share[varies] = power[peak, np.arange(power.shape[1])]
    period[varies] = n / (peak + 1)
    periodic = (share[varies] >= threshold * (1 - 1e-9)) & (peak >= 1)
    return NeuronPeriodicity(period, share, float(np.count_nonzero(periodic)) / units, flat)


def _activations(values: ArrayLike, measure: str) -> Array:
    h = as_float64(values, "activations")
    if h.ndim != 2 or 0 in h.shape:
        raise ArgumentError(
            f"{measure} needs activations of shape (N, D), N samples and D units, found {h.shape}. "
            "Flatten each sample's activations into one row."
        )
    return h


def _require(h: Array, samples: int, why: str) -> None:
    if count_non_finite(h):
        undefined(f"the activations have {count_non_finite(h)} non-finite entries of {h.size}")
    if len(h) < samples:
        undefined(f"{why}, found N={len(h)}")


def _directions(h: Array, centred: bool, epsilon: float) -> tuple[Array, np.ndarray]:
    """Units as columns of norm 1, and which of them have a direction."""
    least = 3 if centred else 2
    _require(h, least, f"below {least} samples every {'centred ' if centred else ''}unit has the same direction")
    largest = np.abs(h).max(axis=0)
    # Divide by the largest entry first, so that squares do not over- or underflow.
    scaled = h / np.where(largest > 0, largest, 1.0)
    if centred:
        scaled = scaled - scaled.mean(axis=0)
    alive = np.abs(scaled).max(axis=0) > (4 * epsilon if centred else 0.0)
    norms = np.linalg.norm(scaled, axis=0)
    return scaled / np.where(alive, norms, 1.0), alive
