"""Avalanche's checkpoints: a run that is stopped and loaded in another process is the run that was never stopped."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import dill
import pytest
import torch
import typing_extensions
from avalanche.checkpointing import maybe_load_checkpoint
from avalanche.checkpointing import save_checkpoint as avalanche_save_checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.checkpoints import load_checkpoint, save_checkpoint
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from tests.support.lines import differences, make_strategy, tiny_stream
from tests.support.places import ROOT

# A user's script, started again after each stop: arguments are its folder, the number of experiences after which to
# stop, and the iteration at which it is killed.
SCRIPT = """
import os, sys
from pathlib import Path
import torch
from avalanche.core import SupervisedPlugin
from avalanche.logging import TensorboardLogger
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.checkpoints import load_checkpoint, save_checkpoint
from tests.support.lines import DropoutMLP, fingerprint, make_strategy, seed_everything, tiny_stream

torch.set_num_threads(1)
folder, stop, kill_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


class Kill(SupervisedPlugin):
    def before_training_iteration(self, strategy, **kwargs):
        if kill_at >= 0 and strategy.clock.train_iterations == kill_at:
            for logger in strategy.evaluator.loggers:
                logger.writer.flush()
            os._exit(9)


seed_everything()
benchmark = tiny_stream(3)
ntk = NTKPlugin(
    [ProbeSpec(size=8), ProbeSpec(size=4, from_experience=1)],
    Schedule.every_iterations(1),
    run_folder=folder / "run",
    on_error="raise",
)
strategy = make_strategy(
    model=DropoutMLP(6),
    plugins=[ntk, Kill()],
    metrics=[ntk_metrics(ntk)],
    loggers=[TensorboardLogger(folder / "tensorboard")],
)
strategy, first = load_checkpoint(strategy, folder / "checkpoint")
if first:
    assert NTKPlugin.of(strategy) is not ntk
    assert len(NTKPlugin.of(strategy).trajectory) == 8 * first
for experience in benchmark.train_stream[first:stop]:
    strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    save_checkpoint(strategy, folder / "checkpoint")
