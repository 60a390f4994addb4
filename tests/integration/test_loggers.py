"""What each of Avalanche's loggers holds after a run, read back and compared with what was measured."""

import csv
import io
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import BaseLogger, CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.text_logs import PRINTED
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.trajectory import Trajectory
from tests.support.lines import make_strategy, run, tiny_stream
from tests.support.places import ROOT

SUFFIX = "/train_phase/train_stream/Task000/Exp000"
# What each tag shows; 24 samples in batches of 8, two epochs: measured at 0, 2, 4, 6 and 6, 8, 10, 12 and both ends.
COLUMNS = {
    "NTK_SpectralNorm": "spectral_norm",
    "NTK_KernelNorm": "kernel_norm",
    "NTK_KernelTrace": "kernel_trace",
    "NTK_DistancePrevious": "distance_previous",
    "NTK_DistanceExperienceStart": "distance_experience_start",
    "NTK_DistanceInit": "distance_init",
    "NTK_Velocity": "velocity_per_iteration",
    "NTK_VelocityPerStep": "velocity_per_step",
    "NTK_VelocityPerEpoch": "velocity_per_epoch",
    "NTK_Alignment": "alignment",
}


def train(loggers, measured=True):
    torch.manual_seed(0)
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), on_error="raise")
    metrics = [accuracy_metrics(epoch=True), loss_metrics(epoch=True, experience=True)]
    if measured:
        metrics.append(ntk_metrics(ntk, kernel_image=True))
    run(make_strategy(plugins=[ntk] if measured else [], metrics=metrics, loggers=loggers), tiny_stream())
    return ntk


def expected(trajectory, column):
    """What a tag shows: what is defined, and no change where no step was made since the measurement before."""
    there = [m for m in trajectory if not math.isnan(m.values.get(column, math.nan))]
    moved = [m for m in there if column != "distance_previous" or "velocity_per_iteration" in m.values]
    return [(m.clock.iteration, m.values[column]) for m in moved]


@pytest.fixture
def together(tmp_path, capsys):
    """One run with four loggers at once."""
    text = io.StringIO()
    loggers = [InteractiveLogger(), TextLogger(text), CSVLogger(tmp_path / "csv"), TensorboardLogger(tmp_path / "tb")]
    ntk = train(loggers)
    loggers[2].close()
    loggers[3].writer.close()
    return ntk.trajectory, capsys.readouterr().out, text.getvalue(), tmp_path


def test_tensorboard_has_every_number_and_image(together):
    trajectory, _, _, folder = together
    read = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = set(read.Tags()["scalars"])
    for name, column in COLUMNS.items():
        found = [(e.step, e.value) for e in read.Scalars(name + SUFFIX)]
        series = expected(trajectory, column)
        assert len(series) >= 6
        assert found == [(step, float(np.float32(value))) for step, value in series]
    boundary = trajectory.reactivations[1]
    for name, value in (("NTK_NormDip", boundary.norm_dip), ("NTK_Moved", boundary.moved)):
        assert [(e.step, e.value) for e in read.Scalars(name + SUFFIX)] == [(6, float(np.float32(value)))]
    onset = read.Scalars("NTK_OnsetVelocity" + SUFFIX)[0]
    assert (onset.step, onset.value) == (0, float(np.float32(trajectory.reactivations[0].onset)))
    # Beside Avalanche's own, which are as they are without the plugin.
    assert {"Top1_Acc_Stream/eval_phase/test_stream/Task000", "Loss_Epoch/train_phase/train_stream/Task000"} <= tags
    images = read.Images("NTK_Kernel" + SUFFIX)
    assert [e.step for e in images] == [0, 6, 6, 12]
    assert all(e.encoded_image_string.startswith(b"\x89PNG") and e.width > 100 for e in images)
    assert read.Tags()["distributions"] == read.Tags()["histograms"] == []


