"""Prediction of the costs of training and measuring, from a short timing."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.experiments.single import factories_of_this_folder, on_device
from avalanche_ntk.kernels.support import synchronise
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.recorder.cost import PROJECTIONS, SPARSER, Cost, Task
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.recorder.recorder import NTKRecorder
from avalanche_ntk.recorder.schedule import Schedule

REDUCTIONS = ("trace", "projected", "sum_logits")
SCHEDULES = ("around_boundaries", *SPARSER)

_LEAST, _MOST, _SECONDS = 2, 20, 2.0  # least and most iterations timed per reduction; seconds after which to stop


@dataclass(frozen=True)
class Measuring:
    """Cost of one reduction.

    Attributes:
        reduction: The reduction.
        n_projections: Number of sign vectors, for "projected".
        seconds: Seconds of a measurement.
        costs: Cost of a task, by schedule.
    """

    reduction: str
    n_projections: int | None
    seconds: float
    costs: Mapping[str, Cost]


@dataclass(frozen=True)
class Costs:
    """Costs of training and of each reduction.

    Attributes:
        epochs: Epochs of a task.
        iterations_per_epoch: Iterations of an epoch.
        iteration_seconds: Seconds of a training iteration: forward and backward pass, and a step of SGD.
        measuring: Cost of each reduction.
    """

    epochs: int
    iterations_per_epoch: int
    iteration_seconds: float
    measuring: tuple[Measuring, ...]


def costs_of(
    model: str,
    data: str,
    *,
    size: int = 64,
    mb_size: int = 64,
    epochs: int = 10,
    iterations_per_epoch: int | None = None,
    n_projections: int = PROJECTIONS,
    n_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> Costs:
    """Train a model for a few iterations, measure its kernel at each, and predict the cost of tasks.

    Args:
        model: Argument of `build_model`, such as `module:factory`.
        data: Argument of `load_data`.
        size: Number of samples N of the probe.
        mb_size: Size of the training minibatch.
        epochs: Epochs of a task.
        iterations_per_epoch: Iterations of an epoch; None for those of all training samples.
        n_projections: Number of sign vectors, for "projected".
        n_classes: Number of outputs C; None for that of the data.
        arguments: Arguments of the model.
        data_root: Folder of torchvision's datasets.
        download: Whether torchvision may download the data.
        seed: Seed of the weights.
        device: Device.

    Returns:
        The costs.

    Raises:
        ArgumentError: An argument cannot be used.
    """
    loaded = load_data(data, data_root=data_root, download=download, seed=seed)
    n = len(loaded.train_labels)
    if size > n:
        raise ArgumentError(f"{data} has {n} training samples, found size={size}. Give a smaller --probe-size.")
    mb_size = min(mb_size, n)
    # From every class, even if the data are sorted.
    chosen = torch.linspace(0, n - 1, max(size, mb_size), device="cpu").long()
    x, y = torch.stack([loaded.train[int(i)][0] for i in chosen]), loaded.train_labels[chosen]
    factories_of_this_folder()
    net = build_model(
        model, input_shape=tuple(x.shape[1:]), n_classes=n_classes or loaded.n_classes, seed=seed, **(arguments or {})
    )
    net, moved = on_device(net, x, device)
    probe, batch = Probe.from_tensors(x[:size], y[:size], name="probe"), (moved[:mb_size], y[:mb_size].to(device))
    iterations: list[float] = []
    seconds: dict[str, float] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about numbers, which are not used here
        for reduction in REDUCTIONS:
            further = {"n_projections": n_projections} if reduction == "projected" else {}
            steps, seconds[reduction] = _timed(net, probe, batch, reduction=reduction, **further)
            iterations += steps
    length = epochs, iterations_per_epoch or -(-n // mb_size)
    iteration = median(iterations[1:])  # the first one is a warm-up
    measuring = []
    for reduction, measurement in seconds.items():
        task = Task(*length, iteration, measurement)
        costs = {name: task.cost(Schedule.from_name(name)) for name in SCHEDULES}
        measuring.append(Measuring(reduction, n_projections if reduction == "projected" else None, measurement, costs))
    return Costs(*length, iteration, tuple(measuring))


def _timed(
    net: nn.Module, probe: Probe, batch: tuple[torch.Tensor, torch.Tensor], **options: Any
) -> tuple[list[float], float]:
    """Return the seconds of each training iteration and of a measurement, with the device synchronised."""
    recorder = NTKRecorder(probe, Schedule.every_iterations(1), on_error="raise", **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)  # small enough that weights do not overflow
    x, y = batch
    iterations: list[float] = []
    net.train()
    with recorder.experience(net, optimizer):
        while len(iterations) < _LEAST or (recorder.measuring_seconds < _SECONDS and len(iterations) < _MOST):
            synchronise(x.device)
            begin = time.perf_counter()
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            synchronise(x.device)
            iterations.append(time.perf_counter() - begin)
            recorder.after_iteration()
    measured = [m.values["measurement_seconds"] for m in recorder.trajectory]
    return iterations, median(measured[1:])  # the first one also makes the plan and runs the spot check
