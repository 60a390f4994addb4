"""The metrics in Avalanche's own evaluator and loggers."""

import copy
import csv
import io

import pytest
import torch
from avalanche.evaluation import PluginMetric
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.adapters.evaluation import NTKMetric
from avalanche_ntk.errors import PluginError
from avalanche_ntk.recorder.runfolder import RunFolder
from tests.support.lines import make_strategy, run, run_with_ntk, tiny_stream

TAIL = "/train_phase/train_stream/Task000/Exp000"
DEFAULT = {
    "NTK_SpectralNorm",
    "NTK_KernelNorm",
    "NTK_KernelTrace",
    "NTK_DistancePrevious",
    "NTK_DistancePreviousUncentred",
    "NTK_DistanceExperienceStart",
    "NTK_DistanceExperienceStartUncentred",
    "NTK_DistanceInit",
    "NTK_DistanceInitUncentred",
    "NTK_Velocity",
    "NTK_VelocityUncentred",
    "NTK_VelocityPerStep",
    "NTK_VelocityPerEpoch",
    "NTK_Alignment",
    "NTK_Spike",
    "NTK_Ratio",
    "NTK_NormDip",
    "NTK_AlignmentDrop",
    "NTK_Moved",
    "NTK_Z",
    "NTK_OnsetRatio",
    "NTK_NormRecovery",
    "NTK_TimeToPeak",
    "NTK_OnsetVelocity",
    "NTK_MeasurementSeconds",
    "NTK_MeasuringShare",
}


def plugin(**arguments):
    return NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise", **arguments)


def test_every_value_arrives_once_with_its_iteration_as_a_float():
    ntk, strategy = run_with_ntk(ntk=plugin())
    found = strategy.evaluator.get_all_metrics()
    ours = {tag for tag in found if tag.startswith("NTK_")} - {"NTK_HalfLife" + TAIL}  # censored in some runs
    assert ours == {name + TAIL for name in DEFAULT}
    columns = {
        "NTK_SpectralNorm": "spectral_norm",
        "NTK_Velocity": "velocity_per_iteration",
        "NTK_Alignment": "alignment",
    }
    for name, column in columns.items():
        xs, values = found[name + TAIL]
        expected = [(m.clock.iteration, m.values[column]) for m in ntk.trajectory if column in m.values]
        assert list(zip(xs, values, strict=True)) == expected
        assert all(isinstance(v, float) for v in values)
        assert all(type(x) is int for x in xs)
    reactivation = ntk.trajectory.reactivations
    # From the second experience on, at the iteration of the boundary; the onset of the first experience only.
    assert found["NTK_Spike" + TAIL] == ([6], [reactivation[1].spike])
    assert found["NTK_OnsetVelocity" + TAIL] == ([0], [reactivation[0].onset])


def test_metrics_can_be_chosen():
    ntk = plugin()
    off = dict.fromkeys(["norms", "distance", "velocity", "alignment", "reactivation", "cost"], False)
    chosen = ntk_metrics(ntk, **off, spectrum=True)
    assert all(isinstance(m, PluginMetric) for m in chosen)
    assert [str(m) for m in chosen if isinstance(m, NTKMetric)] == [
        "NTK_EffectiveRank",
        "NTK_ConditionNumber",
        "NTK_EigenvectorAlignment",
        "NTK_Spectrum",
    ]
    assert ntk.observables == []
    ntk_metrics(ntk, per_layer=True)
    ntk_metrics(ntk, per_layer=True, features=True)  # for a second evaluator: nothing is measured twice
    assert [o.name for o in ntk.observables] == ["per_layer", "feature_kernel"]


def test_place_of_the_plugin_does_not_matter():
    values = []
    for late in (False, True):
        torch.manual_seed(0)
        ntk = plugin()
        benchmark = tiny_stream()
        strategy = make_strategy(plugins=[] if late else [ntk], metrics=[ntk_metrics(ntk)])
        if late:
            strategy.plugins.append(ntk)  # behind the evaluator and behind Avalanche's clock
        run(strategy, benchmark)
        values.append({k: v for k, v in strategy.evaluator.get_all_metrics().items() if k.startswith("NTK_")})
    assert values[0].keys() == values[1].keys()
    for tag, (xs, ys) in values[0].items():
        if not tag.startswith("NTK_Meas"):  # seconds differ from run to run
            assert (xs, ys) == values[1][tag]


