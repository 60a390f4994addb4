"""The rule that decides: by hand, and by simulation with effects of known size."""

import math

import numpy as np
import pytest
from scipy import stats

from avalanche_ntk.reproduce.deciding import ALPHA, Evidence, Question, decide, decided
from avalanche_ntk.reproduce.dependence import dependence
from avalanche_ntk.reproduce.verdicts import Claim, Verdict, found

NAN = math.nan


class TestEvidence:
    values = (0.3, 0.9, 0.4, 1.1, 0.8)

    def test_p_value_and_interval_are_students(self):
        one = Evidence.of([*self.values, NAN])
        test = stats.ttest_1samp(self.values, 0.2)
        assert one.level_that_decides(0.2, NAN) == pytest.approx(test.pvalue)
        interval = test.confidence_interval(0.99)
        assert one.interval(0.01) == pytest.approx((interval.low, interval.high))

    def test_equivalence_is_two_one_sided_tests(self):
        one = Evidence.of(self.values)
        low = stats.ttest_1samp(self.values, 0.65 - 2, alternative="greater").pvalue
        high = stats.ttest_1samp(self.values, 0.65 + 2, alternative="less").pvalue
        assert one.level_that_decides(0.65, 2.0) == pytest.approx(2 * max(low, high))
        assert one.verdict(0.65, 2.0, True, 0.05) is Verdict.SAME
        assert one.verdict(0.65, 0.1, True, 0.05) is Verdict.OPEN

    def test_a_small_effect_that_is_seen_later_is_still_without_a_difference_that_matters(self):
        small = Evidence(0.05, 0.01, 10)
        assert small.verdict(0.0, 0.5, True, 0.05) is Verdict.HOLDS
        wide = Evidence(0.0, 0.05, 10)
        assert decide([Question(0.0, margin=0.5)], [[wide], [small]], 2) == [(Verdict.SAME, 1)]

    def test_few_seeds_say_nothing(self):
        assert Evidence.of([5.0, 5.0]).verdict(0.0, NAN, True, 0.05) is Verdict.OPEN
        assert Evidence.of([5.0, 5.0]).level_that_decides(0.0, NAN) == 1.0

    def test_no_spread(self):
        assert Evidence.of([1.0] * 3).verdict(0.0, NAN, True, 1e-9) is Verdict.HOLDS
        assert Evidence.of([0.0] * 3).verdict(0.0, NAN, True, 1e-9) is Verdict.FAILS  # equal is not above


class TestSteps:
    def test_holm_by_hand(self):
        """Levels 5/3, 5/2 and 5 %: p-values of 1, 2 and 4 % are all clear enough; of 1, 3 and 4 % the first only."""

        def evidence(p):
            return Evidence(-stats.t.ppf(p / 2, 9), 1.0, 10)

        questions = [Question(0.0)] * 3
        verdicts = [v for v, _ in decide(questions, [[evidence(p) for p in (0.02, 0.01, 0.04)]], 1)]
        assert verdicts == [Verdict.HOLDS] * 3
        verdicts = [v for v, _ in decide(questions, [[evidence(p) for p in (0.03, 0.01, 0.04)]], 1)]
        assert verdicts == [Verdict.OPEN, Verdict.HOLDS, Verdict.OPEN]

    def test_each_look_has_its_share_and_what_is_decided_stays(self):
        clear, open_, fair = Evidence(3.0, 0.5, 10), Evidence(0.1, 0.5, 10), Evidence(1.2, 0.5, 10)
        p = clear.level_that_decides(0.0, NAN)
        assert ALPHA / 3 < fair.level_that_decides(0.0, NAN) < ALPHA  # too little for a look, not against it
        assert decide([Question(0.0)], [[open_], [clear], [fair]], 3) == [(Verdict.HOLDS, 2)]
        assert decide([Question(0.0)], [[open_], [clear], [open_]], 3) == [(Verdict.OPEN, 0)]
        assert decide([Question(0.0)], [[clear], [open_], [fair]], 3) == [(Verdict.HOLDS, 1)]
        assert decide([Question(0.0)], [[clear]], math.floor(ALPHA / p) + 1) == [(Verdict.OPEN, 0)]
        with pytest.raises(ValueError, match="2 looks were made, of 1 planned"):
            decide([Question(0.0)], [[open_], [open_]], 1)

    def test_a_claim_says_after_how_many_seeds(self):
        a, b, c = [1.0, 1.1, 0.9, 1.0, 1.1, 0.2], [0.1, -0.1] * 3, [1.0, 1.1, 0.9, 1.0, 1.1, -9.0]

        def look(n):
            of_b = found("b", "s", b[:n], 0.0, margin=0.9)
            return Claim("k", "T.", (found("a", "s", a[:n], 0.0), of_b, found("c", "s", c[:n], 0.0)))

        made = decided([look(5), look(6)], [5, 6], 2)
        assert [f.verdict for f in made.findings] == [Verdict.HOLDS, Verdict.SAME, Verdict.OPEN]
        assert [f.note for f in made.findings] == [
            "decided after 5 seeds", "no difference larger than 0.9; decided after 5 seeds", ""
        ]  # fmt: skip

    def test_a_look_knows_no_later_seeds(self):
        """Numbers that depend on other seeds are those of each look, not those that later seeds make of them."""
        first, later = [0.1, -0.1, 0.05, 0.0, -0.05], [1.0, 1.1, 0.9, 1.0, 1.1, -9.0]
        looks = [Claim("k", "T.", (found("a", "s", values, 0.0),)) for values in (first, later)]
        assert [f.verdict for f in decided(looks, [5, 6], 2).findings] == [Verdict.OPEN]
        new = Claim("k", "T.", (found("b", "s", [1.0, 1.1, 0.9, 1.0, 1.1], 0.0),))
        assert [f.verdict for f in decided([looks[0], new], [5, 6], 2).findings] == [Verdict.HOLDS]


