"""The metrics in Avalanche's own evaluator and loggers."""

import copy
import csv
import io

import pytest
from avalanche.evaluation import PluginMetric
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import PluginError
from avalanche_ntk.evaluation import NTKMetric
from avalanche_ntk.runfolder import RunFolder
from tests.lines import make_strategy, run, run_with_ntk, tiny_stream

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
    "NTK_OnsetVelocity",
}


def plugin(**arguments):
    return NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise", **arguments)


def test_every_value_arrives_once_with_its_iteration_as_a_float():
    ntk, strategy = run_with_ntk(ntk=plugin())
    found = strategy.evaluator.get_all_metrics()
    assert {tag for tag in found if tag.startswith("NTK_")} == {name + TAIL for name in DEFAULT}
    columns = {"NTK_SpectralNorm": "spectral_norm", "NTK_Velocity": "velocity_per_iteration", "NTK_Alignment": "alignment"}
    for name, column in columns.items():
        xs, values = found[name + TAIL]
        expected = [(m.clock.iteration, m.values[column]) for m in ntk.trajectory if column in m.values]
        assert list(zip(xs, values, strict=True)) == expected
        assert all(type(v) is float for v in values)
        assert all(type(x) is int for x in xs)
    reactivation = ntk.trajectory.reactivations
    assert found["NTK_Spike" + TAIL] == ([12], [reactivation[1].spike])  # from the second experience on
    assert found["NTK_OnsetVelocity" + TAIL][1][0] == reactivation[0].onset


def test_metrics_can_be_chosen():
    ntk = plugin()
    chosen = ntk_metrics(ntk, norms=False, distance=False, velocity=False, alignment=False, reactivation=False, spectrum=True)
    assert all(isinstance(m, PluginMetric) for m in chosen)
    assert [str(m) for m in chosen if isinstance(m, NTKMetric)] == ["NTK_EffectiveRank"]


def test_place_of_the_plugin_does_not_matter():
    values = []
    for late in (False, True):
        ntk = plugin()
        benchmark = tiny_stream()
        strategy = make_strategy(plugins=[] if late else [ntk], metrics=[ntk_metrics(ntk)])
        if late:
            strategy.plugins.append(ntk)  # behind the evaluator and behind Avalanche's clock
        run(strategy, benchmark)
        values.append({k: v for k, v in strategy.evaluator.get_all_metrics().items() if k.startswith("NTK_")})
    assert values[0].keys() == values[1].keys()
    for tag, (xs, _) in values[0].items():
        assert xs == values[1][tag][0]


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
        (m.clock.iteration, m.values["velocity_per_iteration"]) for m in ntk.trajectory if "velocity_per_iteration" in m.values
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
        "the metric NTK_SpectralNorm reads an NTKPlugin that Naive does not have: expected that plugin among its plugins, "
        "found no NTKPlugin. Give the same object to both: plugins=[ntk] for the strategy and ntk_metrics(ntk) for the "
        "evaluator."
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
