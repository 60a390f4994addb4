"""The study of chaos: its own statistics by hand, and a small run from end to end."""

import json
import math

import pytest
import torch
from torch import nn

from avalanche_ntk.reproduce.studies import chaos
from avalanche_ntk.reproduce.training import sgd_step


def test_a_run_judges_what_its_files_hold(smallest, tmp_path):
    outcome = smallest("chaos")
    assert [claim.key for claim in outcome.claims] == ["rises", "positive", "transient", "kernels"]
    stored = [
        {
            rate: json.loads((tmp_path / "measured" / f"rate-{rate}-seed={seed}.json").read_text())["values"]
            for rate in ("0.1", "0.5")
        }
        for seed in (0, 1)
    ]
    assert all(one["0.5"]["stable"] for one in stored)
    exponents = [[one["0.5"]["exponents"][start]["weights"] for start in ("0", "40")] for one in stored]
    positive, transient = outcome.claims[1:3]
    assert positive.findings[0].values == pytest.approx([early for early, _ in exponents], rel=1e-12)
    assert transient.findings[0].values == pytest.approx([early - late for early, late in exponents], rel=1e-12)
    # The twin that lives from the start is the one made at iteration 0: after the first window both say the same.
    for one in stored:
        curve = one["0.5"]["curve"]["weights"]
        assert curve[0] == pytest.approx(1e-8, rel=1e-6)
        assert math.log(curve[2] / curve[0]) / 10 == pytest.approx(one["0.5"]["exponents"]["0"]["weights"], rel=1e-6)
    assert (tmp_path / "figures" / "chaos.svg").stat().st_size > 0


def test_the_exponent_of_a_quadratic_loss_is_that_of_its_linear_map():
    # One weight under ½ a w²: a step multiplies a difference by |1 − η a|, at every step.
    model = nn.Linear(1, 1, bias=False).double()
    twin = chaos.perturbed(model, seed=0)
    first = abs(float((model.weight - twin.weight).detach()))
    assert first == pytest.approx(chaos.SIZE * abs(float(model.weight.detach())), rel=1e-6)
    for _ in range(5):
        for net in (model, twin):
            sgd_step(net, 0.5 * 3.0 * (net.weight**2).sum(), lr=1.0)
    last = abs(float((model.weight - twin.weight).detach()))
    assert chaos.exponent(first, last, 5) == pytest.approx(math.log(2.0), rel=1e-6)


def test_distances_of_known_networks():
    model, twin = nn.Linear(2, 1, bias=False).double(), nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
        twin.weight.copy_(torch.tensor([[3.0, 3.0]]))
    probe = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    found = chaos.distances(model, twin, probe)
    assert found["weights"] == pytest.approx(1 / 5)
    assert found["outputs"] == pytest.approx(math.sqrt((0 + 1 + 4) / 3))
    assert found["kernel"] == 0.0  # the kernel of a linear model does not depend on its weights
    with torch.no_grad():
        twin.weight.fill_(math.nan)
    assert all(math.isnan(value) for value in chaos.distances(model, twin, probe).values())


def test_largest_stable_rate():
    assert chaos.largest_stable({0.1: {"stable": True}, 0.5: {"stable": True}, 1.0: {"stable": False}}) == 0.5
    assert math.isnan(chaos.largest_stable({0.1: {"stable": False}}))
    assert not chaos.stable([2.0] + [math.nan] * 20, 21)
    assert math.isnan(chaos.exponent(0.0, 1.0, 5))
