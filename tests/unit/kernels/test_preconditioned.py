"""The kernel that an optimiser sees: `J P Jᵀ` with a diagonal P."""

import pytest
import torch
from torch import nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import (
    adam_preconditioner,
    empirical_ntk,
    empirical_ntk_by_group,
    reference_jacobian,
    reference_ntk,
)
from tests.support.cases import error
from tests.unit.kernels.test_exact import CASES, build

NAMES = ["mlp", "conv2d", "vit", "embedding_padding", "reused_layer", "lora", "resnet_block", "tied", "batch_norm_2d"]


def positive(model, every=1):
    generator = torch.Generator("cpu").manual_seed(3)
    named = [(n, p) for n, p in list(model.named_parameters())[::every] if p.requires_grad]
    return {n: torch.rand(p.shape, generator=generator, device="cpu").to(p) + 0.1 for n, p in named}


def by_hand(model, x, x2, preconditioner, one, two):
    """From the Jacobian's columns, parameter by parameter."""
    shared = {k: v for k, v in one.items() if k != "task_labels"}
    j1 = reference_jacobian(model, x, **one)
    j2 = j1 if x2 is None else reference_jacobian(model, x2, task_labels=two.get("task_labels2"), **shared)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    weights = torch.cat([preconditioner.get(n, torch.ones_like(p)).double().flatten() for n, p in named.items()])
    return torch.einsum("ncp,p,mdp->nmcd", j1, weights, j2)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_weighted_product_of_jacobians(name, every):
    _, model, x, x2, one, two = build(name, CASES[name].n)
    p = positive(model, every)
    for second, kwargs in ((None, one), (x2, two)):
        theta = by_hand(model, x, second, p, one, two)
        for how in ({}, {"block": 2}, {"method": "loop"}, {"memory_budget": 2**22}):
            for reduction, want in (("full", theta), ("trace", theta.diagonal(dim1=2, dim2=3).sum(-1))):
                got = empirical_ntk(
                    model, x, second, reduction=reduction, preconditioner=p, dtype=torch.float64, **how, **kwargs
                )
                assert error(got, want) <= 1e-12, (how, reduction)
        assert error(reference_ntk(model, x, second, preconditioner=p, **kwargs), want) <= 1e-12


def test_groups_and_plans_that_were_made_without():
    _, model, x, _, one, _ = build("mlp", 5)
    plain = empirical_ntk(model, x, dtype=torch.float64, **one)
    p = positive(model)
    groups = {n: [n] for n, _ in model.named_parameters()}
    parts = empirical_ntk_by_group(model, x, groups, whole=True, preconditioner=p, dtype=torch.float64)
    whole = parts.pop("")
    assert error(whole, reference_ntk(model, x, preconditioner=p)) <= 1e-12
    assert error(sum(parts.values()), whole) <= 1e-12
    assert torch.equal(empirical_ntk(model, x, dtype=torch.float64, **one), plain)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_moves_outputs_by_its_kernel(kind, amsgrad):
    """One step without momentum: the change of outputs is `−η J P g`, which the kernel of a linear model gives."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    optimizer = kind(model.parameters(), lr=1e-3, betas=(0.0, 0.9), amsgrad=amsgrad, weight_decay=0.0)
    for _ in range(3):
        before, signal = model(x), None
        optimizer.zero_grad()
        signal = (before - y) / len(x)
        (signal.detach() * before).sum().backward()
        optimizer.step()
        p = adam_preconditioner(optimizer, model)
        theta = empirical_ntk(model, x, reduction="full", preconditioner=p)
        moved = -1e-3 * torch.einsum("nmcd,md->nc", theta, signal.detach())
        torch.testing.assert_close(model(x) - before, moved, rtol=1e-9, atol=1e-12)


def test_what_is_no_preconditioner_is_told():
    model, x = nn.Linear(4, 3), torch.randn(5, 4)
    for given, told in (
        ({"wight": torch.ones(3, 4)}, "unknown parameter in preconditioner 'wight'.*Did you mean 'weight'"),
        ({"weight": torch.ones(4, 3)}, r"must be a tensor of the parameter's shape \(3, 4\), found \(4, 3\)"),
        ({"weight": 1.0}, "found float"),
        ({"weight": torch.zeros(3, 4)}, "must be positive and finite, found entries from 0 to 0"),
        ([torch.ones(3, 4)], "must map names of parameters to tensors"),
    ):
        with pytest.raises(ArgumentError, match=told):
            empirical_ntk(model, x, preconditioner=given)
    with pytest.raises(ArgumentError, match=r"expected torch\.optim\.Adam or AdamW after at least one step"):
        adam_preconditioner(torch.optim.Adam(model.parameters()), model)
