"""A loop of one's own is recorded as an Avalanche strategy is."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_ntk import NTKPlugin, NTKRecorder, Probe, ProbeSpec, Schedule, empirical_ntk
from avalanche_ntk.errors import ArgumentError, PluginError, ProbeError
from avalanche_ntk.observables import PerLayer
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report import write_report
from tests.support.lines import MLP, make_strategy, run, tiny_stream

EVERY = Schedule.every_iterations(2) | Schedule.every_epochs(1)
SECONDS = ("measurement_seconds", "measuring_share")


class Batches:
    """Keeps the minibatches of a strategy, for a loop that trains on the same ones."""

    def __init__(self):
        self.experiences = []

    def before_training_exp(self, strategy, **kwargs):
        self.experiences.append([])

    def before_training_epoch(self, strategy, **kwargs):
        self.experiences[-1].append([])

    def before_forward(self, strategy, **kwargs):
        self.experiences[-1][-1].append((strategy.mb_x.clone(), strategy.mb_y.clone()))


def probe():
    generator = torch.Generator().manual_seed(5)
    return Probe.from_tensors(torch.randn(8, 6, generator=generator), torch.arange(8) % 2, name="mine")


def model_and_optimizer():
    torch.manual_seed(3)
    model = MLP(6, 4, width=8, depth=1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def by_plugin(**options):
    model, _ = model_and_optimizer()
    batches = Batches()
    ntk = NTKPlugin(probe(), EVERY, observe=[PerLayer()], on_error="raise", **options)
    strategy = make_strategy(model=model, plugins=[ntk, batches])
    run(strategy, tiny_stream())
    return ntk, batches, strategy


def by_loop(experiences, **options):
    model, optimizer = model_and_optimizer()
    recorder = NTKRecorder(probe(), EVERY, observe=[PerLayer()], on_error="raise", **options)
    for epochs in experiences:
        model.train()
        with recorder.experience(model, optimizer, iterations_per_epoch=len(epochs[0]), task_label=0):
            for batches in epochs:
                for x, y in batches:
                    step(model, optimizer, x, y)
                    recorder.after_iteration()
                recorder.after_epoch()
    return recorder, model


def records(folder):
    found = RunFolder.open(folder).records()
    for record in found:
        record.pop("training_seconds", None)
        record.pop("measuring_seconds", None)
        if record["kind"] == "measurement":
            record["trust"].pop("seconds")
            for name in SECONDS:
                record["values"].pop(name)
    return [record for record in found if record["kind"] != "evaluation"]


def test_a_loop_of_ones_own_has_the_plugins_rows(tmp_path):
    ntk, batches, strategy = by_plugin(run_folder=tmp_path / "plugin")
    recorder, model = by_loop(batches.experiences, run_folder=tmp_path / "plain")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), strategy.model.parameters(), strict=True))
    theirs, ours = (one.trajectory.to_pandas().drop(columns=list(SECONDS)) for one in (ntk, recorder))
    assert len(ours) > 10
    assert ours.equals(theirs)
    assert recorder.summary().equals(ntk.summary())
    assert records(tmp_path / "plain") == records(tmp_path / "plugin")
    for m in recorder.trajectory:
        assert np.array_equal(recorder.trajectory.kernel(m.index), ntk.trajectory.kernel(m.index))
    theirs, ours = (RunFolder.open(tmp_path / name).meta for name in ("plugin", "plain"))
    assert {**ours, "strategy": "Naive"} == theirs
    assert ours["strategy"] == "plain loop"
    assert "What happened when the task changed" in write_report(tmp_path / "plain", tmp_path / "r").page.read_text()


def test_a_run_of_a_loop_goes_on(tmp_path):
    _, batches, _ = by_plugin()
    whole, _ = by_loop(batches.experiences, run_folder=tmp_path / "whole")
    model, optimizer = model_and_optimizer()
    for epochs, resume in zip(batches.experiences, (False, True), strict=True):
        recorder = NTKRecorder(probe(), EVERY, observe=[PerLayer()], run_folder=tmp_path / "parts", resume=resume)
        with recorder.experience(model, optimizer, iterations_per_epoch=len(epochs[0]), task_label=0):
            for part in epochs:
                for x, y in part:
                    step(model, optimizer, x, y)
                    recorder.after_iteration()
                recorder.after_epoch()
        recorder.close()
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert Trajectory.load(str(tmp_path / "parts")).to_pandas()["experience"].tolist() == (
        whole.trajectory.to_pandas()["experience"].tolist()
    )


def test_probes_are_chosen_from_the_dataset_of_their_experience():
    model, optimizer = model_and_optimizer()
    recorder = NTKRecorder(ProbeSpec.each_task(size=4), "boundaries_only")
    for shift in (0.0, 10.0):
        dataset = TensorDataset(torch.randn(12, 6) + shift, torch.arange(12) % 4)
        with recorder.experience(model, optimizer, dataset=dataset):
            step(model, optimizer, *dataset.tensors)
            recorder.after_iteration()
    assert list(recorder.trajectories) == ["Exp000", "Exp001"]
    assert recorder.probes["Exp001"].x.min() > 5 > recorder.probes["Exp000"].x.max()
    assert [m.clock.event for m in recorder.trajectory] == ["experience_start", "experience_end"] * 2
    with (
        pytest.raises(ProbeError, match=r"chosen from the dataset of experience 0; found none\. Give it"),
        NTKRecorder().experience(model),
    ):
        pass


def test_what_stands_outside_an_experience_is_told():
    recorder = NTKRecorder(probe(), "boundaries_only")
    for count in (recorder.after_iteration, recorder.after_epoch):
        with pytest.raises(PluginError, match="counts within an experience; found none"):
            count()
    with pytest.raises(PluginError, match="the recorder has no trajectory yet"):
        _ = recorder.trajectory
    model, optimizer = model_and_optimizer()
    with (
        recorder.experience(model, optimizer),
        pytest.raises(PluginError, match="an experience is already being recorded"),
        recorder.experience(model, optimizer),
    ):
        pass
    assert len(recorder.trajectory) == 2


def test_an_experience_that_is_broken_off_keeps_what_was_measured_and_pickles():
    model, optimizer = model_and_optimizer()
    recorder = NTKRecorder(probe(), Schedule.every_iterations(1))
    with pytest.raises(KeyboardInterrupt), recorder.experience(model, optimizer):
        step(model, optimizer, torch.randn(4, 6), torch.arange(4))
        recorder.after_iteration()
        assert pickle.loads(pickle.dumps(recorder)).clock.iteration == 1
        raise KeyboardInterrupt
    assert [m.clock.event for m in recorder.trajectory] == ["experience_start", "iteration"]
    assert recorder.trajectory[1].clock.optimizer_step == 1


def test_projected_kernels_checks_and_hooks_pass_through():
    model, optimizer = model_and_optimizer()
    options = {"reduction": "projected", "n_projections": 2, "checks": "always", "hooks": "keep"}
    called = []
    model.register_forward_hook(lambda *_: called.append(1))
    recorder = NTKRecorder(probe(), "boundaries_only", outputs="all", on_error="raise", **options)
    with recorder.experience(model, optimizer):
        before = len(called)
    assert len(called) > before
    expected = empirical_ntk(model, probe().x, reduction="projected", n_projections=2)
    np.testing.assert_allclose(recorder.trajectory.kernel(0), expected.numpy(), rtol=1e-5)
    assert math.isfinite(recorder.trajectory[0].values["spectral_norm"])
    with pytest.raises(ArgumentError, match="unknown reduction 'full'"):
        NTKRecorder(reduction="full")
    with pytest.raises(ArgumentError, match="of at least 1 for reduction='projected', found None"):
        NTKRecorder(reduction="projected")
    with pytest.raises(ArgumentError, match="n_projections=2 was given for reduction='trace', which is exact"):
        NTKRecorder(n_projections=2)


def test_people_look():
    from matplotlib import pyplot

    recorder, _ = by_loop(by_plugin()[1].experiences)
    trajectory = recorder.trajectory
    axes = trajectory.plot()
    assert [a.get_ylabel() for a in axes] == [
        "spectral norm λ_max", "distance from init", "alignment with labels", "velocity (1/iteration)",
    ]  # fmt: skip
    table = trajectory.to_pandas()
    assert axes[1].lines[0].get_ydata().tolist() == table["distance_init"].dropna().tolist()
    assert axes[3].get_yscale() == "log"
    starts = table["iteration"][table["event"] == "experience_start"].tolist()
    assert [line.get_xdata()[0] for line in axes[0].lines[1:]] == starts
    assert trajectory.plot(["alignment"], axes=[axes[0]]) == [axes[0]]
    axes[0].figure.canvas.draw()
    pyplot.close(axes[0].figure)
    with pytest.raises(ArgumentError, match="has no column 'velocity'; it has alignment"):
        trajectory.plot(["velocity"])
    with pytest.raises(ArgumentError, match="expected 4, found 0"):
        trajectory.plot(axes=[])
    page = trajectory._repr_html_()
    assert "Trajectory(probe=&#x27;mine&#x27;" in page
    assert f"{trajectory.reactivations[1].spike:.4g}" in page
    assert "reasons" not in page
