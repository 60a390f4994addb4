"""Tangent training: the closed form of gradient descent with a static kernel; a measured kernel that stands still."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk.strategies import Linearised, LinearisedPlugin
from avalanche_ntk.strategies.linearised import linearise
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import reference_jacobian
from avalanche_ntk.lab.models import MLP
from tests.integration.strategies.scenarios import MultiHeadMLP
from tests.support.lines import BatchNormCNN, DropoutMLP, tiny_stream

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
]


def train(cls, model, benchmark, plugins=(), lr=0.1, batch=8, **arguments):
    strategy = cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train_mb_size=batch,
        eval_mb_size=64,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(),
        **arguments,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return strategy


def moved_in(ntk, experience):
    """Distances from the kernel at an experience's start, of all later measurements in it."""
    mine = [m for m in ntk.trajectory if m.clock.experience == experience and m.clock.event != "experience_start"]
    return [m.values["distance_experience_start"] for m in mine]


def half_squares(output, y):
    """½‖f(x) − e_y‖², mean over the samples."""
    return 0.5 * ((output - nn.functional.one_hot(y, output.shape[1])) ** 2).sum(1).mean()


def two_tasks(sizes=(6, 7)):
    generator = torch.Generator().manual_seed(3)
    tasks = [
        (torch.randn(n, 5, generator=generator).double(), torch.randint(0, 3, (n,), generator=generator)) for n in sizes
    ]
    return tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 0]), tasks