def simulated(means, margins, looks=(5, 10, 15, 20), repeats=800, seed=0):
    """Verdicts of studies whose cases have known means, standard deviation 1, claimed to be above 0."""
    generator = np.random.default_rng(seed)
    questions = [Question(0.0, margin=m) for m in margins]
    for _ in range(repeats):
        values = generator.normal(size=(len(means), looks[-1])) + np.array(means)[:, None]
        done = [[Evidence.of(one[:n]) for one in values] for n in looks]
        yield [v for v, _ in decide(questions, done, len(looks))]


def wrong(verdict, mean, margin):
    return {
        Verdict.HOLDS: mean <= 0,
        Verdict.FAILS: mean > 0 or mean == 0,
        Verdict.SAME: not abs(mean) < margin,
        Verdict.OPEN: False,
    }[verdict]


@pytest.mark.parametrize(
    ("means", "margin"),
    [
        ([0.0], NAN),
        ([0.0], 0.8),
        ([0.8], 0.8),
        ([-0.8], 0.8),
        ([0.3], 0.8),
        ([0.0] * 8, NAN),
        ([0.0] * 4 + [1.5] * 4, NAN),
        ([0.8, -0.8, 0.8, 0.8, 0.8, 0.8], 0.8),
        ([0.0, 0.8, 0.0, 0.8, -0.8, 3.0], 0.8),
    ],
)
def test_at_most_five_of_a_hundred_studies_have_a_wrong_verdict(means, margin):
    """In any case, at any of four looks. Three standard errors of the simulation are allowed above 5 %."""
    studies = list(simulated(means, [margin] * len(means)))
    errors = np.mean([any(wrong(v, m, margin) for v, m in zip(s, means, strict=True)) for s in studies])
    assert errors <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(studies))


def test_without_the_correction_the_rule_would_be_wrong_too_often():
    """The same data, each look at the full level: this is what the simulation must be able to see."""
    generator = np.random.default_rng(0)
    errors = 0
    for _ in range(800):
        values = generator.normal(size=20)
        errors += any(
            Evidence.of(values[:n]).verdict(0.0, NAN, True, 0.05) is not Verdict.OPEN for n in (5, 10, 15, 20)
        )
    assert errors / 800 > 0.08


def test_large_effects_and_their_absence_are_found():
    studies = list(simulated([1.5, 0.0], [1.0, 1.0], repeats=300))
    assert np.mean([s[0] is Verdict.HOLDS for s in studies]) > 0.95
    assert np.mean([s[1] is Verdict.SAME for s in studies]) > 0.8


class TestDependence:
    def test_a_word_of_the_cases(self):
        cases = [f"MLP, width {w}, {r}" for w in (64, 256, 1024, 2048) for r in ("lazy", "rich")] * 2
        found_ = dependence(cases, ["rich" in case for case in cases])
        assert str(found_) == "rich (holds in 8 of 8 with it, 0 of 8 without)"

    def test_a_cut_between_numbers(self):
        cases = [f"width {w}, {r}" for w in (8, 16, 32, 64, 128, 256) for r in ("lazy", "rich")]
        held = [int(case.split(",")[0].split()[1]) >= 64 for case in cases]
        assert str(dependence(cases, held)) == "width ≥ 64 (holds in 6 of 6 with it, 0 of 6 without)"

    def test_chance_is_no_dependence(self):
        cases = [f"width {w}, {r}" for w in (8, 16) for r in ("lazy", "rich")]
        assert dependence(cases, [True, True, False, False]) is None
        assert dependence([], []) is None