def test_text_and_interactive_print_the_latest_numbers(together):
    trajectory, interactive, text, _ = together
    for printed in (interactive, text):
        epochs = printed.split(" ended.\n")
        shown = [part.split("\n-- ")[0].split("\nEpoch")[0] for part in epochs if part.startswith("\tLoss_Epoch")]
        assert len(shown) == 4
        # Three iterations an epoch: the latest measurements are those after iterations 2, 6, 8 and 12.
        for part, iteration in zip(shown, (2, 6, 8, 12), strict=True):
            lines = dict(line.strip().split(" = ") for line in part.splitlines() if " = " in line)
            (latest,) = [m for m in trajectory if m.clock.event == "iteration" and m.clock.iteration == iteration]
            for name in COLUMNS.keys() & set(PRINTED):
                assert lines[name + SUFFIX] == f"{latest.values[COLUMNS[name]]:.4g}"
        assert f"\tNTK_Moved{SUFFIX} = {trajectory.reactivations[1].moved:.4g}\n" in printed
        # Images are no text.
        assert "NTK_Kernel/" not in printed
        assert "object at 0x" not in printed


def test_csv_has_its_own_columns_as_without_the_plugin(together, tmp_path):
    _, _, _, folder = together
    logger = CSVLogger(tmp_path / "without")
    train([logger], measured=False)
    logger.close()
    for name in ("training_results.csv", "eval_results.csv"):
        assert (folder / "csv" / name).read_text() == (tmp_path / "without" / name).read_text()
    with (folder / "csv" / "training_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    header = ["training_exp", "epoch", "training_accuracy", "val_accuracy", "training_loss", "val_loss"]
    assert list(rows[0]) == header
    assert [(row["training_exp"], row["epoch"]) for row in rows] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert all(float(row["training_loss"]) > 0 for row in rows)


def test_a_logger_alone_holds_what_it_holds_beside_others(together, tmp_path):
    _, _, text, folder = together
    alone = io.StringIO()
    train([TextLogger(alone)])
    timed = ("NTK_MeasurementSeconds", "NTK_MeasuringShare")

    def untimed(printed):
        return [line for line in printed.splitlines() if not line.strip().startswith(timed)]

    assert untimed(alone.getvalue()) == untimed(text)
    logger = TensorboardLogger(tmp_path / "alone")
    train([logger])
    logger.writer.close()

    def scalars(path):
        read = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        tags = [tag for tag in read.Tags()["scalars"] if not tag.startswith(timed)]
        return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in tags}

    assert scalars(tmp_path / "alone") == scalars(folder / "tb")


# ---------------------------------------------------------------------- loggers that never go back


class Forward(BaseLogger):
    """Drops what is of an earlier step than the last one, as W&B does."""

    def __init__(self):
        super().__init__()
        self.step, self.kept, self.dropped = 0, [], []

    def log_single_metric(self, name, value, x_plot):
        (self.dropped if x_plot < self.step else self.kept).append((name, x_plot, value))
        self.step = max(self.step, x_plot)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("late", [False, True], ids=["plugin before the evaluator", "plugin behind it"])
@pytest.mark.parametrize("evaluate", [None, "iteration", "epoch"])
def test_nothing_is_dropped_wherever_the_metrics_stand(place, late, evaluate):
    torch.manual_seed(0)
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), on_error="raise")
    theirs = [accuracy_metrics(minibatch=True, epoch=True, experience=True), loss_metrics(minibatch=True, stream=True)]
    ours = ntk_metrics(ntk, kernel_image=True)
    metrics = {"first": [ours, *theirs], "middle": [theirs[0], ours, theirs[1]], "last": [*theirs, ours]}[place]
    logger = Forward()
    benchmark = tiny_stream()
    model = MLP(6, 4, width=8, depth=1)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=8,
        train_epochs=2,
        eval_mb_size=64,
        plugins=[] if late else [ntk],
        evaluator=EvaluationPlugin(*metrics, loggers=[logger]),
        **({} if evaluate is None else {"eval_every": 1, "peval_mode": evaluate}),
    )
    if late:
        strategy.plugins.append(ntk)
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        strategy.eval(benchmark.test_stream)
    assert logger.dropped == []
    everything = strategy.evaluator.get_all_metrics()
    kept = {}
    for name, x, value in logger.kept:
        kept.setdefault(name, ([], []))[0].append(x)
        kept[name][1].append(value)
    assert kept == dict(everything)
    # All of ours, at their own iterations, and all of Avalanche's.
    for name, column in COLUMNS.items():
        assert list(zip(*kept[name + SUFFIX], strict=True)) == expected(ntk.trajectory, column)
    assert kept["NTK_Kernel" + SUFFIX][0] == [0, 6, 6, 12]
    assert kept["NTK_Moved" + SUFFIX] == ([12], [ntk.trajectory.reactivations[1].moved])
    assert kept["Top1_Acc_MB/train_phase/train_stream/Task000"][0] == list(range(12))


