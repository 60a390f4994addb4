"""What the plugin reads from Avalanche's strategies, experiences and streams. Nothing here changes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from avalanche.distributed import DistributedHelper
from avalanche.models.utils import is_multi_task_module
from torch import nn

from avalanche_ntk.errors import ProbeError
from avalanche_ntk.probes import Probe, ProbeSpec


def model_of(strategy: Any) -> nn.Module:
    """Return the strategy's model; of one that is trained by several processes, the module inside.

    Its forward pass sends nothing to the other processes, which wait for nothing.
    """  # noqa: DOC201  (what is returned stands in the first line)
    model: nn.Module = DistributedHelper.unwrap_model(strategy.model)
    return model


def position_of(experience: Any) -> int | None:
    """Return an experience's place in its stream, if it has one."""
    number = getattr(experience.logging(), "current_experience", None)
    return number if isinstance(number, int) else None


def task_label_of(experience: Any) -> int | None:
    """Return an experience's task label; None when it has several or none."""
    labels = getattr(experience, "task_labels", None)
    return int(labels[0]) if labels is not None and len(labels) == 1 else None


def origin_of(experience: Any) -> Any:
    """Return an experience with its place in the stream; of a piece of an online stream, the task that it is cut from.

    In training mode Avalanche hides an experience's place from strategies; measuring is logging, which sees it.
    """  # noqa: DOC201  (what is returned stands in the first line)
    experience = experience.logging()
    return getattr(experience, "origin_experience", experience)


def spec_at(spec: ProbeSpec | Probe, experience: Any) -> ProbeSpec | Probe:
    """Return the spec itself, or, for one of each task, that of the present task."""
    if isinstance(spec, Probe) or spec.from_experience is not None:
        return spec
    return replace(spec, from_experience=origin_of(experience).current_experience)


def dataset_of(strategy: Any, spec: ProbeSpec) -> Any:
    """Return the dataset of the experience that a spec names; None when it does not exist yet.

    Raises:
        ProbeError: The stream has no such experience.
    """  # noqa: DOC201  (what is returned stands in the first line)
    experience = origin_of(strategy.experience)
    assert spec.from_experience is not None  # one of each task was made one of this task before
    if experience.current_experience == spec.from_experience and spec.split == "train":
        return experience.dataset
    stream = experience.origin_stream
    # What is trained on may be a slice, such as the part that is left after a checkpoint; a probe's place is that in
    # the whole stream, which the benchmark has.
    streams = getattr(getattr(stream, "benchmark", None), "streams", {})
    stream = streams["test"] if spec.split == "test" else streams.get(stream.name, stream)
    try:
        n_experiences = len(stream)
    except TypeError:  # a lazy stream: its experiences exist when training reaches them
        return None
    if spec.from_experience >= n_experiences:
        raise ProbeError(
            f"the probe asks for experience {spec.from_experience} and the {stream.name} stream has {n_experiences}. "
            f"Give ProbeSpec(from_experience={n_experiences - 1}) or less."
        )
    return stream[spec.from_experience].dataset


def iterations_per_epoch(dataloader: Any) -> int | None:
    """Return the number of iterations of an epoch, where the data loader knows it."""
    try:
        return len(dataloader)
    except TypeError:
        return None


def has_outputs_for(model: nn.Module, probe: Probe) -> bool:
    """Tell whether the model has outputs for the probe's tasks: a head is made when training reaches its task."""
    known = getattr(model, "known_train_tasks_labels", None) if is_multi_task_module(model) else None
    return not known or set(probe.task_labels.tolist()) <= set(known)
