"""Spectral regularisation: the penalty and its gradient by hand, its modes against numpy and the oracle's kernel."""

import pickle

import numpy as np
import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche_ntk.strategies import SpectralDrift, SpectralDriftPlugin
from avalanche_ntk.strategies.spectral import leading_modes
from torch import nn

from avalanche_ntk.errors import ArgumentError, KernelError
from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.probes import Probe
from tests.integration.strategies.scenarios import MultiHeadMLP, train
from tests.integration.strategies.unchanged import digest
from tests.support.lines import BatchNormCNN, tiny_stream

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
]


def moved_mlp():
    """A network, samples, and the same network with other weights."""
    torch.manual_seed(0)
    model = MLP(6, 4, width=7, depth=2).double()
    samples = Probe.from_tensors(torch.randn(5, 6).double(), [0] * 5)
    torch.manual_seed(1)
    return model, samples, MLP(6, 4, width=7, depth=2).double()


# ---------------------------------------------------------------------- by hand


def test_the_penalty_and_its_gradient_by_hand():
    # f(x) = w·x with x = (2, 0), (0, 1): the kernel of the two is diag(4, 1), so that u_1 is the first sample. From
    # w = (1, 1) to (4, −1) the outputs move by 2·3 = 6 and by −2.
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.ones_(model.weight)
    samples = Probe.from_tensors(torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double(), [0, 0])
    for k, expected, gradient in (
        (1, 0.3 * 36, [0.3 * 2 * 6 * 2, 0.0]),
        # The mean over both modes: 0.3/2·(36 + 4), and 0.3/2·2·(6·2, −2·1).
        (2, 0.3 * 20, [0.3 * 12, 0.3 * -2]),
        (9, 0.3 * 20, [0.3 * 12, 0.3 * -2]),
    ):
        nn.init.ones_(model.weight)
        plugin = SpectralDriftPlugin(n_samples=2, n_modes=k, weight=0.3)
        plugin.modes = [leading_modes(model, samples, k)]
        assert plugin.modes[0].values.tolist() == pytest.approx([4.0, 1.0][:k], rel=1e-14)
        model.zero_grad()
        there = plugin.penalty(model)
        there.backward()
        assert (there.item(), model.weight.grad.tolist()) == (0.0, [[0.0, 0.0]])
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[4.0, -1.0]]))
        found = plugin.penalty(model)
        found.backward()
        assert found.item() == pytest.approx(expected, rel=1e-14)
        assert model.weight.grad.flatten().tolist() == pytest.approx(gradient, rel=1e-14, abs=1e-14)
        # Two old tasks with the same samples: the sum of both.
        plugin.modes = plugin.modes * 2
        assert plugin.penalty(model).item() == pytest.approx(2 * expected, rel=1e-14)


def test_what_no_mode_sees_is_free():
    # Two samples along the same axis: with k = 1 the direction (1, 2)/√5 of the outputs, the only one that can move.
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.ones_(model.weight)
    samples = Probe.from_tensors(torch.tensor([[1.0, 0.0], [2.0, 0.0]]).double(), [0, 0])
    plugin = SpectralDriftPlugin(n_samples=2, n_modes=1, weight=1.0)
    plugin.modes = [leading_modes(model, samples, 1)]
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 7.0]]))
    assert plugin.penalty(model).item() == pytest.approx(0.0, abs=1e-28)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 7.0]]))
    assert plugin.penalty(model).item() == pytest.approx(5.0, rel=1e-14)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_modes_are_those_of_the_oracles_kernel(k):
    model, samples, other = moved_mlp()
    theta = reference_ntk(model, samples.x, reduction="full").numpy()
    values, vectors = np.linalg.eigh(theta.transpose(0, 2, 1, 3).reshape(20, 20))
    assert values[-k] > 1.001 * values[-k - 1]  # there is a gap: which lead is no matter of rounding
    modes = leading_modes(model, samples, k)
    assert modes.values.numpy() == pytest.approx(values[::-1][:k], rel=1e-10)
    plugin = SpectralDriftPlugin(n_modes=k, weight=0.7)
    plugin.modes = [modes]
    change = (other(samples.x) - model(samples.x)).detach().numpy().reshape(20)
    along = vectors[:, ::-1][:, :k].T @ change
    assert plugin.penalty(other).item() == pytest.approx(0.7 * float(along @ along) / k, rel=1e-9)


def test_all_modes_are_the_whole_change_of_the_outputs():
    model, samples, other = moved_mlp()
    plugin = SpectralDriftPlugin(n_modes=1000, weight=0.7)
    plugin.modes = [leading_modes(model, samples, 1000)]
    assert plugin.modes[0].vectors.shape == (20, 20)
    found = torch.autograd.grad(plugin.penalty(other), list(other.parameters()))
    whole = 0.7 * ((other(samples.x) - model(samples.x).detach()) ** 2).mean()
    assert plugin.penalty(other).item() == pytest.approx(whole.item(), rel=1e-12)
    for one, expected in zip(found, torch.autograd.grad(whole, list(other.parameters())), strict=True):
        assert (one - expected).abs().max() < 1e-12


# ---------------------------------------------------------------------- in training


@pytest.mark.parametrize("arguments", [{"n_modes": 0}, {"weight": 0.0}])
def test_without_modes_or_weight_it_is_the_plain_strategy(arguments):
    states = []
    for cls, own in ((Naive, {}), (SpectralDrift, arguments)):
        torch.manual_seed(0)
        strategy = train(cls, MLP(6, 6, width=8, depth=1), tiny_stream(3), **own)
        states.append(digest([strategy.model.state_dict(), torch.get_rng_state()]))
    assert states[0] == states[1]


