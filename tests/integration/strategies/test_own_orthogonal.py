"""OGD and PCA-OGD: by hand, against the oracle's Jacobians and the kernel's eigenvectors, with growing heads."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk.strategies import OGD, PCAOGD, OGDPlugin, PCAOGDPlugin
from avalanche_ntk.strategies.directions import Directions, orthonormal
from avalanche_ntk.strategies.memory import remember
from avalanche_ntk.strategies.orthogonal import logit_gradients
from torch import nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import empirical_ntk, reference_jacobian
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.probes import Probe
from tests.integration.strategies.scenarios import MultiHeadMLP
from tests.support.lines import tiny_stream

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
]


class Linear64(nn.Module):
    """A linear model in float64 for float32 inputs."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.double()

    def forward(self, x):
        return self.layer(x.double())


def strategy_of(cls, model, plugins=(), lr=0.1, momentum=0.0, **arguments):
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum),
        train_mb_size=8,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(),
        **arguments,
    )


# ---------------------------------------------------------------------- directions


def test_directions_are_orthonormalised_and_dependent_ones_are_left_out():
    directions = Directions()
    added = directions.add(torch.tensor([[3.0, 6.0], [4.0, 8.0], [0.0, 0.0]]), {"a": (3,)})
    assert (added, len(directions)) == (1, 1)
    assert torch.allclose(directions.parts["a"].abs(), torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64), atol=1e-15)
    # What is new in (3, 4, 2) is the third axis; (1e-14, 0, 0) in front of it is rounding, beside what is stored.
    assert directions.add(torch.tensor([[3.0], [4.0], [2.0]]), {"a": (3,)}) == 1
    basis = directions.basis({"a": (3,)})
    assert torch.allclose(basis @ basis.T, torch.tensor([[0.36, 0.48, 0], [0.48, 0.64, 0], [0, 0, 1]]).double())
    assert directions.add(torch.tensor([[3.0], [4.0], [-7.0]]), {"a": (3,)}) == 0
    assert directions.add(torch.zeros(3, 2), {"a": (3,)}) == 0


def test_directions_of_a_model_that_has_grown_are_0_in_what_is_new():
    directions = Directions()
    directions.add(torch.tensor([[1.0], [2.0], [2.0], [4.0]]), {"w": (2, 2)})
    basis = directions.basis({"new": (1,), "w": (3, 3)})
    sign = basis[1, 0].sign()
    assert (sign * basis[:, 0] * 5).tolist() == pytest.approx([0, 1, 2, 0, 2, 4, 0, 0, 0, 0], abs=1e-14)
    # The next task is stored in the new layout, beside the padded one.
    assert directions.add(torch.eye(10)[:, :1], {"new": (1,), "w": (3, 3)}) == 1
    assert len(directions) == 2


def test_directions_of_a_model_that_has_lost_parameters_are_orthonormal_in_what_is_left():
    directions = Directions()
    directions.add(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), {"a": (2,), "b": (1,)})
    basis = directions.basis({"a": (2,)})
    assert torch.allclose(basis @ basis.T, torch.eye(2).double())
    basis = directions.basis({"b": (1,)})
    assert basis.abs().tolist() == [[pytest.approx(1.0)]]
    assert directions.basis({"c": (1,)}).shape == (1, 0)


def test_nearly_dependent_directions_stay_orthonormal():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(50, 1, generator=generator).double()
    columns = one + 1e-7 * torch.randn(50, 5, generator=generator).double()
    directions = Directions()
    directions.add(columns, {"a": (50,)})
    directions.add(columns + 1e-6 * torch.randn(50, 5, generator=generator), {"a": (50,)})
    basis = directions.basis({"a": (50,)})
    assert basis.shape == (50, 10)
    assert (basis.T @ basis - torch.eye(10)).abs().max() < 1e-13


def test_orthonormal_of_nothing():
    assert orthonormal(torch.zeros(4, 3)).shape == (4, 0)
    assert orthonormal(torch.zeros(4, 0)).shape == (4, 0)


