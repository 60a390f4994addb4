"""What goes in is copied, and what comes out cannot reach what is kept."""

import copy
import hashlib
import io
import json
import pickle

import dill
import numpy as np
import pytest
import torch

from avalanche_ntk import NTKPlugin, Probe, ProbeSpec, Schedule
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.trajectory import Measurement, Trajectory
from tests.support.lines import make_strategy, run_with_ntk, tiny_stream


def inputs():
    big = torch.arange(80.0).reshape(20, 4)
    return big, torch.arange(20) % 2


def test_a_probe_does_not_change_with_what_it_was_made_of():
    big, y = inputs()
    array, tasks = np.ones((3, 2)), torch.tensor([0, 1, 2])
    probe = Probe.from_tensors(big[:8], y[:8])
    pair = Probe.from_tensors({"a": array, "b": [big[:3]]}, np.array([0, 1, 0]), tasks)
    big.mul_(-1), y.add_(1), tasks.add_(1)
    array[:] = 7
    assert torch.equal(probe.x, torch.arange(32.0).reshape(8, 4))
    assert probe.y.tolist() == [0, 1] * 4
    assert (pair.x["a"] == 1).all()
    assert torch.equal(pair.x["b"][0], torch.arange(12.0).reshape(3, 4))
    assert pair.task_labels.tolist() == [0, 1, 2]


def test_a_probe_does_not_change_with_what_it_hands_out():
    big, y = inputs()
    probe = Probe.from_tensors({"a": big[:8]}, y[:8])
    given = probe.x
    given["a"].zero_(), probe.y.zero_(), probe.task_labels.add_(5), probe.describe()["labels"].clear()
    given["b"] = 1
    assert torch.equal(probe.x["a"], big[:8])
    assert probe.y.tolist() == [0, 1] * 4
    assert probe.task_labels.tolist() == [0] * 8
    for name in ("x", "y", "hash", "name"):
        with pytest.raises(AttributeError):
            setattr(probe, name, None)


def test_saving_a_probe_stores_its_own_samples_only():
    big = torch.zeros(30_000, 4)
    probe = Probe.from_tensors(big[:8], torch.zeros(30_000, dtype=torch.int64)[:8])
    saved = io.BytesIO()
    torch.save(probe, saved)
    assert len(saved.getvalue()) < 10_000  # 30,000 samples are 480 kB
    for loaded in (copy.deepcopy(probe), pickle.loads(pickle.dumps(probe)), dill.loads(dill.dumps(probe))):
        assert loaded.hash == probe.hash
        assert torch.equal(loaded.x, probe.x)


def test_the_hash_by_hand():
    """Runs on disk know their probes by it, so that it must not change from version to version."""
    expected = hashlib.sha256()
    expected.update(b"torch.float32(2, 3)" + np.arange(6, dtype="<f4").tobytes())
    expected.update(b"torch.int64(2,)" + np.array([1, 0], dtype="<i8").tobytes())
    expected.update(b"torch.int64(2,)" + np.array([4, 4], dtype="<i8").tobytes())
    probe = Probe.from_tensors(torch.arange(6.0).reshape(2, 3), [1, 0], task_labels=4)
    assert probe.hash == expected.hexdigest()


def test_a_probe_is_hashed_once(monkeypatch):
    calls = []
    import avalanche_ntk.recorder.probes

    original = avalanche_ntk.recorder.probes._content_hash
    monkeypatch.setattr(avalanche_ntk.recorder.probes, "_content_hash", lambda *a: (calls.append(1), original(*a))[1])
    probe = Probe.from_tensors(torch.ones(4, 3), [0, 1, 0, 1])
    moved = probe.to("meta")
    assert len(calls) == 1
    assert moved.hash == probe.hash
    assert moved.read_only()[0].device.type == moved.read_only()[1].device.type == "meta"
    assert moved.to("meta") is moved and probe.to("cpu") is probe
    run_with_ntk(ntk=NTKPlugin(probe_of_six(), Schedule.every_iterations(1), on_error="raise"))
    assert len(calls) == 2


class Elsewhere(Probe):
    """A probe that is not yet where the model is."""

    is_there = False
    moves = 0

    def to(self, device):
        if self.is_there:
            return self
        moved = copy.copy(self)
        object.__setattr__(moved, "is_there", True)
        Elsewhere.moves += 1
        return moved


