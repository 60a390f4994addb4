"""Means over seeds and what is known of them."""

import math

import numpy as np
import pytest
from scipy import stats

from avalanche_ntk.measures import interval, log_intervals
from avalanche_ntk.measures.intervals import rank_correlation

NAN = math.nan


def test_the_interval_is_students():
    values = [0.3, 0.9, 0.4, 1.1, 0.8]
    mean, low, high = interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean == pytest.approx(0.7)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_few_numbers_have_no_interval():
    assert interval([2.0])[0] == 2.0
    assert [math.isnan(v) for v in interval([2.0])[1:]] == [True, True]
    assert all(math.isnan(v) for v in interval([]))


def percentile_bootstrap(values, rng):
    drawn = values[rng.integers(0, len(values), size=(400, len(values)))].mean(axis=1)
    return np.percentile(drawn, [2.5, 97.5])


def coverage(bounds, n, trials, rng):
    """How many intervals of n normal numbers hold their mean."""
    held = 0
    for _ in range(trials):
        low, high = bounds(rng.normal(3.0, 2.0, size=n))
        held += low <= 3.0 <= high
    return held / trials


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interval_covers_the_mean(n):
    """With 2,000 trials the standard error is 0.5 %: 95 % less three of them is above 93 %."""
    rng = np.random.default_rng(n)
    assert 0.93 <= coverage(lambda values: interval(values)[1:], n, 2000, rng) <= 0.97


def test_the_simulation_tells_intervals_that_do_not_cover():
    rng = np.random.default_rng(0)
    assert coverage(lambda values: percentile_bootstrap(values, rng), 3, 300, rng) < 0.85


def test_intervals_of_logarithms():
    mean, low, high = log_intervals([[1.0, 2.0], [10.0, -1.0], [100.0, 8.0]])
    assert mean == pytest.approx([10.0, 4.0])
    half = stats.t.ppf(0.975, 2) * math.log(10) / math.sqrt(3)
    assert (low[0], high[0]) == pytest.approx((10 * math.exp(-half), 10 * math.exp(half)))
    assert math.log(high[1] / 4) == pytest.approx(math.log(4 / low[1]))


def test_one_rank_correlation_serves_all():
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(0.5)  # 1 − 6·2/(3·8)
    for undefined in ([NAN, 1.0, 2.0], [4.0, 4.0, 4.0], [math.inf, 1.0, 2.0]):
        assert math.isnan(rank_correlation([1.0, 2.0, 3.0], undefined))
        assert math.isnan(rank_correlation(undefined, [1.0, 2.0, 3.0]))
