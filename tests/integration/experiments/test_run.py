"""One run: what it leaves, that it is reproducible, that a kill costs nothing but time."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from avalanche_ntk.errors import NTKError, RunFolderError
from avalanche_ntk.experiments import ConfigError, checkpoint, load_config, run
from avalanche_ntk.experiments.runner import _differences
from avalanche_ntk.recorder.runfolder import RunFolder
from tests.integration.experiments.small import TINY, numbers

COUNT = torch.cuda.device_count() if torch.cuda.is_available() else 0
GPUS = f"{COUNT} of this kind" if COUNT else "none of this kind that torch can use"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(TINY, tmp_path_factory.mktemp("run") / "whole")


def test_a_run_folder_says_everything_of_its_run(uninterrupted):
    meta = RunFolder.open(uninterrupted).meta
    config = load_config(TINY)
    assert meta["config"] == config.as_dict()
    assert meta["config_hash"] == config.hash
    assert load_config(uninterrupted / "config.yaml") == config
    assert (meta["status"], meta["experiences_done"], meta["n_experiences"]) == ("complete", 3, 3)
    assert meta["error"] is None
    assert meta["wall_seconds"] > 0
    assert meta["machine"]["threads"] == 1
    assert meta["benchmark"]["kind"] == "class_incremental"
    assert (meta["strategy"], meta["device"], meta["seed"]) == ("Naive", "cpu", 0)
    versions = RunFolder.open(uninterrupted).versions
    assert {"python", "torch", "avalanche-lib", "avalanche-ntk"} <= set(versions)
    assert sorted(p.name for p in uninterrupted.iterdir()) == [
        "config.yaml", "kernels", "lock", "measurements.csv", "measurements.jsonl", "run.json",
    ]  # fmt: skip
    # 40 samples in minibatches of 10, 2 epochs: 8 iterations, measured at 0, 2, 4, 6, 8 and at the end of each task.
    measured = [n for n in numbers(uninterrupted) if n[0] == "measurement"]
    assert [(n[3]["event"], n[3]["exp_iteration"]) for n in measured[:6]] == [
        ("experience_start", 0), ("iteration", 2), ("iteration", 4), ("iteration", 6), ("iteration", 8),
        ("experience_end", 8),
    ]  # fmt: skip
    assert all(n[5] is None for n in measured)
    evaluations = [n for n in numbers(uninterrupted) if n[0] == "evaluation"]
    assert [(n[1], n[2]) for n in evaluations] == [(0, 8), (1, 16), (2, 24)]
    assert "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp002" in evaluations[-1][3]
    assert "StreamForgetting/eval_phase/test_stream" in evaluations[-1][3]


def test_the_same_configuration_gives_the_same_numbers_bit_for_bit(uninterrupted, tmp_path):
    torch.manual_seed(123)  # what the calling process drew before does not matter
    random.seed(5)
    assert numbers(run(TINY, tmp_path / "again")) == numbers(uninterrupted)
    other = numbers(run(TINY, tmp_path / "other", values={"seed": 1}))
    assert other != numbers(uninterrupted)


def test_the_calling_process_is_as_it_was(tmp_path):
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), torch.get_num_threads())
    run(TINY, tmp_path / "run", values={"threads": 2, "epochs": 1, "benchmark.n_tasks": 2})
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), torch.get_num_threads())
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])
    assert before[3] == after[3]


def test_a_complete_run_is_left_as_it_is(uninterrupted):
    before = {p: p.read_bytes() for p in uninterrupted.iterdir() if p.is_file()}
    told = []
    assert run(TINY, uninterrupted, on_progress=lambda *n: told.append(n)) == uninterrupted
    assert told == [(3, 3)]
    assert {p: p.read_bytes() for p in uninterrupted.iterdir() if p.is_file()} == before


def test_another_configuration_is_refused_and_overwrite_replaces(uninterrupted, tmp_path):
    path = run(TINY, tmp_path / "run")
    with pytest.raises(RunFolderError) as error:
        run(TINY, path, values={"epochs": 1, "model.width": 8})
    assert str(error.value) == (
        f"run folder {path} holds a run of another configuration: model.width is 16 there and 8 here; epochs is 2 "
        "there and 1 here. Choose another folder, or replace it with overwrite=True (--overwrite)."
    )
    assert numbers(path) == numbers(uninterrupted)
    run(TINY, path, values={"epochs": 1}, overwrite=True)
    assert RunFolder.open(path).meta["config"]["epochs"] == 1
    assert len(numbers(path)) < len(numbers(uninterrupted))


def test_a_key_that_one_side_lacks_is_called_absent():
    there, here = {"epochs": 1, "old": 2, "same": None}, {"epochs": 1, "model": {"width": None}, "same": None}
    assert _differences(there, here) == "model.width is absent there and None here; old is 2 there and absent here"


def test_a_run_of_ones_own_is_never_replaced_unasked(tmp_path):
    RunFolder.create(tmp_path / "mine", {"seed": 0}).close()
    with pytest.raises(RunFolderError) as error:
        run(TINY, tmp_path / "mine")
    assert str(error.value) == (
        f"run folder {tmp_path / 'mine'} holds a run that was not made of a configuration. Choose another folder, or "
        "replace it with overwrite=True (--overwrite)."
    )


def test_a_run_that_is_being_written_is_left_alone(tmp_path):
    with RunFolder.create(tmp_path / "busy", {"config": load_config(TINY).as_dict()}):
        with pytest.raises(RunFolderError, match="is being written"):
            run(TINY, tmp_path / "busy", overwrite=True)
        assert [p.name for p in (tmp_path / "busy").iterdir() if p.suffix == ".yaml"] == []


def is_in_the_next_task(path):
    """Whether the second task has been measured after its boundary."""
    records = RunFolder.open(path).records()
    return any(
        r["kind"] == "measurement" and r["clock"]["experience"] == 1 and r["clock"]["exp_iteration"] for r in records
    )


def test_a_run_holds_its_folder_until_it_ends(tmp_path):
    """Between two experiences too: whoever starts the same run again meanwhile is refused."""
    met = []

    def on_progress(done, total):
        try:
            RunFolder.resume(tmp_path / "run").close()
            met.append("free")
        except RunFolderError as error:
            met.append("in use" if "process" in str(error) else str(error))

    run(TINY, tmp_path / "run", on_progress=on_progress)
    assert met == ["free", "in use", "in use", "in use"]  # at the start the plugin has not begun yet
    RunFolder.resume(tmp_path / "run").close()


KILLS = [
    pytest.param("in the next task", {}, id="in the next task"),
    pytest.param("at once", {}, id="at once", marks=pytest.mark.slow),
    pytest.param("in the next task", {"strategy": "Replay", "checkpoint": "whole"}, id="whole", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("moment", "values"), KILLS)
def test_a_killed_run_goes_on_to_the_same_numbers(uninterrupted, tmp_path, moment, values):
    path = tmp_path / "killed"
    config = load_config(TINY, values)
    whole = run(config, tmp_path / "whole") if values else uninterrupted
    job = {"config": config.as_dict(), "out": str(path), "tags": {}, "overwrite": False}
    log, reply = tmp_path / "log", tmp_path / "reply.json"
    (tmp_path / "job.json").write_text(json.dumps({**job, "log": str(log)}))
    process = subprocess.Popen(
        [sys.executable, "-m", "avalanche_ntk.experiments.worker", str(os.getpid())],
        stdin=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.stdin.write(f"{tmp_path / 'job.json'}\0{reply}\n".encode())
    process.stdin.flush()
    while not log.exists() or "progress 1 3\n" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.005)
    while moment == "in the next task" and not is_in_the_next_task(path):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "progress 3 3" not in log.read_text()
    assert not reply.exists()
    assert RunFolder.open(path).meta["status"] == "running"
    told = []
    run(config, path, on_progress=lambda *n: told.append(n))
    assert told[0][0] >= 1  # what was complete is not trained again
    assert told[-1] == (3, 3)
    assert numbers(path) == numbers(whole)
    assert RunFolder.open(path).meta["status"] == "complete"


def interrupted_after(config, path, experiences):
    """Make a run that stops when so many experiences are complete."""

    def stop(done, total):
        if done == experiences:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, path, on_progress=stop)


@pytest.mark.parametrize("strategy", ["Replay", "EWC"])
def test_a_strategy_that_remembers_more_begins_anew_and_says_so(tmp_path, strategy):
    config = {**TINY, "strategy": strategy, "epochs": 1}
    whole = run(config, tmp_path / "whole")
    interrupted_after(config, tmp_path / "stopped", 2)
    told = []
    run(config, tmp_path / "stopped", on_progress=lambda *n: told.append(n))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert numbers(tmp_path / "stopped") == numbers(whole)
    assert RunFolder.open(whole).meta["resumes"] == (
        f"from its start: {strategy} keeps more state from earlier tasks than the weights"
    )


@pytest.mark.parametrize(
    "values",
    [{"strategy": "Replay"}, {"strategy": "EWC"}, {"observables": ["linearisation"]}],
    ids=["a buffer", "importances", "the initial parameters"],
)
def test_with_the_whole_strategy_stored_every_run_goes_on(tmp_path, values):
    config = load_config(TINY, {**values, "epochs": 1, "checkpoint": "whole"})
    whole = run(config, tmp_path / "whole")
    interrupted_after(config, tmp_path / "stopped", 2)
    assert (tmp_path / "stopped" / checkpoint.WHOLE).exists()
    with RunFolder.resume(tmp_path / "stopped") as folder:
        folder.update_meta({"status": "failed", "error": "no more memory"})
    told = []
    run(config, tmp_path / "stopped", on_progress=lambda *n: told.append(n))
    assert told == [(2, 3), (3, 3)]
    assert numbers(tmp_path / "stopped") == numbers(whole)
    meta = RunFolder.open(tmp_path / "stopped").meta
    assert (meta["status"], meta["error"], meta["resumes"]) == (
        "complete", None, "after its last complete experience",
    )  # fmt: skip
    assert not list((tmp_path / "stopped").glob("checkpoint*"))


def test_a_program_in_a_run_folder_is_executed_only_when_asked_for(tmp_path):
    """The pickle is left alone by a run that did not ask for it; damaged, it means to begin anew."""
    config = load_config(TINY, {"strategy": "Replay", "epochs": 1})
    whole = run(config, tmp_path / "whole")
    interrupted_after(config, tmp_path / "run", 2)
    mark = tmp_path / "executed"

    class Program:
        def __reduce__(self):
            return (Path.touch, (mark,))

    (tmp_path / "run" / checkpoint.WHOLE).write_bytes(pickle.dumps(Program()))
    run(config, tmp_path / "run")
    assert not mark.exists()
    assert numbers(tmp_path / "run") == numbers(whole)

    asking = config.with_values({"checkpoint": "whole"})
    interrupted_after(asking, tmp_path / "damaged", 2)
    file = tmp_path / "damaged" / checkpoint.WHOLE
    file.write_bytes(file.read_bytes()[:5000])
    told = []
    run(asking, tmp_path / "damaged", on_progress=lambda *n: told.append(n))
    assert told[0] == (0, 3)
    assert numbers(tmp_path / "damaged") == numbers(whole)


@pytest.mark.parametrize(
    "values", [{"optimizer.name": "Adam", "optimizer.momentum": 0}, {"regime": {"name": "centred"}}]
)
def test_the_optimizers_state_and_the_models_buffers_go_on(tmp_path, values):
    config = load_config(TINY, values)
    whole = run(config, tmp_path / "whole")
    interrupted_after(config, tmp_path / "stopped", 1)
    assert (tmp_path / "stopped" / checkpoint.NAME).exists()
    run(config, tmp_path / "stopped")
    assert numbers(tmp_path / "stopped") == numbers(whole)


@pytest.mark.parametrize("damage", ["truncated", "a program", "of another run"])
def test_a_checkpoint_that_cannot_be_used_means_to_begin_anew(uninterrupted, tmp_path, damage):
    path, mark = tmp_path / "run", tmp_path / "executed"
    interrupted_after(TINY, path, 2)
    file = path / checkpoint.NAME
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "a program":

        class Program:
            def __reduce__(self):
                return (Path.touch, (mark,))

        torch.save(Program(), file)
    else:
        state = torch.load(file, weights_only=True)
        torch.save({**state, "config_hash": "0" * 64}, file)
    told = []
    run(TINY, path, on_progress=lambda *n: told.append(n))
    assert told[0] == (0, 3)
    assert not mark.exists()
    assert numbers(path) == numbers(uninterrupted)


def test_a_run_killed_before_its_configuration_was_recorded_is_known_by_the_file_beside_it(uninterrupted, tmp_path):
    path = tmp_path / "run"
    RunFolder.create(path, {"seed": 0}).close()
    (path / "config.yaml").write_text(yaml.safe_dump(load_config(TINY).as_dict()))
    assert numbers(run(TINY, path)) == numbers(uninterrupted)


def test_a_failure_is_recorded_and_a_later_run_goes_on(uninterrupted, tmp_path, monkeypatch):
    from avalanche.training import Naive

    evaluate = Naive.eval

    def fail(self, *arguments, **more):
        if self.clock.train_exp_counter == 2:
            raise ValueError("no more memory")
        return evaluate(self, *arguments, **more)

    monkeypatch.setattr(Naive, "eval", fail)
    with pytest.raises(ValueError, match="no more memory"):
        run(TINY, tmp_path / "run")
    meta = RunFolder.open(tmp_path / "run").meta
    assert (meta["status"], meta["error"], meta["experiences_done"]) == ("failed", "ValueError: no more memory", 1)
    monkeypatch.undo()
    run(TINY, tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(uninterrupted)
    assert RunFolder.open(tmp_path / "run").meta["error"] is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_strategy_that_the_installed_libraries_break_says_so(tmp_path):
    with pytest.raises(NTKError) as error:
        run({**TINY, "strategy": "BiC"}, tmp_path / "run")
    assert str(error.value).startswith(
        "BiC cannot be trained with the installed libraries: BiCPlugin calls MultiStepLR(verbose=...), an "
        "argument that torch has removed"
    )
    meta = RunFolder.open(tmp_path / "run").meta
    assert (meta["status"], meta["error"][:9], meta["experiences_done"]) == (
        "failed",
        "TypeError",
        1,
    )  # in the second task


WRONG = {
    "a device that this machine lacks": (
        {"device": "cuda:77"},
        f"device: this machine has no 'cuda:77': found {GPUS}. Give device cpu, or see what avalanche-ntk doctor says.",
    ),
    "an argument that the strategy lacks": (
        {"strategy": {"name": "Naive", "arguments": {"eval_evry": 1}}},
        "strategy.arguments: Naive: unknown argument 'eval_evry': expected one of 'eval_every', 'eval_mb_size', "
        "'peval_mode'. Did you mean 'eval_every'?",
    ),
    "an option that the optimizer lacks": (
        {"optimizer": {"name": "Adam", "momentum": 0.9}},
        "optimizer: Adam has no momentum, found 0.9. Leave it out, or use SGD or RMSprop.",
    ),
    "a model of its own and an optimizer": (
        {"model": None, "optimizer": {"name": "Adam"}},
        "optimizer: Adam needs a named model, found model: null (the strategy's own). Name a model, or use plain SGD.",
    ),
    "a strategy with an optimizer of its own": (
        {"strategy": "StreamingLDA", "optimizer": {"name": "Adam"}},
        "optimizer: StreamingLDA is trained by plain SGD, or by nothing, in its recipe; found Adam with momentum 0 and "
        "weight decay 0. Leave all of the optimizer but lr out.",
    ),
}


@pytest.mark.parametrize(("config", "message"), WRONG.values(), ids=WRONG)
def test_what_only_the_objects_know_is_refused_before_a_folder_is_made(tmp_path, config, message):
    with pytest.raises(ConfigError) as error:
        run({**TINY, "optimizer": {}, **config}, tmp_path / "run")
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()


def test_everything_at_once(tmp_path):
    """Two probes, a regime, every observable, TensorBoard: one run has them all."""
    path = run(
        {
            **TINY,
            "optimizer": {"lr": 0.05},
            "regime": "rich",
            "epochs": 1,
            "probe": [{"size": 8}, {"size": 8, "split": "test"}],
            "observables": ["spectrum", "linearisation", "forecast", "per_layer", "features", "class_blocks",
                            "task_overlap", "regression", "neurons", "buffer_share"],
            "tensorboard": True,
        },
        tmp_path / "run",
    )  # fmt: skip
    meta = RunFolder.open(path).meta
    assert meta["regime"] == "standard parametrisation, Kaiming uniform, η = 0.05 at any width"
    assert [p["name"] for p in meta["probes"]] == ["Exp000", "Exp000_test"]
    last = [n for n in numbers(path) if n[0] == "measurement" and n[1] == "Exp000"][-1][4]
    assert {"linearisation_error_boundary", "regression_accuracy", "features.alignment", "class_block_within"} <= set(
        last
    )
    assert list((path / "tensorboard").glob("events*"))
