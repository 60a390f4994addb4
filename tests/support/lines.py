"""A small real run, built the way a user builds it."""

import copy
import io
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import TextLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.models import MLP

DEVICE = torch.device("cpu")  # where strategies train; `--device` says another one


class Models(SupervisedPlugin):
    """Keeps the model at the end of each iteration."""

    def __init__(self):
        super().__init__()
        self.at = {}

    def before_training_exp(self, strategy, **kwargs):
        self.at[strategy.clock.train_iterations] = copy.deepcopy(strategy.model)

    def after_training_iteration(self, strategy, **kwargs):
        self.at[strategy.clock.train_iterations + 1] = copy.deepcopy(strategy.model)


def tiny_stream(n_experiences=2, per_class=12, shape=(6,), seed=0, task_labels=False, transform=None, **arguments):
    """Gaussian blobs, two classes for each experience; float32 inputs of the given shape."""
    generator = torch.Generator().manual_seed(seed)
    n_classes = 2 * n_experiences
    means = 2 * torch.randn(n_classes, *shape, generator=generator)
    y = torch.arange(n_classes).repeat_interleave(per_class)
    x = means[y] + torch.randn(len(y), *shape, generator=generator)
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()
    return nc_benchmark(
        dataset,
        dataset,
        n_experiences=n_experiences,
        task_labels=task_labels,
        seed=seed,
        fixed_class_order=list(range(n_classes)),
        train_transform=transform,
        eval_transform=None,
        **arguments,
    )


class DropoutMLP(nn.Module):
    def __init__(self, n_classes=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, n_classes))

    def forward(self, x):
        return self.net(x)


class BatchNormCNN(nn.Module):
    def __init__(self, n_classes=4):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(n_classes),
        )
        self.net(torch.zeros(2, 1, 6, 6))

    def forward(self, x):
        return self.net(x)


def make_strategy(
    benchmark: Any = None,
    model: nn.Module | None = None,
    plugins: Sequence[Any] = (),
    metrics: Sequence[Any] = (),
    loggers: Sequence[Any] | None = None,
    strategy: type = Naive,
    epochs: int = 2,
    batch: int = 8,
    lr: float = 0.1,
    **arguments: Any,
):
    model = model if model is not None else MLP(6, 4, width=8, depth=1)
    device = arguments.pop("device", DEVICE)
    model = model.to(device)
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(experience=True),
        *metrics,
        loggers=[TextLogger(io.StringIO())] if loggers is None else loggers,
    )
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=epochs,
        eval_mb_size=64,
        plugins=list(plugins),
        evaluator=evaluator,
        device=device,
        **arguments,
    )


def run(strategy, benchmark):
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return strategy


def run_with_ntk(benchmark=None, ntk=None, **arguments):
    """Train on a tiny stream with the plugin and its metrics; return plugin and strategy."""
    benchmark = benchmark if benchmark is not None else tiny_stream()
    ntk = ntk if ntk is not None else NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise")
    strategy = make_strategy(benchmark, plugins=[ntk], metrics=[ntk_metrics(ntk)], **arguments)
    run(strategy, benchmark)
    return ntk, strategy


@dataclass
class BatchRecorder:
    """An Avalanche plugin that keeps the order of the training batches."""

    batches: list[list[int]] = field(default_factory=list)

    def after_training_iteration(self, strategy, **kwargs):
        sums = strategy.mb_x.double().flatten(1).sum(1)
        self.batches.append(strategy.mb_y.tolist() + sums.tolist())


def fingerprint(strategy) -> dict[str, Any]:
    """Everything that training depends on, to be compared bit by bit."""
    model = strategy.model
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": strategy.optimizer.state_dict(),
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": [*np.random.get_state()[1].tolist(), np.random.get_state()[2]],
        "python": random.getstate(),
    }


def step_hooks() -> int:
    """Number of hooks that every optimizer's step calls."""
    module = sys.modules["torch.optim.optimizer"]  # which torch takes out of its package's namespace
    return len(module._global_optimizer_pre_hooks) + len(module._global_optimizer_post_hooks)


def seed_everything(seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def differences(a, b, path="") -> list[str]:
    """Names of the places where two nested structures of tensors and plain values differ, compared exactly."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: lengths {len(a)} and {len(b)}"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}/{i}")]
    return [] if type(a) is type(b) and a == b else [path]
