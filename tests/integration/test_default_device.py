"""`torch.set_default_device(...)`: what is made on the CPU says so, whatever torch would do by default."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils.data import TensorDataset

import avalanche_ntk
from avalanche_ntk import NTKPlugin, Probe, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import SHIFTS, LabelledData, load_data, split_digits
from avalanche_ntk.lab.benchmarks.images import read_folder
from avalanche_ntk.lab.regimes import build_regime, kaiming_uniform_
from tests.support.lines import make_strategy, run, tiny_stream

PACKAGE = Path(avalanche_ntk.__file__).parent


class Nameless(TorchFunctionMode):
    """Collects the places of the package that make a tensor without saying where: they would follow the default."""

    def __init__(self):
        super().__init__()
        self.places = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _device_constructors() and kwargs.get("device") is None:
            caller = Path(inspect.currentframe().f_back.f_code.co_filename)
            if caller.is_relative_to(PACKAGE):
                self.places.add(str(caller.relative_to(PACKAGE)))
        return function(*args, **kwargs)


def found(action):
    with Nameless() as mode:
        action()
    return {place for place in mode.places if not place.startswith("kernels")}


def pictures(folder):
    from PIL import Image

    for name in ("a", "b"):
        (folder / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((4, 4, 3), 40 * i, dtype=np.uint8)).save(folder / name / f"{i}.png")


def measured():
    ntk = NTKPlugin(
        [
            ProbeSpec(size=8),
            ProbeSpec(size=8, split="test"),
            Probe.from_tensors(torch.randn(4, 6), [0, 1, 2, 1], name="own"),
        ],
        Schedule.every_iterations(1),
        on_error="raise",
    )
    everything = dict(forecast=True, class_blocks=True, features=True, linearisation=True, regression=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    strategy = make_strategy(model=model, plugins=[ntk], metrics=[ntk_metrics(ntk, per_layer=True, **everything)])
    strategy.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(strategy, tiny_stream())


def shifted():
    data = load_data("digits", standardise=True)
    for name, make in SHIFTS.items():
        make(data, **SETTINGS.get(name, {}))
    load_data("markov", n_classes=2, per_class=4, test_per_class=2)
    LabelledData.from_tensors(torch.zeros(4, 1, 2, 2), [0, 0, 1, 1], torch.zeros(2, 1, 2, 2), [0, 1])
    split_digits()


SETTINGS = {
    "class_frequency": dict(alpha=0.5),
    "class_overlap": dict(similarity=0.0, classes_per_task=2),
}


def test_every_tensor_says_where_it_is_made(tmp_path):
    pictures(tmp_path)
    assert found(measured) == set()
    assert found(lambda: load_data("digits", standardise=True)) == set()
    assert found(lambda: read_folder(tmp_path, None)) == set()
    assert found(shifted) == set()


def test_the_audit_can_fail():
    with Nameless() as mode:
        exec(compile("import torch\ntorch.zeros(2)", str(PACKAGE / "anything.py"), "exec"), {})
    assert mode.places == {"anything.py"}


def generators(source):
    """Calls of `torch.Generator` in a source, as they are written."""
    calls = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call))
    return [ast.unparse(c) for c in calls if ast.unparse(c.func) == "torch.Generator"]


def test_every_generator_says_where_it_draws():
    sources = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "strategies").glob("*.py")]
    found = [call for path in sources for call in generators(path.read_text())]
    assert len(found) > 5 and "torch.Generator()" not in found, found
    assert generators("import torch\ntorch.Generator().manual_seed(0)") == ["torch.Generator()"]


@pytest.fixture
def nowhere():
    """Tensors lie by default where nothing can be read."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_a_probe_is_chosen_on_any_default_device(nowhere):
    x = torch.arange(20.0, device="cpu").unsqueeze(1)
    y = torch.arange(20, device="cpu") % 2
    dataset = TensorDataset(x, y)
    for balance in ("class", "none"):
        probe = ProbeSpec(size=6, balance=balance).choose(dataset)
        assert probe.x.flatten().tolist() == [float(i) for i in probe.indices]
        assert probe.y.tolist() == [i % 2 for i in probe.indices]
    given = Probe.from_tensors(np.ones((2, 3)), [0, 1], task_labels=[4, 5])
    assert given.x.device.type == given.y.device.type == given.task_labels.device.type == "cpu"
    assert ProbeSpec(size=6).choose(dataset).hash == probe_hash(dataset)


def probe_hash(dataset):
    torch.set_default_device(None)
    return ProbeSpec(size=6).choose(dataset).hash


def test_live_outputs_are_found_on_any_default_device(nowhere):
    model = nn.Linear(3, 2, device="cpu")
    assert NTKPlugin()._measurer._live_outputs(model, torch.ones(4, 3, device="cpu"), None) == [0, 1]


def test_a_generator_draws_for_weights_elsewhere():
    here, there = nn.Linear(3, 2), nn.Linear(3, 2, device="meta")
    generator = torch.Generator("cpu").manual_seed(3)
    assert kaiming_uniform_(there, generator=generator).weight.device.type == "meta"
    after = generator.get_state()
    kaiming_uniform_(here, generator=generator.manual_seed(3))
    assert torch.equal(generator.get_state(), after)
    expected = torch.empty(2, 3)
    bound = 2**0.5  # gain √2, √(3 / 3)
    nn.init.uniform_(expected, -bound, bound, generator=torch.Generator().manual_seed(3))
    assert torch.equal(here.weight, expected)
    assert build_regime("rich", input_shape=(6,), n_classes=2, width=4).model
