"""What all tests share: one thread in every process, so that results do not depend on the machine's cores."""

import os
import warnings
from pathlib import Path

import pytest

# Before torch is imported, and for the processes that tests start: workers beside each other would fight for cores.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from matplotlib.figure import Figure

from tests.support import standin
from tests.support.texts import Drawn

torch.set_num_threads(1)

with warnings.catch_warnings():
    # Importing Avalanche warns of what its own dependencies deprecated.
    warnings.simplefilter("ignore")
    import avalanche.training  # noqa: F401

    from tests.support import lines


def pytest_addoption(parser):
    parser.addoption("--write-table", action="store_true", help="write docs/compatibility.md from the whole matrix")
    parser.addoption("--device", default="cpu", help="where kernels and the plugin are tested, such as cuda or standin")


# Modules whose tests run where `--device` says: what they make, they make there
ON_DEVICE = frozenset(
    {
        "unit/kernels/test_exact.py",
        "unit/kernels/test_refusals.py",
        "integration/kernels/test_leaves_no_trace.py",
        "integration/kernels/test_same_bits.py",
        "unit/kernels/test_projected.py",
        "unit/kernels/test_preconditioned.py",
        "integration/test_plugin.py",
        "integration/test_does_not_disturb.py",
    }
)
# Those whose strategies are moved there while the data stay, as in anyone's training
MOVED = frozenset({"integration/test_plugin.py", "integration/test_does_not_disturb.py"})


# What the stand-in cannot do as a device of torch's can, by the beginning of a test's name
STANDIN_LACKS = {
    "test_float64_equals_the_oracle_for_every_reduction_self_and_cross[complex": "views of conjugates",
    "test_float64_equals_the_oracle_for_every_reduction_self_and_cross[fourier_layer": "views of conjugates",
    "test_float32_and_a_single_sample[complex": "views of conjugates",
    "test_complex_lazy_and_quantised": "parameters that have no shape yet",
    "test_sparse_and_nested_tensors": "nested tensors",
    "test_modes_of_the_caller_do_not_change_the_kernel_and_are_restored": "inference mode",
    "test_autocast_in_the_model_is_off_during_a_measurement_and_on_again_after_it": "autocast",
    "test_a_compiled_model_trains_on_as_if_nothing_had_been_measured": "compilation",
    "test_what_is_held_is_counted": "single tensors: each holds another",
    "test_checkpoint_of_the_plugin_goes_on_measuring": "pickling",
}


def _module(path):
    return path.relative_to(Path(__file__).parent).as_posix()


def missing(name):
    """Return why a device cannot be had; empty where it can."""
    if name.partition(":")[0] == standin.NAME:
        standin.register()
    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        return f"--device {name}: torch {torch.__version__} has no such device here ({str(exc).partition(chr(10))[0]})"
    return ""


def pytest_collection_modifyitems(config, items):
    reason = missing(config.getoption("--device"))
    for item in items:
        if _module(item.path) not in ON_DEVICE:
            continue
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        if config.getoption("--device") == standin.NAME:
            for name, lacking in STANDIN_LACKS.items():
                if item.name.startswith(name):
                    item.add_marker(pytest.mark.skip(reason=f"the stand-in has no {lacking}"))


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def made_there(request, device):
    """Let a test's tensors and models be made on the device that was asked for, or its strategies be moved there."""
    module = _module(request.path)
    if device.type == "cpu" or module not in ON_DEVICE:
        yield
    elif module in MOVED:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines, "DEVICE", device)
            yield
    else:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in vars(request.module).items():
                if isinstance(value, torch.Tensor):  # made when the module was imported
                    patch.setattr(request.module, name, value.to(device))
            torch.set_default_device(device)
            try:
                yield
            finally:
                torch.set_default_device(None)


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
