"""Networks made at random, measured in random ways, and again after their attributes have changed."""

import pytest

from tests.support.fuzz import KINDS, LARGEST, kernels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(15))
def test_random_models_agree_with_the_oracle(kind, seed):
    wrong = {told: off for told, off in kernels(kind, seed, ways=1) if not off <= LARGEST}
    assert not wrong
