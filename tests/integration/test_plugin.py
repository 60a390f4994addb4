"""When the plugin measures, what it records, and what it refuses."""

import copy
import warnings

import dill
import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_ntk import NTKPlugin, Probe, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import (
    ArgumentError,
    MeasurementFailedWarning,
    NTKError,
    PluginError,
    RunFolderError,
    UndefinedMeasureWarning,
)
from avalanche_ntk.kernels._generic.reference import reference_ntk
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from tests.support.lines import make_strategy, run, run_with_ntk, tiny_stream

EVERY_STEP = Schedule.every_iterations(1)


def moments(ntk):
    return [(m.clock.event, m.clock.iteration, m.clock.experience) for m in ntk.trajectory]


def test_measures_at_boundaries_and_when_due():
    # 24 samples, batches of 8: 3 iterations an epoch, 2 epochs, 2 experiences.
    ntk, _ = run_with_ntk(ntk=NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2) | Schedule.every_epochs(1)))
    assert moments(ntk) == [
        ("experience_start", 0, 0),
        ("iteration", 2, 0),
        ("epoch_end", 3, 0),
        ("iteration", 4, 0),
        ("iteration", 6, 0),  # the epoch's end at 6 was measured already
        ("experience_end", 6, 0),
        ("experience_start", 6, 1),
        ("iteration", 8, 1),
        ("epoch_end", 9, 1),
        ("iteration", 10, 1),
        ("iteration", 12, 1),
        ("experience_end", 12, 1),
    ]
    assert [m.clock.optimizer_step for m in ntk.trajectory] == [m.clock.iteration for m in ntk.trajectory]


class Weights(SupervisedPlugin):
    """Keeps the model at each moment, at hooks of its own."""

    def __init__(self):
        super().__init__()
        self.models = {}

    def before_training_exp(self, strategy, **kwargs):
        self.models["experience_start", strategy.clock.train_iterations] = copy.deepcopy(strategy.model)

    def after_training_iteration(self, strategy, **kwargs):
        self.models["iteration", strategy.clock.train_iterations + 1] = copy.deepcopy(strategy.model)


def test_kernels_are_those_of_the_model_at_that_moment():
    weights = Weights()
    benchmark = tiny_stream()
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, on_error="raise")
    run(make_strategy(plugins=[ntk, weights], metrics=[ntk_metrics(ntk)]), benchmark)
    x = ntk.probes["Exp000"].x
    seen = 0
    for m in ntk.trajectory:
        model = weights.models.get((m.clock.event, m.clock.iteration))
        if model is None:
            continue
        expected = reference_ntk(model, x, dtype=torch.float64, reduction="trace").cpu().numpy()
        np.testing.assert_allclose(ntk.trajectory.kernel(m.index), expected, rtol=2e-5, atol=1e-5 * expected.max())
        seen += 1
    assert seen == 14


def test_numbers_follow_from_the_stored_kernels(tmp_path):
    ntk, _ = run_with_ntk(ntk=NTKPlugin(ProbeSpec(size=8), EVERY_STEP, run_folder=tmp_path / "run", on_error="raise"))
    read = Trajectory.load(tmp_path / "run")
    kernels = [read.kernel(m.index).astype(np.float64) for m in read]
    h = np.eye(8) - 1 / 8
    units = [h @ k @ h / np.linalg.norm(h @ k @ h) for k in kernels]

    def distance(i, j):
        return 0.5 * np.linalg.norm(units[i] - units[j]) ** 2

    y = np.eye(2)[ntk.probes["Exp000"].y]
    yy = h @ y @ y.T @ h
    start = 0
    for i, m in enumerate(read):
        assert m.values["kernel_norm"] == pytest.approx(np.linalg.norm(kernels[i]))
        assert m.values["kernel_trace"] == pytest.approx(np.trace(kernels[i]))
        assert m.values["spectral_norm"] == pytest.approx(np.linalg.eigvalsh(kernels[i])[-1], rel=1e-6)
        assert m.values["alignment"] == pytest.approx((units[i] * yy).sum() / np.linalg.norm(yy))
        if i == 0:
            assert "distance_previous" not in m.values
            continue
        assert m.values["distance_previous"] == pytest.approx(distance(i, i - 1), abs=1e-12)
        assert m.values["distance_init"] == pytest.approx(distance(i, 0), abs=1e-12)
        assert m.values["distance_experience_start"] == pytest.approx(distance(i, start), abs=1e-12)
        start = i if m.clock.event == "experience_start" else start
        elapsed = m.clock.iteration - read[i - 1].clock.iteration
        if elapsed:
            assert m.values["velocity_per_iteration"] == pytest.approx(distance(i, i - 1) / elapsed, abs=1e-12)
            assert m.values["velocity_per_epoch"] == pytest.approx(3 * m.values["velocity_per_iteration"])
        else:
            assert "velocity_per_iteration" not in m.values


