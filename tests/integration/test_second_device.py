"""Everything runs on another device than the CPU, where mixed operands and numpy are refused; a GPU is not needed."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils import backend_registration

from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from avalanche_ntk.kernels._structure import graph
from tests.support.cases import error
from tests.support.places import TESTS

needs_backend = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason=f"torch {torch.__version__} has no devices written in Python",
)
pytestmark = pytest.mark.timeout(900)  # every operator goes through Python there
SCRIPT = TESTS / "support" / "standin_cases.py"


@pytest.fixture(scope="module")
def results():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_backend
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "gru", "without addresses"])
def test_kernels_are_those_of_the_cpu(results, name):
    found = results[name]
    assert isinstance(found, dict), found
    assert len(found) >= 20
    assert {what: gap for what, gap in found.items() if not gap <= 2e-6} == {}


@needs_backend
def test_the_whole_loop_with_every_observable_is_that_of_the_cpu(results):
    found = results["loop"]
    assert isinstance(found, dict), found
    assert {what: gap for what, gap in found.items() if not gap <= 1e-6} == {}


@needs_backend
def test_the_device_refuses_what_another_device_refuses(results):
    found = results["refusals"]
    assert isinstance(found, dict), found
    assert found.keys() == {"mixed", "numpy", "generator", "forward"}
    assert found["mixed"].startswith("Expected all tensors to be on the same device, but found at least two devices")


def test_a_field_that_is_empty_means_that_there_is_no_rule(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(5, 4)
    model[1].running_mean.normal_()
    real = graph._field
    emptied = []

    def field(node, name):
        if "BatchNorm" in node.name() and name == "_saved_running_var":
            emptied.append(name)
            return torch.empty(0)
        return real(node, name)

    monkeypatch.setattr(graph, "_field", field)
    got, info = empirical_ntk(model, x, dtype=torch.float64, return_info=True)
    assert emptied and info.methods["1.weight"] == "masked" and not info.reasons
    assert error(got, reference_ntk(model, x)) <= 1e-12
