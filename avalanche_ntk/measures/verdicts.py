"""Whether a boundary differs from what fresh samples of the same classes do: beside controls, and over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._undefined import warn_undefined
from avalanche_ntk.measures.reactivation import Reactivation


def require_same_cadence(a: Reactivation, b: Reactivation) -> None:
    """Check that two reactivations were measured equally densely, before and after the boundary.

    Raises:
        ArgumentError: They were not.
    """
    if a.cadence != b.cadence:
        raise ArgumentError(
            "velocities of different cadences are not comparable: expected equal iterations between measurements "
            f"(before, after the boundary), found {a.cadence} and {b.cadence}. Measure both runs on the same schedule."
        )


def compare_ratios(a: Reactivation, b: Reactivation) -> float:
    """Return `a.ratio / b.ratio`, how many times stronger the reactivation a is.

    Args:
        a: One reactivation.
        b: The other, measured at the same cadence.

    Returns:
        The quotient; NaN with a warning when a ratio is None or zero, or is only a lower bound.

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
    """Whether a boundary differs from what fresh samples of the same classes do.

    Attributes:
        verdict: "reactivated", "above the controls", "not distinguishable" or "undefined".
        reason: The numbers it rests on, in a sentence.
        spike: Spike at the boundary.
        ratio: Ratio at the boundary.
        control_spike: The largest spike among the controls.
        control_ratio: The largest ratio among the controls.
        rank: Share of the controls whose spike and ratio are both below; None where undefined.
        controls: Number of controls taken into account.
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

    A redraw of samples alone makes the velocity jump, so no fixed threshold is valid. The verdict is "reactivated" when
    both spike and ratio exceed those of every control and the controls are enough: without a shift, one number exceeds
    those of n controls with probability 1/(n + 1), so that `alpha = 0.05` takes 19. With fewer it is "above the
    controls"; "not distinguishable" when one is not exceeded, "undefined" without a control or where a number is
    missing.

    Args:
        found: The reactivation at the boundary.
        control: That of a control run at the same boundary, or of several such runs (other seeds); None without any.
        alpha: Largest probability, without a shift, of the verdict "reactivated".

    Returns:
        A `Verdict`.

    Raises:
        ArgumentError: A control was measured at another cadence.

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
        reason += "; a control's ratio is only a lower bound, its base being below the noise"
    elif exceeds:
        reason += f"; without a shift this happens with probability at most 1/{len(pairs) + 1}"
    return Verdict(word, reason, found.spike, found.ratio, top_spike, top_ratio, rank, len(pairs))