def test_reactivation_by_hand():
    ntk, _ = run_with_ntk(ntk=NTKPlugin(ProbeSpec(size=8), EVERY_STEP, on_error="raise"))
    trajectory = ntk.trajectory
    v = {
        m.clock.iteration: m.values["velocity_per_iteration"]
        for m in trajectory
        if "velocity_per_iteration" in m.values
    }
    base = np.median([v[i] for i in range(4, 7)])  # in the second half of the task before
    peak = max(v[i] for i in (7, 8, 9))
    found = trajectory.reactivations[1]
    assert found.boundary == 6
    assert found.base == pytest.approx(base)
    assert found.peak == pytest.approx(peak)
    assert found.spike == pytest.approx(peak - base)
    assert found.ratio == pytest.approx(peak / base)
    after = [m for m in trajectory if m.clock.experience == 1]
    assert found.norm_dip == pytest.approx(
        min(m.values["spectral_norm"] for m in after[1:]) / after[0].values["spectral_norm"]
    )
    assert found.alignment_drop == pytest.approx(
        after[0].values["alignment"] - min(m.values["alignment"] for m in after[1:])
    )
    assert found.moved == after[-1].values["distance_experience_start"]
    first = trajectory.reactivations[0]
    assert first.spike is None
    assert first.ratio is None
    assert first.onset == max(v[i] for i in (1, 2, 3))


def test_the_probe_is_evaluated_in_eval_mode():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    ntk, strategy = run_with_ntk(model=model, ntk=NTKPlugin(ProbeSpec(size=8), on_error="raise"))
    expected = reference_ntk(strategy.model, ntk.probes["Exp000"].x, dtype=torch.float64, reduction="trace")
    np.testing.assert_allclose(ntk.trajectory.kernel(len(ntk.trajectory) - 1), expected.cpu().numpy(), rtol=1e-4)


class ChangesAfterBoundary(SupervisedPlugin):
    """Reinitialises the model between the boundary and the first step, as FromScratchTraining does."""

    def before_training_epoch(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs == 0 and strategy.clock.train_exp_counter == 1:
            for parameter in strategy.model.parameters():
                parameter.data.mul_(0.5)


@pytest.mark.parametrize("shared", [False, True])
def test_an_exchanged_model_begins_a_new_segment(shared):
    """Also one that has no parameter's name, or none of the shapes, in common with the last."""
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, on_error="raise")
    strategy = make_strategy(model=nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)), plugins=[ntk])
    first, second = tiny_stream().train_stream[:2]
    strategy.train(first)
    strategy.model = nn.Linear(6, 4) if not shared else nn.Sequential(nn.Linear(6, 9, bias=False), nn.Linear(9, 4))
    strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.1)
    strategy.train(second)
    start = next(m for m in ntk.trajectory if m.clock.experience == 1)
    assert start.segment == 1 and "since the last experience: a new segment begins" in start.notes[0]
    assert not [name for name in start.values if name.startswith("distance")]
    at = ntk.trajectory.reactivations[1]
    assert at.spike is None
    assert at.reasons["spike"] == "there is no earlier measurement since the model was replaced or reinitialised"


