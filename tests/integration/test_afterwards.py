"""Checkpoints measured afterwards are what was measured while they were trained."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from avalanche_ntk import NTKRecorder, Probe, Schedule, empirical_ntk, measure_checkpoints
from avalanche_ntk.cli import app
from avalanche_ntk.errors import ArgumentError, ModelError, ProcessError
from avalanche_ntk.experiments.launch import JobPool, submitit_executor
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.observables import FeatureKernel, Linearisation
from avalanche_ntk.recorder.afterwards import moments_of
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report import write_report
from tests.support.places import ROOT

SECONDS = ["measurement_seconds", "measuring_share"]


class Net(nn.Module):
    """With buffers: BatchNorm's, and one that its state dict leaves out."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x):
        return self.scale * self.net(x)


def probe():
    generator = torch.Generator().manual_seed(5)
    return Probe.from_tensors(torch.randn(8, 6, generator=generator), torch.arange(8) % 2, name="mine")


def live(folder, make=Net, keep=None, **options):
    """Train two tasks of six steps, recorded; `keep` is called after every second step."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = NTKRecorder(probe(), Schedule.every_iterations(2), run_folder=folder, on_error="raise", **options)
    done = 0
    for task in range(2):
        with recorder.experience(model, optimizer, iterations_per_epoch=3):
            for _ in range(6):
                if keep is not None and done % 2 == 0:
                    keep(model, done)
                model.train()
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.randn(8, 6) + task), torch.arange(8) % 4).backward()
                optimizer.step()
                if isinstance(model, Net):
                    with torch.no_grad():
                        model.scale += 0.01
                done += 1
                recorder.after_iteration()
    if keep is not None:
        keep(model, done)
    recorder.close()
    return recorder


def test_snapshots_measured_later_are_the_live_series_bit_for_bit(tmp_path):
    observe = {"observe": [FeatureKernel(), Linearisation()]}
    recorder = live(tmp_path / "live", snapshots=True, **observe)
    files = sorted((tmp_path / "live" / "snapshots").iterdir())
    assert len(files) == len(recorder.trajectory) == 10
    later = measure_checkpoints(
        files[::-1], Net, probe(), tmp_path / "later", observe=[FeatureKernel(), Linearisation()]
    )
    for m in recorder.trajectory:
        for name, kernel in recorder.trajectory.kernels(m.index).items():
            assert np.array_equal(kernel, later.kernels(m.index)[name])
    ours, theirs = (
        t.to_pandas().drop(columns=[*SECONDS, "notes"], errors="ignore") for t in (later, recorder.trajectory)
    )
    assert ours[theirs.columns].equals(theirs)
    assert later.summary().equals(recorder.trajectory.summary())
    # Another kernel of the same training, without training again.
    other = measure_checkpoints([tmp_path / "live/snapshots/*"], Net, probe(), tmp_path / "sum", reduction="sum_logits")
    assert not np.allclose(other.kernel(9), later.kernel(9))
    assert write_report({"later": tmp_path / "later"}, tmp_path / "report").page.is_file()


def test_a_run_begun_anew_has_its_own_snapshots(tmp_path):
    live(tmp_path / "run", snapshots=True)
    recorder = live(tmp_path / "run", snapshots=True, overwrite=True)
    assert len(list((tmp_path / "run" / "snapshots").iterdir())) == len(recorder.trajectory)
    with pytest.raises(ArgumentError, match="snapshots are stored in the run folder"):
        NTKRecorder(probe(), snapshots=True)


def make_mlp():
    return MLP(6, 4, width=8, depth=1)


@pytest.fixture
def saved(tmp_path):
    """State dicts of a run, by two libraries' habits, and the kernels at them."""
    kernels = {}

    def keep(model, iteration):
        kernels[iteration] = empirical_ntk(model, probe().x).numpy()
        state = {f"module.{name}": p.detach().clone() for name, p in model.named_parameters()}
        if iteration % 4:
            save_file(state, tmp_path / f"v1-step{iteration}.safetensors")
        else:
            torch.save({"state_dict": state, "epoch": 3}, tmp_path / f"v1-step{iteration}.pt")

    recorder = live(None, make_mlp, keep)
    return tmp_path, kernels, recorder.trajectory


def test_state_dicts_of_any_library(saved):
    path, kernels, trajectory = saved
    found = measure_checkpoints(
        [path / "*.pt", path / "*.safetensors"], make_mlp, probe(), path / "run", boundaries=[6], prefix="module.",
        outputs="all", iterations_per_epoch=3,
    )  # fmt: skip
    clocks = [(m.clock.event, m.clock.iteration, m.clock.experience) for m in found]
    assert clocks == [
        ("experience_start", 0, 0), ("iteration", 2, 0), ("iteration", 4, 0), ("experience_end", 6, 0),
        ("experience_start", 6, 1), ("iteration", 8, 1), ("iteration", 10, 1), ("experience_end", 12, 1),
    ]  # fmt: skip
    for m in found:
        assert np.array_equal(found.kernel(m.index), kernels[m.clock.iteration])
    # The live series has two rows more, at the last iteration of each task.
    assert found.reactivations[1].moved == trajectory.reactivations[1].moved
    assert found.reactivations[1].peak == trajectory.reactivations[1].peak
    assert Trajectory.load(str(path / "run")).to_pandas().equals(found.to_pandas())


