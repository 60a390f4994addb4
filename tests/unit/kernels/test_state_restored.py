"""What a forward pass writes into (weights, lists, hooks, generators, modes of torch) is as before a measurement."""

import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk.kernels import (
    empirical_ntk,
    feature_kernel,
    jvp_prediction,
    ntk_operator,
    reference_jacobian,
    reference_ntk,
)

MEASUREMENTS = {
    "kernel": lambda m, x: empirical_ntk(m, x),
    "double": lambda m, x: empirical_ntk(m, x, dtype=torch.float64),
    "jacobian": lambda m, x: empirical_ntk(m, x, method="jacobian"),
    "loop": lambda m, x: empirical_ntk(m, x, method="loop"),
    "oracle": lambda m, x: reference_ntk(m, x),
    "features": lambda m, x: feature_kernel(m, x),
    "operator": lambda m, x: ntk_operator(m, x, reduction="trace") @ torch.ones(len(x)),
    "jvp": lambda m, x: jvp_prediction(m, x, {}, {"head.weight": torch.ones(3, 8)}),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("count", torch.zeros(3))

    def before(self):
        pass

    def forward(self, x):
        self.before()
        return self.head(torch.tanh(self.layer(x)))


class Exchanges(Net):
    """A constraint as it is written for convolutions of EEG: the weight's memory is exchanged."""

    def before(self):
        self.layer.weight.data = torch.renorm(self.layer.weight.data, 2, 0, 0.5)


class Clamps(Net):
    def before(self):
        with torch.no_grad():
            self.layer.weight.clamp_(-0.1, 0.1)


class ClampsData(Net):
    def before(self):
        self.layer.weight.data.clamp_(-0.1, 0.1)


class ManyAtOnce(Net):
    def before(self):
        with torch.no_grad():
            torch._foreach_clamp_max_(list(self.parameters()), 0.1)


class ExchangesBuffer(Net):
    def before(self):
        self.count.data = torch.ones(9)


class ResizesBuffer(Net):
    def before(self):
        self.count.resize_(7).fill_(1)


class InOneMemory(Net):
    """Its parameters are parts of one tensor, as optimizers and recurrent layers make them."""

    def __init__(self):
        super().__init__()
        flat = torch.randn(sum(p.numel() for p in self.parameters()))
        parts = flat.split([p.numel() for p in self.parameters()])
        for p, part in zip(self.parameters(), parts, strict=True):
            p.data = part.view(p.shape)

    def before(self):
        with torch.no_grad():
            self.head.weight.clamp_(-0.1, 0.1)
            self.layer.bias.zero_()


class WritesThenExchanges(Net):
    def before(self):
        self.layer.weight.data.clamp_(-0.1, 0.1)
        self.layer.weight.data = self.layer.weight.data.clamp(-0.05, 0.05)


WRITERS = [Exchanges, Clamps, ClampsData, ManyAtOnce, InOneMemory, WritesThenExchanges, ExchangesBuffer, ResizesBuffer]


@pytest.mark.parametrize("make", WRITERS)
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_weights_and_buffers_that_are_written_into(make, name):
    model, x = make(), torch.randn(7, 6)
    held = {k: (t.data_ptr(), t.detach().clone()) for k, t in model.state_dict(keep_vars=True).items()}
    for _ in range(2):
        MEASUREMENTS[name](model, x)
        for k, t in model.state_dict(keep_vars=True).items():
            assert torch.equal(t, held[k][1]), k
            assert t.data_ptr() == held[k][0] or make is ResizesBuffer, k


@pytest.mark.parametrize("make", WRITERS)
def test_their_kernels_are_those_of_the_weights_that_are_written(make):
    model, x = make(), torch.randn(7, 6)
    want = reference_ntk(model, x)
    for kwargs in ({}, {"method": "loop"}, {"dtype": torch.float64}):
        got = empirical_ntk(model, x, **kwargs).double()
        assert float((got - want).norm() / want.norm()) <= 2e-6
    delta = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    moved = reference_jacobian(model, x) @ torch.cat([d.flatten().double() for d in delta.values()])
    torch.testing.assert_close(jvp_prediction(model, x, {}, delta).double(), moved, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        (ntk_operator(model, x, reduction="trace") @ torch.eye(7)).double(), want, rtol=1e-5, atol=1e-5
    )


def test_weights_that_are_written_into_later_on():
    model, x = Net(), torch.randn(7, 6)
    empirical_ntk(model, x)
    model.more = Clamps()  # a new module: the model is watched again
    model.before = lambda: model.more(torch.zeros(1, 6))
    held = model.more.layer.weight.detach().clone()
    empirical_ntk(model, x)
    assert torch.equal(model.more.layer.weight, held)


class Switched(Net):
    def __init__(self):
        super().__init__()
        self.on = False

    def before(self):
        if self.on:
            self.layer.weight.data.clamp_(-0.1, 0.1)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_weights_that_are_written_into_once_a_switch_is_set(name):
    model, x = Switched(), torch.randn(7, 6)
    MEASUREMENTS[name](model, x)
    model.on, held = True, model.layer.weight.detach().clone()
    for _ in range(2):
        MEASUREMENTS[name](model, x)
        assert torch.equal(model.layer.weight, held)


class Holds(Net):
    """Lists, dicts, sets, queues, tensors, generators and hooks, all of which change at every call."""

    def __init__(self):
        super().__init__()
        self.seen, self.named, self.kinds, self.last = [], {"all": [1]}, {1}, deque([1], maxlen=2)
        self.total, self.size = torch.zeros(()), 0
        self.pair = (torch.zeros(2), [0])
        self.generator = torch.Generator().manual_seed(1)
        self.python, self.numpy = random.Random(1), np.random.default_rng(1)

    def before(self):
        self.seen.append(1)
        self.named["all"].append(2)
        self.named["more"] = self.size
        self.kinds.add(2)
        self.last.append(2)
        self.total += 1
        self.pair[0].add_(1)
        self.pair[1][0] += 1
        self.size += 1
        torch.rand(1, generator=self.generator)
        self.python.random()
        self.numpy.random()
        self.layer.register_forward_hook(lambda _m, _i, _o: None)
        self.register_buffer("late", torch.zeros(2), persistent=False)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_what_modules_hold(name):
    model, x = Holds(), torch.randn(7, 6)
    lists = model.seen, model.named, model.named["all"], model.last
    MEASUREMENTS[name](model, x)
    assert (model.seen, model.named, model.kinds, list(model.last)) == ([], {"all": [1]}, {1}, [1])
    assert all(a is b for a, b in zip(lists, (model.seen, model.named, model.named["all"], model.last), strict=True))
    assert float(model.total) == 0 and model.size == 0
    assert float(model.pair[0].sum()) == 0 and model.pair[1] == [0]
    assert torch.equal(model.generator.get_state(), torch.Generator().manual_seed(1).get_state())
    assert model.python.random() == random.Random(1).random()
    assert model.numpy.random() == np.random.default_rng(1).random()
    assert not model.layer._forward_hooks and not model._non_persistent_buffers_set
    model(x)
    assert model.seen == [1] and len(model.layer._forward_hooks) == 1


class Modes(Net):
    def before(self):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("high")


@pytest.mark.parametrize("name", [n for n in MEASUREMENTS if n != "double"])
def test_modes_of_torch(name):
    threads = torch.get_num_threads()
    MEASUREMENTS[name](Modes(), torch.randn(7, 6))
    assert torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == threads
    assert torch.get_float32_matmul_precision() == "highest"


class Breaks(Net):
    """Leaves a table that cannot be put back, and changes more than that."""

    def __init__(self):
        super().__init__()
        self.table = Stubborn({"a": 1})

    def before(self):
        self.table["b"] = 2
        self.count += 1
        self.layer.bias.grad = torch.ones(8)


class Stubborn(dict):
    def clear(self):
        raise RuntimeError("this dict keeps what it has")


def test_what_cannot_be_put_back_does_not_keep_the_rest_from_it():
    model = Breaks().train()
    with pytest.raises(RuntimeError, match="keeps what it has"):
        empirical_ntk(model, torch.randn(7, 6))
    assert float(model.count.sum()) == 0 and model.layer.bias.grad is None and model.training