def test_a_model_that_is_nothing_but_a_growing_head_stays_the_same():
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, on_error="raise")
    strategy = make_strategy(model=IncrementalClassifier(6, 2), plugins=[ntk])
    for experience in tiny_stream().train_stream[:2]:
        strategy.train(experience)
    assert {m.segment for m in ntk.trajectory} == {0}


def test_a_model_changed_after_the_boundary_is_measured_again():
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, on_error="raise")
    run(make_strategy(plugins=[ntk, ChangesAfterBoundary()]), tiny_stream())
    starts = [m for m in ntk.trajectory if m.clock.event == "experience_start"]
    assert [(m.clock.iteration, m.segment) for m in starts] == [(0, 0), (6, 0), (6, 1)]
    assert starts[-1].notes == (
        "the parameters were changed after the boundary and before the first step: a new segment begins",
    )
    assert not [name for name in starts[-1].values if name.startswith("distance")]


def test_a_growing_head_keeps_its_first_outputs():
    from avalanche.models import IncrementalClassifier

    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), IncrementalClassifier(5, initial_out_features=2))
    ntk = NTKPlugin(ProbeSpec(size=8), on_error="raise")
    all_outputs = NTKPlugin(ProbeSpec(size=8), outputs="all", on_error="raise")
    strategy = make_strategy(model=model, plugins=[ntk, all_outputs])
    run(strategy, tiny_stream())
    x = ntk.probes["Exp000"].x
    theta = reference_ntk(strategy.model, x, dtype=torch.float64, reduction="full").diagonal(dim1=2, dim2=3)
    assert theta.shape == (8, 8, 4)
    last = len(ntk.trajectory) - 1
    np.testing.assert_allclose(ntk.trajectory.kernel(last), theta[..., :2].sum(-1).cpu().numpy(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(all_outputs.trajectory.kernel(last), theta.sum(-1).cpu().numpy(), rtol=1e-4, atol=1e-3)
    grown = [m for m in ntk.trajectory if m.notes]
    assert [(m.clock.event, m.clock.experience) for m in grown] == [("experience_start", 1)]
    assert grown[0].notes == (
        "trainable parameters resized: 2.classifier.bias [2] to [4], 2.classifier.weight [2, 5] to [4, 5]",
    )


def test_optimizer_steps_that_really_happen_are_counted():
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, on_error="raise")
    strategy = make_strategy(plugins=[ntk], epochs=1)
    step = strategy.optimizer_step

    def accumulate():
        strategy.calls = getattr(strategy, "calls", 0) + 1
        if strategy.calls % 2 == 0:
            step()

    strategy.optimizer_step = accumulate
    run(strategy, tiny_stream())
    assert [m.clock.optimizer_step for m in ntk.trajectory] == [0, 0, 1, 1, 1, 1, 2, 2, 3, 3]
    values = ntk.trajectory[2].values
    assert values["velocity_per_step"] == values["velocity_per_iteration"] > 0
    assert "velocity_per_step" not in ntk.trajectory[1].values
    assert ntk.trajectory[1].values["velocity_per_iteration"] == 0.0


def test_checkpoint_of_the_plugin_goes_on_measuring(tmp_path):
    benchmark = tiny_stream()
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, run_folder=tmp_path / "run", on_error="raise")
    strategy = make_strategy(plugins=[ntk])
    strategy.train(benchmark.train_stream[0])
    copied = dill.loads(dill.dumps(ntk))
    assert copied.trajectory.to_pandas().equals(ntk.trajectory.to_pandas())
    assert np.array_equal(copied.trajectory.kernel(3), ntk.trajectory.kernel(3))


def test_of_finds_the_plugin():
    ntk, strategy = run_with_ntk()
    assert NTKPlugin.of(strategy) is ntk
    with pytest.raises(PluginError) as caught:
        NTKPlugin.of(make_strategy())
    assert str(caught.value) == ("Naive has no NTKPlugin among its 3 plugins. Give it one: plugins=[NTKPlugin(...)].")
    for other in (None, ntk.trajectory):
        with pytest.raises(PluginError) as caught:
            NTKPlugin.of(other)
        assert str(caught.value) == (
            "NTKPlugin.of takes a strategy of Avalanche, which has a list of plugins; found "
            f"{type(other).__name__}. Give the strategy that trains."
        )


