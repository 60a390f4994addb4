"""What a strategy of this package remembers of a task: a few samples, chosen without touching training's generators."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from avalanche_ntk.adapters.reading import reader_of
from avalanche_ntk.errors import ArgumentError, is_whole
from avalanche_ntk.kernels.support import live_outputs
from avalanche_ntk.recorder.probes import Probe, ProbeSpec


def remember(strategy: Any, size: int, seed: int) -> Probe:
    """Choose samples of the experience that is being trained, the same number of each class where there are as many.

    They are read as the strategy's own evaluation reads them, by a generator of their own.

    Args:
        strategy: The strategy, with its present experience.
        size: Number of samples; all of them where the experience has fewer.
        seed: Seed of the choice.

    Returns:
        The samples with labels and task labels, on the strategy's device.
    """
    dataset = strategy.experience.dataset
    return ProbeSpec(size=min(size, len(dataset)), seed=seed).choose(dataset, reader_of(strategy)).to(strategy.device)


def labels_for(model: nn.Module, samples: Probe) -> Tensor | None:
    """Return the samples' task labels where the model takes them, None otherwise."""
    return samples.read_only()[1] if is_multi_task_module(model) else None


def call(model: nn.Module, samples: Probe) -> Tensor:
    """Return the model's outputs for the samples, shape `(N, C)`."""
    labels, (x, _) = labels_for(model, samples), samples.read_only()
    out: Tensor = model(x) if labels is None else model(x, labels)
    return out


def live_outputs_on(model: nn.Module, samples: Probe) -> list[int]:
    """Return the outputs that depend on a parameter, trained or not, see `live_outputs`."""
    return live_outputs(model, samples.x, dict(model.named_parameters()), task_labels=labels_for(model, samples))


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Put every module in eval mode and each back into its own mode on exit; gradients flow as ever."""
    flags = [(module, module.training) for module in model.modules()]
    # One by one and not by model.eval(): some modules override it with side effects.
    for module, _ in flags:
        module.training = False
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def at_least(what: str, value: float, least: float, example: float, whole: bool = False) -> None:
    """Refuse a number below the least one that makes sense.

    Args:
        what: Name of the argument.
        value: Its value.
        least: The least one allowed.
        example: One to propose.
        whole: Whether it must be a whole number besides.

    Raises:
        ArgumentError: It is below, or has a part behind the point.
    """
    if not value >= least or (whole and not is_whole(value)):
        kind = "a whole number of at least" if whole else "at least"
        raise ArgumentError(f"{what} must be {kind} {least}; found {value}. Give {what}={example}, for example.")
