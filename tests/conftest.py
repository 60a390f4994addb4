"""What all tests share: one thread, so that results do not depend on the machine's cores, and tiny streams."""

import warnings

import pytest
import torch
from matplotlib.figure import Figure

from tests.texts import Drawn

torch.set_num_threads(1)

with warnings.catch_warnings():
    # Importing Avalanche warns of what its own dependencies deprecated.
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def figures_can_be_read():
    """In every figure that a test saves, no text lies on another and none is cut off."""
    save = Figure.savefig

    def save_and_check(figure, *arguments, **options):
        drawn = Drawn()
        with drawn.watching():
            save(figure, *arguments, **options)
        drawn.check()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_and_check)
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