def test_a_probe_moves_to_the_device_once():
    probe = Elsewhere.from_tensors(torch.randn(4, 6), [0, 1, 0, 1])
    ntk, _ = run_with_ntk(ntk=NTKPlugin(probe, Schedule.every_iterations(1), on_error="raise"))
    assert len(ntk.trajectory) > 10
    assert Elsewhere.moves == 1
    assert ntk.probes["probe"].is_there


def probe_of_six():
    return Probe.from_tensors(torch.randn(4, 6), [0, 1, 0, 1])


def test_the_same_tensors_are_measured_each_time(monkeypatch):
    import avalanche_ntk.recorder.measurer

    seen = set()
    original = avalanche_ntk.recorder.measurer.empirical_ntk

    def watched(model, x, **arguments):
        seen.add((id(x), x.data_ptr()))
        return original(model, x, **arguments)

    monkeypatch.setattr(avalanche_ntk.recorder.measurer, "empirical_ntk", watched)
    ntk, _ = run_with_ntk()
    assert len(ntk.trajectory) > 10
    assert len(seen) == 1


@pytest.mark.parametrize("on_disk", [False, True])
def test_kernels_and_numbers_do_not_change_with_what_is_handed_out(tmp_path, on_disk):
    ntk, _ = run_with_ntk(
        ntk=NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), run_folder=tmp_path / "run" if on_disk else None)
    )
    trajectory = ntk.trajectory
    kernel, labels = trajectory.kernel(0), trajectory.labels
    before = kernel.copy(), labels.copy(), dict(trajectory[0].values), ntk.probes["Exp000"].x
    kernel[:], labels[:] = 7, 9
    trajectory.kernels(0)["kernel"][:] = 8
    ntk.probes["Exp000"].x.zero_()
    ntk.probes.clear()
    for record in (
        trajectory[0].values,
        trajectory[1].reasons,
        trajectory[0].trust,
        trajectory.reactivations[0].reasons,
    ):
        with pytest.raises(TypeError, match="cannot be changed; take a copy"):
            record["alignment"] = 3.0
        with pytest.raises(TypeError, match="cannot be changed; take a copy"):
            record.clear()
    after = trajectory.kernel(0), trajectory.labels, dict(trajectory[0].values), ntk.probes["Exp000"].x
    for a, b in zip(before, after, strict=True):
        assert a == b if isinstance(a, dict) else bool((a == b).all())


def test_a_trajectory_does_not_change_with_what_it_was_given():
    clock = TrainingClock("experience_start", 0, 0, 0, 0, 0, 0)
    kernel, layer, labels = np.diag([3.0, 2.0, 1.0]), np.eye(3), np.array([0, 1, 1])
    trust = {"methods": {"plan": 1}}
    trajectory = Trajectory("mine", labels)
    trajectory.add(clock, kernel, extra_kernels={"layer": layer}, trust=trust)
    kernel[:], layer[:], labels[:] = 0, 0, 0
    trust["methods"]["plan"] = 2
    np.testing.assert_array_equal(trajectory.kernel(0), np.diag([3.0, 2.0, 1.0]))
    np.testing.assert_array_equal(trajectory.kernel(0, "layer"), np.eye(3))
    assert trajectory.labels.tolist() == [0, 1, 1]
    assert trajectory[0].trust == {"methods": {"plan": 1}}


def test_records_are_dicts_all_the_same():
    clock = TrainingClock("experience_start", 0, 0, 0, 0, 0, 0)
    measurement = Measurement(0, clock, values={"alignment": 0.5}, trust={"methods": {"plan": 1}, "list": [1]})
    assert json.loads(json.dumps(measurement.as_record("mine")))["trust"] == {"methods": {"plan": 1}, "list": [1]}
    for copied in (
        copy.deepcopy(measurement),
        pickle.loads(pickle.dumps(measurement)),
        dill.loads(dill.dumps(measurement)),
    ):
        assert copied == measurement
        with pytest.raises(TypeError):
            copied.values["alignment"] = 1.0
    assert {**measurement.values, "more": 1.0} == {"alignment": 0.5, "more": 1.0}


def test_a_checkpoint_holds_no_benchmark():
    benchmark = tiny_stream()
    ntk = NTKPlugin(ProbeSpec(size=8), benchmark=benchmark)
    strategy = make_strategy(plugins=[ntk])
    strategy.train(benchmark.train_stream[0])
    assert dill.loads(dill.dumps(ntk)).benchmark is None
    assert ntk.benchmark is benchmark
