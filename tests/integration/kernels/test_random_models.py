"""Networks made at random, measured in random ways, and again after their attributes have changed."""

import random

import pytest
import torch

from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from tests.support.random_models import RandomImages, RandomTokens


def error(got, want):
    return float((got - want).norm() / max(float(want.norm()), 1e-12))


@pytest.mark.parametrize("kind", [RandomImages, RandomTokens])
@pytest.mark.parametrize("seed", range(30))
def test_random_models_agree_with_the_oracle(kind, seed):
    torch.manual_seed(seed)
    model = kind(seed).double()
    r = random.Random(seed)
    for _ in range(3):
        x, x2 = (model.inputs(r.choice([1, 2, 4, 5])).double() for _ in range(2))
        for second in (None, x2):
            reduction = r.choice(["full", "trace", "sum_logits"])
            how = r.choice([{}, {"block": 2}, {"memory_budget": 2**24}])
            got = empirical_ntk(model, x, second, reduction=reduction, **how)
            assert error(got, reference_ntk(model, x, second, reduction=reduction)) <= 1e-11, (reduction, how)
        model.mutate()
