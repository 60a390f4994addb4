"""The study of low-rank forgetting: a tiny run, and its forecast beside networks that are really trained."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.studies import low_rank_forgetting as study
from avalanche_ntk.reproduce.study import Context


def test_a_tiny_run_from_end_to_end(smallest):
    outcome = smallest("low-rank-forgetting")
    claims = {claim.key: claim for claim in outcome.claims}
    assert {key: len(claim.findings) for key, claim in claims.items()} == {
        "exact": 1,
        "ranks-tasks": 3 * 4,
        "ranks-samples": 3 * 3,
        "first-modes": 3 * 3,
        "lazy": 3 + 1,
    }
    (exact,) = claims["exact"].findings
    assert max(exact.values) < 1e-8
    stored = [
        json.loads((outcome.out / "measured" / f"mlp-8-10-seed={seed}.json").read_text())["values"] for seed in (0, 1)
    ]
    ranks = next(f for f in claims["ranks-samples"].findings if f.case == "MLP, width 8, α = 10")
    assert ranks.values == tuple(one["levels"][0]["steps"]["rank"] for one in stored)
    random = [f for f in claims["first-modes"].findings if f.statistic == "share of a change without preference"]
    assert random[0].values == pytest.approx([5 / (15 * 10)] * 2)  # 15 old samples with 10 outputs each
    assert (outcome.out / "figures" / "forecast.svg").stat().st_size > 1000


def test_the_iteration_in_function_space_is_training_of_a_linear_model():
    torch.manual_seed(0)
    old, new, y = torch.randn(4, 6).double(), torch.randn(5, 6).double(), torch.tensor([0, 1, 2, 1, 0])
    model = nn.Linear(6, 3, bias=False).double()
    kernel = [np.kron((a @ new.T).numpy(), np.eye(3)) for a in (old, new)]
    before, f = model(old).detach(), model(new).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(7):
        optimizer.zero_grad()
        cross_entropy(model(new), y).backward()
        optimizer.step()
    found = study.after_steps(*kernel, f.numpy(), y.numpy(), 0.3, 7)
    np.testing.assert_allclose(found, (model(old).detach() - before).numpy().ravel(), atol=1e-12)


@pytest.mark.parametrize("overlap", [0, 2, 5])
def test_the_second_task_has_so_many_of_the_first_classes_and_none_of_its_samples(overlap):
    context = Context(Scale.TINY)
    arguments = {"per_class": 3}
    first, _ = study.samples(context, range(5), 3, seed=1)
    new, labels = study.second_task(context, arguments, 1, overlap)
    assert len(set(labels.tolist())) == 5
    assert len({label for label in labels.tolist() if label < 5}) == overlap
    assert not any(torch.equal(a, b.float()) for a in first for b in new)


def test_only_the_head_of_a_frozen_backbone_is_trained():
    model = study.network({"model": "frozen", "width": 8, "alpha": 1}, (1, 8, 8), seed=0)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
