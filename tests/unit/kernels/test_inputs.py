"""Inputs in containers of every kind reach the model as they are."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import empirical_ntk, feature_kernel, jvp_prediction, ntk_operator, reference_ntk


class Pair(NamedTuple):
    image: Tensor
    text: Tensor


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def both(self, image, text):
        return self.head(torch.tanh(self.a(image) + self.b(text)))


class Whole(Two):
    def forward(self, batch):
        return self.both(batch.image, batch.text)


class Apart(Two):
    def forward(self, image, text):
        return self.both(image, text)


class OfLists(Two):
    def forward(self, batch):
        image, text, extra = [*batch, []] if type(batch) is list else [None] * 3
        assert not extra
        return self.both(image, text)


@pytest.mark.parametrize(
    ("make", "kind"), [(Whole, Pair._make), (Apart, Pair._make), (Apart, list), (Apart, tuple), (OfLists, list)]
)
def test_named_tuples_and_lists(make, kind):
    torch.manual_seed(0)
    model, x = make().double(), kind([torch.randn(6, 4).double(), torch.randn(6, 3).double()])
    alone = Apart().double()
    alone.load_state_dict(model.state_dict())
    want = reference_ntk(alone, tuple(x))
    assert float((empirical_ntk(model, x) - want).norm() / want.norm()) <= 1e-12
    assert float((reference_ntk(model, x) - want).norm() / want.norm()) <= 1e-12
    assert ntk_operator(model, x).shape == (12, 12) and feature_kernel(model, x).shape == (6, 6)


@pytest.mark.parametrize("seed", [None, "a", -1, 1.5, True, 2**63])
def test_seeds_that_are_none(seed):
    model, x = nn.Linear(4, 3), torch.randn(5, 4)
    with pytest.raises(ArgumentError, match="seed must be a whole number from 0"):
        empirical_ntk(model, x, estimator="rademacher", n_projections=4, seed=seed)
    with pytest.raises(ArgumentError, match="seed must be a whole number from 0"):
        ntk_operator(model, x).trace(seed=seed)
    with pytest.raises(ArgumentError, match="seed must be a whole number from 0"):
        ntk_operator(model, x).top_eigenvalues(seed=seed)


@pytest.mark.parametrize(
    "measure",
    [
        empirical_ntk,
        reference_ntk,
        feature_kernel,
        lambda m, x: empirical_ntk(m, x, x),
        lambda m, x: empirical_ntk(m, {"input": x}),
        lambda m, x: empirical_ntk(m, x, method="jacobian"),
        lambda m, x: empirical_ntk(m, x, method="loop"),
        lambda m, x: jvp_prediction(m, x, {}, {"1.bias": torch.ones(3)}),
        lambda m, x: ntk_operator(m, x) @ torch.ones(12),
    ],
)
def test_images_of_torchvision_give_plain_tensors(measure):
    x = torch.rand(4, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    got = measure(model, tv_tensors.Image(x))
    assert type(got) is Tensor and torch.equal(got, measure(model, x))