# ---------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("logits", ["true", "all"])
def test_gradients_of_logits_are_the_oracles(logits):
    torch.manual_seed(0)
    model = MLP(6, 4, width=5, depth=2)
    y = torch.tensor([3, 0, 3, 1, 2])
    samples = Probe.from_tensors(torch.randn(5, 6), y)
    oracle = reference_jacobian(model, samples.x)  # (N, C, P)
    expected = oracle[torch.arange(5), y] if logits == "true" else oracle.flatten(0, 1)
    found = logit_gradients(model, samples, logits)
    assert found.shape == expected.T.shape
    assert (found - expected.T).abs().max() < 1e-12


def test_gradients_of_a_multi_head_model_are_those_of_the_samples_own_head():
    torch.manual_seed(0)
    benchmark = tiny_stream(2, shape=(64,), task_labels=True)
    model = MultiHeadMLP()
    strategy = strategy_of(OGD, model, n_samples=4)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    own = strategy.plugins[0]
    assert own.added == [4, 4]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    samples = Probe.from_tensors(torch.randn(3, 64), [2, 3, 3], task_labels=1)
    columns = logit_gradients(model, samples)
    sizes = dict(zip(shapes, columns.split([torch.Size(s).numel() for s in shapes.values()]), strict=True))
    assert sizes["heads.classifiers.0.classifier.weight"].abs().max() == 0
    assert sizes["heads.classifiers.1.classifier.weight"].abs().max() > 0


# ---------------------------------------------------------------------- by hand


def squares(output, y):
    return 0.5 * ((output[:, 0] - 1) ** 2).mean()


def test_one_step_by_hand():
    # f(x) = w·x with target 1. The first task, x = (3, 4), is learned in one step of lr = 1/25: w = (0.12, 0.16). The
    # second, x = (1, 0), has the residual 0.12 − 1 and the gradient −0.88·(1, 0); without its part along (3, 4)/5 that
    # is −0.88·(0.64, −0.48).
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    tasks = [(torch.tensor([x]).double(), torch.tensor([0])) for x in ([3.0, 4.0], [1.0, 0.0])]
    benchmark = tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 0])
    strategy = strategy_of(OGD, model, lr=0.04, n_samples=1, criterion=squares)
    strategy.train(benchmark.train_stream[0])
    assert model.weight.flatten().tolist() == pytest.approx([0.12, 0.16], abs=1e-15)
    strategy.train(benchmark.train_stream[1])
    step = 0.04 * 0.88
    assert model.weight.flatten().tolist() == pytest.approx([0.12 + step * 0.64, 0.16 - step * 0.48], abs=1e-15)
    assert model(torch.tensor([[3.0, 4.0]]).double()).item() == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_linear_model_keeps_its_outputs_on_the_stored_samples(momentum):
    torch.manual_seed(0)
    benchmark = tiny_stream(2)
    model = Linear64(nn.Linear(6, 4))
    strategy = strategy_of(OGD, model, momentum=momentum, n_samples=4, logits="all", train_epochs=3)
    strategy.train(benchmark.train_stream[0])
    strategy.experience = benchmark.train_stream[0]
    stored = remember(strategy, 4, seed=0)
    others = torch.stack([benchmark.train_stream[0].dataset[i][0] for i in range(20)])
    before, before_others = model(stored.x).detach(), model(others).detach()
    strategy.train(benchmark.train_stream[1])
    assert (model(stored.x) - before).abs().max() < 1e-6
    assert (model(others) - before_others).abs().max() > 0.01  # it did train
    # The same without the projection moves them.
    torch.manual_seed(0)
    naive = Linear64(nn.Linear(6, 4))
    strategy = strategy_of(Naive, naive, momentum=momentum, train_epochs=3)
    for experience in tiny_stream(2).train_stream:
        strategy.train(experience)
        outputs = naive(stored.x).detach()
    assert (outputs - before).abs().max() > 0.1


@pytest.mark.parametrize("logits", ["true", "all"])
def test_with_true_logits_only_these_are_kept(logits):
    torch.manual_seed(0)
    benchmark = tiny_stream(2)
    model = Linear64(nn.Linear(6, 4))
    strategy = strategy_of(OGD, model, n_samples=4, logits=logits, train_epochs=3)
    strategy.train(benchmark.train_stream[0])
    strategy.experience = benchmark.train_stream[0]
    stored = remember(strategy, 4, seed=0)
    before = model(stored.x).detach()
    strategy.train(benchmark.train_stream[1])
    moved = (model(stored.x) - before).abs()
    assert moved[torch.arange(4), stored.y].max() < 1e-6
    assert (moved.max() > 0.1) == (logits == "true")


