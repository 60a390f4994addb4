"""Verdicts from one number per seed: the mean, its interval, and the claim about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from avalanche_ntk.measures.intervals import interval, rank_correlation
from avalanche_ntk.reproduce.dependence import Dependence, dependence

FEWEST = 3  # least number of seeds with a defined number for a verdict
CORRELATION, ACCURACY = 0.2, 0.02  # margins: smaller correlations and differences of accuracy do not matter


class Verdict(str, Enum):
    """Verdict on a case, or on a claim with its cases, at the tested scale."""

    HOLDS = "holds"
    FAILS = "does not hold"
    SAME = "no difference that matters"  # a case: the interval lies within the margin of practical equivalence
    MOST = "holds in most"  # a claim: in more than half of its cases
    DEPENDS = "depends"  # a claim: depends on a word of its cases
    OPEN = "undecided"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """One statistic in one case.

    Attributes:
        case: The case, such as width and regime.
        statistic: The statistic computed for each seed, in words or as a formula.
        values: One number per seed; NaN if undefined.
        threshold: The claimed bound of the mean, a lower one if `above`, otherwise an upper one; NaN for a number that
            is only reported.
        above: Whether the bound is a lower one.
        mean: Mean of the defined values.
        low: Lower end of the mean's 95 % interval.
        high: Its upper end.
        verdict: The verdict; None if it is only reported.
        note: Further remarks.
        margin: Differences from the threshold below this do not matter; NaN if every difference does.
    """

    case: str
    statistic: str
    values: tuple[float, ...]
    threshold: float
    above: bool
    mean: float
    low: float
    high: float
    verdict: Verdict | None
    note: str = ""
    margin: float = math.nan


@dataclass(frozen=True)
class Claim:
    """One checkable statement and its findings.

    Attributes:
        key: A short name.
        text: The statement.
        findings: The findings.
        remark: Dependence of the result, or reasons for disagreement.
    """

    key: str
    text: str
    findings: tuple[Finding, ...]
    remark: str = ""

    @property
    def judged(self) -> list[Finding]:
        """The findings with a claim."""
        return [finding for finding in self.findings if finding.verdict is not None]

    @property
    def dependence(self) -> Dependence | None:
        """The dependence of its decided cases; None if no division is significant."""
        closed = [f for f in self.judged if f.verdict is not Verdict.OPEN]
        return dependence([f.case for f in closed], [f.verdict is Verdict.HOLDS for f in closed])

    @property
    def verdict(self) -> Verdict:
        """Holds if every case does; "in most" if more than half do; "depends" if a word separates them.

        Otherwise it does not hold if a case does not (or shows no difference that matters), and is undecided if no case
        fails.
        """
        found = [finding.verdict for finding in self.judged]
        held, against = found.count(Verdict.HOLDS), found.count(Verdict.FAILS) + found.count(Verdict.SAME)
        if found and held == len(found):
            return Verdict.HOLDS
        if held and against and self.dependence is not None:
            return Verdict.DEPENDS
        if 2 * held > len(found):
            return Verdict.MOST
        return Verdict.FAILS if against else Verdict.OPEN

    @property
    def told(self) -> str:
        """The verdict in words, with the numbers of cases that hold, do not hold, show no difference, or are open."""
        found = [finding.verdict for finding in self.judged]
        verdict = self.verdict
        if len(found) < 2:
            return str(found[0]) if found else str(verdict)
        if verdict is Verdict.HOLDS:
            return f"holds throughout ({len(found)} cases)"
        counts = [(found.count(v), word) for v, word in _COUNTED]
        parts = ", ".join(f"{n} {word}" for n, word in counts if n)
        if verdict is Verdict.DEPENDS:
            return f"depends on {self.dependence}; {parts}"
        if verdict is Verdict.MOST:
            return f"holds in most ({found.count(Verdict.HOLDS)} of {len(found)}); {parts}"
        return f"{verdict} ({parts})"


_COUNTED = (
    (Verdict.HOLDS, "hold"),
    (Verdict.FAILS, "do not"),
    (Verdict.SAME, "without a difference that matters"),
    (Verdict.OPEN, "undecided"),
)


def found(
    case: str,
    statistic: str,
    values: Sequence[float],
    threshold: float,
    *,
    above: bool = True,
    note: str = "",
    margin: float | None = None,
) -> Finding:
    """Compare the mean over seeds with a claim.

    The claim holds if the whole interval lies on the claimed side of the threshold, does not hold if it lies on the
    other, and is undecided if the threshold is inside or fewer than three seeds have a number. In a study the rule of
    `deciding` replaces this single interval.

    Args:
        case: The case.
        statistic: The statistic computed for each seed.
        values: One number per seed; NaN if undefined.
        threshold: The claimed bound of the mean.
        above: Whether the claim is that the mean is above the threshold (otherwise below).
        note: Further remarks.
        margin: Differences from the threshold below this do not matter; NaN if every difference does; None for
            `usual_margin`.

    Returns:
        The finding.

    >>> found("width 64", "spike", [2.0, 3.0, 4.0, 3.0], 0.0).verdict.value
    'holds'
    """
    finite = [float(value) for value in values if math.isfinite(value)]
    mean, low, high = interval(finite)
    if len(finite) < FEWEST:
        verdict = Verdict.OPEN
    elif (low > threshold) if above else (high < threshold):
        verdict = Verdict.HOLDS
    elif (high <= threshold) if above else (low >= threshold):
        verdict = Verdict.FAILS
    else:
        verdict = Verdict.OPEN
    return Finding(
        case,
        statistic,
        tuple(map(float, values)),
        threshold,
        above,
        mean,
        low,
        high,
        verdict,
        _noted(values, note),
        usual_margin(statistic, threshold) if margin is None else margin,
    )


def usual_margin(statistic: str, threshold: float) -> float:
    """Return which differences from a threshold of 0 are too small to matter, by the scale of the statistic.

    Args:
        statistic: Its words.
        threshold: What it is compared with.

    Returns:
        0.2 for a rank correlation or a difference of two; 0.02, two percentage points, for a difference of accuracies;
        NaN for any other scale, and for any other threshold, which is a choice of the study's.

    >>> usual_margin("rank correlation of the overlap with the accuracy lost", 0)
    0.2
    """
    if threshold != 0:
        return math.nan
    if "correlation" in statistic or "Spearman" in statistic:
        return CORRELATION
    return ACCURACY if "accuracy" in statistic or statistic == "forgetting" else math.nan


def reported(case: str, statistic: str, values: Sequence[float], *, note: str = "") -> Finding:
    """Return a finding without a claim.

    Args:
        case: The case.
        statistic: The statistic computed for each seed.
        values: One number per seed; NaN if undefined.
        note: Further remarks.

    Returns:
        The finding.
    """
    mean, low, high = interval([float(value) for value in values if math.isfinite(value)])
    return Finding(
        case, statistic, tuple(map(float, values)), math.nan, True, mean, low, high, None, _noted(values, note)
    )


def _noted(values: Sequence[float], note: str) -> str:
    missing = sum(not math.isfinite(value) for value in values)
    if not missing:
        return note
    told = f"undefined for {missing} of {len(values)} seeds"
    return f"{note}; {told}" if note else told


def trend(levels: Mapping[float, Sequence[float]] | Sequence[tuple[float, Sequence[float]]]) -> list[float]:
    """Return, for each seed, Spearman's rank correlation of a number with its level.

    Args:
        levels: For each level one number per seed, with seeds in the same order.

    Returns:
        One correlation per seed: 1 if the numbers increase with the level, −1 if they decrease; NaN if a number is
        undefined or all are equal.

    Raises:
        ValueError: The levels have different numbers of seeds.

    Source: Spearman 1904.

    >>> trend({0.0: [3.0, 1.0], 0.5: [2.0, 2.0], 1.0: [1.0, 3.0]})
    [-1.0, 1.0]
    """
    pairs = list(levels.items()) if isinstance(levels, Mapping) else list(levels)
    if len({len(values) for _, values in pairs}) > 1:
        raise ValueError(
            f"the levels have {[len(values) for _, values in pairs]} seeds: expected the same number at each."
        )
    at = [level for level, _ in pairs]
    return [rank_correlation(at, numbers) for numbers in zip(*(values for _, values in pairs), strict=True)]


def trend_by_seed(levels: Iterable[float], by_seed: Iterable[Sequence[float]]) -> list[float]:
    """Return `trend` of numbers given by seed.

    Args:
        levels: n levels.
        by_seed: For each seed n numbers.

    Returns:
        One correlation per seed.

    >>> trend_by_seed([1.0, 2.0, 4.0], [[1.0, 2.0, 5.0], [3.0, 2.0, 1.0]])
    [1.0, -1.0]
    """
    return trend(list(zip(levels, zip(*by_seed, strict=True), strict=True)))


def minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Return the differences of two series with one number per seed."""
    return [x - y for x, y in zip(a, b, strict=True)]


def with_own_and_others(
    numbers: Sequence[Sequence[float]], outcomes: Sequence[Sequence[float]]
) -> tuple[list[float], list[float]]:
    """Return the rank correlations of each seed's series with its own outcome, and with those of other seeds.

    What two series have in common because both have a course in time, they have in common with other seeds' too.

    Args:
        numbers: For each seed n numbers.
        outcomes: For each seed n outcomes.

    Returns:
        For each seed the correlation with its own, and the mean of the defined ones with the others'; NaN for a single
        seed.

    >>> with_own_and_others([[1.0, 2.0], [2.0, 1.0]], [[5.0, 6.0], [7.0, 8.0]])
    ([1.0, -1.0], [1.0, -1.0])
    """
    table = [[rank_correlation(one, other) for other in outcomes] for one in numbers]
    own = [row[i] for i, row in enumerate(table)]
    others = [[v for v in row[:i] + row[i + 1 :] if math.isfinite(v)] for i, row in enumerate(table)]
    return own, [sum(row) / len(row) if row else math.nan for row in others]
