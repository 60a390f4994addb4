"""A steady measurement reads hardly any number on the host: on a GPU, each read waits for all that was asked before."""

from collections import Counter

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_ntk.kernels import empirical_ntk, measurement
from avalanche_ntk.kernels._contract import engine

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_unique2", "masked_select")


class Reads(TorchDispatchMode):
    """Counts operators that read values, and copies to the host."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in READS or (name == "_to_copy" and str((kwargs or {}).get("device")) == "cpu"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def resnet():
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 10)), (64, 30)),
    "resnet": (resnet, (4, 3, 16, 16)),
    "vit": (lambda: torchvision.models.VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=10), (4, 3, 16, 16)),
    "gru": (lambda: nn.Sequential(nn.GRU(5, 6, batch_first=True), Last(), nn.Linear(6, 3)), (8, 4, 5)),
}


class Last(nn.Module):
    def forward(self, found):
        return found[0][:, -1]


@pytest.mark.parametrize("reduction", [{}, {"reduction": "projected", "n_projections": 2}])
@pytest.mark.parametrize("name", MODELS)
def test_reads_in_a_steady_measurement(name, reduction):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape)
    for _ in range(2):
        _, info = empirical_ntk(model, x, return_info=True, **reduction)
    with Reads() as reads:
        _, info = empirical_ntk(model, x, return_info=True, **reduction)
    assert info.checks == "trusted"
    assert reads.found.total() <= 3, reads.found


@pytest.mark.parametrize(("name", "budget"), [("mlp", None), ("mlp", 2**14), ("vit", None), ("gru", None)])
def test_nothing_is_read_inside_the_contraction(name, budget, monkeypatch):
    """Neither in one step nor where pieces are held: signals become kernel entries without a look at any."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape)
    for _ in range(2):
        empirical_ntk(model, x, memory_budget=budget)
    reads, calls = Reads(), []

    def watched(function):
        def call(*args, **kwargs):
            calls.append(function.__name__)
            with reads:
                return function(*args, **kwargs)

        return call

    for module, function in ((engine, "kernels"), (measurement, "fill"), (engine, "contract_groups")):
        monkeypatch.setattr(module, function, watched(getattr(module, function)))
    empirical_ntk(model, x, memory_budget=budget)
    assert calls and reads.found.total() == 0, reads.found


def test_reads_are_counted():
    with Reads() as reads:
        empirical_ntk(nn.Linear(3, 2), torch.randn(4, 3))  # a new model: all samples are looked at
    assert reads.found.total() > 3