# ---------------------------------------------------------------------- any model


class Watch(SupervisedPlugin):
    """Keeps the gradients of the second experience, flattened, when it is called."""

    def __init__(self):
        super().__init__()
        self.gradients = []

    def before_update(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter == 1:
            self.gradients.append(torch.cat([p.grad.flatten() for p in strategy.model.parameters()]).double())


@pytest.mark.parametrize("cls", [OGDPlugin, PCAOGDPlugin])
def test_the_gradient_is_orthogonal_to_the_stored_directions_and_otherwise_as_it_was(cls):
    torch.manual_seed(0)
    benchmark = tiny_stream(2)
    model = MLP(6, 4, width=16, depth=2)
    own = cls(n_samples=6) if cls is OGDPlugin else cls(n_samples=12, n_components=6)
    raw, projected = Watch(), Watch()
    strategy = strategy_of(Naive, model, plugins=[raw, own, projected])
    strategy.train(benchmark.train_stream[0])
    strategy.experience = benchmark.train_stream[0]
    stored = remember(strategy, own.n_samples, seed=0)
    jacobian = reference_jacobian(model, stored.x)[torch.arange(stored.size), stored.y].T
    span = np.linalg.svd(jacobian.numpy(), full_matrices=False)[0][:, :6]
    strategy.train(benchmark.train_stream[1])
    assert len(raw.gradients) == len(projected.gradients) == 3
    for before, after in zip(raw.gradients, projected.gradients, strict=True):
        g, p = before.numpy(), after.numpy()
        along = span @ (span.T @ g)
        assert np.linalg.norm(along) > 0.1 * np.linalg.norm(g)
        # Gradients are stored in float32: 1e-6 of them is its rounding.
        assert np.linalg.norm(span.T @ p) < 1e-6 * np.linalg.norm(g)
        assert np.linalg.norm(p - (g - along)) < 1e-6 * np.linalg.norm(g)


@pytest.mark.parametrize(("logits", "centre"), [("true", False), ("all", False), ("true", True)])
def test_principal_directions_are_the_kernels_leading_ones(logits, centre):
    torch.manual_seed(0)
    benchmark = tiny_stream(2)
    model = MLP(6, 4, width=16, depth=2)
    strategy = strategy_of(PCAOGD, model, n_samples=12, n_components=5, logits=logits, centre=centre)
    strategy.train(benchmark.train_stream[0])
    own = strategy.plugins[0]
    strategy.experience = benchmark.train_stream[0]
    stored = remember(strategy, 12, seed=0)
    kernel = empirical_ntk(model, stored.x, reduction="full", dtype=torch.float64)  # (N, N, C, C)
    jacobian = reference_jacobian(model, stored.x)
    if logits == "true":
        n = torch.arange(12)
        kernel = kernel[n[:, None], n[None, :], stored.y[:, None], stored.y[None, :]].numpy()
        jacobian = jacobian[n, stored.y].numpy()
    else:
        kernel = kernel.permute(0, 2, 1, 3).reshape(48, 48).numpy()
        jacobian = jacobian.flatten(0, 1).numpy()
    if centre:
        h = np.eye(12) - 1 / 12
        kernel, jacobian = h @ kernel @ h, h @ jacobian
    values, vectors = np.linalg.eigh(kernel)
    leading = vectors[:, ::-1][:, :5]
    assert values[::-1][4] > 1.01 * values[::-1][5]  # there is a gap: which five lead is no matter of rounding
    basis = own.directions.basis({name: tuple(p.shape) for name, p in model.named_parameters()}).numpy()
    assert basis.shape[1] == 5
    # v_i = Jᵀ u_i / √λ_i span what is stored, and J V Vᵀ Jᵀ is the kernel cut to its five leading eigenvectors.
    expected = jacobian.T @ leading / np.sqrt(values[::-1][:5])
    assert np.abs(basis @ basis.T - expected @ expected.T).max() < 1e-10
    cut = leading @ np.diag(values[::-1][:5]) @ leading.T
    assert np.abs(jacobian @ basis @ basis.T @ jacobian.T - cut).max() < 1e-10 * values[-1]


def test_all_components_are_ogd():
    benchmark = tiny_stream(2)
    found = []
    for cls, arguments in ((OGD, {}), (PCAOGD, {"n_components": 6})):
        torch.manual_seed(0)
        model = MLP(6, 4, width=8, depth=1).double()
        model = nn.Sequential(Cast(), model)
        strategy = strategy_of(cls, model, n_samples=6, **arguments)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert (found[0] - found[1]).abs().max() < 1e-10


class Cast(nn.Module):
    def forward(self, x):
        return x.double()


# ---------------------------------------------------------------------- heads that grow


@pytest.fixture
def float64():
    """Avalanche's growing layers are made in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_growing_head_keeps_the_old_tasks_outputs(float64):
    torch.manual_seed(0)
    benchmark = tiny_stream(3)
    model = nn.Sequential(nn.Flatten(), IncrementalClassifier(6))
    strategy = strategy_of(OGD, model, n_samples=2, logits="all", train_epochs=2)
    kept = []
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        for stored, outputs in kept:
            known = outputs.shape[1]
            assert (model(stored.x)[:, :known] - outputs).abs().max() < 1e-6
        strategy.experience = experience
        stored = remember(strategy, 2, seed=number)
        kept.append((stored, model(stored.x).detach()[:, : 2 * number + 2]))
    assert model[1].classifier.weight.shape == (6, 6)
    # Two samples and the logits that are not masked: 2·2 of the first task, 2·4 and 2·6 of the next.
    assert strategy.plugins[0].added == [4, 8, 12]


def test_a_deep_model_with_a_growing_head_is_projected_in_its_common_parameters():
    torch.manual_seed(0)
    benchmark = tiny_stream(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), IncrementalClassifier(8))
    own, watch = OGDPlugin(n_samples=4), Watch()
    strategy = strategy_of(Naive, model, plugins=[own, watch])
    strategy.train(benchmark.train_stream[0])
    strategy.experience = benchmark.train_stream[0]
    stored = remember(strategy, 4, seed=0)
    old = reference_jacobian(model, stored.x)[torch.arange(4), stored.y]  # 6·8 + 8 of the body, 2·8 + 2 of the head
    strategy.train(benchmark.train_stream[1])
    body, weight, bias = old.split([56, 16, 2], 1)
    # The head has grown from two outputs to four: rows of zeros behind the old ones.
    padded = torch.cat([body, weight, torch.zeros(4, 16), bias, torch.zeros(4, 2)], 1)
    for g in watch.gradients:
        assert len(g) == padded.shape[1]
        assert (padded @ g).abs().max() < 1e-6 * padded.norm() * g.norm()
        assert g[56 + 16 : 56 + 32].abs().max() > 0


def test_a_frozen_parameter_is_left_out():
    torch.manual_seed(0)
    benchmark = tiny_stream(3)
    model = MLP(6, 6, width=8, depth=1)
    strategy = strategy_of(OGD, model, n_samples=4)
    strategy.train(benchmark.train_stream[0])
    for p in model.features.parameters():
        p.requires_grad_(False)
        p.grad = None
    strategy.train(benchmark.train_stream[1])
    for p in model.features.parameters():
        p.requires_grad_(True)
    strategy.train(benchmark.train_stream[2])
    own = strategy.plugins[0]
    assert own.added[0] == 4
    basis = own.directions.basis({name: tuple(p.shape) for name, p in model.named_parameters()})
    assert (basis.T @ basis - torch.eye(basis.shape[1])).abs().max() < 1e-12


# ---------------------------------------------------------------------- refusals


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ArgumentError) as error:
        OGDPlugin(logits="true logits")
    assert str(error.value) == "unknown logits 'true logits': expected one of 'all', 'true'."
    with pytest.raises(ArgumentError) as error:
        OGDPlugin(n_samples=0)
    assert str(error.value) == "n_samples must be at least 1; found 0. Give n_samples=100, for example."
    with pytest.raises(ArgumentError) as error:
        PCAOGDPlugin(n_components=0)
    assert str(error.value) == "n_components must be at least 1; found 0. Give n_components=25, for example."
