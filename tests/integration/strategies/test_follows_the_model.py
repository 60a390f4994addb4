"""The plugin follows the model that is being trained, whatever a strategy does to it."""

import copy

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import NCMClassifier, SCRModel, TrainEvalModel
from avalanche.models.packnet import PackNetModule, packnet_simple_mlp
from avalanche.training.plugins import GDumbPlugin
from avalanche_ntk.strategies.recipes import build
from torch import nn

from avalanche_ntk import empirical_ntk
from avalanche_ntk.adapters.trained import trained_function
from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.lab.models import MLP
from tests.integration.strategies.cases import check_trajectory, job, plugin, plugin_for, stream
from tests.integration.strategies.scenarios import SCENARIOS
from tests.integration.strategies.unchanged import assert_training_unchanged, digest, train

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
    pytest.mark.filterwarnings("ignore:This strategy is currently in the alpha stage:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Plugin .* implements incompatible callbacks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Avalanche is transitioning to strategy constructors:UserWarning"),
    pytest.mark.filterwarnings("ignore:Metric .* used by the EarlyStopping plugin:UserWarning"),
]


class Witness(SupervisedPlugin, supports_distributed=True):
    """Keeps a copy of the model as it is at the end of each experience, when the plugin measures."""

    def __init__(self):
        super().__init__()
        self.models = []

    def after_training_exp(self, strategy, **kwargs):
        self.models.append(copy.deepcopy(strategy.model))


def run_with_witness(name, **overrides):
    witness = Witness()
    run = train(lambda plugins: job(name, [*plugins[:1], witness, *plugins[1:]], **overrides), [plugin_for(name)])
    assert run.error is None
    return run, witness


def ends(run):
    return [m for m in run.plugins[0].trajectory if m.clock.event == "experience_end"]


def starts(run):
    return [m for m in run.plugins[0].trajectory if m.clock.event == "experience_start"]


def oracle(model, ntk, x=None, **arguments):
    (probe,) = ntk.probes.values()
    return reference_ntk(model, probe.x if x is None else x, **arguments).numpy()


# ---------------------------------------------------------------------- whose kernel it is


@pytest.mark.parametrize("name", ["Naive", "LwF", "GDumb", "FromScratchTraining", "GenerativeReplay", "EWC"])
def test_the_kernel_is_that_of_the_model_trained_and_of_no_copy(name):
    run, witness = run_with_witness(name)
    for measured, model in zip(ends(run), witness.models, strict=True):
        kernel = run.plugins[0].trajectory.kernel(measured.index)
        np.testing.assert_allclose(kernel, oracle(model, run.plugins[0]), rtol=2e-5)
    first, second = (run.plugins[0].trajectory.kernel(m.index) for m in ends(run))
    assert not np.allclose(first, second, rtol=1e-3)


def test_bic_is_measured_before_its_bias_layer(monkeypatch):
    # With the argument accepted that torch has removed, BiC runs.
    import avalanche.training.plugins.bic as bic

    original = bic.MultiStepLR
    monkeypatch.setattr(bic, "MultiStepLR", lambda *args, verbose, **kwargs: original(*args, **kwargs))
    _, unchanged = assert_training_unchanged(lambda plugins: job("BiC", plugins), lambda: plugin_for("BiC"))
    check_trajectory(unchanged)
    run, witness = run_with_witness("BiC")
    assert any(getattr(p, "bias_layer", None) is not None for p in run.strategy.plugins)
    kernel = run.plugins[0].trajectory.kernel(ends(run)[-1].index)
    np.testing.assert_allclose(kernel, oracle(witness.models[-1], run.plugins[0]), rtol=2e-5)


@pytest.mark.parametrize("name", ["ICaRL", "SCR"])
def test_the_training_head_is_measured_where_evaluation_has_another(name):
    run, witness = run_with_witness(name)
    model = witness.models[-1]
    assert isinstance(model.eval_classifier, NCMClassifier)
    trained = nn.Sequential(model.feature_extractor, model.train_classifier)
    if name == "SCR":
        trained.insert(1, Normalised())
    kernel = run.plugins[0].trajectory.kernel(ends(run)[-1].index)
    np.testing.assert_allclose(kernel, oracle(trained, run.plugins[0]), rtol=1e-4)


class Normalised(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x, p=2, dim=1)


def test_expert_gate_is_measured_on_the_expert_that_is_trained():
    run, witness = run_with_witness("ExpertGate")
    for measured, gate in zip(ends(run), witness.models, strict=True):
        kernel = run.plugins[0].trajectory.kernel(measured.index)
        np.testing.assert_allclose(kernel, oracle(gate.expert, run.plugins[0]), rtol=1e-4)
    # The first expert takes the placeholder's place; the second one begins as a copy of the first with another head.
    assert [m.segment for m in starts(run)] == [0, 1, 1, 1]
    assert any("outside training" in note for note in starts(run)[-1].notes)


