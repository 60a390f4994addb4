"""From one number a seed to a verdict: the mean, its interval, and what was claimed about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import stats
from scipy.special import stdtrit

CONFIDENCE = 0.95
FEWEST = 3  # seeds with a defined number, below which nothing is said


class Verdict(str, Enum):
    """What a claim comes to at the scale at which it was tried."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "cannot be told at this scale"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """One statistic in one case.

    Attributes:
        case: The case: which width, which regime.
        statistic: What was computed for each seed, in words or as a formula.
        values: A number a seed; NaN where it is undefined.
        threshold: What the claim says the mean exceeds (`above`) or stays below; NaN for a number that is only told.
        above: Which of the two.
        mean: Mean of the defined values.
        low: Lower end of the mean's 95 % interval.
        high: Its upper end.
        verdict: What it comes to; None where it is only reported.
        note: What else must be known about it.
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


@dataclass(frozen=True)
class Claim:
    """One checkable statement and what was found about it.

    Attributes:
        key: A short name.
        text: The statement.
        findings: What was computed.
        remark: What the result depends on, or why it disagrees.
    """

    key: str
    text: str
    findings: tuple[Finding, ...]
    remark: str = ""

    @property
    def verdict(self) -> Verdict:
        """Holds where every finding does, does not hold where one does not, else cannot be told."""
        found = [finding.verdict for finding in self.findings if finding.verdict is not None]
        if Verdict.FAILS in found:
            return Verdict.FAILS
        return Verdict.HOLDS if found and all(v is Verdict.HOLDS for v in found) else Verdict.OPEN

    @property
    def told(self) -> str:
        """The verdict, with how many cases it holds in where they differ."""
        found = [finding.verdict for finding in self.findings if finding.verdict is not None]
        held = found.count(Verdict.HOLDS)
        if held == len(found) or len(found) < 2:
            return str(self.verdict)
        return f"{self.verdict} ({held} of {len(found)} cases hold)"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of n numbers and Student's 95 % interval of it.

    `mean ± t_{n−1}(0.975) · s/√n`, with s the sample's standard deviation. A percentile bootstrap of five numbers
    covers its mean in about 83 of 100 cases only; this one in 95 where they are normal.

    Args:
        values: n numbers, all finite.

    Returns:
        Mean, lower and upper end; NaN where n is too small (0 for the mean, 1 for the interval).

    Source: Student 1908.

    >>> [round(number, 3) for number in interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if n == 1:
        return mean, math.nan, math.nan
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def log_intervals(by_seed: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Return the geometric means over seeds and the 95 % intervals of the logarithm's mean.

    Args:
        by_seed: For each seed n numbers; what is undefined or not positive is left out.

    Returns:
        n means, n lower and n upper ends; NaN where there are too few numbers.
    """
    columns = [[math.log(v) for v in column if math.isfinite(v) and v > 0] for column in zip(*by_seed, strict=True)]
    told = [[math.exp(v) for v in interval(column)] for column in columns]
    mean, low, high = (list(one) for one in zip(*told, strict=True))
    return mean, low, high


def found(
    case: str, statistic: str, values: Sequence[float], threshold: float, *, above: bool = True, note: str = ""
) -> Finding:
    """Compare the mean over seeds with what was claimed.

    It holds where the whole interval lies on the claimed side of the threshold, does not hold where it lies on the
    other, and cannot be told where the threshold is inside, or where fewer than three seeds have a number.

    Args:
        case: The case.
        statistic: What was computed for each seed.
        values: A number a seed; NaN where it is undefined.
        threshold: What is to be exceeded, or not reached.
        above: Whether the claim is that the mean is above the threshold (else below).
        note: What else must be known.

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
        case, statistic, tuple(map(float, values)), threshold, above, mean, low, high, verdict, _noted(values, note)
    )


def reported(case: str, statistic: str, values: Sequence[float], *, note: str = "") -> Finding:
    """Return a number that is told beside the others, about which nothing was claimed.

    Args:
        case: The case.
        statistic: What was computed for each seed.
        values: A number a seed; NaN where it is undefined.
        note: What else must be known.

    Returns:
        The finding, without a verdict.
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
    """Return, for each seed, Spearman's rank correlation of a number with the level it was taken at.

    Args:
        levels: The values at each level, a number a seed, the seeds in the same order at each.

    Returns:
        A correlation a seed: 1 where the numbers rise with the level throughout, −1 where they fall; NaN where a number
        is undefined or all are equal.

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
    """Return `trend` of numbers that are given seed by seed.

    Args:
        levels: n levels.
        by_seed: For each seed n numbers.

    Returns:
        A correlation a seed.

    >>> trend_by_seed([1.0, 2.0, 4.0], [[1.0, 2.0, 5.0], [3.0, 2.0, 1.0]])
    [1.0, -1.0]
    """
    return trend(list(zip(levels, zip(*by_seed, strict=True), strict=True)))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two series.

    Args:
        a: n numbers.
        b: n numbers.

    Returns:
        The correlation; NaN where a number is undefined or all of one series are equal.

    Source: Spearman 1904.

    >>> rank_correlation([1.0, 2.0, 5.0], [9.0, 3.0, 1.0])
    -1.0
    """
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))) or min(len(set(a)), len(set(b))) < 2:
        return math.nan
    return float(stats.spearmanr(a, b).statistic)


def minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Return the differences of two series of one number a seed."""
    return [x - y for x, y in zip(a, b, strict=True)]
