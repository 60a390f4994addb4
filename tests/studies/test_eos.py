"""The study of the edge of stability: its statistics by hand, and one run from end to end."""

import json
import math

import pytest
import torch
from scipy.stats import spearmanr

from avalanche_ntk.reproduce import Verdict
from avalanche_ntk.reproduce.studies.eos import STEPS, from_the_edge, pinned, settled, sharpening, sharpness, train


def linear(weight):
    model = torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.fill_(weight)
    return model


def test_the_sharpness_of_a_linear_model_is_the_mean_square_of_its_inputs():
    # The Hessian of 1/(2N) Σ_n (w x_n − y_n)² is Σ x_n² / N, for either output.
    x = torch.tensor([[1.0], [2.0], [3.0]])
    assert sharpness(linear(0.3), x) == pytest.approx(14 / 3, rel=1e-5)


def test_sharpening_is_in_powers_of_two():
    assert sharpening({"sharpness": [2.0, 16.0, 4.0]}) == pytest.approx(3)
    assert sharpening({"sharpness": [4.0, 2.0]}) == 0


def test_the_last_quarter_is_averaged_in_logarithms():
    assert settled({"sharpness": [1e9] * 6 + [2.0, 8.0]}) == pytest.approx(4)
    assert settled({"sharpness": [1.0, 5.0]}) == pytest.approx(5)


def test_from_the_edge_counts_factors_of_two_on_either_side():
    run = {"lr": 0.1}  # 2/η = 20
    assert from_the_edge(20.0, run) == pytest.approx(0)
    assert from_the_edge(10.0, run) == from_the_edge(40.0, run) == pytest.approx(1)


def test_a_run_at_its_own_limit_is_pinned_by_as_much_as_the_reference_is_off():
    smallest = {"sharpness": [80.0] * 4, "lr": 0.01}
    assert pinned({"sharpness": [20.0] * 4, "lr": 0.1}, smallest) == pytest.approx(2)
    assert pinned({"sharpness": [80.0] * 4, "lr": 0.1}, smallest) == 0  # as sharp as the reference: not pinned


# Inputs ±1, the sign of which is the label: the two outputs' best weights are ±½, and from w = 0 the loss is
# ¼ + ¼ (1 − η)^(2t), since its Hessian is 1.
X, Y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([0, 1, 0, 1])


def test_gradient_descent_of_a_linear_model_by_hand():
    done = train(linear(0.0), X, Y, 0.1, goal=0.25 + 0.25 * 0.81**10 * 1.001, most_steps=50, every=4)
    assert done["reached"] and done["steps"] == 10
    assert done["step"] == [0, 4, 8, 10] and done["rises"] == 0
    assert done["loss"] == pytest.approx([0.25 + 0.25 * 0.81**t for t in (0, 4, 8, 10)], rel=1e-5)
    assert done["sharpness"] == pytest.approx([1] * 4, rel=1e-5)
    # The kernel x xᵀ is the labels' own, and its one eigenvector too; 5 and 20 eigenvectors of 4 samples say nothing.
    assert done["final_alignment"] == pytest.approx(1)
    # Without centring: Y Yᵀ = ½ (1 1ᵀ + x xᵀ) has the norm √8, x xᵀ the norm 4, and their product is 8.
    assert done["final_uncentred"] == pytest.approx(8 / (4 * 8**0.5))
    assert done["eigenvectors"] == pytest.approx([1, math.nan, math.nan], nan_ok=True)


def test_beyond_two_over_the_sharpness_the_loss_rises():
    done = train(linear(0.0), X, Y, 2.5, goal=0.1, most_steps=6, every=3)
    assert done["rises"] == 1


def test_a_loss_that_is_not_reached_has_no_final_alignment():
    done = train(linear(0.0), X, Y, 0.1, goal=0.1, most_steps=6, every=3)
    assert not done["reached"] and done["steps"] == 6
    assert all(math.isnan(value) for value in [*done["eigenvectors"], done["final_alignment"]])


def test_the_study_runs_from_end_to_end(smallest, tmp_path):
    outcome = smallest("eos")
    assert [claim.key for claim in outcome.claims] == ["alignment", "edge"]
    assert [len(claim.findings) for claim in outcome.claims] == [20, 22]  # of two networks
    assert {claim.verdict for claim in outcome.claims} == {Verdict.OPEN}  # two seeds say nothing
    stored = [
        json.loads((tmp_path / "measured" / f"tanh-seed={seed}.json").read_text())["values"]["runs"] for seed in (0, 1)
    ]
    for runs in stored:
        assert len(runs) == len(STEPS) and all(run["reached"] for run in runs)
        assert [run["lr"] * run["sharpness"][0] / 2 for run in runs] == pytest.approx(STEPS, rel=1e-2)
        assert runs[0]["rises"] == 0  # a fifth of the limit of stability
    expected = [spearmanr(STEPS, [run["final_alignment"] for run in runs]).statistic for runs in stored]
    assert outcome.claims[0].findings[6].values == pytest.approx(expected)
    expected = [math.log2(max(runs[0]["sharpness"]) / runs[0]["sharpness"][0]) for runs in stored]
    assert outcome.claims[1].findings[0].values == pytest.approx(expected)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("tanh", "relu") for kind in ("svg", "png", "pdf")
    }