def test_packnet_is_measured_on_the_first_task_while_it_fine_tunes_the_second():
    run, witness = run_with_witness("PackNet")
    model = witness.models[-1]  # as it stands after pruning, before the next task is frozen
    assert model.state is PackNetModule.State.POST_PRUNE
    # The first task's network by hand: weights of task 0 only, everything else 0.
    features, head = model.wrappee.features[0], model.wrappee.classifier
    weights = [torch.where(layer.task_index == 0, layer.wrappee.weight, 0).detach() for layer in (features, head)]
    by_hand = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for linear, layer, weight in zip((by_hand[1], by_hand[3]), (features, head), weights, strict=True):
            linear.weight.copy_(weight)
            linear.bias.copy_(layer.wrappee.bias)
    (probe,) = run.plugins[0].probes.values()
    per_weight = np.zeros((probe.size, probe.size))
    for linear, layer in ((by_hand[1], features), (by_hand[3], head)):
        visible = (layer.task_index == 0).double()
        for c in range(10):
            rows = []
            for n in range(probe.size):
                (g,) = torch.autograd.grad(by_hand(probe.x[n : n + 1])[0, c], linear.weight)
                rows.append((g.double() * visible).flatten())
            rows = torch.stack(rows).numpy()
            per_weight += rows @ rows.T
    # Biases are frozen after the first task, and so no part of the kernel.
    kernel = run.plugins[0].trajectory.kernel(ends(run)[-1].index)
    np.testing.assert_allclose(kernel, per_weight, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------- nothing is left behind


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainEvalModel(nn.Linear(4, 3), nn.Linear(3, 2), NCMClassifier()),
        lambda: SCRModel(nn.Linear(4, 3), nn.Linear(3, 2)),
        lambda: packnet_simple_mlp(2, 4, 8, 1, 0.0),
        lambda: MLP(4, 2, width=8),
    ],
    ids=["TrainEvalModel", "SCRModel", "PackNet", "MLP"],
)
def test_the_model_is_as_before_also_after_an_error(make):
    model = make()
    if hasattr(model, "prune"):
        model.prune(0.5)
        assert model.state is PackNetModule.State.POST_PRUNE
    before = (digest(model.state_dict()), [*model.named_modules()], dict(vars(model)))
    with pytest.raises(ZeroDivisionError), trained_function(model):
        raise ZeroDivisionError
    assert (digest(model.state_dict()), [*model.named_modules()], dict(vars(model))) == before


# ---------------------------------------------------------------------- changes of the model


WHOLE = "the parameters were changed {}: a new segment begins"
BETWEEN, BEFORE_STEP = "since the last experience", "after the boundary and before the first step"


def test_a_new_copy_of_the_initial_model_begins_a_segment():
    run, _ = run_with_witness("GDumb")
    assert any(isinstance(p, GDumbPlugin) for p in run.strategy.plugins)
    assert [(m.segment, m.notes) for m in starts(run)] == [(0, ()), (1, (WHOLE.format(BETWEEN),))]
    trajectory = run.plugins[0].trajectory
    # The copy is the initial model: its kernel is the first one, and nothing was compared across.
    assert np.array_equal(trajectory.kernel(starts(run)[0].index), trajectory.kernel(starts(run)[1].index))
    assert not [name for name in starts(run)[1].values if name.startswith(("distance", "velocity"))]


def test_reinitialised_weights_begin_a_segment():
    run, _ = run_with_witness("FromScratchTraining")
    assert [(m.segment, m.notes) for m in starts(run)] == [(0, ()), (0, ()), (1, (WHOLE.format(BEFORE_STEP),))]
    assert starts(run)[1].clock == starts(run)[2].clock
    # The reactivation of the second experience has no task before it within its segment: an onset.
    second = run.plugins[0].trajectory.reactivations[1]
    assert second.spike is None and second.onset is not None


def test_a_rewritten_head_is_noted_and_the_series_goes_on():
    run, _ = run_with_witness("CWRStar")
    head = "classifier.weight changed {}, outside training"
    gone = "trainable parameters gone: features.1.bias, features.1.weight, features.3.bias, features.3.weight"
    assert [(m.segment, m.notes) for m in starts(run)] == [
        (0, ()),
        (0, (head.format(BEFORE_STEP),)),
        (0, (head.format(BETWEEN),)),
        (0, (head.format(BEFORE_STEP), gone)),
    ]
    # Measured again after the last rewriting: the reactivation begins there, and no velocity spans the rewriting.
    boundary = starts(run)[-1]
    second = run.plugins[0].trajectory.reactivations[1]
    assert second.boundary == boundary.clock.iteration
    assert not [name for name in boundary.values if name.startswith("velocity")]
    assert boundary.values["distance_previous"] > 0


