"""What all tests share: one thread, so that results do not depend on the machine's cores, and tiny streams."""

import warnings

import pytest
import torch

torch.set_num_threads(1)

with warnings.catch_warnings():
    # Importing Avalanche warns of what its own dependencies deprecated.
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
