"""From numbers to verdicts."""

import math

import pytest

from avalanche_ntk.reproduce.deciding import decided
from avalanche_ntk.reproduce.verdicts import (
    Claim,
    Verdict,
    found,
    minus,
    reported,
    trend,
    trend_by_seed,
)

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "above", "verdict"),
    [
        ([1.0, 1.1, 1.2], True, Verdict.HOLDS),
        ([1.0, 1.1, 1.2], False, Verdict.FAILS),
        ([-1.0, -1.1, -1.2], True, Verdict.FAILS),
        ([-1.0, 1.1, 1.2], True, Verdict.OPEN),
        ([1.0, 1.1], True, Verdict.OPEN),  # two seeds say nothing
        ([1.0, 1.1, NAN, 1.2], True, Verdict.HOLDS),
        ([1.0, NAN, NAN], True, Verdict.OPEN),
        ([0.0, 0.0, 0.0], True, Verdict.FAILS),  # equal is not above
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(values, above, verdict):
    assert found("case", "number", values, 0.0, above=above).verdict is verdict


def test_undefined_seeds_are_told():
    assert found("case", "number", [1.0, NAN], 0.0).note == "undefined for 1 of 2 seeds"
    assert reported("case", "number", [1.0, NAN], note="why").note == "why; undefined for 1 of 2 seeds"
    assert reported("case", "number", [1.0]).note == ""


def test_a_claim_counts_its_cases():
    good, bad, open_ = (found("c", "s", v, 0.0) for v in ([1.0, 1.1, 1.2], [-1.0, -1.1, -1.2], [-1.0, 1.0, 0.1]))
    told = reported("c", "s", [5.0, 5.0, 5.0])
    assert Claim("a", "A.", (good,)).told == "holds"
    assert Claim("a", "A.", (good, told, good)).told == "holds throughout (2 cases)"
    assert Claim("a", "A.", (good, open_)).told == "undecided (1 hold, 1 undecided)"
    assert Claim("a", "A.", (good, good, open_)).told == "holds in most (2 of 3); 2 hold, 1 undecided"
    assert Claim("a", "A.", (good, open_, bad)).told == "does not hold (1 hold, 1 do not, 1 undecided)"
    assert Claim("a", "A.", (bad, bad)).told == "does not hold (2 do not)"
    assert Claim("a", "A.", (told,)).verdict is Verdict.OPEN


def test_a_claim_says_what_it_depends_on():
    cases = [f"{regime}, width {width}" for width in (8, 16, 32, 64, 128) for regime in ("lazy", "rich")]
    findings = tuple(found(c, "s", [1.0, 1.1, 1.2] if "rich" in c else [-1.0, -1.1, -1.2], 0.0) for c in cases)
    claim = Claim("a", "A.", findings)
    assert claim.verdict is Verdict.DEPENDS
    assert claim.told == "depends on rich (holds in 5 of 5 with it, 0 of 5 without); 5 hold, 5 do not"


def test_trends_are_rank_correlations_by_seed():
    assert trend({0.0: [1.0, 3.0, 1.0], 1.0: [2.0, 2.0, 1.0], 5.0: [3.0, 1.0, 1.0]})[:2] == [1.0, -1.0]
    assert math.isnan(trend({0.0: [1.0], 1.0: [1.0]})[0])
    assert math.isnan(trend({0.0: [1.0], 1.0: [NAN]})[0])
    # 1, 3, 2 against 1, 2, 3: 1 − 6·(0 + 1 + 1)/(3·8)
    assert trend([(1.0, [1.0]), (2.0, [3.0]), (3.0, [2.0])]) == pytest.approx([0.5])
    with pytest.raises(ValueError, match=r"the levels have \[1, 2\] seeds: expected the same number at each\."):
        trend({0.0: [1.0], 1.0: [1.0, 2.0]})


def test_differences_and_trends_by_seed():
    assert trend_by_seed([1.0, 2.0, 3.0], [[5.0, 6.0, 7.0], [1.0, 1.0, 1.0]])[0] == 1.0
    assert minus([3.0, 1.0], [1.0, 2.0]) == [2.0, -1.0]


def test_correlations_and_accuracies_have_a_margin_of_their_scale():
    # Five numbers of mean 0.01 and standard error 0.031: an interval of 0.01 ± 0.086 lies within ±0.2.
    small = [0.01 + 0.1 * x for x in (-0.9, -0.4, 0.0, 0.4, 0.9)]
    (tied,) = decided([Claim("k", "t", (found("a", "rank correlation of a with b", small, 0),))], [5], 1).findings
    assert (tied.verdict, tied.note) == (Verdict.SAME, "no difference larger than 0.2")
    (score,) = decided([Claim("k", "t", (found("a", "accuracy lost", small, 0),))], [5], 1).findings
    assert score.verdict is Verdict.OPEN  # ±0.086 is wider than two percentage points
    for statistic, threshold in (("spike", 0), ("rank correlation of a with b", 0.5)):
        assert math.isnan(found("a", statistic, small, threshold).margin)
    assert found("a", "spike", small, 0, margin=0.3).margin == 0.3
