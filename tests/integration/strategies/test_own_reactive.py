"""Step size and replay that follow the measured kernel: their formulas by hand, on series that were written down."""

from types import SimpleNamespace

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk.strategies import (
    ReactivationAwareLR,
    ReactivationAwareLRPlugin,
    ReactivationReplay,
    ReactivationReplayPlugin,
)
from avalanche_ntk.strategies.reactive import ReactivationPlugin, _like
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.errors import ArgumentError, PluginError
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.probes import Probe
from tests.support.lines import tiny_stream

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
]


class Written:
    """A strategy and a trajectory whose distances are written down, one measurement every second iteration."""

    def __init__(self, plugin, lr=0.5):
        self.plugin, self.lr = plugin, lr
        self.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
        self.plugins = [plugin.ntk, plugin]
        plugin.ntk.trajectories["Exp000"] = self.series = []

    def experience(self, speeds):
        """Train an experience in which the kernel moves at the given speeds; return the step size after each."""
        self.series.append(SimpleNamespace(values={"distance_previous": 1e-3}))  # at the boundary: no time passes
        self.plugin.before_training(self)
        self.plugin.before_training_exp(self)
        seen = []
        for speed in speeds:
            path = 0.0
            for last in (False, True):
                path += self.optimizer.param_groups[0]["lr"]
                self.plugin.after_update(self)
                if last:
                    self.series.append(SimpleNamespace(values={"distance_previous": (speed * path) ** 2}))
                self.plugin.after_training_iteration(self)
            seen.append(self.optimizer.param_groups[0]["lr"])
        return seen


def test_the_speed_is_the_root_of_the_distance_for_each_unit_of_step_size():
    plugin = ReactivationPlugin(NTKPlugin(), threshold=2.0)
    written = Written(plugin, lr=0.5)
    # Two iterations of step size ½ between measurements: u = √S / 1.
    written.experience([3.0, 0.2, 0.1, 0.1])
    assert [r["speed"] for r in plugin.history] == pytest.approx([3.0, 0.2, 0.1, 0.1])
    assert [r["iteration"] for r in plugin.history] == [2, 4, 6, 8]
    assert [r["reactivated"] for r in plugin.history] == [None] * 4
    written.experience([0.31, 0.29, 0.1])
    assert plugin.settled == pytest.approx(0.15)  # median of 3, 0.2, 0.1, 0.1
    assert [r["reactivated"] for r in plugin.history[4:]] == [True, False, False]
    written.experience([])
    assert plugin.settled == pytest.approx(0.29)
    written.experience([1.0])
    assert plugin.settled is None  # one experience without a measurement
    assert plugin.reactivated is None


def test_the_settled_level_is_of_the_last_ten():
    plugin = ReactivationPlugin(NTKPlugin())
    written = Written(plugin)
    written.experience([100.0] * 20 + [0.1] * 4 + [0.3] * 6)
    written.experience([1.0])
    assert plugin.settled == pytest.approx(0.3)


def test_the_speed_does_not_depend_on_step_size_or_interval():
    # Full batches and steps so small that the path is straight: u differs only by what it curves.
    speeds = []
    for lr, every in ((1e-4, 1), (4e-4, 1), (1e-4, 3)):
        torch.manual_seed(0)
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(every), dtype=torch.float64, on_error="raise")
        plugin = ReactivationPlugin(ntk)
        model = MLP(6, 4, width=16, depth=2, activation="tanh")
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            train_mb_size=100,
            train_epochs=3,
            plugins=[ntk, plugin],
            evaluator=EvaluationPlugin(),
        )
        strategy.train(tiny_stream(2).train_stream[0])
        assert len(plugin.history) == 3 // every
        speeds.append(plugin.history[0]["speed"])
    # 1e-3 of them is what the path curves in four times the step; 16 and 9 times it would be if S/Δt were compared.
    assert speeds[1:] == pytest.approx([speeds[0]] * 2, rel=5e-3)


# ---------------------------------------------------------------------- step size


