"""The study of Fort et al. 2020: its statistics by hand, and one run from end to end."""

import json
import math

import pytest
import torch

from avalanche_ntk.lab.models import build_model
from avalanche_ntk.reproduce import Verdict
from avalanche_ntk.reproduce.studies.fort2020 import (
    Training,
    barrier,
    between,
    follows,
    high_early,
    overtakes_at,
    still_falling,
)


def test_a_barrier_is_the_highest_point_above_the_mean_of_the_ends():
    assert barrier([0.1, 0.5, 0.3]) == pytest.approx(0.3)
    assert barrier([0.2, 0.1, 0.2]) == pytest.approx(0.0)  # a valley is none


@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ([0.5, 0.6, 0.7], 1),
        ([0.5, 0.6, 0.5, 0.7], 4),  # equal is not above, so it counts from epoch 4 on
        ([0.5, 0.6, 0.4], math.nan),
    ],
)
def test_the_kernel_overtakes_where_it_stays_ahead(values, epoch):
    assert overtakes_at([0, 1, 2, 4], values) == pytest.approx(epoch, nan_ok=True)


def test_a_constant_velocity_does_not_fall_and_one_over_t_falls_by_a_power_of_two():
    assert still_falling([9.0, 8.0] + [3.0] * 6) == 0
    # The mean of 1/t over a doubling of t halves with each doubling.
    assert still_falling([1 / (t + 0.5) for t in range(4096)]) == pytest.approx(1, abs=1e-3)


def test_high_early_is_in_powers_of_ten_of_the_late_median():
    assert high_early([5.0, 1.0, 0.05, 0.05]) == pytest.approx(2)


def test_a_barrier_that_falls_with_the_velocity_follows_it():
    velocity = [8.0, 4.0, 2.0, 1.0, 0.5]
    assert follows([3.0, 2.0, 1.0], velocity, [0, 1, 4]) == pytest.approx(1)
    assert follows([1.0, 2.0, 3.0], velocity, [0, 1, 4]) == pytest.approx(-1)
    assert math.isnan(follows([0.0, 0.0, 0.0], velocity, [0, 1, 4]))


def test_half_way_between_two_networks_the_weights_are_their_mean():
    first, second = (build_model("mlp", input_shape=(3,), n_classes=2, width=4, depth=1, seed=s) for s in (0, 1))
    middle = between(first, second, 0.5)
    for mean, one, other in zip(middle.parameters(), first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mean, (one + other) / 2)
    torch.testing.assert_close(list(between(first, second, 1.0).parameters()), list(second.parameters()))


def test_an_epoch_takes_every_sample_once():
    # One weight and a single output: cross-entropy of one class is 0, so the weights stay; what is drawn is counted.
    drawn = []

    class Counting(torch.nn.Linear):
        def forward(self, x):
            drawn.extend(x[:, 0].tolist())
            return super().forward(x)

    x = torch.arange(7.0)[:, None]
    Training(x, torch.zeros(7, dtype=torch.int64), 3, 0.1).epochs(Counting(1, 1), 2, torch.Generator().manual_seed(0))
    assert sorted(drawn[:7]) == sorted(drawn[7:]) == list(range(7))


def test_the_study_runs_from_end_to_end(smallest, tmp_path):
    outcome = smallest("fort2020")
    assert [claim.key for claim in outcome.claims] == ["kernel-learning", "velocity", "barrier"]
    assert [len(claim.findings) for claim in outcome.claims] == [14, 6, 14]  # of an MLP and a CNN
    assert {claim.verdict for claim in outcome.claims} == {Verdict.OPEN}  # two seeds say nothing
    stored = [json.loads((tmp_path / "measured" / f"mlp-seed={seed}.json").read_text())["values"] for seed in (0, 1)]
    for one in stored:
        assert len(one["velocity"]) == 4 and all(0 < v < 1 for v in one["velocity"])
        assert len(one["path_errors"]) == 3 and {len(path) for path in one["path_errors"]} == {11}
    gain = [one["regression_accuracy"][1] - one["regression_accuracy"][0] for one in stored]
    assert outcome.claims[0].findings[0].values == pytest.approx(gain)
    ends = [one["path_errors"][0] for one in stored]
    assert outcome.claims[2].findings[0].values == pytest.approx([max(p) - (p[0] + p[-1]) / 2 for p in ends])
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("mlp", "cnn") for kind in ("svg", "png", "pdf")
    }
