"""Kernel-drift regularisation: the penalty and its gradient by hand, its kernel against the engine's."""

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche_ntk.strategies import KernelDrift, KernelDriftPlugin
from avalanche_ntk.strategies.drift import Anchor, gram, outputs_and_features
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.errors import ArgumentError, ModelError
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.probes import Probe
from tests.integration.strategies.scenarios import MultiHeadMLP, train
from tests.integration.strategies.unchanged import digest
from tests.support.lines import BatchNormCNN, tiny_stream

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]


def test_the_penalty_and_its_gradient_by_hand():
    # f(x) = v·u·x for x = 1, 2; u = v = 1 at the boundary and u = 2, v = 1 now. Features are u·x, so that
    # G_b = [[2, 3], [3, 5]], ‖G_b‖² = 47 and G = [[5, 9], [9, 17]], ‖G − G_b‖² = 9 + 36 + 36 + 144 = 225; outputs have
    # moved by 1 and 2. R = a·½·(1 + 4)/2 + b·½·225/47.
    # dR/du = a·mean((f − f_b)·v·x) + b·<G − G_b, 2u·xxᵀ>/47 = a·(1 + 4)/2 + b·4·(3 + 2·12 + 48)/47, and
    # dR/dv = a·mean((f − f_b)·u·x) = a·(2 + 8)/2.
    u, v = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    model = nn.Sequential(u, v).double()
    nn.init.ones_(u.weight)
    nn.init.ones_(v.weight)
    samples = Probe.from_tensors(torch.tensor([[1.0], [2.0]]).double(), [0, 0])
    outputs, features = (t.detach() for t in outputs_and_features(model, samples))
    a, b = 0.3, 0.7
    plugin = KernelDriftPlugin(n_samples=2, output_weight=a, kernel_weight=b)
    plugin.anchors = [Anchor(samples, outputs, [0], gram(features))]
    there = plugin.penalty(model)
    there.backward()
    assert (there.item(), u.weight.grad.item(), v.weight.grad.item()) == (0.0, 0.0, 0.0)
    with torch.no_grad():
        u.weight.fill_(2.0)
    found = plugin.penalty(model)
    assert found.item() == pytest.approx(a * 0.5 * 5 / 2 + b * 0.5 * 225 / 47, rel=1e-14)
    found.backward()
    assert u.weight.grad.item() == pytest.approx(a * 5 / 2 + b * 300 / 47, rel=1e-14)
    assert v.weight.grad.item() == pytest.approx(a * 5.0, rel=1e-14)
    # Two old tasks with the same samples: the mean of the same.
    plugin.anchors = plugin.anchors * 2
    assert plugin.penalty(model).item() == pytest.approx(found.item(), rel=1e-14)


def test_the_gram_is_the_heads_block_of_the_kernel():
    torch.manual_seed(0)
    model = MLP(6, 4, width=7, depth=2).double()
    samples = Probe.from_tensors(torch.randn(5, 6).double(), [0] * 5)
    kernel = empirical_ntk(model, samples.x, layers=["classifier"], reduction="full")
    expected = torch.einsum("nm,cd->nmcd", gram(outputs_and_features(model, samples)[1]), torch.eye(4).double())
    assert (kernel - expected).abs().max() < 1e-13


def test_the_loss_that_is_minimised_has_the_penalty():
    class Losses(KernelDriftPlugin):
        seen = ()

        def before_backward(self, strategy, **kwargs):
            before = strategy.loss.item()
            super().before_backward(strategy, **kwargs)
            penalty = self.penalty(strategy.model).item() if self.anchors else 0.0
            self.seen = (*self.seen, (before, penalty, strategy.loss.item()))

    torch.manual_seed(0)
    losses = Losses(n_samples=6)
    train(Naive, MLP(6, 4, width=8, depth=1), tiny_stream(2), [losses])
    assert len(losses.seen) == 6
    assert [penalty for _, penalty, _ in losses.seen[:4]] == [0.0] * 4  # the first task, and the boundary itself
    assert min(penalty for _, penalty, _ in losses.seen[4:]) > 0
    for before, penalty, after in losses.seen:
        assert after == pytest.approx(before + penalty, rel=1e-6)


def test_the_heads_block_of_the_kernel_moves_less():
    head = ["classifier.weight", "classifier.bias"]
    moved = {}
    for cls, arguments in ((Naive, {}), (KernelDrift, {"n_samples": 16, "output_weight": 0.0, "kernel_weight": 1.0})):
        torch.manual_seed(0)
        ntk = NTKPlugin(ProbeSpec(size=16), Schedule.boundaries_only(), params=head, on_error="raise")
        train(cls, MLP(6, 4, width=16, depth=2), tiny_stream(2), [ntk], train_epochs=5, **arguments)
        moved[cls] = ntk.trajectory.reactivations[1].moved
    assert moved[KernelDrift] < 0.5 * moved[Naive]


def test_outputs_that_a_growing_head_masked_are_left_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), IncrementalClassifier(8))
    strategy = train(KernelDrift, model, tiny_stream(3), n_samples=4)
    plugin = strategy.plugins[0]
    assert [anchor.live for anchor in plugin.anchors] == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    # With −1000 in the place of an output that is unmasked later the penalty would be of the order of 10⁵.
    assert plugin.penalty(model).item() < 100
    # A head that masks classes to come without growing.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), IncrementalClassifier(8, initial_out_features=6))
    strategy = train(KernelDrift, model, tiny_stream(3), n_samples=4)
    assert [anchor.live for anchor in strategy.plugins[0].anchors] == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_each_task_goes_through_its_own_head():
    torch.manual_seed(0)
    model = MultiHeadMLP()
    strategy = train(KernelDrift, model, tiny_stream(3, shape=(64,), task_labels=True), n_samples=4)
    plugin = strategy.plugins[0]
    assert [anchor.samples.task_labels.unique().tolist() for anchor in plugin.anchors] == [[0], [1], [2]]
    assert [anchor.gram.shape for anchor in plugin.anchors] == [(4, 4)] * 3
    plugin.penalty(model).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_penalty_leaves_statistics_modes_and_generators_alone():
    torch.manual_seed(0)
    model = BatchNormCNN()
    model.train()
    samples = Probe.from_tensors(torch.randn(5, 1, 6, 6), [0] * 5)
    outputs, features = (t.detach() for t in outputs_and_features(model, samples))
    plugin = KernelDriftPlugin()
    plugin.anchors = [Anchor(samples, outputs, [0, 1, 2, 3], gram(features))]
    before = digest([dict(model.named_buffers()), torch.get_rng_state()])
    flags = [m.training for m in model.modules()]
    plugin.penalty(model)
    assert digest([dict(model.named_buffers()), torch.get_rng_state()]) == before
    assert [m.training for m in model.modules()] == flags
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 0


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ArgumentError) as error:
        KernelDriftPlugin(output_weight=-1)
    assert str(error.value) == "output_weight must be at least 0; found -1. Give output_weight=0.1, for example."
    with pytest.raises(ArgumentError) as error:
        KernelDriftPlugin(kernel_weight=float("nan"))
    assert str(error.value) == "kernel_weight must be at least 0; found nan. Give kernel_weight=0.1, for example."
    with pytest.raises(ModelError) as error:
        outputs_and_features(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), Probe.from_tensors(torch.ones(2, 1, 3, 3), [0, 0])
        )
    assert str(error.value) == (
        "Sequential calls no torch.nn.Linear on 2 feature vectors: expected a last linear layer, whose input is the "
        "feature that the kernel's head block is made of. Give the model one, or use another strategy."
    )
