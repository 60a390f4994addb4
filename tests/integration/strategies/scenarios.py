"""The rest of the matrix: plugins of Avalanche, strategies of a user's own, kinds of streams and of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP, MultiHeadClassifier, MultiTaskModule
from avalanche.training import Naive, OnlineNaive
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, LRSchedulerPlugin
from torch import Tensor, nn

from avalanche_ntk import NTKPlugin, ntk_metrics
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.lab.models import MLP
from tests.integration.strategies.unchanged import Job
from tests.support.lines import BatchNormCNN, DropoutMLP


@dataclass(frozen=True)
class Scenario:
    """One case: how it is made, what a reader should know, and how many experiences make one task."""

    make: Callable[[list[Any]], Job]
    note: str = ""
    plugin: dict[str, Any] = field(default_factory=dict)
    pieces: int = 1


def strategy(
    plugins: list[Any],
    model: nn.Module | None = None,
    *,
    cls: Any = Naive,
    criterion: Any = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    **arguments: Any,
) -> Any:
    """A strategy of a small model; plain SGD with momentum, accuracy and loss, the plugin's metrics."""
    model = MLP(64, 10, width=16, depth=1) if model is None else model
    metrics = [loss_metrics(epoch=True, stream=True), accuracy_metrics(epoch=True, stream=True)]
    metrics += [ntk_metrics(p) for p in plugins if isinstance(p, NTKPlugin)]
    make = optimizer or (lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9))
    return cls(
        model=model,
        optimizer=make(model),
        criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
        train_mb_size=32,
        eval_mb_size=256,
        plugins=plugins,
        evaluator=EvaluationPlugin(*metrics, loggers=[]),
        **arguments,
    )


def train(cls: Any, model: nn.Module, benchmark: Any, plugins: Any = (), **arguments: Any) -> Any:
    """A strategy of this package, trained on all experiences by plain SGD."""
    strategy = cls(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_mb_size=8,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(),
        **arguments,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return strategy


def digits(made: Any, n: int = 2, **arguments: Any) -> Job:
    """Train on the first `n` experiences of Split-Digits."""
    benchmark = split_digits(5, **arguments)
    return Job(made, list(benchmark.train_stream)[:n], benchmark.test_stream[:n])


def scheduled(plugins: list[Any]) -> Job:
    model = MLP(64, 10, width=16, depth=1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    step = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(sgd, 3, gamma=0.5), step_granularity="iteration")
    return digits(strategy([*plugins, step], model, optimizer=lambda m: sgd))


def stopped_early(plugins: list[Any]) -> Job:
    stop = EarlyStoppingPlugin(patience=1, val_stream_name="test_stream", margin=1.0)
    benchmark = split_digits(5)
    made = strategy([*plugins, stop], train_epochs=4, eval_every=1)
    job = Job(made, list(benchmark.train_stream)[:2], benchmark.test_stream[:2])
    job.train_arguments["eval_streams"] = [benchmark.test_stream[:2]]
    return job


def groups(model: nn.Module) -> torch.optim.Optimizer:
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    return torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3)


class Accumulating(Naive):
    """One optimizer step for every three minibatches."""

    seen = 0

    def optimizer_step(self) -> None:
        self.seen += 1
        if self.seen % 3 == 0:
            self.optimizer.step()


class Repeating(Naive):
    """Three optimizer steps on every minibatch."""

    def optimizer_step(self) -> None:
        self.optimizer.step()
        for _ in range(2):
            self.optimizer.zero_grad()
            self._criterion(self.model(self.mb_x), self.mb_y).backward()
            self.optimizer.step()


class MixedPrecision(Naive):
    """Forward pass and loss under bfloat16 autocast."""

    def forward(self) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward()

    def criterion(self) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().criterion()


def squares(output: Tensor, y: Tensor) -> Tensor:
    return ((output - nn.functional.one_hot(y, output.shape[1])) ** 2).mean()


