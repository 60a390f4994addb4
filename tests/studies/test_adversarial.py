"""The study of adversarial training: its own pieces by hand, and a small run from end to end."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import as_matrix, kernel_ridge, one_hot
from avalanche_ntk.reproduce.studies import adversarial


def test_a_run_judges_what_its_files_hold(smallest, tmp_path):
    outcome = smallest("adversarial")
    assert [claim.key for claim in outcome.claims] == ["robust", "different", "settles", "rank", "moved"]
    stored = [json.loads((tmp_path / "measured" / f"training-seed={s}.json").read_text())["values"] for s in (0, 1)]
    robust, different, _, rank, _ = outcome.claims
    assert robust.findings[0].values == pytest.approx(
        [one["adversarial"]["machine"]["robust"] - one["standard"]["machine"]["robust"] for one in stored]
    )
    assert rank.findings[0].values == pytest.approx(
        [one["adversarial"]["effective_rank"][-1] - one["standard"]["effective_rank"][-1] for one in stored]
    )
    assert different.findings[0].values == pytest.approx(
        [one["apart"]["adversarial"][-1] - one["apart"]["again"][-1] for one in stored]
    )
    for one in stored:
        # All ways start from the same network, and a perturbation never helps the network it is made against.
        assert len({one[way]["effective_rank"][0] for way in adversarial.WAYS}) == 1
        assert all(one[way]["network"]["robust"] <= one[way]["network"]["clean"] for way in adversarial.WAYS)
    assert (tmp_path / "figures" / "adversarial.svg").stat().st_size > 0


def test_a_linear_model_is_perturbed_to_the_corner_of_its_ball():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    x = torch.tensor([[1.0, 1.0], [0.5, 0.0]])
    moved = adversarial.perturb(model, x, torch.tensor([0, 1]), 0.1, steps=3)
    # The loss of the first falls with w·x, w = (1, −2), that of the second rises with it.
    assert torch.allclose(moved - x, torch.tensor([[-0.1, 0.1], [0.1, -0.1]]), atol=1e-6)


def test_the_kernel_machine_is_kernel_ridge_regression():
    torch.manual_seed(0)
    model = MLP(4, 3, width=8, depth=1).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 3
    new = torch.randn(5, 4, dtype=torch.float64)
    predict = adversarial.kernel_machine(model, x, y)
    train = as_matrix(empirical_ntk(model, x, reduction="full").numpy())
    test = as_matrix(empirical_ntk(model, new, x, reduction="full").numpy())
    ridge = 1e-3 * np.trace(train) / len(train)
    expected = kernel_ridge(train, (one_hot(y.numpy()) - 1 / 3).reshape(-1), test, ridge).reshape(5, 3) + 1 / 3
    assert predict(new).numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    moved = new.clone().requires_grad_(True)
    assert torch.autograd.grad(predict(moved)[:, 0].sum(), moved)[0].abs().min() > 0


def test_when_a_kernel_has_settled():
    assert adversarial.settled_at([0, 5, 10], [0.5, 0.051, 0.0], 0.5) == 10.0
    assert adversarial.settled_at([0, 5, 10], [0.5, 0.049, 0.0], 0.5) == 5.0
    assert math.isnan(adversarial.settled_at([0, 5], [0.0, 0.0], 0.0))