def test_what_waits_is_handed_on_when_training_goes_on_after_an_interrupt():
    class Interrupts(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_iterations == 3:
                raise KeyboardInterrupt

    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), on_error="raise")
    logger = Forward()
    strategy = make_strategy(plugins=[ntk, Interrupts()], metrics=[ntk_metrics(ntk)], loggers=[logger])
    benchmark = tiny_stream()
    with pytest.raises(KeyboardInterrupt):
        strategy.train(benchmark.train_stream[0])
    name = "NTK_SpectralNorm" + SUFFIX
    assert [x for n, x, _ in logger.kept if n == name] == [0, 2]
    assert [m.clock.iteration for m in ntk.trajectory] == [0, 2, 4]
    del strategy.plugins[1]
    strategy.train(benchmark.train_stream[1])
    assert [x for n, x, _ in logger.kept if n == name] == [m.clock.iteration for m in ntk.trajectory]


# ---------------------------------------------------------------------- W&B, without a network

WANDB = """
import sys
from pathlib import Path
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import TensorboardLogger
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.loggers import WandBLogger
from tests.support.lines import make_strategy, run, tiny_stream

folder = Path(sys.argv[1])
ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2), run_folder=folder / "run", on_error="raise")
strategy = make_strategy(
    plugins=[ntk],
    metrics=[METRICS],
    loggers=[
        WandBLogger(project_name="project", run_name="name", dir=folder, save_code=False),
        TensorboardLogger(folder / "tb"),
    ],
)
run(strategy, tiny_stream())
import wandb
wandb.finish()
"""
PLACES = {
    "last": "accuracy_metrics(minibatch=True), ntk_metrics(ntk, kernel_image=True)",
    "first": "ntk_metrics(ntk, kernel_image=True), accuracy_metrics(minibatch=True)",
}


def wandb_records(path):
    """Read the records of an offline run: a log of blocks of 32 KiB, each record whole (1) or in pieces (2, 3, 4)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    position, pieces = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        pieces += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(pieces)
            yield record
            pieces = b""


def wandb_run(tmp_path, script, place="last"):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script.replace("METRICS", PLACES[place]), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=200,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
            "HOME": str(tmp_path),
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_wandb_offline_has_every_number_and_image(tmp_path, place):
    done = wandb_run(tmp_path, WANDB, place)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    history, images = {}, {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            step = record.history.step.num
            for item in record.history.item:
                key, *parts = [item.key] if item.key else item.nested_key
                if parts:
                    images.setdefault(key, {}).setdefault(step, {})[parts[0]] = json.loads(item.value_json)
                else:
                    history.setdefault(key, {})[step] = json.loads(item.value_json)
    trajectory = Trajectory.load(tmp_path / "run")
    for name, column in COLUMNS.items():
        # Of two values at one step, at the end of a task and the start of the next, W&B keeps the second.
        assert history[name + SUFFIX] == pytest.approx(dict(expected(trajectory, column)), rel=1e-12)
    assert history["NTK_Moved" + SUFFIX] == {12: pytest.approx(trajectory.reactivations[1].moved, rel=1e-12)}
    # Nothing of Avalanche's own is passed over because of what is measured beside it.
    assert sorted(history["Top1_Acc_MB/train_phase/train_stream/Task000"]) == list(range(12))
    assert list(images) == ["NTK_Kernel" + SUFFIX]
    assert sorted(images["NTK_Kernel" + SUFFIX]) == [0, 6, 12]
    for image in images["NTK_Kernel" + SUFFIX].values():
        assert (path.parent / "files" / image["path"]).read_bytes().startswith(b"\x89PNG")
        assert image["width"] > 100
    assert list((tmp_path / "tb").iterdir())


@pytest.mark.slow
def test_avalanches_own_wandb_logger_needs_an_older_wandb(tmp_path):
    done = wandb_run(tmp_path, WANDB.replace("avalanche_ntk.adapters.loggers", "avalanche.logging"))
    assert done.returncode == 1
    assert "AttributeError: module 'wandb.util' has no attribute 'generate_id'" in done.stderr
