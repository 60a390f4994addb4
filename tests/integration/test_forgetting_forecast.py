"""The forecast of forgetting in real runs: exact where the model is linear in what is trained, absent where unknown."""

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.observables import ForgettingForecast
from tests.support.lines import Models, make_strategy, run, tiny_stream


class Double(nn.Module):
    """A frozen backbone with a linear head in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.backbone = nn.Sequential(nn.Linear(6, 20), nn.Tanh()).requires_grad_(False).double()
        self.head = nn.Linear(20, 4).double()

    def forward(self, x):
        return self.head(self.backbone(x.double()))


class SquaredLoss:
    def __call__(self, outputs, labels):
        return nn.functional.mse_loss(outputs, nn.functional.one_hot(labels, outputs.shape[1]).to(outputs))


def trained(observable, *, model=None, criterion=None, epochs=6, batch=24, optimizer=None, stream=None, **arguments):
    models = Models()
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), observe=[observable], on_error="raise", **arguments)
    strategy = make_strategy(model=model or Double(), plugins=[ntk, models], batch=batch, epochs=epochs, lr=0.1)
    if criterion is not None:
        strategy._criterion = criterion
    strategy.optimizer = (optimizer or plain_sgd)(strategy.model)
    run(strategy, stream or tiny_stream())
    return ntk, models.at


def plain_sgd(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def start_and_end(ntk):
    second = [m for m in ntk.trajectory if m.clock.experience == 1]
    assert [m.clock.event for m in second] == ["experience_start", "experience_end"]
    return second


@pytest.mark.parametrize(("loss", "criterion"), [("cross_entropy", None), ("mse", SquaredLoss())])
def test_after_steps_it_is_exact_for_a_linear_head_on_a_frozen_backbone(loss, criterion):
    ntk, models = trained(ForgettingForecast(size=24, loss=loss), criterion=criterion)
    _, end = start_and_end(ntk)
    assert end.values["forgetting_steps_error"] < 1e-8
    assert end.values["forgetting_steps_rank"] == pytest.approx(1.0)
    assert end.values["forgetting_steps_drop"] == end.values["forgetting_drop"]
    x = ntk.probes["Exp000"].x
    with torch.no_grad():
        change = models[12](x) - models[6](x)
    assert end.values["forgetting_change"] == pytest.approx(change.square().sum(1).mean().sqrt().item(), rel=1e-12)


def test_the_limit_is_where_a_linear_head_ends():
    """The nearest head that fits the new task's samples exactly, found by least squares in the features themselves."""
    ntk, models = trained(ForgettingForecast(size=10), stream=tiny_stream(per_class=5), batch=10, epochs=2)
    start, _ = start_and_end(ntk)
    before = models[2]
    experience = tiny_stream(per_class=5).train_stream[1]
    new = torch.stack([x for x, *_ in experience.dataset])
    labels = torch.tensor(list(experience.dataset.targets))
    x, y = ntk.probes["Exp000"].x, ntk.probes["Exp000"].y.numpy()
    with torch.no_grad():
        features, old = (torch.cat([before.backbone(a.double()), torch.ones(len(a), 1)], 1).numpy() for a in (new, x))
        residual = (nn.functional.one_hot(labels, 4) - before(new)).numpy()
        outputs = before(x).numpy()
    change = old @ np.linalg.pinv(features) @ residual
    assert start.values["forgetting_forecast_change"] == pytest.approx(
        np.sqrt(np.square(change).sum(1).mean()), rel=1e-8
    )
    drop = np.mean(outputs.argmax(1) == y) - np.mean((outputs + change).argmax(1) == y)
    assert start.values["forgetting_forecast_drop"] == pytest.approx(drop, abs=1e-12)
    assert start.values["forgetting_forecast_change_error"] > 0
    kernel = np.kron(old @ old.T, np.eye(4))
    vectors = np.linalg.eigh(kernel)[1][:, ::-1][:, :20]
    share = np.square(vectors.T @ change.ravel()).sum() / np.square(change).sum()
    assert start.values["forgetting_forecast_share_20"] == pytest.approx(share, rel=1e-6)


def test_a_deep_network_leaves_its_tangent_plane():
    ntk, _ = trained(ForgettingForecast(size=24), model=MLP(6, 4, width=8, depth=2), epochs=20)
    assert start_and_end(ntk)[1].values["forgetting_steps_error"] > 0.01


def test_nothing_is_said_of_the_first_task():
    ntk, _ = trained(ForgettingForecast())
    first = [m for m in ntk.trajectory if m.clock.experience == 0]
    assert len(first) == 2
    assert not any(name.startswith("forgetting") for m in first for name in (*m.values, *m.reasons))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"optimizer": lambda m: torch.optim.Adam(m.head.parameters())},
            "the forecast supports torch.optim.SGD only; the strategy has Adam",
        ),
        (
            {"outputs": [0, 1]},
            "the new task's classes are not among the kernel's outputs (NTKPlugin(outputs='all') measures them)",
        ),
    ],
)
def test_where_it_does_not_apply_it_says_so(arguments, reason):
    with pytest.warns(UndefinedMeasureWarning, match="forgetting_forecast_change of probe 'Exp000' undefined"):
        ntk, _ = trained(ForgettingForecast(), **arguments)
    start, end = start_and_end(ntk)
    assert start.reasons["forgetting_forecast_change"] == reason
    assert end.reasons["forgetting_limit_error"] == reason


def test_heads_for_each_task_say_nothing_of_each_other():
    from avalanche.models import MultiHeadClassifier
    from avalanche.models.dynamic_modules import MultiTaskModule

    class Heads(MultiTaskModule):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 5), MultiHeadClassifier(5, initial_out_features=4)

        def forward_single_task(self, x, task_label):
            return self.head(self.body(x), task_label)

        def forward(self, x, task_labels):
            return self.head(self.body(x), task_labels)

    with pytest.warns(UndefinedMeasureWarning, match="forgetting_forecast_change"):
        ntk, _ = trained(ForgettingForecast(), model=Heads(), stream=tiny_stream(task_labels=True))
    assert start_and_end(ntk)[0].reasons["forgetting_forecast_change"] == (
        "the model has a head for each task: labels of the new one do not determine the old head's outputs"
    )


def test_unknown_loss():
    with pytest.raises(ArgumentError) as error:
        ForgettingForecast(loss="hinge")
    assert str(error.value) == "loss must be one of cross_entropy, mse, found 'hinge'."


def test_metrics_reach_the_loggers_and_training_stays_the_same_bit_for_bit():
    def weights(with_it):
        torch.manual_seed(0)
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(2))
        strategy = make_strategy(
            plugins=[ntk] if with_it else [], metrics=[ntk_metrics(ntk, forgetting_forecast=True)] if with_it else []
        )
        run(strategy, tiny_stream())
        return strategy

    watched, plain = weights(True), weights(False)
    for p, q in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, q)
    tags = watched.evaluator.get_all_metrics()
    for name in ("ForgettingForecastDrop", "ForgettingDrop", "ForgettingStepsRank"):
        assert f"NTK_{name}/train_phase/train_stream/Task000/Exp000" in tags, name
    assert "NTK_ForgettingForecastShare/train_phase/train_stream/Task000/Exp000/5" in tags
