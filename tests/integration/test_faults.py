"""Disks that fill up, folders that cannot be written, interrupts, clocks that jump: training and records survive."""

import errno
import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

import avalanche_ntk.recorder.measurer
import avalanche_ntk.recorder.runfolder.files
import avalanche_ntk.recorder.stepclock
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import MeasurementFailedWarning, RunFolderError
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from tests.support.lines import (
    BatchRecorder,
    DropoutMLP,
    differences,
    fingerprint,
    make_strategy,
    run,
    seed_everything,
    step_hooks,
    tiny_stream,
)
from tests.support.places import ROOT

EVERY_STEP = Schedule.every_iterations(1)


def trained(folder=None, measured=True, **arguments):
    """Train on two experiences; return the plugin, all that training depends on, and our warnings."""
    seed_everything()
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, run_folder=folder, **arguments)
    recorder = BatchRecorder()
    strategy = make_strategy(
        model=DropoutMLP(),
        plugins=[ntk, recorder] if measured else [recorder],
        metrics=[ntk_metrics(ntk)] if measured else [],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(strategy, tiny_stream())
    ours = [str(w.message) for w in caught if issubclass(w.category, MeasurementFailedWarning)]
    return ntk, {**fingerprint(strategy), "batches": recorder.batches}, ours


@pytest.fixture(scope="module")
def plain():
    return trained(measured=False)[1]


def read_back(folder):
    read = Trajectory.load(folder)
    for m in read:
        if m.kernel is not None:
            read.kernel(m.index)
    return read


class FullDisk:
    """Stands in for the writing of bytes: fails from one call on, to another."""

    def __init__(self, begin, end=10**9, error=errno.ENOSPC):
        self.begin, self.end, self.error = begin, end, error
        self.calls = 0
        self.write = avalanche_ntk.recorder.runfolder.files.write_all

    def __call__(self, fd, content):
        self.calls += 1
        if self.begin <= self.calls < self.end:
            # As a real one: a part arrives.
            os.write(fd, bytes(content)[: len(content) // 2])
            raise OSError(self.error, os.strerror(self.error))
        self.write(fd, content)


def test_a_disk_that_is_full_from_some_moment_on(tmp_path, monkeypatch, plain):
    # run.json, then a kernel and a record for each measurement: full within the fourth measurement's kernel.
    monkeypatch.setattr(avalanche_ntk.recorder.runfolder.files, "write_all", FullDisk(begin=8))
    ntk, result, ours = trained(tmp_path / "run")
    assert differences(plain, result) == []
    # The series in memory is whole, its kernels included; the folder holds what was written before.
    assert len(ntk.trajectory) == 16
    assert not [m for m in ntk.trajectory if m.failure]
    assert all(ntk.trajectory.kernel(m.index).shape == (8, 8) for m in ntk.trajectory)
    monkeypatch.undo()
    assert [m.index for m in read_back(tmp_path / "run")] == [0, 1, 2]
    what = f"run folder {tmp_path / 'run'}: could not write "
    why = (
        ": No space left on device. What was recorded before is intact. Make room or allow writing there, then write "
        "again or continue with RunFolder.resume. (Warned once; each failure is in the trajectory. "
        "NTKPlugin(on_error='raise') stops instead.)"
    )
    assert ours[0] == (
        "writing a measurement of the NTK failed at iteration 3 and training goes on: "
        f"{what}a record to measurements.jsonl{why}"
    )
    # Once for each kind of what could not be written.
    assert len(ours) == len(set(ours)) <= 5


def test_a_full_disk_stops_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(avalanche_ntk.recorder.runfolder.files, "write_all", FullDisk(begin=8))
    with pytest.raises(RunFolderError) as caught:
        trained(tmp_path / "run", on_error="raise")
    assert "could not write" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    monkeypatch.undo()
    assert [m.index for m in read_back(tmp_path / "run")] == [0, 1, 2]


def test_what_a_full_disk_refused_is_written_when_there_is_room_again(tmp_path, monkeypatch, plain):
    trained(tmp_path / "whole")
    monkeypatch.setattr(avalanche_ntk.recorder.runfolder.files, "write_all", FullDisk(begin=8, end=14))
    _, result, ours = trained(tmp_path / "run")
    monkeypatch.undo()
    assert ours
    assert differences(plain, result) == []
    read, expected = read_back(tmp_path / "run"), read_back(tmp_path / "whole")
    assert [m.index for m in read] == list(range(16)) == [m.index for m in expected]
    for a, b in zip(read, expected, strict=True):
        assert a.clock == b.clock
        assert a.values["kernel_norm"] == b.values["kernel_norm"]
        assert np.array_equal(read.kernel(a.index), expected.kernel(b.index))
    kinds = [r["kind"] for r in RunFolder.open(tmp_path / "run").records()]
    assert kinds == [r["kind"] for r in RunFolder.open(tmp_path / "whole").records()]


def test_a_folder_that_becomes_read_only(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user, such as root, may write into folders that are closed to writing")
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, run_folder=tmp_path / "run")
    strategy = make_strategy(plugins=[ntk])
    benchmark = tiny_stream()
    strategy.train(benchmark.train_stream[0])
    (tmp_path / "run" / "kernels" / "Exp000").chmod(0o500)
    try:
        with pytest.warns(MeasurementFailedWarning, match="Permission denied"):
            strategy.train(benchmark.train_stream[1])
    finally:
        (tmp_path / "run" / "kernels" / "Exp000").chmod(0o700)
    assert len(ntk.trajectory) == 16


def test_writes_that_are_refused_are_no_end_of_training(tmp_path, monkeypatch, plain):
    # What a read-only file system answers, also to root.
    monkeypatch.setattr(avalanche_ntk.recorder.runfolder.files, "write_all", FullDisk(begin=2, error=errno.EROFS))
    ntk, result, ours = trained(tmp_path / "run")
    assert differences(plain, result) == []
    assert "Read-only file system" in ours[0]
    assert len(ntk.trajectory) == 16


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    strategy = make_strategy(plugins=[NTKPlugin(ProbeSpec(size=8), run_folder=tmp_path / "file" / "run")])
    before = {name: p.clone() for name, p in strategy.model.state_dict().items()}
    with pytest.raises(RunFolderError) as caught:
        strategy.train(tiny_stream().train_stream[0])
    assert str(caught.value) == (
        f"run folder {tmp_path / 'file' / 'run'}: could not write the folder itself: Not a directory. What was "
        "recorded before is intact. Make room or allow writing there, then write again or continue with "
        "RunFolder.resume."
    )
    assert differences(before, dict(strategy.model.state_dict())) == []


# ---------------------------------------------------------------------- failing measurements


def test_each_kind_of_failure_is_recorded_with_its_reason_and_warned_of_once(tmp_path, monkeypatch, plain):
    compute = avalanche_ntk.recorder.measurer.empirical_ntk
    errors = [torch.OutOfMemoryError("no memory left"), ValueError("strange"), None]
    calls = []

    def fails(*arguments, **options):
        calls.append(1)
        error = errors[len(calls) % 3]
        if error is not None:
            torch.randn(3)  # random numbers drawn by what fails half way are nobody's
            raise error
        return compute(*arguments, **options)

    monkeypatch.setattr(avalanche_ntk.recorder.measurer, "empirical_ntk", fails)
    ntk, result, ours = trained(tmp_path / "run")
    assert differences(plain, result) == []
    reasons = ["ValueError: strange", None, "OutOfMemoryError: no memory left"]
    expected = [reasons[i % 3] for i in range(16)]
    assert [m.failure for m in ntk.trajectory] == expected
    assert [m.failure for m in Trajectory.load(tmp_path / "run")] == expected
    once = "(Warned once; each failure is in the trajectory. NTKPlugin(on_error='raise') stops instead.)"
    assert ours == [
        f"a measurement of the NTK failed at iteration 0 and training goes on: ValueError: strange {once}",
        f"a measurement of the NTK failed at iteration 2 and training goes on: OutOfMemoryError: no memory left {once}",
    ]
    # What did succeed is compared with the last that did.
    good = [m for m in ntk.trajectory if m.failure is None]
    assert good[1].values["velocity_per_iteration"] * 3 == pytest.approx(good[1].values["distance_previous"])


def test_raise_stops_at_the_first_failure_and_records_it(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("strange")

    monkeypatch.setattr(avalanche_ntk.recorder.measurer, "empirical_ntk", fails)
    with pytest.raises(ValueError, match=r"^strange$"):
        trained(tmp_path / "run", on_error="raise")
    (only,) = Trajectory.load(tmp_path / "run")
    assert only.failure == "ValueError: strange"


# ---------------------------------------------------------------------- interrupts


def test_an_interrupt_within_a_measurement_passes_through_and_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    model = DropoutMLP()
    layer = model.net[0]
    forward = layer.forward

    def interrupted(x):
        # In eval mode: within a measurement.
        if not layer.training and len(ntk.trajectory) == 3:
            raise KeyboardInterrupt
        return forward(x)

    layer.forward = interrupted
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, run_folder=tmp_path / "run")
    strategy = make_strategy(model=model, plugins=[ntk])
    with pytest.raises(KeyboardInterrupt):
        strategy.train(tiny_stream().train_stream[0])
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert len(read_back(tmp_path / "run")) == len(ntk.trajectory) == 3

    # Another plugin of this process may have the folder as soon as this one lets go of it.
    with pytest.raises(RunFolderError, match=r"is being written by process \d+ on host .* \(this process\)"):
        RunFolder.resume(tmp_path / "run")
    assert step_hooks() == 2
    ntk.close()
    RunFolder.resume(tmp_path / "run").close()
    assert step_hooks() == 0
    # And training can go on with it, which takes both again.
    layer.forward = forward
    strategy.train(tiny_stream().train_stream[0])
    assert len(read_back(tmp_path / "run")) == len(ntk.trajectory) == 3 + 8


def test_a_plugin_that_is_no_longer_used_lets_go_of_the_folder(tmp_path):
    import gc

    trained(tmp_path / "run")
    gc.collect()
    RunFolder.resume(tmp_path / "run").close()


SIGINT = """
import signal, sys
# A shell starts its background jobs with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from tests.support.lines import make_strategy, run, tiny_stream

ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), run_folder=sys.argv[1])
measure = ntk._measure

def told(*arguments):
    measure(*arguments)
    print(len(ntk.trajectory), flush=True)

ntk._measure = told
try:
    run(make_strategy(plugins=[ntk], epochs=10_000), tiny_stream())
except KeyboardInterrupt:
    print("interrupted", len(ntk.trajectory), flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.003, marks=pytest.mark.slow)])
def test_sigint_while_training(tmp_path, delay):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SIGINT, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 20:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    last = out.split()
    assert last[-2] == "interrupted"
    in_memory = int(last[-1])
    told = max([20, *map(int, last[:-2])])
    # At most the measurement that was interrupted is missing, and the process ends without a word of complaint.
    read = read_back(tmp_path / "run")
    assert told <= len(read) <= in_memory <= told + 1
    assert err == ""
    RunFolder.resume(tmp_path / "run").close()


def test_a_process_that_ends_says_nothing(tmp_path):
    code = SIGINT.replace("epochs=10_000", "epochs=1")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "run" / "lock").read_text() == ""


# ---------------------------------------------------------------------- clocks and second writers


@pytest.mark.parametrize("schedule", [EVERY_STEP, Schedule.share_of_training(0.5)], ids=["every step", "share"])
def test_a_clock_that_jumps(tmp_path, monkeypatch, plain, schedule):
    ticks = iter(range(10**6))
    jumps = [0.0, 5.0, -3600.0, 1e9, -1e9, 0.25]

    def perf_counter():
        tick = next(ticks)
        return 1000.0 + 0.01 * tick + jumps[tick % len(jumps)]

    monkeypatch.setattr(avalanche_ntk.recorder.stepclock.time, "perf_counter", perf_counter)
    seed_everything()
    ntk = NTKPlugin(ProbeSpec(size=8), schedule, run_folder=tmp_path / "run", on_error="raise")
    recorder = BatchRecorder()
    strategy = make_strategy(model=DropoutMLP(), plugins=[ntk, recorder], metrics=[ntk_metrics(ntk)])
    run(strategy, tiny_stream())
    monkeypatch.undo()
    assert differences(plain, {**fingerprint(strategy), "batches": recorder.batches}) == []
    assert ntk.training_seconds >= 0
    assert ntk.measuring_seconds >= 0
    read = read_back(tmp_path / "run")
    assert len(read) == len(ntk.trajectory) >= 4
    for m in read:
        assert m.trust["seconds"] >= 0
        assert 0 <= m.values["measuring_share"] <= 1
        assert 0 <= m.values["measurement_seconds"] < float("inf")


def test_two_plugins_on_one_folder(tmp_path):
    benchmark = tiny_stream()
    first = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, run_folder=tmp_path / "run")
    strategy = make_strategy(plugins=[first])
    strategy.train(benchmark.train_stream[0])
    for arguments in ({}, {"overwrite": True}, {"resume": True}):
        second = make_strategy(
            plugins=[NTKPlugin(ProbeSpec(size=8), EVERY_STEP, run_folder=tmp_path / "run", **arguments)]
        )
        with pytest.raises(RunFolderError) as caught:
            second.train(benchmark.train_stream[0])
        expected = "is being written by process" if arguments else "exists already and is not empty"
        assert expected in str(caught.value)
    strategy.train(benchmark.train_stream[1])
    assert len(read_back(tmp_path / "run")) == len(first.trajectory) == 16


SECOND = """
import sys
from avalanche_ntk import NTKPlugin, ProbeSpec
from avalanche_ntk.errors import RunFolderError
from tests.support.lines import make_strategy, tiny_stream

ntk = NTKPlugin(ProbeSpec(size=8), run_folder=sys.argv[1], resume=True)
try:
    make_strategy(plugins=[ntk]).train(tiny_stream().train_stream[0])
except RunFolderError as error:
    print(error)
"""


def test_two_processes_on_one_folder(tmp_path):
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, run_folder=tmp_path / "run")
    strategy = make_strategy(plugins=[ntk])
    strategy.train(tiny_stream().train_stream[0])
    before = RunFolder.open(tmp_path / "run").records()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SECOND, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said.startswith(f"run folder {tmp_path / 'run'} is being written by process {os.getpid()} on host ")
    assert said.endswith(
        ": two writers would mix their measurements. Wait until it has ended or close it there "
        "(NTKPlugin.close), or choose another folder. Reading with RunFolder.open is possible meanwhile."
    )
    assert RunFolder.open(tmp_path / "run").records() == before
    ntk.close()
