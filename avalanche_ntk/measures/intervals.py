"""Statistics over seeds: means with Student's interval, and rank correlations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from avalanche_ntk.measures._undefined import Undefined
from avalanche_ntk.measures.forecast import rank_correlation as warning_rank_correlation

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of n numbers and its Student 95 % interval.

    `mean ± t_{n−1}(0.975) · s/√n`, with s the sample's standard deviation. For three, five or ten normal numbers, a
    percentile bootstrap covers the mean in only about 76, 84 and 90 of 100 cases; this interval does in 95.

    Args:
        values: n numbers, all finite.

    Returns:
        Mean, lower and upper end; NaN if n is too small (0 for the mean, 1 for the interval).

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
        by_seed: For each seed n numbers; undefined or non-positive ones are left out.

    Returns:
        n means, n lower and n upper ends; NaN with too few numbers.

    >>> [round(means[0], 3) for means in log_intervals([[1.0], [10.0], [100.0]])]
    [10.0, 0.033, 3048.862]
    """
    columns = [[math.log(v) for v in column if math.isfinite(v) and v > 0] for column in zip(*by_seed, strict=True)]
    told = [[math.exp(v) for v in interval(column)] for column in columns]
    mean, low, high = (list(one) for one in zip(*told, strict=True))
    return mean, low, high


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return `measures.rank_correlation`, without a warning if it is undefined, as is common over many seeds.

    Args:
        a: n numbers.
        b: n numbers.

    Returns:
        Spearman's correlation; NaN if a number is undefined or one series is constant.

    >>> rank_correlation([1.0, 2.0, 5.0], [9.0, 3.0, 1.0]), rank_correlation([1.0, 2.0], [3.0, 3.0])
    (-1.0, nan)
    """
    body: Any = warning_rank_correlation
    try:
        return float(body.__wrapped__(a, b))
    except Undefined:
        return math.nan
