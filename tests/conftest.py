"""What all tests share: one thread in every process, so that results do not depend on the machine's cores."""

import os
import warnings

import pytest

# Before torch is imported, and for the processes that tests start: workers beside each other would fight for cores.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from matplotlib.figure import Figure

from tests.texts import Drawn

torch.set_num_threads(1)

with warnings.catch_warnings():
    # Importing Avalanche warns of what its own dependencies deprecated.
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401


def pytest_addoption(parser):
    parser.addoption("--write-table", action="store_true", help="write docs/compatibility.md from the whole matrix")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """No workers where single files are asked for: starting them costs seconds."""
    return 0 if all(".py" in argument for argument in config.args) else None


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