KILLED = """
import os, sys
from tests.integration.test_afterwards import make_mlp, probe
from avalanche_ntk import measure_checkpoints
measure_checkpoints([sys.argv[1] + "/*.pt", sys.argv[1] + "/*.safetensors"], make_mlp, probe(), sys.argv[1] + "/run",
    boundaries=[6], prefix="module.", progress=lambda done, total: os._exit(9) if done == 5 else None)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_goes_on_after_a_kill(saved, jobs):
    path, _, _ = saved
    options = {"boundaries": [6], "prefix": "module."}
    files = [path / "*.pt", path / "*.safetensors"]
    whole = measure_checkpoints(files, make_mlp, probe(), path / "whole", **options)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 9, done.stderr
    told = []
    make = partial(MLP, 6, 4, width=8, depth=1)
    run = measure_checkpoints(
        files, make, probe(), path / "run", **options, jobs=jobs, progress=lambda *n: told.append(n)
    )
    assert told == [(6, 8), (7, 8), (8, 8)]
    assert run.to_pandas().equals(whole.to_pandas())
    assert run.summary().equals(whole.summary())


needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed (extra 'cluster')"
)
MAKE = partial(MLP, 6, 4, width=8, depth=1)


def local_jobs(path):
    """Submitit's executor that starts a process of this machine for each job."""
    return JobPool(submitit_executor("local", path / "jobs", {"timeout_min": 5}))


@needs_submitit
def test_a_cluster_measures_the_same(saved):
    path, _, _ = saved
    files, options = [path / "v1-step[068].*"], {"boundaries": [6], "prefix": "module."}
    whole = measure_checkpoints(files, MAKE, probe(), path / "whole", **options)
    assert len(whole) == 4
    told = []
    there = measure_checkpoints(
        files,
        MAKE,
        probe(),
        path / "there",
        **options,
        jobs=2,
        pool=local_jobs(path),
        progress=lambda *n: told.append(n),
    )
    assert told == [(i + 1, len(whole)) for i in range(len(whole))]
    assert there.to_pandas().equals(whole.to_pandas())
    assert there.summary().equals(whole.summary())


class Held:
    """A pool whose calls are made when their result is asked for; the one of a number raises."""

    def __init__(self, raises=None):
        self.raises, self.most, self.calls, self.cancelled = raises, 0, [], []

    def submit(self, function, *arguments):
        self.calls.append(HeldCall(self, function, arguments))
        self.most = max(self.most, sum(not call.done for call in self.calls))
        return self.calls[-1]


class HeldCall:
    def __init__(self, pool, function, arguments):
        self.pool, self.function, self.arguments, self.done = pool, function, arguments, False

    def result(self):
        if self.arguments[0][0] == self.pool.raises:
            raise ProcessError("job 7 ended without a result")
        self.done = True
        return self.function(*self.arguments)

    def cancel(self):
        self.pool.cancelled.append(self.arguments[0][0])


@pytest.mark.parametrize(("jobs", "most"), [(3, 3), (None, 7)])
def test_so_many_are_measured_at_a_time_and_a_failure_ends_the_others(saved, jobs, most):
    path, _, _ = saved
    options = {"boundaries": [6], "prefix": "module.", "jobs": jobs}
    whole = Held()
    run = measure_checkpoints([path / "v1*"], MAKE, probe(), path / "whole", **options, pool=whole)
    assert (len(run), whole.most, whole.cancelled) == (8, most, [])  # the first by itself, then seven
    broken = Held(raises=4)
    with pytest.raises(ProcessError, match="job 7 ended without a result"):
        measure_checkpoints([path / "v1*"], MAKE, probe(), path / "broken", **options, pool=broken)
    assert broken.cancelled == [4, 5, 6, 7][: None if jobs is None else jobs]
    again = measure_checkpoints([path / "v1*"], MAKE, probe(), path / "broken", **options, pool=Held())
    assert again.to_pandas().equals(run.to_pandas())


@needs_submitit
@pytest.mark.slow  # two jobs that each import torch
def test_what_fails_in_a_job_is_told_as_here(saved):
    path, _, _ = saved
    pool = local_jobs(path)
    with pytest.raises(ModelError, match=r"of another shape: .*weight \[8, 6\] for \[9, 6\]"):
        measure_checkpoints([path / "v1-step0.pt"], partial(MLP, 6, 4, width=9, depth=1), probe(), path / "run",
                            prefix="module.", pool=pool)  # fmt: skip
    with pytest.raises(ProcessError, match=r"job \d+ ended without a result \(\w+: .*\)\. Look into .*_0_log\.err"):
        pool.submit(os._exit, 3).result()


