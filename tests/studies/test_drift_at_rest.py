"""The study of drift at rest: one tiny run, and its own functions against what is known without them."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk.reproduce.studies import drift_at_rest
from avalanche_ntk.reproduce.verdicts import trend_by_seed


def test_a_tiny_run_from_end_to_end(smallest):
    outcome = smallest("drift-at-rest")
    claims = {claim.key: claim for claim in outcome.claims}
    # Two temperatures and two sizes of minibatch.
    assert {key: len(claim.findings) for key, claim in claims.items()} == {
        "loss-flat": 4,
        "grows-with-lag": 2 + 2,
        "grows-with-lag-minibatches": 2 + 2,
        "grows-with-noise": 2 + 4,
        "no-noise-no-drift": 1 + 3,
        "boundary-exceeds": 4 * 2,
    }
    stored = [
        json.loads((outcome.out / "measured" / f"rest-seed={seed}.json").read_text())["values"] for seed in (0, 1)
    ]
    quiet = claims["no-noise-no-drift"].findings[0]
    by_hand = [
        math.log10(one["temperatures"]["0e+00"]["rest"][-1] / one["temperatures"]["1e-08"]["rest"][-1])
        for one in stored
    ]
    assert quiet.values == pytest.approx(by_hand, rel=1e-12)
    assert stored[0]["lags"] == [4, 8, 16]
    boundary = next(f for f in claims["boundary-exceeds"].findings if f.case == "minibatches of 5")
    by_hand = [math.log10(one["batches"]["5"]["boundary"][0] / one["batches"]["5"]["rest"][0]) for one in stored]
    assert boundary.values == pytest.approx(by_hand, rel=1e-12)
    for kind in ("svg", "png", "pdf"):
        assert (outcome.out / "figures" / f"drift.{kind}").stat().st_size > 1000


def test_distances_are_averaged_over_all_pairs_at_a_lag():
    # Kernels vvᵀ of unit vectors v with mean 0 at angles 0°, 30°, 60°: S is 1 − cos² of the angle between.
    frame = np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]) / math.sqrt(2)
    vectors = [math.cos(a) * frame[0] + math.sin(a) * frame[1] for a in np.radians([0.0, 30.0, 60.0])]
    kernels = [np.outer(v, v) for v in vectors]
    assert drift_at_rest.mean_distances(kernels, [1, 2]) == pytest.approx([0.25, 0.75], abs=1e-14)


def test_lags_are_powers_of_two_up_to_half_of_the_window():
    assert drift_at_rest.lags(65) == [1, 2, 4, 8, 16, 32]
    assert drift_at_rest.lags(8) == [1, 2]


def test_the_change_of_a_loss_goes_by_halves():
    assert drift_at_rest.change_of_loss([1.0, 3.0, 4.0, 4.0]) == 0.5
    assert drift_at_rest.change_of_loss([2.0] * 5) == 0.0


def test_an_exponent_needs_positive_numbers():
    assert drift_at_rest.exponent([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]) == pytest.approx(1.0, abs=1e-12)
    assert math.isnan(drift_at_rest.exponent([1.0, 2.0], [0.0, 1.0]))


def test_orders_are_compared_seed_by_seed():
    assert trend_by_seed([16.0, 32.0, 64.0], [[1.0, 2.0, 3.0], [9.0, 5.0, 1.0]]) == [1.0, -1.0]


def _linear() -> nn.Linear:
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.5, -1.0]]))
    return model


def test_a_step_without_noise_is_descent_with_decay():
    x, targets = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).double(), torch.eye(2).double()
    model = _linear()
    before = model.weight.detach().clone()
    drift_at_rest.Descent(model, {"lr": 0.1, "decay": 0.5}, 0.0, None, 0).run(x, targets, 1)
    gradient = (x @ before.T - targets).T @ x / 2 + 0.5 * before
    assert torch.allclose(model.weight.detach(), before - 0.1 * gradient, rtol=0, atol=1e-15)


def test_noise_has_the_variance_of_langevin_descent():
    # No gradient at all: inputs 0, no decay. After k steps the weights have moved by √(2ηTk) ξ.
    model = nn.Linear(100, 100, bias=False).double()
    before = model.weight.detach().clone()
    x, targets = torch.zeros(2, 100).double(), torch.zeros(2, 100).double()
    drift_at_rest.Descent(model, {"lr": 0.1, "decay": 0.0}, 1e-4, None, 0).run(x, targets, 5)
    variance = float((model.weight.detach() - before).square().mean())
    # The mean of 10,000 squares scatters by √(2/10,000) = 1.4 %: four of these.
    assert variance == pytest.approx(2 * 0.1 * 1e-4 * 5, rel=0.057)


def test_settling_finds_the_minimum_of_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 2, bias=False).double()
    slope = drift_at_rest.settle(drift_at_rest.Descent(model, {"lr": 0.1, "decay": 0.3}, 0.0, None, 0), x, targets, 100)
    best = torch.linalg.solve(x.T @ x / 8 + 0.3 * torch.eye(3), x.T @ targets / 8).T
    assert slope < 1e-7
    assert torch.allclose(model.weight.detach(), best, rtol=0, atol=1e-7)
