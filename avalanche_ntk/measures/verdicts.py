"""Verdicts: comparison of a boundary with no-shift controls, for one run and over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._undefined import warn_undefined
from avalanche_ntk.measures.intervals import interval
from avalanche_ntk.measures.reactivation import Reactivation

_FEWEST = 3  # least number of seeds for a verdict


def require_same_cadence(a: Reactivation, b: Reactivation) -> None:
    """Check that two reactivations have the same cadence before and after the boundary.

    Raises:
        ArgumentError: The cadences differ.
    """
    if a.cadence != b.cadence:
        raise ArgumentError(
            "velocities of different cadences are not comparable: expected equal iterations between measurements "
            f"(before, after the boundary), found {a.cadence} and {b.cadence}. Measure both runs on the same schedule."
        )


def compare_ratios(a: Reactivation, b: Reactivation) -> float:
    """Return `a.ratio / b.ratio`, the relative strength of reactivation a.

    Args:
        a: One reactivation.
        b: The other, measured at the same cadence.

    Returns:
        The quotient; NaN with a warning if a ratio is None, zero or only a lower bound.

    Raises:
        ArgumentError: The cadences differ.

    >>> a = Reactivation(30, 60, ratio=8.0, at_floor=False, cadence=(10.0, 10.0))
    >>> b = Reactivation(30, 60, ratio=2.0, at_floor=False, cadence=(10.0, 10.0))
    >>> compare_ratios(a, b)
    4.0
    """
    for which, found in (("first", a), ("second", b)):
        if found.ratio is None:
            warn_undefined("compare_ratios", f"the {which} ratio is: {found.reasons.get('ratio', 'not given')}")
            return math.nan
    require_same_cadence(a, b)
    for which, found in (("first", a), ("second", b)):
        if found.at_floor:
            warn_undefined("compare_ratios", f"the {which} ratio is only a lower bound (at_floor)")
            return math.nan
    if not b.ratio:
        warn_undefined("compare_ratios", "the second ratio is zero")
        return math.nan
    assert a.ratio is not None
    return a.ratio / b.ratio


@dataclass(frozen=True)
class Verdict:
    """Verdict on a boundary, compared with no-shift controls.

    Attributes:
        verdict: "reactivated", "above the controls", "not distinguishable" or "undefined".
        reason: Its basis, in a sentence.
        spike: Spike at the boundary.
        ratio: Ratio at the boundary.
        control_spike: The largest spike among the controls.
        control_ratio: The largest ratio among the controls.
        rank: Share of the controls whose spike and ratio are both below; None if undefined.
        controls: Number of controls used.
    """

    verdict: str
    reason: str
    spike: float | None = None
    ratio: float | None = None
    control_spike: float | None = None
    control_ratio: float | None = None
    rank: float | None = None
    controls: int = 0


def verdict(
    found: Reactivation, control: Reactivation | Sequence[Reactivation] | None, *, alpha: float = 0.05
) -> Verdict:
    """Compare a boundary with no-shift controls: same classes, fresh samples, everything else equal.

    Fresh samples alone make the velocity jump, so a fixed threshold is not valid. The verdict is "reactivated" if both
    spike and ratio exceed those of every control and there are enough controls: without a shift, a number exceeds those
    of n controls with probability 1/(n + 1), so `alpha = 0.05` needs 19. With fewer it is "above the controls". It is
    "not distinguishable" if a control is not exceeded, and "undefined" without a control or if a number is missing.

    Args:
        found: The reactivation at the boundary.
        control: The reactivation of a control run at the same boundary, or those of several (other seeds); None for
            none.
        alpha: Largest probability of the verdict "reactivated" without a shift.

    Returns:
        A `Verdict`.

    Raises:
        ArgumentError: A control has another cadence.

    >>> a = Reactivation(30, 60, spike=7.0, ratio=8.0, at_floor=False, cadence=(10.0, 10.0))
    >>> b = Reactivation(30, 60, spike=4.0, ratio=5.0, at_floor=False, cadence=(10.0, 10.0))
    >>> verdict(a, b).verdict, verdict(b, a).verdict, verdict(a, None).verdict
    ('above the controls', 'not distinguishable', 'undefined')
    """
    controls = [] if control is None else [control] if isinstance(control, Reactivation) else list(control)
    if not controls:
        return Verdict("undefined", "there is no no-shift control to compare with", found.spike, found.ratio)
    if found.spike is None or found.ratio is None:
        return Verdict("undefined", f"the boundary has no spike: {found.reasons.get('spike', 'not given')}")
    pairs = []
    for one in controls:
        if one.spike is None or one.ratio is None:
            reason = f"a control has no spike: {one.reasons.get('spike', 'not given')}"
            return Verdict("undefined", reason, found.spike, found.ratio, controls=len(controls))
        require_same_cadence(found, one)
        pairs.append((one.spike, one.ratio))
    top_spike, top_ratio = (max(column) for column in zip(*pairs, strict=True))
    rank = sum(s < found.spike and r < found.ratio for s, r in pairs) / len(pairs)
    exceeds = found.spike > top_spike and found.ratio > top_ratio
    enough = 1 / (len(pairs) + 1) <= alpha
    word = "not distinguishable" if not exceeds else "reactivated" if enough else "above the controls"
    count = "the control" if len(pairs) == 1 else f"the largest of {len(pairs)} controls"
    reason = (
        f"spike {found.spike:.3g} and ratio {found.ratio:.3g} against {top_spike:.3g} and {top_ratio:.3g} of {count}"
    )
    if exceeds and not found.at_floor and any(one.at_floor for one in controls):
        word = "undefined"
        reason += "; a control's ratio is only a lower bound, since its base is below the noise"
    elif exceeds:
        reason += f"; without a shift this happens with probability at most 1/{len(pairs) + 1}"
    return Verdict(word, reason, found.spike, found.ratio, top_spike, top_ratio, rank, len(pairs))


@dataclass(frozen=True)
class SeedVerdict:
    """Whether a boundary differs from its no-shift control, over seeds.

    Attributes:
        verdict: "reactivated", "not distinguishable" or "undefined".
        reason: Its basis, in a sentence.
        peak: Geometric mean over the seeds of `peak / peak of the control`, and its 95 % interval; NaN if undefined.
        ratio: The same of `ratio / ratio of the control`.
        seeds: Number of pairs used.
    """

    verdict: str
    reason: str
    peak: tuple[float, float, float]
    ratio: tuple[float, float, float]
    seeds: int


def verdict_over_seeds(pairs: Sequence[tuple[Reactivation, Reactivation]]) -> SeedVerdict:
    """Compare a boundary with its no-shift control over seeds, pairing each run with the control of its seed.

    The verdict is "reactivated" if the mean spike is positive and Student's 95 % intervals of the log quotients of
    peaks and of ratios lie above 0; "not distinguishable" if one does not; "undefined" with fewer than three complete
    pairs. Logarithms are used because velocities of seeds differ by factors. A few seeds suffice, while `verdict` on a
    single run needs 19 controls. A pair whose control's ratio is only a lower bound is left out; if the run's ratio is
    one, the verdict is conservative.

    Args:
        pairs: For each seed the reactivation at the boundary, and that of the control at the same boundary.

    Returns:
        A `SeedVerdict`.

    Raises:
        ArgumentError: The cadences within a pair differ.

    Source: Student 1908, for paired differences.

    >>> def found(peak, ratio):
    ...     return Reactivation(30, 60, peak=peak, spike=peak, ratio=ratio, at_floor=False, cadence=(10.0, 10.0))
    >>> pairs = [(found(7.0 + i, 16.0), found(2.0, 4.0 - i / 10)) for i in range(3)]
    >>> verdict_over_seeds(pairs).verdict, verdict_over_seeds(pairs[:2]).verdict
    ('reactivated', 'undefined')
    """
    spikes, peaks, ratios = [], [], []
    for one, control in pairs:
        defined = one.spike is not None and control.spike is not None and not control.at_floor
        if not (defined and one.peak and control.peak and one.ratio and control.ratio):
            continue
        require_same_cadence(one, control)
        spikes.append(one.spike or 0.0)
        peaks.append(math.log(one.peak / control.peak))
        ratios.append(math.log(one.ratio / control.ratio))
    peak, ratio = _quotient(peaks), _quotient(ratios)
    if len(peaks) < _FEWEST:
        reason = f"it takes {_FEWEST} seeds with spike and ratio defined for run and control, found {len(peaks)}"
        return SeedVerdict("undefined", reason, peak, ratio, len(peaks))
    word = "reactivated" if sum(spikes) > 0 and peak[1] > 1 and ratio[1] > 1 else "not distinguishable"
    told = [f"{mean:.3g} [{low:.3g}, {high:.3g}]" for mean, low, high in (peak, ratio)]
    reason = f"over {len(peaks)} seeds the peak is {told[0]} times the control's and the ratio {told[1]} times"
    return SeedVerdict(word, reason, peak, ratio, len(peaks))


def _quotient(logarithms: Sequence[float]) -> tuple[float, float, float]:
    mean, low, high = (math.exp(value) for value in interval(logarithms))
    return mean, low, high