def test_the_step_size_by_hand():
    plugin = ReactivationAwareLRPlugin(NTKPlugin(), threshold=2.0, restart=1.5, decay=0.5, floor=0.3)
    written = Written(plugin, lr=0.4)
    assert written.experience([5.0, 1.0, 1.0, 1.0]) == [0.4] * 4  # the first experience: as given
    # Settled at 1: above 2 the step size is 1.5·0.4, then it is halved each time down to 0.3·0.4.
    found = written.experience([2.1, 3.0, 1.9, 1.0, 1.0, 1.0, 2.5, 1.0])
    assert found == pytest.approx([0.6, 0.6, 0.3, 0.15, 0.12, 0.12, 0.6, 0.3])
    # The next one begins where this one ended, at the settled level 1.5 (median of 1, 1, 1, 1, 1.9, 2.1, 2.5, 3: 1.45).
    assert written.optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
    assert written.experience([2.0, 2.95]) == pytest.approx([0.3, 0.6])
    assert plugin.settled == pytest.approx(1.45)


def test_a_parameter_group_that_comes_later_has_its_own_step_size():
    plugin = ReactivationAwareLRPlugin(NTKPlugin(), restart=2.0)
    written = Written(plugin, lr=0.4)
    written.experience([1.0, 1.0])
    written.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1})
    written.experience([3.0])
    assert [group["lr"] for group in written.optimizer.param_groups] == pytest.approx([0.8, 0.2])


# ---------------------------------------------------------------------- replay


def test_replay_is_switched_on_and_off():
    plugin = ReactivationReplayPlugin(NTKPlugin(), threshold=2.0, patience=2)
    written = Written(plugin)
    on = []
    plugin.after_training_iteration_ = plugin.after_training_iteration

    def watch(strategy, **kwargs):
        plugin.after_training_iteration_(strategy)
        on.append(plugin.on)

    plugin.after_training_iteration = watch
    written.experience([5.0, 1.0, 1.0, 1.0])
    assert on == [False] * 8
    on.clear()
    written.experience([1.5, 2.1, 1.9, 2.1, 1.9, 1.9, 1.9, 2.1])
    #           measured at every second iteration; off after two in a row below
    assert on[1::2] == [False, True, True, True, True, False, False, True]
    on.clear()
    written.experience([1.0])
    assert on == [False, False]


def test_the_loss_is_that_of_the_joined_minibatch():
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    plugin = ReactivationReplayPlugin(NTKPlugin(), batch_size_mem=5)
    x, y = torch.randn(12, 6), torch.randint(0, 4, (12,))
    plugin.memory = [Probe.from_tensors(x[:6], y[:6]), Probe.from_tensors(x[6:], y[6:])]
    new_x, new_y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    criterion = nn.CrossEntropyLoss()
    state = torch.get_rng_state()
    strategy = SimpleNamespace(
        model=model,
        device="cpu",
        mb_y=new_y,
        train_mb_size=8,
        _criterion=criterion,
        loss=criterion(model(new_x), new_y),
    )
    alone = strategy.loss.item()
    plugin.replayed.append(0)
    plugin.before_backward(strategy)
    assert (strategy.loss.item(), plugin.replayed) == (alone, [0])  # it is off
    plugin.on = True
    plugin.before_backward(strategy)
    chosen = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:5]
    joined = criterion(model(torch.cat([new_x, x[chosen]])), torch.cat([new_y, y[chosen]]))
    assert strategy.loss.item() == pytest.approx(joined.item(), rel=1e-6)
    assert plugin.replayed == [1]
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_shared_between_tasks():
    torch.manual_seed(0)
    benchmark = tiny_stream(3)
    model = MLP(6, 6, width=8, depth=1)
    strategy = ReactivationReplay(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        mem_size=11,
        train_mb_size=8,
        evaluator=EvaluationPlugin(),
    )
    plugin = next(p for p in strategy.plugins if isinstance(p, ReactivationReplayPlugin))
    sizes = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        sizes.append([samples.size for samples in plugin.memory])
    assert sizes == [[11], [6, 5], [4, 4, 3]]
    assert [set(samples.y.tolist()) <= {2 * i, 2 * i + 1} for i, samples in enumerate(plugin.memory)] == [True] * 3


