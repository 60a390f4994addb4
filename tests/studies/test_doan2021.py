"""The study of Doan et al. 2021: one tiny run, and its own functions against what is known without them."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import nn

from avalanche_ntk.reproduce.studies import doan2021


def test_a_tiny_run_from_end_to_end(smallest):
    outcome = smallest("doan2021")
    claims = {claim.key: claim for claim in outcome.claims}
    assert {key: len(claim.findings) for key, claim in claims.items()} == {
        "aligned-forget-more": 4,
        "aligned-same-labels": 4,
        "expression": 4 + 4,
        "overlap-falls": 2,
        "projection-forgets-less": 2 * (4 + 3),
    }
    stored = [
        json.loads((outcome.out / "measured" / f"angle-seed={seed}.json").read_text())["values"] for seed in (0, 1)
    ]
    held = next(f for f in claims["projection-forgets-less"].findings if f.case == "OGD, images turned")
    assert held.values == tuple(one["held"]["OGD"]["change"] - one["held"]["SGD"]["change"] for one in stored)
    # With two levels a rank correlation is the sign of the two differences' product.
    order = claims["aligned-forget-more"].findings[0]
    signs = []
    for one in stored:
        a, b = one["levels"]
        signs.append(np.sign((b["overlap"] - a["overlap"]) * (b["new"]["change"] - a["new"]["change"])))
    assert order.values == pytest.approx(signs, abs=1e-12)
    for one in stored:
        # At 0° the second task has the first's samples, and its kernel is the first's.
        assert one["levels"][0]["overlap"] == pytest.approx(1.0, abs=1e-12)
    for kind in ("svg", "png", "pdf"):
        assert (outcome.out / "figures" / f"overlap-and-forgetting.{kind}").stat().st_size > 1000


def test_what_a_static_kernel_does_is_the_flow_of_a_linear_model():
    """Gradient flow of a linear model, by the matrix exponential in the space of its weights."""
    generator = np.random.default_rng(0)
    old, new = generator.normal(size=(3, 4)), generator.normal(size=(5, 4))
    start, targets = generator.normal(size=4), generator.normal(size=5)
    time, n = 1.7, 5
    residual = targets - new @ start
    # θ' = −XᵀX (θ − θ*)/n, so that θ(t) − θ* = exp(−XᵀX t/n) (θ(0) − θ*); X has full column rank here.
    best = np.linalg.lstsq(new, targets, rcond=None)[0]
    end = best + expm(-new.T @ new * time / n) @ (start - best)
    expected = old @ (end - start)
    found = doan2021.expected_change(old @ new.T, new @ new.T, residual, time, n)
    assert found == pytest.approx(expected, abs=1e-12)


def test_no_pixels_all_pixels_and_a_share_of_them():
    x = torch.arange(2 * 64.0).reshape(2, 1, 8, 8)
    assert torch.equal(doan2021.changed(x, "pixels", 0.0, seed=0), x)
    some = doan2021.changed(x, "pixels", 0.25, seed=0)
    moved = (some != x)[0].flatten()
    assert 0 < int(moved.sum()) <= 16  # 16 pixels change places, one of them perhaps with itself
    assert torch.equal((some != x)[1].flatten(), moved)  # the same in each sample
    assert torch.equal(some.flatten(1).sort(1).values, x.flatten(1))
    assert torch.equal(doan2021.changed(x, "angle", 90, seed=0), torch.rot90(x, 1, (-2, -1)))


def test_training_stays_out_of_the_basis():
    torch.manual_seed(0)
    model = nn.Linear(3, 10, bias=False).double()
    before = model.weight.detach().clone()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6)
    basis = torch.zeros(30, 1, dtype=torch.float64)
    basis[4] = 1.0
    doan2021.train(model, x, y, {"steps": 3, "lr": 0.1, "batch": 6}, 0, basis)
    moved = (model.weight.detach() - before).flatten()
    assert moved[4] == 0
    assert (moved[:4] != 0).all()
    # One full-batch step without a basis: θ − η ∇½‖f − y‖²/N.
    plain = nn.Linear(3, 10, bias=False).double()
    plain.weight.data.copy_(before)
    doan2021.train(plain, x, y, {"steps": 1, "lr": 0.1, "batch": 6}, 0)
    gradient = (x @ before.T - nn.functional.one_hot(y, 10)).T @ x / 6
    assert torch.allclose(plain.weight.detach(), before - 0.1 * gradient, rtol=0, atol=1e-14)


def test_the_order_of_levels_is_compared_seed_by_seed():
    assert doan2021.shared_order([[1.0, 0.5, 0.2], [1.0, 0.5, 0.2]], [[0.1, 0.2, 0.3], [9.0, 4.0, 1.0]]) == [-1.0, 1.0]