def online(plugins: list[Any], cls: Any, **arguments: Any) -> Job:
    benchmark = split_digits(5)
    pieces = split_online_stream(benchmark.train_stream[:2], experience_size=96, drop_last=False)
    return Job(strategy(plugins, cls=cls, **arguments), list(pieces), benchmark.test_stream[:2])


def domains(plugins: list[Any], change: Callable[[Tensor, int], Tensor]) -> Job:
    """Two tasks of the same classes, the inputs changed from one to the other."""
    x = torch.cat([e.dataset[i][0][None] for e in split_digits(5).train_stream[:2] for i in range(64)])
    y = torch.tensor([int(e.dataset[i][1]) for e in split_digits(5).train_stream[:2] for i in range(64)])
    tasks = [(change(x, task), y) for task in range(2)]
    benchmark = tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 0])
    return Job(strategy(plugins), list(benchmark.train_stream), benchmark.test_stream)


def permuted(x: Tensor, task: int) -> Tensor:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(task))
    return x.flatten(1)[:, order].view_as(x)


def growing() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), IncrementalClassifier(16))


class MultiHeadMLP(MultiTaskModule):
    """Features with dropout, and a head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2))
        self.heads = MultiHeadClassifier(16)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        return self.heads(self.features(x), task_labels)


class Pixels(nn.Module):
    """A model made for 6 numbers or 6×6 pixels, fed with digits."""

    def __init__(self, inner: nn.Module, flat: bool) -> None:
        super().__init__()
        self.inner, self.flat = inner, flat

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, 0, 3, 1:7] if self.flat else x[:, :, 1:7, 1:7])


SCENARIOS: dict[str, Scenario] = {
    "LRScheduler": Scenario(scheduled, "step size halved every 3 iterations"),
    "EarlyStopping": Scenario(stopped_early, "stops after a validation within training; fewer epochs than asked for"),
    "weight decay by parameter group": Scenario(
        lambda p: digits(strategy(p, optimizer=groups)),
        "AdamW, two groups",
    ),
    "gradient accumulation": Scenario(
        lambda p: digits(strategy(p, cls=Accumulating)), "velocity per step counts the steps that happened"
    ),
    "several optimizer steps a minibatch": Scenario(lambda p: digits(strategy(p, cls=Repeating))),
    "bfloat16 autocast": Scenario(
        lambda p: digits(strategy(p, cls=MixedPrecision)), "the kernel is computed without autocast, in float32"
    ),
    "squared error": Scenario(lambda p: digits(strategy(p, criterion=squares))),
    "dropout": Scenario(lambda p: digits(strategy(p, Pixels(DropoutMLP(10), True))), "kernel in eval mode"),
    "BatchNorm": Scenario(lambda p: digits(strategy(p, Pixels(BatchNormCNN(10), False))), "kernel in eval mode"),
    "online stream, OnlineNaive": Scenario(
        lambda p: online(p, OnlineNaive), "boundaries are changes of task: the pieces of a task are none", pieces=3
    ),
    "online stream, task-free": Scenario(
        lambda p: online(p, Naive, train_epochs=1), "one task label throughout; boundaries as above", pieces=3
    ),
    "multi-head, task-incremental": Scenario(
        lambda p: digits(strategy(p, MultiHeadMLP()), task_labels=True), "logits of the probe's task"
    ),
    "multi-head, Avalanche's MTSimpleMLP": Scenario(
        lambda p: digits(strategy(p, MTSimpleMLP(input_size=64, hidden_size=16)), task_labels=True),
        "logits of the probe's task",
    ),
    "domain-incremental, permuted": Scenario(lambda p: domains(p, permuted)),
    "domain-incremental, rotated": Scenario(lambda p: domains(p, lambda x, task: torch.rot90(x, task, (2, 3)))),
    "growing head (IncrementalClassifier)": Scenario(
        lambda p: digits(strategy(p, growing())),
        "outputs of the first task's classes; those masked at first are left out",
    ),
    "growing head, all outputs": Scenario(
        lambda p: digits(strategy(p, growing())),
        'outputs="all": unmasking a class changes the kernel',
        {"outputs": "all"},
    ),
}