@pytest.mark.parametrize("cls", [ReactivationAwareLR, ReactivationReplay])
def test_the_plugin_that_is_given_is_the_one_that_is_read(cls):
    torch.manual_seed(0)
    ntk = NTKPlugin(ProbeSpec(size=6), Schedule.every_iterations(1), on_error="raise")
    model = MLP(6, 4, width=8, depth=1)
    strategy = cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        ntk=ntk,
        plugins=[ntk],
        train_mb_size=8,
        threshold=1e-3,
        evaluator=EvaluationPlugin(),
    )
    assert [p for p in strategy.plugins if isinstance(p, NTKPlugin)] == [ntk]
    own = next(p for p in strategy.plugins if isinstance(p, ReactivationPlugin))
    for experience in tiny_stream(2).train_stream:
        strategy.train(experience)
    good = [m for m in ntk.trajectory if m.clock.event == "iteration"]
    assert len(own.history) == len(good) == 6
    for record, m in zip(own.history, good, strict=True):
        assert record["iteration"] == m.clock.iteration
        assert record["speed"] == pytest.approx(m.values["distance_previous"] ** 0.5 / 0.1)
    assert [r["reactivated"] for r in own.history] == [None] * 3 + [True] * 3
    if cls is ReactivationReplay:
        assert own.replayed == [0, 2]  # from the iteration after the first velocity on


# ---------------------------------------------------------------------- refusals


def test_the_plugin_that_is_read_must_stand_before():
    ntk = NTKPlugin(ProbeSpec(size=6))
    own = ReactivationAwareLRPlugin(ntk)
    for plugins, where in (([own], "not among its plugins"), ([own, ntk], "after it")):
        model = MLP(6, 4, width=8, depth=1)
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            plugins=plugins,
            evaluator=EvaluationPlugin(),
        )
        with pytest.raises(PluginError) as error:
            strategy.train(tiny_stream(2).train_stream[0])
        assert str(error.value) == (
            "ReactivationAwareLRPlugin reads an NTKPlugin that must stand before it in the plugins of Naive; found it "
            f"{where}. Give plugins=[ntk, ReactivationAwareLRPlugin(ntk)]."
        )


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ArgumentError) as error:
        ReactivationReplayPlugin(NTKPlugin(), threshold=0.0)
    assert str(error.value) == "threshold must be a positive number; found 0.0. Give threshold=2.0."
    with pytest.raises(ArgumentError) as error:
        ReactivationAwareLRPlugin(NTKPlugin(schedule=Schedule.share_of_training(0.05)))
    assert str(error.value) == (
        "the NTKPlugin that training depends on must measure at given iterations; found the schedule "
        "'share_of_training:0.05', which depends on the time spent. Give Schedule.every_iterations(5)."
    )
    with pytest.raises(ArgumentError) as error:
        ReactivationAwareLRPlugin(NTKPlugin(), decay=1.5)
    assert str(error.value) == "decay must be above 0 and at most 1; found 1.5. Give decay=0.8, for example."
    with pytest.raises(ArgumentError) as error:
        ReactivationAwareLRPlugin(NTKPlugin(), floor=0.0)
    assert str(error.value) == "floor must be a positive number; found 0.0. Give floor=0.8, for example."
    with pytest.raises(ArgumentError) as error:
        ReactivationReplayPlugin(NTKPlugin(), patience=0)
    assert str(error.value) == "patience must be at least 1; found 0. Give patience=2, for example."


def test_remembered_labels_have_the_form_of_those_that_are_trained_on():
    targets = torch.tensor([[0.5, 1.0], [2.0, 3.0]], dtype=torch.float64)
    found = _like(torch.zeros(5, 2), targets)
    assert found.dtype == torch.float32 and found.tolist() == targets.tolist()
    assert _like(torch.zeros(5), targets[:, :1]).tolist() == [0.5, 2.0]
    assert _like(torch.tensor([3, 4]), torch.tensor([1, 0, 2])).tolist() == [1, 0, 2]
    with pytest.raises(ArgumentError) as caught:
        _like(torch.zeros(5, 4), torch.tensor([1, 0]))
    assert str(caught.value) == (
        "replay needs the labels as they are trained on, of shape (5, 4); one-hot rows are remembered as the classes "
        "that they stand for, found (2,). Train on class numbers."
    )