def test_two_evaluators_and_copies():
    ntk = plugin()
    metrics = ntk_metrics(ntk)
    copied = copy.deepcopy(metrics)
    assert all(a is not b and a.plugin is b.plugin for a, b in zip(metrics, copied, strict=True))
    strategy = make_strategy(plugins=[ntk], metrics=[metrics], loggers=[InteractiveLogger()])
    whole = copy.deepcopy(strategy)
    theirs = [m for m in whole.evaluator.metrics if isinstance(m, NTKMetric)]
    assert {id(m.plugin) for m in theirs} == {id(NTKPlugin.of(whole))}
    run(whole, tiny_stream())
    assert len(NTKPlugin.of(whole).trajectory) > 0
    assert ntk.trajectories == {}


def test_loggers_read_back(tmp_path):
    ntk = plugin(run_folder=tmp_path / "run")
    text = io.StringIO()
    tensorboard = TensorboardLogger(tmp_path / "tb")
    loggers = [TextLogger(text), InteractiveLogger(), CSVLogger(tmp_path / "csv"), tensorboard]
    benchmark = tiny_stream()
    run(make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk)], loggers=loggers), benchmark)
    tensorboard.writer.flush()
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            logger.close()
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {name + TAIL for name in DEFAULT} <= set(scalars)
    assert "Top1_Acc_Stream/eval_phase/test_stream/Task000" in scalars
    curve = events.Scalars("NTK_Velocity" + TAIL)
    expected = [
        (m.clock.iteration, m.values["velocity_per_iteration"])
        for m in ntk.trajectory
        if "velocity_per_iteration" in m.values
    ]
    assert [e.step for e in curve] == [x for x, _ in expected]
    assert [e.value for e in curve] == pytest.approx([v for _, v in expected], rel=1e-6)  # TensorBoard keeps float32
    assert "NTK_Alignment" + TAIL in text.getvalue()
    assert events.Tags()["histograms"] == []
    # Avalanche's CSV logger knows its own columns only; the run folder's table has ours.
    with (tmp_path / "csv" / "training_results.csv").open() as file:
        assert not any("NTK" in cell for row in csv.reader(file) for cell in row)
    with (tmp_path / "run" / "measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ntk.trajectory)
    assert [float(r["spectral_norm"]) for r in rows] == [m.values["spectral_norm"] for m in ntk.trajectory]


def test_evaluations_are_recorded_beside_the_kernels(tmp_path):
    ntk, strategy = run_with_ntk(ntk=plugin(run_folder=tmp_path / "run"))
    records = [r for r in RunFolder.open(tmp_path / "run").records() if r["kind"] == "evaluation"]
    assert [(r["experience"], r["iteration"]) for r in records] == [(0, 6), (1, 12)]
    tag = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"
    assert [r["values"][tag] for r in records] == strategy.evaluator.get_all_metrics()[tag][1]
    assert records == ntk.evaluations


def test_only_new_values_of_an_evaluation_are_recorded():
    ntk = plugin()
    benchmark = tiny_stream()
    strategy = make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk)])
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    strategy.eval([benchmark.test_stream[1]])
    last = ntk.evaluations[-1]["values"]
    assert "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp001" in last
    assert "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000" not in last


def test_metrics_of_a_plugin_that_the_strategy_does_not_have():
    ntk, other = plugin(), plugin()
    with pytest.raises(PluginError) as caught:
        run(make_strategy(metrics=[ntk_metrics(ntk)]), tiny_stream())
    assert str(caught.value) == (
        "the metric NTK_SpectralNorm reads an NTKPlugin that Naive does not have: expected that plugin among its "
        "plugins, found no NTKPlugin. Give the same object to both: plugins=[ntk] for the strategy and "
        "ntk_metrics(ntk) for the evaluator."
    )
    with pytest.raises(PluginError, match="found another NTKPlugin"):
        run(make_strategy(plugins=[other], metrics=[ntk_metrics(ntk)]), tiny_stream())
    with pytest.raises(PluginError) as caught:
        ntk_metrics("ntk")
    assert str(caught.value) == (
        "ntk_metrics needs the NTKPlugin that measures; found str. "
        "Make it first: ntk = NTKPlugin(...), then ntk_metrics(ntk)."
    )


def test_strict_checks():
    from avalanche.training.plugins import EvaluationPlugin

    ntk = plugin()
    strategy = make_strategy(plugins=[ntk])
    evaluator = EvaluationPlugin(ntk_metrics(ntk), loggers=[TextLogger(io.StringIO())], strict_checks=True)
    strategy.plugins[strategy.plugins.index(strategy.evaluator)] = evaluator
    strategy.evaluator = evaluator
    run(strategy, tiny_stream())
    assert "NTK_Ratio" + TAIL in evaluator.get_all_metrics()


