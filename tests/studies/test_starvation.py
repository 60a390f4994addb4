"""The study of gradient starvation: its own statistics by hand, and a small run from end to end."""

import json

import numpy as np
import pytest
import torch

from avalanche_ntk.reproduce.studies import starvation


def test_a_run_judges_what_its_files_hold(smallest, tmp_path):
    outcome = smallest("starvation")
    assert [claim.key for claim in outcome.claims] == ["suppressed", "modes", "decoupling"]
    assert [len(claim.findings) for claim in outcome.claims] == [6, 3, 9]
    files = [tmp_path / "measured" / f"moons-seed={seed}.json" for seed in (0, 1)]
    stored = [json.loads(file.read_text())["values"]["cross-entropy"] for file in files]
    suppressed, _, decoupling = outcome.claims
    lost = [1 - run[2]["response"] / run[0]["response"] for run in stored]
    assert suppressed.findings[0].values == pytest.approx(lost, rel=1e-12)
    assert suppressed.findings[1].values == pytest.approx([run[0]["accuracy"] - run[2]["accuracy"] for run in stored])
    assert decoupling.findings[-1].values == pytest.approx([0.0, 0.0], abs=1e-4)
    assert all((tmp_path / "figures" / f"starvation.{kind}").stat().st_size > 0 for kind in ("svg", "png", "pdf"))


def test_independent_modes_of_squared_error_have_their_closed_form():
    # z_i minimises ½(z_i − u_iᵀ1)²/N + μ/2 z_i²/λ_i: u_iᵀ1 · λ_i/(λ_i + N μ), with N μ = 0.01 λ_dominant.
    signed = np.array([[2.0, 1.0], [1.0, 3.0]])
    values, vectors = np.linalg.eigh(signed)
    sums = np.abs(vectors.sum(axis=0))
    assert starvation.leading_modes(values, vectors) == (1, 0)
    expected = sums[0] * values[0] / (values[0] + 0.01 * values[1])
    assert starvation.weak_responses(signed, "squared error") == pytest.approx([expected] * 5, rel=1e-6)


def test_minimum_of_cross_entropy_by_hand():
    # One sample, one feature 1: −σ(−w) + μ w = 0 has the solution w = 1 for μ = σ(−1).
    assert starvation.minimum(np.ones((1, 1)), "cross-entropy", 1 / (1 + np.e)) == pytest.approx([1.0], rel=1e-6)
    # The penalty on the logit is then one on the weight: 0.1 of it is in the loss.
    decoupled = starvation.minimum(np.ones((1, 1)), "decoupled", 1 / (1 + np.e) - 0.1)
    assert decoupled == pytest.approx([1.0], rel=1e-6)


def test_shares_and_ranges():
    assert starvation.starved(8.0, 6.0) == 0.25
    assert np.isnan(starvation.starved(-1.0, 6.0))
    assert starvation.spread([-1.0, 1.0, 4.0]) == 2.5


def test_the_strong_features_are_where_they_should_be():
    x, y = starvation.moons(100, 0.0, seed=3)
    shifted, labels = starvation.moons(100, 0.5, seed=3)
    assert torch.equal(y, labels)
    # 0.5 towards the own side, in units of the spread of 0.5.
    assert torch.allclose(x - shifted, torch.stack([torch.zeros(100), y], dim=1), atol=1e-6)
    images = torch.zeros(2, 1, 8, 8)
    marked = starvation.with_patch(images, torch.tensor([1.0, -1.0]), 2.0)
    assert marked[0].sum() == 8 and marked[1].sum() == -8 and torch.all(marked[:, :, 2:, :] == 0)
    assert images.sum() == 0
