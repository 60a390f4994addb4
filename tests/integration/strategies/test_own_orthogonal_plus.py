"""OGD+: the directions of a boundary are those of the model as it is there, on samples of all tasks so far."""

import numpy as np
import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import IncrementalClassifier
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk.strategies import OGD, OGDPlus, OGDPlusPlugin
from torch import nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import reference_jacobian
from avalanche_ntk.lab.models import MLP
from tests.integration.strategies.scenarios import MultiHeadMLP
from tests.support.lines import tiny_stream

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
]


def strategy_of(cls, model, lr=0.1, **arguments):
    return cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train_mb_size=8,
        evaluator=EvaluationPlugin(),
        **arguments,
    )


def basis_of(strategy):
    return strategy.plugins[0].directions.basis({n: tuple(p.shape) for n, p in strategy.model.named_parameters()})


class Product(nn.Module):
    """f(x) = u v x, whose gradient is (v, u) x."""

    def __init__(self, u, v):
        super().__init__()
        self.u, self.v = (nn.Parameter(torch.tensor([w], dtype=torch.float64)) for w in (u, v))

    def forward(self, x):
        return self.u * self.v * x.double()


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        # At (1, 2) the direction is (2, 1)/√5, at (3, 1) it is (1, 3)/√10: OGD holds both, OGD+ the last.
        (OGDPlus, [[0.1, 0.3], [0.3, 0.9]]),
        (OGD, [[1.0, 0.0], [0.0, 1.0]]),
    ],
)
def test_the_directions_by_hand(cls, expected):
    model = Product(1.0, 2.0)
    tasks = [(torch.tensor([[x]]), torch.tensor([0])) for x in (2.0, 5.0)]
    benchmark = tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 0])
    strategy = strategy_of(cls, model, lr=0.0, n_samples=1)
    strategy.train(benchmark.train_stream[0])
    first = basis_of(strategy)
    assert torch.allclose(first @ first.T, torch.tensor([[0.8, 0.4], [0.4, 0.2]]).double(), atol=1e-14)
    with torch.no_grad():
        model.u.fill_(3.0)
        model.v.fill_(1.0)
    strategy.train(benchmark.train_stream[1])
    both = basis_of(strategy)
    assert torch.allclose(both @ both.T, torch.tensor(expected).double(), atol=1e-14)


@pytest.mark.parametrize("logits", ["true", "all"])
def test_the_directions_span_the_oracles_gradients_of_all_tasks(logits):
    torch.manual_seed(0)
    model = MLP(6, 6, width=8, depth=2)
    benchmark = tiny_stream(3)
    strategy = strategy_of(OGDPlus, model, n_samples=4, logits=logits)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    own = strategy.plugins[0]
    assert [s.y.unique().tolist() for s in own.remembered] == [[0, 1], [2, 3], [4, 5]]
    rows = []
    for samples in own.remembered:
        jacobian = reference_jacobian(model, samples.x)
        rows.append(jacobian[torch.arange(4), samples.y] if logits == "true" else jacobian.flatten(0, 1))
    u, s, _ = np.linalg.svd(torch.cat(rows).T.numpy(), full_matrices=False)
    span = u[:, s > 1e-10 * s[0]]
    basis = basis_of(strategy).numpy()
    assert own.added[-1] == basis.shape[1] == span.shape[1]
    assert np.abs(basis @ basis.T - span @ span.T).max() < 1e-9


def test_where_the_kernel_does_not_move_it_is_ogd():
    found = []
    for cls in (OGD, OGDPlus):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6)).double()
        model.register_forward_pre_hook(lambda module, args: (args[0].double(),))
        strategy = strategy_of(cls, model, n_samples=2, logits="all", train_epochs=2)
        for experience in tiny_stream(3).train_stream:
            strategy.train(experience)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (found[0] - found[1]).abs().max() < 1e-10


def test_a_head_that_grows_and_a_head_for_each_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), IncrementalClassifier(8))
    strategy = strategy_of(OGDPlus, model, n_samples=4)
    for experience in tiny_stream(3).train_stream:
        strategy.train(experience)
    assert strategy.plugins[0].added == [4, 8, 12]
    model = MultiHeadMLP()
    strategy = strategy_of(OGDPlus, model, n_samples=4)
    for experience in tiny_stream(2, shape=(64,), task_labels=True).train_stream:
        strategy.train(experience)
    own = strategy.plugins[0]
    assert own.added == [4, 8]
    # Samples of the first task go through the first head.
    assert own.directions.parts["heads.classifiers.0.classifier.weight"].abs().max() > 0


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ArgumentError) as error:
        OGDPlusPlugin(n_samples=0)
    assert str(error.value) == "n_samples must be at least 1; found 0. Give n_samples=100, for example."