state = {k: v for k, v in fingerprint(strategy).items() if k not in ("numpy", "python")}
torch.save(state, folder / "end.pt")
"""


def script(folder, stop, kill_at=-1, expect=0):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), str(stop), str(kill_at)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == expect, done.stderr
    return done


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "never_stopped"
    script(folder, 3)
    return folder


def records(folder):
    """What was recorded, without what the clock on the wall had to do with."""
    found = RunFolder.open(folder / "run").records()
    for record in found:
        if record["kind"] == "measurement":
            record["values"] = {k: v for k, v in record["values"].items() if not k.startswith("measur")}
            del record["trust"]["seconds"]
        record.pop("training_seconds", None)
        record.pop("measuring_seconds", None)
    return found


TIMES = ("NTK_MeasurementSeconds", "NTK_MeasuringShare")


def curves(folder):
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    return {tag: series for tag, series in found.items() if not tag.startswith(TIMES)}


def assert_same_run(folder, reference):
    end, expected = torch.load(folder / "end.pt"), torch.load(reference / "end.pt")
    assert differences(end, expected) == []
    assert records(folder) == records(reference)
    for probe, size in (("Exp000", 8), ("Exp001", 4)):
        ours, theirs = (Trajectory.load(f / "run", probe) for f in (folder, reference))
        assert len(ours) == 24
        for m in ours:
            assert ours.kernel(m.index).shape == (size, size)
            assert (ours.kernel(m.index) == theirs.kernel(m.index)).all()


def test_stopped_after_an_experience_and_loaded_in_another_process(tmp_path, never_stopped):
    folder = tmp_path / "stopped"
    script(folder, 1)
    assert len(Trajectory.load(folder / "run")) == 8
    script(folder, 3)
    assert_same_run(folder, never_stopped)
    ours, expected = curves(folder), curves(never_stopped)
    assert ours == expected
    # What "the same" is the same as: every iteration of each of the three experiences, and each boundary twice.
    norms = [step for step, _ in ours["NTK_SpectralNorm/train_phase/train_stream/Task000/Exp000"]]
    assert norms == [0, *range(1, 7), 6, 6, *range(7, 13), 12, 12, *range(13, 19), 18]
    assert len(ours["Top1_Acc_Stream/eval_phase/test_stream/Task000"]) == 3


def test_killed_within_an_experience_and_loaded_in_another_process(tmp_path, never_stopped):
    folder = tmp_path / "killed"
    script(folder, 3, kill_at=9, expect=9)
    before = RunFolder.open(folder / "run").records()
    # Two probes: eight measurements each in the first experience, the boundary and three iterations in the second.
    assert sum(r["kind"] == "measurement" for r in before) == 24
    script(folder, 3)
    assert_same_run(folder, never_stopped)
    aside = (folder / "run" / "measurements.rewound001.jsonl").read_text().splitlines()
    assert len(aside) == 8
    assert sorted(p.name for p in (folder / "run" / "kernels" / "Exp000").glob("*rewound*")) == [
        f"{index:06d}.rewound001.safetensors" for index in (8, 9, 10, 11)
    ]
    ours, expected = curves(folder), curves(never_stopped)
    assert ours.keys() == expected.keys()
    # What was logged beyond the checkpoint is taken out, except at the iteration of the checkpoint, 6, where points of
    # before and after it stand together: there the first points of the second experience stand twice.
    for tag, series in ours.items():
        assert [p for p in series if p[0] != 6] == [p for p in expected[tag] if p[0] != 6], tag
        assert {p for p in series if p[0] == 6} == {p for p in expected[tag] if p[0] == 6}, tag


# ---------------------------------------------------------------------- why Avalanche alone fails


SENTINEL = "^Can't pickle sentinel: it's not the same object as typing_extensions.sentinel$"


def trained():
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), on_error="raise")
    strategy = make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk)])
    strategy.train(tiny_stream().train_stream[0])
    # The StringIO of the tests' logger is no file that a checkpoint could hold.
    strategy.evaluator.loggers = []
    return strategy


def test_avalanches_own_function_fails_by_a_misnamed_sentinel_that_the_optimizers_class_leads_to(tmp_path):
    if not hasattr(typing_extensions, "sentinel"):
        pytest.skip("this typing_extensions has no misnamed sentinel, so that Avalanche's own function works")
    with pytest.raises(Exception, match=SENTINEL):
        avalanche_save_checkpoint(trained(), io.BytesIO())
    # Not of a strategy: of the class of every optimizer of torch, since dill does not find the module it lives in.
    assert not dill._dill._locate_function(torch.optim.SGD)
    with pytest.raises(Exception, match=SENTINEL):
        dill.dumps(torch.optim.SGD)


def test_nothing_is_left_behind_and_classes_are_stored_by_name(tmp_path):
    before = set(vars(torch.optim))
    save_checkpoint(trained(), tmp_path / "checkpoint")
    assert set(vars(torch.optim)) == before
    strategy, number = load_checkpoint(make_strategy(), tmp_path / "checkpoint")
    assert number == 1
    assert type(strategy.optimizer) is torch.optim.SGD
    assert strategy.optimizer.param_groups[0]["params"][0] is next(strategy.model.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_avalanches_own_function_loads_what_was_saved(tmp_path):
    save_checkpoint(trained(), tmp_path / "checkpoint")
    strategy, number = maybe_load_checkpoint(make_strategy(), tmp_path / "checkpoint")
    assert number == 1
    assert len(NTKPlugin.of(strategy).trajectory) == 5


def test_torch_load_alone_refuses_a_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(trained(), tmp_path / "checkpoint")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "checkpoint")
    # With dill named, as Avalanche does, torch loads it, unless the environment forbids that.
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(RuntimeError) as caught:
        load_checkpoint(make_strategy(), tmp_path / "checkpoint")
    assert str(caught.value) == "Can not safely load weights when explicit pickle_module is specified"


def test_a_checkpoint_that_cannot_be_saved_does_not_cost_the_one_before(tmp_path):
    strategy = trained()
    save_checkpoint(strategy, tmp_path / "checkpoint")
    content = (tmp_path / "checkpoint").read_bytes()
    strategy.cannot_be_saved = (i for i in range(3))
    with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
        save_checkpoint(strategy, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    save_checkpoint(strategy, tmp_path / "checkpoint", exclude=["cannot_be_saved"])
    stream = io.BytesIO()
    save_checkpoint(strategy, stream, exclude=["cannot_be_saved"])
    stream.seek(0)
    _, number = load_checkpoint(make_strategy(), stream)
    assert number == 1


def test_without_a_checkpoint_nothing_is_loaded(tmp_path):
    strategy = make_strategy()
    model = strategy.model
    assert load_checkpoint(strategy, tmp_path / "none") == (strategy, 0)
    assert strategy.model is model


# ---------------------------------------------------------------------- the run folder of a loaded plugin


def saved(tmp_path):
    """A strategy trained on one experience and saved, then trained on the second."""
    benchmark = tiny_stream()
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), run_folder=tmp_path / "run", on_error="raise")
    strategy = make_strategy(model=MLP(6, 4, width=8, depth=1), plugins=[ntk], metrics=[ntk_metrics(ntk)])
    strategy.evaluator.loggers = []
    strategy.train(benchmark.train_stream[0])
    save_checkpoint(strategy, tmp_path / "checkpoint")
    strategy.train(benchmark.train_stream[1])
    return benchmark, ntk


def test_a_loaded_plugin_does_not_write_while_another_one_does(tmp_path):
    benchmark, ntk = saved(tmp_path)
    strategy, _ = load_checkpoint(make_strategy(), tmp_path / "checkpoint")
    expected = RunFolder.open(tmp_path / "run").records()
    with pytest.raises(RunFolderError, match=r"is being written by process \d+ on host .* \(this process\)"):
        strategy.train(benchmark.train_stream[1])
    assert RunFolder.open(tmp_path / "run").records() == expected
    ntk.close()
    strategy.train(benchmark.train_stream[1])
    assert len(Trajectory.load(tmp_path / "run")) == len(ntk.trajectory) == 10
    assert len((tmp_path / "run" / "measurements.rewound001.jsonl").read_text().splitlines()) == len(expected) - 7


def test_an_evaluation_first_thing_after_loading_is_recorded_in_its_place(tmp_path):
    benchmark, ntk = saved(tmp_path)
    ntk.close()
    strategy, _ = load_checkpoint(make_strategy(), tmp_path / "checkpoint")
    strategy.eval(benchmark.test_stream)
    found = RunFolder.open(tmp_path / "run").records()
    assert [r["kind"] for r in found] == ["measurement"] * 5 + ["reactivation", "state", "evaluation"]
    assert found[-1]["experience"] == 0
    NTKPlugin.of(strategy).close()


def test_a_folder_that_is_gone_or_behind_is_refused(tmp_path):
    benchmark, ntk = saved(tmp_path)
    ntk.close()
    strategy, _ = load_checkpoint(make_strategy(), tmp_path / "checkpoint")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(RunFolderError) as caught:
        strategy.train(benchmark.train_stream[1])
    assert str(caught.value) == (f"there is no run folder {tmp_path / 'run'}: nothing exists at that path. Check it.")
    with RunFolder.create(tmp_path / "run"):
        pass
    with pytest.raises(RunFolderError) as caught:
        strategy.train(benchmark.train_stream[1])
    assert str(caught.value) == (
        f"run folder {tmp_path / 'run'} cannot be rewound to 7 records: it has 0. Give the folder that belongs to the "
        "checkpoint."
    )


def test_a_copy_of_a_strategy_leaves_the_folder_alone(tmp_path):
    _, ntk = saved(tmp_path)
    expected = RunFolder.open(tmp_path / "run").records()
    copied = dill.loads(dill.dumps(ntk))
    assert copied.trajectory.to_pandas().equals(ntk.trajectory.to_pandas())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del copied
    assert RunFolder.open(tmp_path / "run").records() == expected


# ---------------------------------------------------------------------- what the documentation shows


def code_blocks():
    text = (ROOT / "docs" / "checkpoints.md").read_text()
    return [part.split("```")[0] for part in text.split("```python\n")[1:]]


@pytest.mark.parametrize("number", [0, 1])
def test_the_documented_scripts_go_on_where_they_stopped(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    code = compile(code_blocks()[number], "docs/checkpoints.md", "exec")
    benchmark = tiny_stream(3)

    def make(model, plugins, metrics):
        strategy = make_strategy(model=model, plugins=plugins, metrics=metrics)
        strategy.evaluator.loggers = []
        return strategy

    def script(of):
        torch.manual_seed(0)
        names = {"benchmark": of, "make_strategy": make, "model": MLP(6, 6, width=8, depth=1)}
        exec(code, names)
        names["ntk"].close()
        return names

    whole = script(benchmark)
    folder = whole["ntk"].run_folder
    expected = Trajectory.load(folder).to_pandas()
    assert expected["experience"].unique().tolist() == [0, 1, 2]
    Path(folder).rename("runs/whole")
    for kept in ("strategy.ckpt", "weights.pt"):
        Path(kept).unlink(missing_ok=True)

    # Stopped after each experience: the stream seems to end there, and the script is started again.
    stream = benchmark.train_stream
    for stop in (1, 2, 3):
        names = script(SimpleNamespace(train_stream=stream[:stop], test_stream=benchmark.test_stream))
    found = Trajectory.load(folder).to_pandas()
    timed = ["measurement_seconds", "measuring_share"]
    assert found.drop(columns=timed).equals(expected.drop(columns=timed))
    assert differences(dict(names["strategy"].model.state_dict()), dict(whole["strategy"].model.state_dict())) == []