def test_everything_at_once_reaches_every_logger(tmp_path):
    torch.manual_seed(0)
    # Two probes of different tasks and a held-out one: overlap and regression need them.
    ntk = NTKPlugin(
        [ProbeSpec.each_task(size=8), ProbeSpec(size=8, split="test")],
        Schedule.every_iterations(2),
        run_folder=tmp_path / "run",
        on_error="raise",
    )
    flags = [
        "spectrum",
        "linearisation",
        "forecast",
        "per_layer",
        "features",
        "class_blocks",
        "task_overlap",
        "regression",
    ]
    metrics = ntk_metrics(ntk, text=None, **dict.fromkeys(flags, True), kernel_image=True)
    text = io.StringIO()
    tensorboard = TensorboardLogger(tmp_path / "tb")
    strategy = make_strategy(plugins=[ntk], metrics=[metrics], loggers=[TextLogger(text), tensorboard])
    run(strategy, tiny_stream())
    tensorboard.writer.flush()
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    scalars, pictures = events.Tags()["scalars"], events.Tags()["images"]
    assert events.Tags()["histograms"] == []
    for tag in (
        "NTK_LinearisationErrorBoundary" + TAIL,
        "NTK_ForecastError" + TAIL,
        "NTK_LayerVelocity" + TAIL + "/features.1",
        "NTK_LayerTraceShare" + TAIL + "/classifier",
        "NTK_FeatureVelocity" + TAIL,
        "NTK_ClassBlock" + TAIL + "/0,1",
        "NTK_TaskOverlap" + TAIL + "/Exp000,Exp001",
        "NTK_RegressionAccuracy" + TAIL,
        "NTK_EigenvectorAlignment" + TAIL + "/1",
        "NTK_Velocity/train_phase/train_stream/Task000/Exp001",
        "NTK_Velocity/train_phase/test_stream/Task000/Exp000",
    ):
        assert tag in scalars, tag
    assert {"NTK_Kernel" + TAIL, "NTK_Spectrum" + TAIL, "NTK_TaskOverlapMatrix" + TAIL} <= set(pictures)
    assert [e.step for e in events.Images("NTK_Kernel" + TAIL)] == [0, 6, 6, 12]
    assert "Figure" not in text.getvalue()
    assert "Picture" not in text.getvalue()
    assert "NTK_LayerVelocity" in text.getvalue()


def test_layers_sum_to_the_whole():
    torch.manual_seed(0)
    ntk = plugin()
    ntk_metrics(ntk, per_layer=True)
    ntk, _ = run_with_ntk(ntk=ntk)
    for m in ntk.trajectory:
        kernels = ntk.trajectory.kernels(m.index)
        assert set(kernels) == {"kernel", "layer[features.1]", "layer[classifier]"}
        total = sum(kernel.astype(float) for name, kernel in kernels.items() if name != "kernel")
        assert abs(total - kernels["kernel"]).max() <= 1e-5 * abs(kernels["kernel"]).max()
        shares = [m.values[f"layer[{name}].trace_share"] for name in ("features.1", "classifier")]
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_evaluations_are_recorded_wherever_the_metrics_stand():
    import avalanche.evaluation.metrics as theirs
    from avalanche.training.plugins import EvaluationPlugin

    ntk = plugin()
    strategy = make_strategy(plugins=[ntk])
    accuracy = theirs.accuracy_metrics(experience=True)
    evaluator = EvaluationPlugin(ntk_metrics(ntk), accuracy, loggers=[TextLogger(io.StringIO())])
    strategy.plugins[strategy.plugins.index(strategy.evaluator)] = evaluator
    strategy.evaluator = evaluator
    run(strategy, tiny_stream())
    tag = "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"
    assert [r["values"][tag] for r in ntk.evaluations] == evaluator.get_all_metrics()[tag][1]
    assert len(ntk.evaluations) == 2


def test_metrics_have_no_hooks_inside_an_iteration():
    plugin = NTKPlugin(ProbeSpec(size=4))
    inside = [f"{when}_{what}" for when in ("before", "after") for what in ("forward", "backward", "update")]
    for metric in ntk_metrics(plugin):
        assert not [name for name in (*inside, "before_training_iteration") if hasattr(metric, name)]
        assert hasattr(metric, "before_training_epoch")  # the base class's hooks are there otherwise