class Losses(SpectralDriftPlugin):
    """Notes the loss before, the penalty, and the loss after."""

    seen = ()

    def before_backward(self, strategy, **kwargs):
        before = strategy.loss.item()
        penalty = self.penalty(strategy.model).item() if self.modes else 0.0
        super().before_backward(strategy, **kwargs)
        self.seen = (*self.seen, (before, penalty, strategy.loss.item()))


@pytest.mark.parametrize("every", [1, 2])
def test_the_loss_that_is_minimised_has_the_penalty(every):
    torch.manual_seed(0)
    losses = Losses(n_samples=6, every=every, weight=0.5)
    train(Naive, MLP(6, 6, width=8, depth=1), tiny_stream(3), [losses])
    assert len(losses.seen) == 9  # three iterations a task
    assert [penalty for _, penalty, _ in losses.seen[:4]] == [0.0] * 4  # the first task, and the boundary itself
    assert min(penalty for _, penalty, _ in losses.seen[4:]) > 0
    for place, (before, penalty, after) in enumerate(losses.seen):
        carries = place >= 3 and (place - 3) % every == 0
        assert after == pytest.approx(before + carries * penalty, rel=1e-6)


def test_the_leading_modes_move_less_and_the_others_do_move():
    moved = {}
    for name, weight in (("free", 1e-12), ("held", 0.2)):
        torch.manual_seed(0)
        strategy = train(
            SpectralDrift,
            MLP(6, 4, width=16, depth=2),
            tiny_stream(2),
            n_samples=8,
            n_modes=4,
            weight=weight,
            train_epochs=8,
        )
        task = strategy.plugins[0].modes[0]
        change = (strategy.model(task.samples.x) - task.outputs).detach().flatten()
        along = task.vectors.T @ change
        moved[name] = along.norm().item(), (change - task.vectors @ along).norm().item()
    assert moved["held"][0] < 0.3 * moved["free"][0]
    assert moved["held"][1] > 0.3 * moved["free"][1]


def test_outputs_that_a_growing_head_masked_are_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), IncrementalClassifier(8))
    strategy = train(SpectralDrift, model, tiny_stream(3), n_samples=4, n_modes=100, weight=0.01)
    plugin = strategy.plugins[0]
    assert [task.live for task in plugin.modes] == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert [task.vectors.shape for task in plugin.modes] == [(8, 8), (16, 16), (24, 24)]
    # With −1000 in the place of an output that is unmasked later the penalty would be of the order of 10³.
    assert plugin.penalty(model).item() < 10
    # A head that masks classes to come without growing.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), IncrementalClassifier(8, initial_out_features=6))
    strategy = train(SpectralDrift, model, tiny_stream(3), n_samples=4, weight=0.01)
    assert [task.live for task in strategy.plugins[0].modes] == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_each_task_goes_through_its_own_head():
    torch.manual_seed(0)
    model = MultiHeadMLP()
    strategy = train(SpectralDrift, model, tiny_stream(3, shape=(64,), task_labels=True), n_samples=4, weight=0.01)
    plugin = strategy.plugins[0]
    assert [task.samples.task_labels.unique().tolist() for task in plugin.modes] == [[0], [1], [2]]
    plugin.penalty(model).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_penalty_leaves_statistics_modes_and_generators_alone():
    torch.manual_seed(0)
    model = BatchNormCNN()
    model.train()
    samples = Probe.from_tensors(torch.randn(5, 1, 6, 6), [0] * 5)
    before = digest([dict(model.named_buffers()), torch.get_rng_state()])
    flags = [m.training for m in model.modules()]
    plugin = SpectralDriftPlugin()
    plugin.modes = [leading_modes(model, samples, 3)]
    plugin.penalty(model)
    assert digest([dict(model.named_buffers()), torch.get_rng_state()]) == before
    assert [m.training for m in model.modules()] == flags


def test_it_is_pickled():
    model, samples, other = moved_mlp()
    plugin = SpectralDriftPlugin(n_modes=3)
    plugin.modes = [leading_modes(model, samples, 3)]
    again = pickle.loads(pickle.dumps(plugin))
    assert again.penalty(other).item() == plugin.penalty(other).item()


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "n_samples must be a whole number of at least 1; found 0. Give n_samples=32, for example."),
        ({"n_modes": -1}, "n_modes must be a whole number of at least 0; found -1. Give n_modes=40, for example."),
        ({"n_modes": 2.5}, "n_modes must be a whole number of at least 0; found 2.5. Give n_modes=40, for example."),
        ({"weight": -1}, "weight must be at least 0; found -1. Give weight=0.04, for example."),
        ({"weight": float("nan")}, "weight must be at least 0; found nan. Give weight=0.04, for example."),
        ({"every": 0}, "every must be a whole number of at least 1; found 0. Give every=1, for example."),
    ],
)
def test_what_cannot_be_used_is_refused(arguments, message):
    with pytest.raises(ArgumentError) as error:
        SpectralDriftPlugin(**arguments)
    assert str(error.value) == message


def test_a_model_that_has_diverged_has_no_modes():
    model, samples, _ = moved_mlp()
    with torch.no_grad():
        next(model.parameters()).fill_(float("inf"))
    with pytest.raises(KernelError, match="not finite"):
        leading_modes(model, samples, 3)