def test_new_columns_are_noted_and_the_series_goes_on():
    run, _ = run_with_witness("PNN")
    new = "classifier.classifiers.1.classifier.bias, classifier.classifiers.1.classifier.weight"
    gone = "layers.0.columns.0.itoh.bias, layers.0.columns.0.itoh.weight"
    # One layer: the second task's column is a new first layer whose adapter is empty.
    (start,) = starts(run)[1:]
    assert start.segment == 0
    assert f"trainable parameters gone: {gone}" in start.notes
    assert any(note.startswith("trainable parameters new: ") and new in note for note in start.notes)
    assert "distance_previous" in start.values


def test_a_frozen_head_is_noted():
    run, _ = run_with_witness("LFL")
    assert starts(run)[1].notes == ("trainable parameters gone: classifier.bias, classifier.weight",)


# ---------------------------------------------------------------------- outputs that come later


def boundary_distance(run):
    return starts(run)[1].values["distance_previous"]


def test_a_growing_head_does_not_move_the_kernel_at_the_boundary():
    scenario = SCENARIOS["growing head (IncrementalClassifier)"]
    first = train(scenario.make, [plugin()])
    every = train(scenario.make, [plugin(outputs="all")])
    assert first.error is None and every.error is None
    # No step was made between the end of a task and the start of the next one.
    assert boundary_distance(first) < 1e-12
    # With all outputs, the classes that are unmasked add their part: a jump that no training made.
    assert boundary_distance(every) > 1e-4
    classes = sorted(stream("Naive").train_stream[0].classes_in_this_experience)
    ntk, model = first.plugins[0], first.strategy.model
    expected = oracle(model, ntk, outputs=classes)
    np.testing.assert_allclose(ntk.trajectory.kernel(ends(first)[-1].index), expected, rtol=2e-5)


def test_in_a_new_segment_the_outputs_are_fixed_anew():
    # ExpertGate's placeholder has 20 outputs, an expert as many as there are classes.
    run, witness = run_with_witness("ExpertGate")
    n_classes = witness.models[0].expert.num_classes
    assert n_classes == 4
    kernel = run.plugins[0].trajectory.kernel(starts(run)[1].index)
    assert np.isfinite(kernel).all() and starts(run)[0].failure is None


# ---------------------------------------------------------------------- the scenarios do what they say


def test_early_stopping_stops():
    run = train(SCENARIOS["EarlyStopping"].make, [plugin()])
    per_epoch = 9
    assert all(0 < n < 4 * per_epoch for n in run.recorder.iterations)


@pytest.mark.parametrize(
    ("name", "factor"), [("gradient accumulation", 3), ("several optimizer steps a minibatch", 1 / 3)]
)
def test_velocity_per_step_counts_steps_that_happened(name, factor):
    run = train(SCENARIOS[name].make, [plugin()])
    last = ends(run)[-1]
    assert last.clock.optimizer_step * factor == pytest.approx(last.clock.iteration)
    before = run.plugins[0].trajectory[last.index - 1]
    steps = last.clock.optimizer_step - before.clock.optimizer_step
    assert last.values["velocity_per_step"] * steps == pytest.approx(last.values["distance_previous"])


def test_the_parameter_groups_are_those_given():
    run = train(SCENARIOS["weight decay by parameter group"].make, [plugin()])
    assert [(len(g["params"]), g["weight_decay"]) for g in run.strategy.optimizer.param_groups] == [(2, 0.1), (2, 0.0)]


def test_autocast_does_not_reach_the_kernel():
    run = train(SCENARIOS["bfloat16 autocast"].make, [plugin()])
    kernel = run.plugins[0].trajectory.kernel(ends(run)[-1].index)
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, oracle(run.strategy.model, run.plugins[0]), rtol=2e-5)


def test_a_strategy_that_moves_no_weight_has_no_velocity():
    run, _ = run_with_witness("StreamingLDA")
    values = [m.values["distance_init"] for m in run.plugins[0].trajectory.measurements[1:]]
    assert values == [0.0] * len(values)


def test_a_multi_task_model_has_a_kernel_in_double_precision():
    benchmark = stream("LaMAML")
    strategy = build("LaMAML", benchmark=benchmark, seed=0)
    strategy.model.adaptation(benchmark.train_stream[0])
    x, labels = torch.rand(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)
    kernel = empirical_ntk(strategy.model, x, task_labels=labels, dtype=torch.float64)
    assert kernel.dtype == torch.float64 and torch.get_default_dtype() == torch.float32
    single = empirical_ntk(strategy.model, x, task_labels=0, dtype=torch.float64)
    torch.testing.assert_close(kernel, single, rtol=1e-12, atol=0)