def test_what_does_not_fit_is_named(saved):
    path, _, _ = saved
    file = path / "v1-step2.safetensors"
    cases = [
        ({}, MLP(6, 4, width=8, depth=1), "missing there: .*; unknown to the model: module."),
        ({"prefix": "module."}, MLP(6, 4, width=9, depth=1), r"of another shape: .*weight \[8, 6\] for \[9, 6\]"),
        ({"prefix": "module."}, MLP(6, 4, width=8, depth=2), "missing there: "),
    ]
    for number, (options, model, message) in enumerate(cases):
        with pytest.raises(ModelError, match=message):
            measure_checkpoints([file], lambda model=model: model, probe(), path / f"r{number}", **options)
    with pytest.raises(ArgumentError, match=r"holds no weights whose keys begin with 'net\.'"):
        measure_checkpoints([file], make_mlp, probe(), path / "r", prefix="net.")
    (path / "bad.pt").write_bytes(b"no")
    with pytest.raises(ArgumentError, match=r"bad.pt cannot be read as weights"):
        measure_checkpoints([path / "bad.pt"], make_mlp, probe(), path / "s", table=table(path, "bad.pt,3,0"))
    with pytest.raises(ArgumentError, match="need the checkpoints in order: expected jobs=1, found jobs=2"):
        measure_checkpoints([file], make_mlp, probe(), path / "t", observe=[Linearisation()], jobs=2)
    with pytest.raises(ArgumentError, match="need the checkpoints in order: expected jobs=1, found a pool"):
        measure_checkpoints([file], make_mlp, probe(), path / "t", observe=[Linearisation()], pool=Held())


def table(path, *lines):
    (path / "table.csv").write_text("file,iteration,task\n" + "\n".join(lines) + "\n")
    return path / "table.csv"


def test_names_and_tables_say_what_a_file_is(tmp_path):
    for name in ("t0_100", "t0_300", "t1_400"):
        torch.save({}, tmp_path / f"{name}.pt")
    files = [tmp_path / "*.pt"]
    pattern = r"t(?P<task>\d)_(?P<iteration>\d+)"
    told = [
        (0, "experience_start", 100), (0, "experience_end", 300),
        (1, "experience_start", 300), (1, "experience_end", 400),
    ]  # fmt: skip
    by_name = moments_of(files, pattern=pattern)
    assert [(m.clock.experience, m.clock.event, m.clock.iteration) for m in by_name] == told
    assert [m.path.stem for m in by_name] == ["t0_100", "t0_300", "t0_300", "t1_400"]
    by_table = moments_of(files, table=table(tmp_path, "t0_100.pt,100,0", "t0_300.pt,300,0", "t1_400.pt,400,1"))
    assert by_table == by_name
    same = [f"{name}.pt,5,0" for name in ("t0_100", "t0_300", "t1_400")]
    refused = [
        ("does not say at which iteration it was saved", {"pattern": r"epoch(?P<iteration>\d+)"}, []),
        ("no checkpoint at the boundary 200", {"boundaries": [200]}, []),
        ("table.csv has no usable line for t0_300.pt", {"table": tmp_path / "table.csv"}, ["t0_100.pt,100,0"]),
        ("cannot follow each other", {"table": tmp_path / "table.csv"}, same),
    ]
    for message, options, rows in refused:
        table(tmp_path, *rows)
        with pytest.raises(ArgumentError, match=re.escape(message)):
            moments_of(files, **options)
    with pytest.raises(ArgumentError, match="there is no checkpoint"):
        moments_of([tmp_path / "none.pt"])


def test_the_command(tmp_path):
    torch.manual_seed(0)
    for iteration in (0, 10):
        torch.save(MLP(64, 10, width=8).state_dict(), tmp_path / f"step{iteration}.pt")
    out = tmp_path / "run"
    arguments = ["--model", "mlp", "--set", "width=8", "--data", "digits", "--probe-size", "10", "--out", str(out)]
    done = CliRunner().invoke(app, ["measure", str(tmp_path / "step*.pt"), *arguments])
    assert done.exit_code == 0, done.output
    assert "2 measurements, 1 tasks" in done.output
    assert len(Trajectory.load(str(out)).labels) == 10
    done = CliRunner().invoke(app, ["measure", str(tmp_path / "step*.pt"), *arguments, "--executor", "slrum"])
    assert str(done.exception).startswith("unknown executor 'slrum': expected one of 'processes', 'slurm', 'local'.")
    done = CliRunner().invoke(app, ["measure", str(tmp_path / "step*.pt"), *arguments, "--parameter", "timeout_min=5"])
    assert str(done.exception).startswith("parameters are for submitit's executors, found 'timeout_min' with executor")


@needs_submitit
def test_the_command_goes_to_a_cluster(tmp_path):
    torch.manual_seed(0)
    torch.save(MLP(64, 10, width=8).state_dict(), tmp_path / "step0.pt")
    out = tmp_path / "run"
    arguments = ["--model", "mlp", "--set", "width=8", "--data", "digits", "--probe-size", "10", "--out", str(out)]
    done = CliRunner().invoke(
        app, ["measure", str(tmp_path / "step0.pt"), *arguments, "--executor", "local", "--parameter", "timeout_min=5"]
    )
    assert done.exit_code == 0, done.output
    assert "2 measurements, 1 tasks" in done.output
    assert len(list((tmp_path / "run-submitit").glob("*_result.pkl"))) == 2
