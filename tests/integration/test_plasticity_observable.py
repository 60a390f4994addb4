"""The numbers of plasticity in real runs, beside what hand-made networks have by construction."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels.support import Batch
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import kernel_ranks, relative_kernel_change
from avalanche_ntk.observables import Plasticity
from avalanche_ntk.observables.units import look_at_units
from tests.support.lines import Models, make_strategy, run, tiny_stream


def trained(observable, model=None, schedule=None, **arguments):
    torch.manual_seed(0)
    models = Models()
    ntk = NTKPlugin(ProbeSpec(size=8), schedule or Schedule.every_iterations(2), observe=[observable], on_error="raise")
    strategy = make_strategy(model=model or MLP(6, 4, width=8, depth=2), plugins=[ntk, models], **arguments)
    run(strategy, tiny_stream())
    return ntk, models.at, strategy


def by_hand():
    """Four hidden units: one dead, one whose outgoing weight is 0, two alive."""
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 0.0, -100.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]))
    return model


def cross_entropy(labels):
    return lambda outputs: nn.functional.cross_entropy(outputs, labels, reduction="sum")


class TestUnits:
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    y = torch.tensor([0, 2])

    def test_activity_and_gradients_by_hand(self):
        model = by_hand()
        seen = look_at_units(copy.deepcopy(model), Batch.of(self.x), cross_entropy(self.y))
        np.testing.assert_allclose(seen.activity["2"], [[1, 2, 3, 0], [3, 1, 4, 0]])
        error = model(self.x).softmax(1) - nn.functional.one_hot(self.y, 3)
        through = (error @ model[2].weight).abs() * (model[0](self.x) > 0)
        np.testing.assert_allclose(seen.gradients["0"], through.detach().numpy(), rtol=1e-6)
        assert (seen.gradients["0"].max(axis=0) == 0).tolist() == [False, False, True, True]

    def test_norms(self):
        model = by_hand()
        seen = look_at_units(copy.deepcopy(model), Batch.of(self.x), cross_entropy(self.y))
        nn.functional.cross_entropy(model(self.x), self.y).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        weights = torch.cat([p.flatten() for p in model.parameters()]).norm()
        assert seen.gradient_norm == pytest.approx(gradient.item(), rel=1e-6)
        assert seen.weight_norm == pytest.approx(weights.item(), rel=1e-6)

    def test_channels_are_the_units_of_convolutions(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Conv2d(3, 5, 2), nn.Flatten(), nn.Linear(20, 2))
        x = torch.randn(6, 1, 4, 4)
        seen = look_at_units(copy.deepcopy(model), Batch.of(x), cross_entropy(torch.zeros(6, dtype=torch.long)))
        assert {name: units.shape for name, units in seen.activity.items()} == {"2": (6, 3), "4": (6, 20)}
        assert {name: units.shape for name, units in seen.gradients.items()} == {"0": (6, 3), "2": (6, 5)}
        expected = model[:2](x).abs().mean((2, 3))
        np.testing.assert_allclose(seen.activity["2"], expected.detach().numpy(), rtol=1e-6)


def test_columns_by_the_measures_of_the_stored_kernels_and_models():
    ntk, models, _ = trained(Plasticity(steps=3))
    x = ntk.probes["Exp000"].x
    first = ntk.trajectory.kernel(0)
    before = None
    for m in ntk.trajectory:
        kernel = ntk.trajectory.kernel(m.index)
        assert m.values["kernel_rank_participation"] == pytest.approx(kernel_ranks(kernel).participation)
        assert m.values["relative_kernel_change"] == pytest.approx(relative_kernel_change(kernel, first), abs=1e-12)
        with torch.no_grad():
            now = models[m.clock.iteration](x)
        if before is None:
            assert "churn" not in m.values
        else:
            assert m.values["churn"] == pytest.approx(float((now - before).norm(dim=1).mean()), rel=1e-5, abs=1e-7)
        before = now
        assert 0 <= m.values["dormant_share"] <= 1
        assert ("gradient_cosine" in m.values) == ("trainability_loss" in m.values)
        assert ("trainability_loss" in m.values) == (m.clock.event in ("experience_start", "experience_end"))
    layers = [name for name in m.values if name.startswith("dormant_share[")]
    assert len(layers) == 2


def test_trainability_is_training_of_a_copy_on_labels_drawn_anew():
    ntk, models, _ = trained(
        Plasticity(steps=4, optimizer="SGD", learning_rate=0.1, seed=3), schedule=Schedule.boundaries_only()
    )
    model = copy.deepcopy(models[ntk.trajectory[0].clock.iteration])
    x = ntk.probes["Exp000"].x
    labels = torch.randint(4, (8,), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    values = ntk.trajectory[0].values
    assert values["trainability_loss"] == pytest.approx(losses[-1], rel=1e-5)
    assert values["trainability_area"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert losses[-1] < losses[0]


class Dropped(nn.Module):
    """Random numbers and running statistics in each training pass."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_training_stays_the_same_bit_for_bit(optimizer):
    def final(observe):
        torch.manual_seed(1)
        model = Dropped()
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), observe=observe or (), on_error="raise")
        strategy = make_strategy(model=model, plugins=[ntk] if observe is not None else [])
        run(strategy, tiny_stream())
        return model, torch.get_rng_state()

    (watched, after), (plain, alone) = final([Plasticity(steps=5, optimizer=optimizer)]), final(None)
    assert torch.equal(after, alone)
    for (name, a), (_, b) in zip(watched.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_numbers_that_cannot_be_had_take_no_other_with_them():
    class NoLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(0)))

        def forward(self, x):
            return (x[:, None] * self.weight[..., 0]).sum(-1)

    ntk, _, _ = trained(Plasticity(steps=0), model=NoLinear())
    last = ntk.trajectory[-1]
    assert "calls no linear layer" in last.reasons["feature_rank_srank"]
    assert last.reasons["dormant_share"] == "the model has no hidden layer whose units could be measured"
    assert math.isfinite(last.values["kernel_rank_effective"]) and last.values["gradient_norm"] > 0


def test_refused():
    with pytest.raises(ArgumentError, match="optimizer must be one of SGD, Adam, found 'LBFGS'"):
        Plasticity(optimizer="LBFGS")
    with pytest.raises(ArgumentError, match="steps must be 0 or more"):
        Plasticity(steps=-1)


def test_its_flag_brings_its_numbers_into_the_loggers():
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only())
    strategy = make_strategy(plugins=[ntk], metrics=[ntk_metrics(ntk, plasticity=True)])
    run(strategy, tiny_stream())
    tags = strategy.evaluator.get_all_metrics()
    at = "train_phase/train_stream/Task000/Exp000"
    for name in ("NTK_DormantShare", "NTK_Churn", "NTK_TrainabilityLoss", "NTK_GradientCosine"):
        assert f"{name}/{at}" in tags
    for part in ("numerical", "effective_centred"):
        assert f"NTK_KernelRank/{at}/{part}" in tags
    assert f"NTK_FeatureRank/{at}/srank" in tags
