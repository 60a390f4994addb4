"""Units, gradients, churn and the kernel's relative change, by hand and beside autograd."""

import math

import numpy as np
import pytest
import torch

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.measures import (
    churn,
    dormant_share,
    gradient_cosine,
    loss_gradient_products,
    relative_kernel_change,
    zero_gradient_share,
)


def test_dormant_share():
    # Mean activity of the units: 0, 0.2, 1, 2.8; their mean is 1.
    h = [[0.0, 0.1, -1.0, 2.8], [0.0, -0.3, 1.0, -2.8]]
    assert [dormant_share(h, tau=tau) for tau in (0.0, 0.1, 0.2, 1.0)] == [0.25, 0.25, 0.5, 0.75]
    assert dormant_share(np.zeros((2, 3))) == 1.0
    with pytest.warns(UndefinedMeasureWarning, match="1 non-finite entries of 2"):
        assert math.isnan(dormant_share([[np.nan, 1.0]]))
    with pytest.raises(ArgumentError, match="tau must be 0 or more"):
        dormant_share(h, tau=-1)


def test_zero_gradient_share():
    assert zero_gradient_share([[0.0, 1e-30, 0.0], [0.0, 0.0, 2.0]]) == pytest.approx(1 / 3)


def test_churn():
    assert churn([[1.0, 1.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 0.0]]) == 1.5
    with pytest.raises(ArgumentError, match="found shapes \\(1, 2\\) and \\(2, 2\\)"):
        churn([[1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]])


def test_products_of_loss_gradients_beside_autograd():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    rows = []
    for one, label in zip(x, y, strict=True):
        loss = torch.nn.functional.cross_entropy(model(one[None]), label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    gradients = torch.stack(rows).numpy()
    errors = model(x).softmax(1).detach() - torch.nn.functional.one_hot(y, 3)
    products = loss_gradient_products(reference_ntk(model, x, reduction="full"), errors)
    np.testing.assert_allclose(products, gradients @ gradients.T, rtol=1e-10, atol=1e-12)
    cosines = np.corrcoef(np.concatenate([gradients, -gradients], axis=1))  # of rows with mean zero: the cosine
    assert gradient_cosine(products) == pytest.approx(cosines[~np.eye(6, dtype=bool)].mean())


def test_gradient_cosine_needs_a_pair():
    with pytest.warns(UndefinedMeasureWarning, match="1 of 2 samples has a gradient, and a pair needs two"):
        assert math.isnan(gradient_cosine([[1.0, 0.0], [0.0, 0.0]]))


def test_relative_kernel_change_keeps_the_scale():
    k = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert relative_kernel_change(3 * k, k) == pytest.approx(2.0)
    assert relative_kernel_change(k, k) == 0.0
    with pytest.warns(UndefinedMeasureWarning, match="the reference is exactly zero"):
        assert math.isnan(relative_kernel_change(k, np.zeros((2, 2))))