def test_training_is_gradient_descent_with_a_static_kernel():
    # Full-batch gradient descent on ½‖f − y‖² of a linear model: with H = J_bᵀJ_b's kernel K and r = f − y on the N
    # training samples, r_T = (1 − ηK/N)^T r_0 and, elsewhere, f_T = f_0 − K_x K⁻¹ (1 − (1 − ηK/N)^T) r_0.
    torch.manual_seed(0)
    model = MLP(5, 3, width=20, depth=2, activation="tanh").double()
    benchmark, tasks = two_tasks()
    steps, lr = 40, 0.2
    x, y = tasks[1]
    elsewhere = torch.randn(4, 5, generator=torch.Generator().manual_seed(4)).double()
    seen = {}

    class Boundary(LinearisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            if self.experience == 0:
                seen["jacobian"] = reference_jacobian(model, x).flatten(0, 1).numpy()
                seen["elsewhere"] = reference_jacobian(model, elsewhere).flatten(0, 1).numpy()
                seen["outputs"] = [model(x).detach().numpy(), model(elsewhere).detach().numpy()]
            super().before_training_exp(strategy, **kwargs)

    train(Naive, model, benchmark, [Boundary()], lr=lr, batch=100, train_epochs=steps, criterion=half_squares)
    j, k_elsewhere = seen["jacobian"], seen["elsewhere"] @ seen["jacobian"].T
    values, vectors = np.linalg.eigh(j @ j.T)
    target = np.eye(3)[y.numpy()]
    r0 = vectors.T @ (seen["outputs"][0] - target).reshape(-1)
    left = (1 - lr * values / len(x)) ** steps
    assert values.min() > 1e-3
    assert 0.01 < left.max() < 1  # it converges and has not yet
    expected = target + (vectors @ (left * r0)).reshape(target.shape)
    assert np.abs(model(x).detach().numpy() - expected).max() < 1e-10
    moved = k_elsewhere @ vectors @ ((1 - left) / values * r0)
    expected = seen["outputs"][1] - moved.reshape(4, 3)
    assert np.abs(moved).max() > 0.1
    assert np.abs(model(elsewhere).detach().numpy() - expected).max() < 1e-10


def test_a_linear_model_trains_as_ever():
    # Its linearisation is itself.
    benchmark, _ = two_tasks()
    found = []
    for cls in (Naive, Linearised):
        torch.manual_seed(0)
        model = nn.Linear(5, 3).double()
        train(cls, model, benchmark, train_epochs=5)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (found[0] - found[1]).abs().max() < 1e-13


def test_the_measured_kernel_stands_still_from_the_boundary_on():
    moved = {}
    for cls in (Naive, Linearised):
        torch.manual_seed(0)
        benchmark, _ = two_tasks((40, 40))
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise")
        train(cls, MLP(5, 3, width=20, depth=2).double(), benchmark, [ntk], train_epochs=2)
        moved[cls] = [moved_in(ntk, e) for e in range(2)]
    assert len(moved[Naive][1]) == 11
    assert moved[Linearised][0] == moved[Naive][0]  # the first task is trained as ever
    assert min(moved[Naive][1]) > 1e-6
    assert max(moved[Linearised][1]) < 1e-25


def test_the_function_does_not_jump_and_its_gradient_is_that_of_the_boundary():
    torch.manual_seed(0)
    model = MLP(5, 3, width=10, depth=2).double()
    x = torch.randn(4, 5).double()
    before, jacobian = model(x).detach(), reference_jacobian(model, x)
    assert linearise(model) is linearise(model)
    assert torch.equal(model(x), before)
    delta = [0.3 * torch.randn_like(p) for p in model.parameters()]
    with torch.no_grad():
        for p, d in zip(model.parameters(), delta, strict=True):
            p += d
    flat = torch.cat([d.flatten() for d in delta])
    assert (model(x) - (before + jacobian @ flat)).abs().max() < 1e-12
    weights = torch.randn(4, 3).double()
    (model(x) * weights).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (gradient - torch.einsum("nc,ncp->p", weights, jacobian)).abs().max() < 1e-12


def test_a_head_that_grows_is_linearised_where_it_was_when_it_came():
    torch.manual_seed(0)
    benchmark = tiny_stream(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), IncrementalClassifier(8))
    ntk = NTKPlugin(ProbeSpec(size=6), Schedule.every_iterations(1), on_error="raise")
    strategy = train(Linearised, model, benchmark, [ntk])
    strategy.eval(benchmark.test_stream)
    forward = model.__dict__["forward"]
    assert {name: b.shape for name, b in forward.base.items()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(type(b) is torch.Tensor and not b.requires_grad for b in forward.base.values())
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(b) for b in forward.base.values())
    moved = moved_in(ntk, 1)
    assert max(moved) < 1e-12  # float32
    # All six outputs are linear in the parameters from here on, the new rows of the head too.
    x = torch.randn(4, 6)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    delta = {n: torch.randn_like(p) for n, p in start.items()}
    values = []
    for scale in (0.0, 1.0, 2.0):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(start[n] + scale * delta[n])
            values.append(model(x))
    assert (values[2] - 2 * values[1] + values[0]).abs().max() < 1e-4
    assert (values[1] - values[0]).abs().min(0).values.min() > 1e-3


def test_a_multi_head_model_is_linearised():
    torch.manual_seed(0)
    benchmark = tiny_stream(3, shape=(64,), task_labels=True)
    ntk = NTKPlugin(ProbeSpec(size=6), Schedule.every_iterations(1), on_error="raise")
    strategy = train(Linearised, MultiHeadMLP(), benchmark, [ntk])
    strategy.eval(benchmark.test_stream)
    moved = moved_in(ntk, 1) + moved_in(ntk, 2)
    assert len(moved) > 6
    assert max(moved) < 1e-12  # float32


def test_statistics_are_those_of_the_boundary_and_dropout_is_off():
    torch.manual_seed(0)
    model = BatchNormCNN()
    model(torch.randn(8, 1, 6, 6))
    linearise(model)
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    x = torch.randn(4, 1, 6, 6)
    assert model.training
    first = model(x)
    assert model.training
    assert {n: torch.equal(b, statistics[n]) for n, b in model.named_buffers()} == dict.fromkeys(statistics, True)
    assert torch.equal(first, model.eval()(x))
    dropout = DropoutMLP()
    linearise(dropout)
    x = torch.randn(4, 6)
    assert torch.equal(dropout(x), dropout(x))


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ArgumentError) as error:
        LinearisedPlugin(from_experience=-1)
    assert str(error.value) == "from_experience must be at least 0; found -1. Give from_experience=1, for example."
