"""Many runs: what a plan comes to, what is skipped, what a failure and a kill leave."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from avalanche_ntk.experiments import ConfigError, load_config, load_sweep, ready, run, run_sweep
from avalanche_ntk.experiments.launch import launcher
from avalanche_ntk.experiments.sweep import is_complete
from avalanche_ntk.recorder.runfolder import RunFolder
from tests.integration.experiments.small import TINY, numbers

ONE = {
    **TINY,
    "benchmark": {"name": "class_incremental", "classes_per_task": 2, "n_tasks": 2, "per_class": 10},
    "epochs": 1,
}


def test_a_plan_is_every_combination_once():
    plan = load_sweep(
        {
            "base": ONE,
            "runs": [{"strategy": "Naive"}, {"strategy": {"name": "Replay", "arguments": {"mem_size": 8}}}],
            "grid": {"model.width": [4, 8], "epochs": [1]},
            "seeds": [0, 1],
            "control": {"benchmark.name": "no_shift"},
        }
    )
    assert len(plan.runs) == 2 * 2 * 1 * 2 * 2
    assert [p.label for p in plan.runs[:4:2]] == ["strategy=Naive, width=4", "strategy=Naive, width=4"]
    assert plan.runs[1].label == "control, strategy=Naive, width=4"
    first, control = plan.runs[0], plan.runs[1]
    assert first.name == f"strategy=Naive_width=4_seed=0-{first.config.hash[:8]}"
    assert (first.config.benchmark.name, control.config.benchmark.name) == ("class_incremental", "no_shift")
    assert control.config.benchmark.per_class == 10
    assert (first.control, control.control) == (False, True)
    assert plan.runs[-1].config.strategy.arguments == {"mem_size": 8}
    assert len({p.name for p in plan.runs}) == len({p.config.hash for p in plan.runs}) == 16


def test_large_numbers_keep_their_sign_in_names():
    plan = load_sweep({"base": ONE, "grid": {"optimizer.lr": [1e6, 1e-6]}})
    assert [p.label for p in plan.runs] == ["lr=1e+06", "lr=1e-06"]
    assert [p.name.rpartition("-")[0] for p in plan.runs] == ["lr=1e06_seed=0", "lr=1e-06_seed=0"]


def test_controls_of_what_they_replace_are_one():
    plan = load_sweep(
        {
            "base": {**ONE, "benchmark": {"name": "class_overlap", "similarity": 0, "classes_per_task": 2}},
            "grid": {"benchmark.similarity": [0, 0.3333]},
            "control": {"benchmark": {"name": "no_shift", "classes_per_task": 2}},
        }
    )
    assert [(p.label, p.control) for p in plan.runs] == [
        ("similarity=0", False), ("control", True), ("similarity=0.3333", False),
    ]  # fmt: skip


WRONG = {
    "base:\n  epochs: 1\ngrid:\n  model.widht: [1, 2]\n": "s.yaml, line 4: unknown key 'widht' in model: expected one "
    "of 'name', 'width', 'depth', 'parametrisation', 'activation', 'arguments'. Did you mean 'width'?",
    "base:\n  epochs: zero\n": "s.yaml, line 2: epochs must be an integer, found the text 'zero'. The default is 5.",
    "grid:\n  epochs: 3\n": "s.yaml, line 2: grid.epochs must be a list of values, found 3. Write [a, b].",
    "gird: {}\n": "s.yaml, line 1: unknown key 'gird': expected one of 'description', 'base', 'grid', 'runs', "
    "'control', 'seeds'. Did you mean 'grid'?",
    "seeds: 3\n": "s.yaml, line 1: seeds must be a list, found the number 3. Write [a, b].",
    "runs:\n- epochs: 1\n- epochs: 0\n": "s.yaml, line 3: epochs must be at least 1, found 0. The default is 5.",
    "control:\n  benchmark.name: no_shfit\n": "s.yaml, line 2: unknown benchmark.name 'no_shfit': expected one of "
    "'blurred', 'class_frequency', 'class_incremental', 'class_overlap', 'label_permuted', 'no_shift', 'permuted', "
    "'rotated'. Did you mean 'no_shift'?",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=[t.strip().replace("\n", "; ") for t in WRONG])
def test_a_wrong_plan_is_refused_with_its_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_sweep("s.yaml")
    assert str(error.value) == message


@pytest.mark.parametrize("name", [name for name in ready() if name.startswith("sweep-")])
def test_ready_sweeps_have_controls_that_differ_in_the_shift_alone(name):
    plan = load_sweep(name)
    controls = [p.config for p in plan.runs if p.control]
    shifted = [p.config for p in plan.runs if not p.control]
    assert plan.description
    assert shifted
    assert {c.seed for c in controls} == {s.seed for s in shifted} == {0, 1, 2, 3, 4}
    without_shift = {json.dumps({**c.as_dict(), "benchmark": None}, sort_keys=True) for c in controls}
    assert without_shift == {json.dumps({**s.as_dict(), "benchmark": None}, sort_keys=True) for s in shifted}
    assert all(c.benchmark.name == "no_shift" or c.benchmark.alpha == 0 for c in controls)


def test_the_ready_sweeps_are_those_that_ship():
    assert {name for name in ready() if name.startswith("sweep-")} == {
        f"sweep-{what}"
        for what in ("strategies", "width", "learning-rate", "regime", "class-overlap", "frequency-shift",
                     "task-length", "number-of-tasks")
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ready() if name.startswith("sweep-")])
def test_a_ready_sweep_watches_the_same_probe_with_and_without_the_shift(name):
    """Ratios are compared between runs of one seed, so that the first task must be the same in all of them."""
    from avalanche_ntk.experiments.assemble import make_benchmark
    from avalanche_ntk.recorder.probes import ProbeSpec

    hashes = set()
    seen = set()
    for planned in load_sweep(name).runs:
        key = json.dumps(planned.config.as_dict()["benchmark"], sort_keys=True)
        if planned.config.seed == 0 and key not in seen:
            seen.add(key)
            benchmark, _ = make_benchmark(planned.config)
            hashes.add(ProbeSpec(size=50).choose(benchmark.train_stream[0].dataset).hash)
    assert len(seen) > 1
    assert len(hashes) == 1


def test_a_sweep_runs_skips_and_reports_failures(tmp_path):
    """One run is there already, one works, one fails; the failure is told and does not stop the others."""
    plan = {
        "base": ONE,
        "runs": [
            {"model.width": 4},
            {"model.width": 4, "benchmark.per_class": 9999},  # more than there are: known only when data are read
            {"model.width": 6},
        ],
    }
    sweep = load_sweep(plan)
    made, failing, other = sweep.runs
    run(made.config, tmp_path / "runs" / made.name)
    told = []
    result = run_sweep(sweep, tmp_path, jobs=2, on_change=lambda outcomes: told.append([o.state for o in outcomes]))
    assert [o.state for o in result.outcomes] == ["skipped", "failed", "done"]
    assert told[0] == ["skipped", "waiting", "waiting"]
    assert ["skipped", "running", "running"] in told
    assert result.outcomes[2].progress == (2, 2)
    [failure] = result.failures
    assert failure.planned is failing
    assert failure.error == (
        "ArgumentError: each task takes samples of a class once and the smallest class of digits has 130; found "
        "per_class=9999. Use per_class=130 or less."
    )
    assert "Traceback" in failure.log.read_text()
    assert is_complete(result.outcomes[2].path, other.config)
    tags = RunFolder.open(result.outcomes[2].path).meta["tags"]
    assert tags == {"sweep": "sweep", "label": "width=6", "control": False, "values": {"model.width": 6}}
    assert numbers(result.outcomes[2].path) == numbers(run(other.config, tmp_path / "alone"))
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert [r["name"] for r in written["runs"]] == [p.name for p in sweep.runs]


def test_a_worker_takes_one_run_after_the_other(tmp_path, monkeypatch):
    """Each has its own log and the numbers of a run made alone; a worker that died fails its own run only.

    Neither the folder's name nor what a run prints need be letters that the terminal has.
    """
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    tmp_path = tmp_path / "β"
    launch = launcher("processes", tmp_path, {})
    talkative = {"name": "tests.integration.experiments.small:talkative", "depth": 1}
    sweep = load_sweep({"base": {**ONE, "model": talkative}, "grid": {"model.width": [4, 6, 8]}})
    processes = []
    try:
        for planned in sweep.runs:
            job = {"config": planned.config.as_dict(), "out": str(tmp_path / planned.name), "tags": {}}
            handle = launch.start(planned.name, {**job, "overwrite": False})
            processes.append(handle.process)
            if planned is sweep.runs[1]:
                handle.process.kill()
            while not handle.is_done():
                time.sleep(0.01)
            if planned is sweep.runs[1]:
                assert handle.failure() == "its process was ended by SIGKILL"
                continue
            assert handle.failure() is None
            assert handle.progress() == (2, 2)
            log = handle.log.read_text(encoding="utf-8")
            assert (log.count("progress 2 2"), log.count("θ ∈ ℝ")) == (1, 1)
    finally:
        launch.close()
    assert processes[0] is processes[1]
    assert processes[2] is not processes[0]
    assert [p.returncode for p in processes] == [-signal.SIGKILL, -signal.SIGKILL, 0]
    third = sweep.runs[2]
    assert numbers(tmp_path / third.name) == numbers(run(third.config, tmp_path / "alone"))


SWEEP = """
import sys
from avalanche_ntk.experiments import run_sweep
run_sweep(sys.argv[1], sys.argv[2], on_change=lambda o: print(*[x.state for x in o], *o[0].progress, flush=True))
"""


@pytest.mark.slow  # two processes that each import the training stack
def test_the_same_command_given_twice_gets_a_reply_each(tmp_path):
    """One makes the run; the other is told that the folder is taken, or finds it complete."""
    job = {"config": load_config(ONE).as_dict(), "out": str(tmp_path / "run"), "overwrite": False, "tags": {}}
    launches = [launcher("processes", tmp_path, {}) for _ in range(2)]
    try:
        handles = [launch.start("run", job) for launch in launches]
        deadline = time.monotonic() + 90
        while not all(handle.is_done() for handle in handles) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert all(handle.is_done() for handle in handles)
        told = [handle.failure() for handle in handles]
    finally:
        for launch in launches:
            launch.close()
    assert None in told
    assert all(failure is None or failure.startswith("RunFolderError: run folder") for failure in told)
    assert not list((tmp_path / "jobs").glob("*.reply.json"))


@pytest.mark.slow  # four processes that each import the training stack
def test_a_killed_sweep_takes_its_runs_along_and_goes_on(tmp_path):
    # Long enough to be under way when it is killed; at its usual step size the small network dies in so many epochs.
    text = json.dumps({"base": {**TINY, "epochs": 40, "optimizer": {"lr": 0.01}}, "grid": {"model.width": [16, 20]}})
    (tmp_path / "plan.yaml").write_text(text)  # JSON is YAML
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(tmp_path / "plan.yaml"), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for line in process.stdout:
        if line.startswith("running waiting 1"):
            break
    runs = psutil.Process(process.pid).children()
    assert len(runs) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended, alive = psutil.wait_procs(runs, timeout=60)  # its run notices within half a second
    assert (len(ended), alive) == (1, [])
    sweep = load_sweep(tmp_path / "plan.yaml")
    first = tmp_path / "out" / "runs" / sweep.runs[0].name
    assert not is_complete(first, sweep.runs[0].config)
    result = run_sweep(sweep, tmp_path / "out", jobs=2)
    assert [o.state for o in result.outcomes] == ["done", "done"]
    assert numbers(first) == numbers(run(sweep.runs[0].config, tmp_path / "whole"))


needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed (extra 'cluster')"
)


@needs_submitit
def test_submitits_local_executor_makes_the_same_runs(tmp_path):
    sweep = load_sweep({"base": ONE})
    [done] = run_sweep(sweep, tmp_path, executor="local", parameters={"timeout_min": 5}).outcomes
    assert (done.state, done.error, done.progress) == ("done", None, (2, 2))
    assert numbers(done.path) == numbers(run(sweep.runs[0].config, tmp_path / "alone"))


@needs_submitit
@pytest.mark.slow  # two jobs that each import the training stack
def test_a_failure_in_submitits_jobs_is_told(tmp_path):
    plan = {"base": ONE, "runs": [{"benchmark.per_class": 9999}, {"epochs": 2}]}
    failed, done = run_sweep(load_sweep(plan), tmp_path, jobs=2, executor="local").outcomes
    assert (failed.state, done.state) == ("failed", "done")
    assert failed.error == (
        "ArgumentError: each task takes samples of a class once and the smallest class of digits has 130; found "
        "per_class=9999. Use per_class=130 or less."
    )
    assert "Traceback" in (failed.log.with_name(failed.log.name.replace(".out", ".err"))).read_text()


def test_executors_are_checked(tmp_path, monkeypatch):
    plan = {"base": ONE}
    with pytest.raises(ConfigError) as error:
        run_sweep(plan, tmp_path, executor="slrum")
    assert str(error.value) == (
        "unknown executor 'slrum': expected one of 'processes', 'slurm', 'local'. Did you mean 'slurm'?"
    )
    with pytest.raises(ConfigError) as error:
        run_sweep(plan, tmp_path, parameters={"timeout_min": 1})
    assert str(error.value) == (
        "parameters are for submitit's executors, found 'timeout_min' with executor 'processes'. Leave them out, or "
        "give executor 'slurm'."
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        run_sweep(plan, tmp_path, executor="slurm")
    assert str(error.value) == (
        "executor 'slurm' needs the package submitit, which is not installed. Run: pip install 'avalanche-ntk[cluster]'"
    )


@pytest.mark.slow
# Avalanche's GEM hands tensors to numpy functions, of whose protocol torch has an old version.
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in ready() if name.startswith("sweep-")])
def test_runs_of_ready_sweeps_train_and_measure(name, tmp_path):
    """The first run with and without the shift, shortened; of the strategies one run each."""
    planned = [p for p in load_sweep(name, {"epochs": 2}).runs if p.config.seed == 0]
    chosen = planned if name == "sweep-strategies" else [*planned[:2], planned[-1]]
    for one in chosen:
        path = run(one.config, tmp_path / one.name)
        measured = [n for n in numbers(path) if n[0] == "measurement"]
        assert measured
        assert [n[5] for n in measured if n[5]] == []