# ---------------------------------------------------------------------- refusals


def test_wiring_errors():
    ntk = NTKPlugin(ProbeSpec(size=8))
    with pytest.raises(PluginError) as caught:
        run(make_strategy(plugins=[ntk, ntk]), tiny_stream())
    assert str(caught.value) == (
        "the same NTKPlugin stands 2 times in the plugins of Naive; expected once. Remove the others."
    )
    ntk = NTKPlugin(ProbeSpec(size=8))
    first = run(make_strategy(plugins=[ntk]), tiny_stream())
    with pytest.raises(PluginError) as caught:
        run(make_strategy(plugins=[ntk]), tiny_stream())
    assert str(caught.value) == (
        "this NTKPlugin already measures another strategy and cannot follow Naive too: its time series would mix two "
        "models. Make one NTKPlugin for each strategy."
    )
    del first
    for read in (lambda: NTKPlugin().trajectory, lambda: NTKPlugin().summary()):
        with pytest.raises(PluginError) as caught:
            read()
        assert str(caught.value) == (
            "the plugin has no trajectory yet: expected training to have begun, found no measurement. "
            "Call strategy.train(experience) with this plugin in the strategy's `plugins`."
        )


ARGUMENTS = [
    (
        {"reduction": "trce"},
        "unknown reduction 'trce': expected one of 'projected', 'sum_logits', 'trace'. Did you mean 'trace'?",
    ),
    (
        {"memory_budget": -1},
        "memory_budget must be a positive number of bytes, found -1. Leave it out for the default.",
    ),
    (
        {"dtype": torch.float16},
        "unknown dtype torch.float16: expected torch.float32 or torch.float64. Half precision is too coarse for a "
        "kernel; leave dtype out to compute in float32.",
    ),
    ({"on_error": "ignore"}, "unknown on_error 'ignore': expected one of 'raise', 'warn'."),
    ({"outputs": "frist"}, "unknown outputs 'frist': expected one of 'all', 'first'. Did you mean 'first'?"),
    (
        {"probe": 64},
        "probe must be a ProbeSpec, a Probe, or a sequence of them; found 64. "
        "Give probe=ProbeSpec(size=64, from_experience=0), for example.",
    ),
    (
        {"probe": [ProbeSpec(size=4), ProbeSpec(size=8)]},
        "probes need different names; found ['Exp000', 'Exp000']. Give name= to ProbeSpec or Probe.",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=[next(iter(a)) for a, _ in ARGUMENTS])
def test_arguments_are_checked_at_once(arguments, message):
    with pytest.raises(ArgumentError) as caught:
        NTKPlugin(**arguments)
    assert str(caught.value) == message


def test_an_unknown_schedule_lists_the_nearest():
    with pytest.raises(ArgumentError, match="Did you mean 'around_boundaries'"):
        NTKPlugin(schedule="around_boundary")


def frozen():
    return MLP(6, 4, width=8, depth=1).requires_grad_(False)


class Rank3(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, x):
        return self.net(x).unsqueeze(1)


@pytest.mark.parametrize("make_model", [frozen, Rank3], ids=["no trainable parameters", "not (N, C)"])
def test_models_without_a_kernel_are_recorded_and_refused_when_asked(make_model):
    experience = tiny_stream().train_stream[0]
    ntk = NTKPlugin(ProbeSpec(size=8), on_error="raise")
    strategy = make_strategy(model=make_model(), plugins=[ntk])
    with pytest.raises(NTKError):
        strategy.train(experience)


def test_a_non_finite_kernel_is_recorded_and_warned_of_once():
    model = MLP(6, 4, width=8, depth=1)
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("inf")
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP)
    strategy = make_strategy(model=model, plugins=[ntk], epochs=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        strategy.train(tiny_stream().train_stream[0])
    ours = [w for w in caught if issubclass(w.category, MeasurementFailedWarning)]
    assert len(ours) == 1
    assert str(ours[0].message).startswith(
        "a measurement of the NTK failed at iteration 0 and training goes on: the kernel has"
    )
    assert all(m.failure is not None and m.failure.startswith("KernelError: ") for m in ntk.trajectory)
    assert all(not m.values for m in ntk.trajectory)
    with pytest.raises(RunFolderError) as missing:
        ntk.trajectory.kernel(0)
    assert str(missing.value) == (
        "measurement 0 of probe 'Exp000' has no stored kernel: the measurement failed. "
        "Choose another measurement, or measure with keep_kernels=True."
    )


def test_a_dead_network_has_no_direction():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
        model[2].weight.zero_()
    ntk = NTKPlugin(ProbeSpec(size=8), EVERY_STEP, on_error="raise")
    strategy = make_strategy(model=model, plugins=[ntk], epochs=1, metrics=[ntk_metrics(ntk)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        strategy.train(tiny_stream().train_stream[0])
    told = [str(w.message) for w in caught if issubclass(w.category, UndefinedMeasureWarning)]
    assert told[0].startswith(
        "effective_rank and 1 more of probe 'Exp000' undefined (NaN) at iteration 0: the kernel is"
    )
    assert len(told) == len(set(told)) <= 4  # once for each reason
    last = ntk.trajectory[len(ntk.trajectory) - 1]
    assert last.values["kernel_norm"] == 0.0
    assert "distance_previous" not in last.values
    assert "is exactly zero, as for a dead network" in last.reasons["distance_previous"]
    frame = ntk.trajectory.to_pandas()
    assert frame["distance_init"].isna().all()  # the column is there, and says why it is empty
    assert "distance_init: the first kernel is exactly zero" in frame["reasons"].iloc[-1]
    tags = strategy.evaluator.get_all_metrics()
    assert any(tag.startswith("NTK_KernelNorm/") for tag in tags)
    assert not any(tag.startswith(("NTK_Velocity", "NTK_Distance", "NTK_Alignment/")) for tag in tags)


def test_the_run_folder_is_refused_when_in_use(tmp_path):
    run_with_ntk(ntk=NTKPlugin(ProbeSpec(size=8), run_folder=tmp_path / "run"))
    before = RunFolder.open(tmp_path / "run").records()
    with pytest.raises(RunFolderError, match="overwrite"):
        run_with_ntk(ntk=NTKPlugin(ProbeSpec(size=8), run_folder=tmp_path / "run"))
    assert RunFolder.open(tmp_path / "run").records() == before


def test_probe_given_as_tensors():
    probe = Probe.from_tensors(torch.randn(5, 6), [0, 1, 2, 3, 0], name="held_out")
    ntk, strategy = run_with_ntk(ntk=NTKPlugin(probe, on_error="raise"))
    assert ntk.trajectory.kernel(0).shape == (5, 5)
    assert "NTK_SpectralNorm/train_phase/train_stream/Task000/held_out" in strategy.evaluator.get_all_metrics()


# ---------------------------------------------------------------------- what a user takes away


def test_exports_agree(tmp_path):
    import pandas as pd

    ntk, _ = run_with_ntk()
    trajectory = ntk.trajectory
    frame = trajectory.to_pandas()
    trajectory.to_csv(tmp_path / "t.csv")
    trajectory.to_parquet(tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet").equals(frame)
    csv = pd.read_csv(tmp_path / "t.csv")
    assert list(csv.columns) == list(frame.columns)
    assert csv["spectral_norm"].to_numpy() == pytest.approx(frame["spectral_norm"].to_numpy(), rel=1e-12)
    dataset = trajectory.to_xarray()
    assert dataset["kernel"].shape == (len(trajectory), 8, 8)
    assert dataset["label"].values.tolist() == ntk.probes["Exp000"].y.tolist()
    at_6 = dataset.where(dataset["event"] == "experience_end", drop=True)["alignment"].values[0]
    assert at_6 == frame[frame["event"] == "experience_end"]["alignment"].iloc[0]


def test_missing_export_package_is_told(monkeypatch):
    import importlib.util

    ntk, _ = run_with_ntk()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "xarray" else find(name, *a))
    with pytest.raises(ImportError) as caught:
        ntk.trajectory.to_xarray()
    assert str(caught.value) == (
        "xarray data sets need the package xarray, which is not installed. Run: pip install 'avalanche-ntk[export]'"
    )


def test_summary_has_a_row_a_boundary():
    ntk, _ = run_with_ntk(ntk=NTKPlugin([ProbeSpec.each_task(size=8)], EVERY_STEP, on_error="raise"))
    table = ntk.summary()
    assert list(zip(table["probe"], table["experience"], strict=True)) == [
        ("Exp000", 0),
        ("Exp000", 1),
        ("Exp001", 1),
    ]
    assert table["spike"].tolist()[1] == ntk.trajectory.reactivations[1].spike
    assert np.isnan(table["spike"].iloc[0])
    assert "reasons" not in table
    assert "the first experience has no boundary before it" in ntk.reasons["Exp000"][0]["spike"]


def test_summary_within_the_first_task_has_no_rows():
    class Reads(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            self.table = ntk.summary()

    ntk, reads = NTKPlugin(ProbeSpec.each_task(size=8), on_error="raise"), Reads()
    make_strategy(plugins=[ntk, reads]).train(tiny_stream().train_stream[0])
    assert len(reads.table) == 0 and "probe" in reads.table
    assert len(ntk.summary()) == 1


def test_verdicts_need_a_control():
    ntk, _ = run_with_ntk()
    control, _ = run_with_ntk()
    verdicts = ntk.trajectory.verdicts(control.trajectory)
    assert list(verdicts) == [1]
    assert verdicts[1].verdict in ("above the controls", "not distinguishable")
    assert ntk.trajectory.verdicts([control]) == verdicts  # a plugin stands for its first trajectory
    with pytest.raises(ArgumentError) as caught:
        ntk.trajectory.verdicts([ntk])
    assert str(caught.value) == "a run cannot be its own control: give the trajectories of runs without a shift."
    with pytest.raises(ArgumentError) as caught:
        ntk.trajectory.verdicts("control")
    assert str(caught.value) == "controls are trajectories of control runs, or their plugins; found str."
    stranger, _ = run_with_ntk(ntk=NTKPlugin(ProbeSpec(size=8, from_experience=1), EVERY_STEP, on_error="raise"))
    with pytest.raises(ArgumentError) as caught:
        ntk.trajectory.verdicts(stranger)
    assert str(caught.value) == (
        "a control watches a probe of the same classes: expected 4 of class 0, 4 of class 1, "
        "found 4 of class 2, 4 of class 3. Train the control on the same first task."
    )
    sparse = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(3), on_error="raise")
    other, _ = run_with_ntk(ntk=sparse, epochs=4)  # so long that the base has two velocities
    with pytest.raises(ArgumentError, match="cadence"):
        ntk.trajectory.verdicts(other.trajectory)


def test_a_reactivation_that_is_not_there_is_explained():
    ntk, _ = run_with_ntk()
    with pytest.raises(ArgumentError) as caught:
        _ = ntk.trajectory.reactivations[7]
    assert str(caught.value) == (
        "there is no reactivation of experience 7: it is computed when an experience has ended, and these have ended: "
        "0, 1."
    )
    assert 7 not in ntk.trajectory.reactivations


def test_wrong_arguments_stop_before_the_first_step():
    ntk = NTKPlugin(ProbeSpec(size=8), params=["c9"])
    strategy = make_strategy(plugins=[ntk])
    with pytest.raises(ArgumentError, match="unknown parameter 'c9'"):
        strategy.train(tiny_stream().train_stream[0])
    assert strategy.clock.train_iterations == 0
