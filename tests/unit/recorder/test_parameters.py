"""Changes of a model's parameters between two moments, and what seeing them costs."""

import hashlib
import pickle

import pytest
import torch
from torch import nn

import avalanche_ntk.recorder.parameters
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.parameters import Change, Parameters
from avalanche_ntk.recorder.runfolder import RunFolder
from tests.support.lines import make_strategy, run, tiny_stream


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))


NAMES = ("0.bias", "0.weight", "1.weight")


def in_place(p):
    with torch.no_grad():
        p.mul_(0.5)


def by_data(p):  # which no version counter sees
    p.data.mul_(0.5)


def other_storage(p):
    p.data = p.data * 0.5


def last_bit(p):
    p.data.view(torch.int32)[(0,) * p.dim()] ^= 1


def negative_zero(p):
    p.data.zero_().neg_()


def other_type(p):
    p.data = p.data.double()


@pytest.mark.parametrize("write", [in_place, by_data, other_storage, last_bit, negative_zero, other_type])
@pytest.mark.parametrize("known", ["copies", "digests"])
def test_a_change_is_seen_whatever_made_it(write, known):
    net = model()
    if write is negative_zero:
        net[0].bias.data.zero_()
    before = Parameters.of(net)
    if known == "digests":
        before = pickle.loads(pickle.dumps(before))
    assert before.change_to(net) == Change((), NAMES, True, False)
    write(net[0].bias)
    assert before.change_to(net) == Change(NAMES[:1], NAMES[1:], True, False)


def test_what_is_not_a_number_equals_itself():
    net = model()
    net[0].weight.data[0, 0] = float("nan")
    assert not Parameters.of(net).change_to(net)


@pytest.mark.parametrize("known", ["copies", "digests"])
def test_parameters_that_come_go_and_grow(known):
    net = model()
    before = Parameters.of(net)
    if known == "digests":
        before = Parameters(before.digests)
    net[1] = nn.Linear(2, 3, bias=True)
    assert before.change_to(net) == Change((), NAMES[:2], False, False)
    net[0] = nn.Linear(3, 2, bias=False)
    change = before.change_to(net)
    assert change == Change(NAMES[1:2], (), False, True)
    assert change.is_another_model


def test_digests_are_those_of_type_and_bits():
    net = model()
    found = Parameters.of(net).digests
    assert list(found) == ["0.weight", "0.bias", "1.weight"]
    bits = net[0].weight.detach().numpy().tobytes()
    assert found["0.weight"] == ((2, 3), hashlib.sha256(b"torch.float32" + bits).hexdigest())
    net.half()
    bits = net[0].bias.detach().numpy().tobytes()
    assert Parameters.of(net).digests["0.bias"] == ((2,), hashlib.sha256(b"torch.float16" + bits).hexdigest())
    # Logical order, whatever the order in memory.
    image = nn.Conv2d(2, 3, 3, bias=False)
    there = Parameters.of(image)
    image.to(memory_format=torch.channels_last)
    assert not there.change_to(image)
    assert Parameters.of(image).digests == there.digests


def test_without_memory_for_copies_digests_will_do(monkeypatch):
    net = model()

    def full(self):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(torch.Tensor, "clone", full)
    before = Parameters.of(net)
    monkeypatch.undo()
    assert not before.change_to(net)
    by_data(net[1].weight)
    assert before.change_to(net).changed == ("1.weight",)


# ---------------------------------------------------------------------- what a run takes


@pytest.fixture
def host_copies(monkeypatch):
    """Every tensor that is taken to the host to be hashed."""
    taken = []
    digest = avalanche_ntk.recorder.parameters._digest
    monkeypatch.setattr(avalanche_ntk.recorder.parameters, "_digest", lambda t: taken.append(t.shape) or digest(t))
    return taken


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "on disk"])
def test_parameters_are_hashed_once_an_experience_and_only_for_a_record(host_copies, tmp_path, kept):
    folder = tmp_path / "run" if kept else None
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), run_folder=folder, on_error="raise")
    strategy = make_strategy(model=MLP(6, 6, width=8, depth=1), plugins=[ntk])
    run(strategy, tiny_stream(3, per_class=4))
    count = len(list(strategy.model.parameters()))
    assert count == 4
    assert len(host_copies) == (3 * count if kept else 0)
    if kept:
        states = [r for r in RunFolder.open(folder).records() if r["kind"] == "state"]
        assert len(states) == 3
        last = {name: [list(s), d] for name, (s, d) in Parameters.of(strategy.model).digests.items()}
        assert states[-1]["parameters"] == last


def test_nothing_is_kept_while_a_task_is_trained():
    held = []

    class Watched(NTKPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            super().after_training_iteration(strategy, **kwargs)
            held.append(self._known)

    run(make_strategy(plugins=[Watched(ProbeSpec(size=8))], model=MLP(6, 4, width=8, depth=1)), tiny_stream())
    assert held == [None] * 12
