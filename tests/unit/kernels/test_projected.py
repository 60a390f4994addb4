"""The projected kernel: a kernel of its own, the trace kernel on average and at full size, with the error it states."""

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import empirical_ntk, empirical_ntk_by_group, reference_ntk, spot_check
from avalanche_ntk.kernels._function.projections import hadamard_rows, number_of_rows
from tests.support.cases import error


def net(outputs=13):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 7), nn.Tanh())
    return nn.Sequential(*body, nn.Linear(7, outputs)).double()


X = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(1)).double()
X2 = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(2)).double()


def by_hand(model, x, x2, signs):
    """The definition: the mean over rows v of the kernel of the single output v·f, from the full kernel."""
    theta = reference_ntk(model, x, x2, reduction="full")
    signs = signs.to(theta.device)
    return torch.einsum("rc,nmcd,rd->nm", signs, theta, signs) / len(signs)


@pytest.mark.parametrize(("outputs", "size"), [(1, 1), (2, 2), (3, 4), (8, 8), (13, 16), (100, 128)])
def test_rows_are_signs_whose_products_average_to_the_identity(outputs, size):
    assert number_of_rows(outputs) == size
    v = hadamard_rows(range(outputs), size, 3)
    assert v.shape == (size, outputs) and set(v.flatten().tolist()) <= {-1.0, 1.0}
    torch.testing.assert_close(v.T @ v / size, torch.eye(outputs, dtype=torch.float64, device="cpu"), rtol=0, atol=0)
    torch.testing.assert_close(hadamard_rows(range(outputs), 2 * size, 3), v, rtol=0, atol=0)  # there are no more
    mean = sum(r.T @ r / len(r) for r in (hadamard_rows(range(outputs), 1, s) for s in range(4000))) / 4000
    assert float((mean - torch.eye(outputs, device="cpu")).abs().max()) < 6 / 4000**0.5


def test_a_larger_number_takes_the_same_rows_and_signs_belong_to_outputs():
    assert torch.equal(hadamard_rows(range(13), 3, 5), hadamard_rows(range(13), 9, 5)[:3])
    assert not torch.equal(hadamard_rows(range(13), 3, 5), hadamard_rows(range(13), 3, 6))
    # the first output of every row of H is 1: what is left is the sign, which stays when others come or go
    signs = [float(hadamard_rows([4, *others], 1, 5)[0, 0]) for others in ([], [5], [9, 2, 40], range(5, 30))]
    assert len(set(signs)) == 1
    assert {float(hadamard_rows([i], 1, 5)) for i in range(20)} == {1.0, -1.0}


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"method": "ghost"}, {"method": "explicit"}, {"method": "loop"}, {"block": 2}])
def test_it_is_the_mean_over_signed_sums_of_outputs(kwargs, cross):
    model, second = net(), X2 if cross else None
    want = by_hand(model, X, second, hadamard_rows(range(13), 5, 7))
    projected = {"reduction": "projected", "n_projections": 5, "seed": 7}
    assert error(empirical_ntk(model, X, second, **projected, **kwargs), want) <= 1e-12
    got, info = empirical_ntk(model, X, second, **projected, **kwargs, return_info=True)
    assert error(got, want) <= 1e-12 and info.standard_error.shape == want.shape
    assert error(reference_ntk(model, X, second, **projected), want) <= 1e-12
    kept = [3, 0, 11]
    chosen = hadamard_rows(kept, 2, 7) @ torch.eye(13, dtype=torch.float64, device="cpu")[kept]
    got = empirical_ntk(model, X, second, outputs=kept, reduction="projected", n_projections=2, seed=7, **kwargs)
    assert error(got, by_hand(model, X, second, chosen)) <= 1e-12


def test_all_rows_give_the_trace_kernel_and_no_error():
    model = net()
    got, info = empirical_ntk(model, X, reduction="projected", n_projections=16, return_info=True)
    assert error(got, reference_ntk(model, X)) <= 1e-12
    assert not info.standard_error.any()
    one = empirical_ntk(net(1), X, reduction="projected", n_projections=1)
    assert error(one, reference_ntk(net(1), X)) <= 1e-12


def draws(model, x, r, seeds, **kwargs):
    found = [empirical_ntk(model, x, n_projections=r, seed=s, return_info=True, **kwargs) for s in range(seeds)]
    return torch.stack([k for k, _ in found]), torch.stack([i.standard_error for _, i in found])


def test_it_is_unbiased_varies_less_than_independent_signs_and_states_its_error():
    model, want = net(16), reference_ntk(net(16), X)
    kernels, errors = draws(model, X, 6, 300, reduction="projected")
    z = (kernels.mean(0) - want) / (kernels.std(0) / 300**0.5)
    assert float(z.abs().max()) < 4.5  # 21 different entries
    independent, _ = draws(model, X, 6, 300, estimator="rademacher")
    off = ~torch.eye(6, dtype=torch.bool)
    ratio = (kernels - want)[:, off].square().mean() / (independent - want)[:, off].square().mean()
    # without replacement of 16 orthogonal rows, the variance is (16 - 6) / (16 - 1) of that of independent rows
    assert 0.55 < float(ratio) < 0.8
    # the stated error is the one that is there, and twice it covers about as much as Student's t with 5 degrees says
    assert 0.85 < float(errors.square().mean().sqrt() / (kernels - want).square().mean().sqrt()) < 1.15
    covered = ((kernels - want).abs() <= 2.571 * errors).double().mean()
    assert 0.92 < float(covered) < 0.98


def test_it_is_symmetric_and_positive_semidefinite_and_the_same_each_time():
    model = net()
    for r in (1, 3, 8):
        kernel = empirical_ntk(model, X, reduction="projected", n_projections=r, seed=2)
        assert torch.equal(kernel, kernel.T)
        assert float(torch.linalg.eigvalsh(kernel)[0]) > -1e-12 * float(kernel.trace())
        assert torch.equal(kernel, empirical_ntk(model, X, reduction="projected", n_projections=r, seed=2))
    _, info = empirical_ntk(model, X, reduction="projected", n_projections=1, return_info=True)
    assert bool(info.standard_error.isnan().all())


def test_groups_and_spot_checks():
    model = net()
    projected = {"reduction": "projected", "n_projections": 4, "seed": 1}
    groups = {"body": ["0.*", "3.*"], "head": ["5.*"]}
    parts, info = empirical_ntk_by_group(model, X, groups, whole=True, return_info=True, **projected)
    whole, alone = empirical_ntk(model, X, return_info=True, **projected)
    assert torch.equal(parts[""], whole) and torch.equal(info.standard_error, alone.standard_error)
    assert error(parts["body"] + parts["head"], whole) <= 1e-12
    checked = {"reduction": "projected", "n_projections": 4, "projection_seed": 1}
    assert spot_check(model, X, whole, **checked) <= 1e-12
    assert spot_check(model, X, whole, **(checked | {"projection_seed": 2})) > 1e-3


@pytest.mark.parametrize("r", [0, -1, 2.5, "4", True])
def test_numbers_of_projections_that_are_none(r):
    with pytest.raises(ArgumentError, match="n_projections must be an integer of at least 1 for reduction='projected'"):
        empirical_ntk(net(), X, reduction="projected", n_projections=r)
    assert np.isfinite(float(empirical_ntk(net(), X, reduction="projected", n_projections=np.int64(2)).sum()))
