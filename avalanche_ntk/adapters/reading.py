"""Read-only access to Avalanche's strategies, experiences and streams."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from avalanche.distributed import DistributedHelper
from avalanche.models.utils import is_multi_task_module
from torch import nn

from avalanche_ntk.adapters.tasks import origin_of
from avalanche_ntk.errors import ProbeError
from avalanche_ntk.randomness import preserved_rng_state
from avalanche_ntk.recorder.probes import Probe, ProbeSpec
from avalanche_ntk.recorder.samples import TASKS, Reader, Samples, read_samples, samples, unreadable


def model_of(strategy: Any) -> nn.Module:
    """Return the strategy's model; in distributed training, the module inside the wrapper.

    The inner module's forward pass does not communicate with other processes.
    """
    model: nn.Module = DistributedHelper.unwrap_model(strategy.model)
    return model


def position_of(experience: Any) -> int | None:
    """Return an experience's place in its stream, if it has one."""
    try:
        number = getattr(experience.logging(), "current_experience", None)
    except AssertionError:  # Avalanche raises this for an experience outside a stream
        return None
    return number if isinstance(number, int) else None


def task_label_of(experience: Any) -> int | None:
    """Return an experience's task label; None if it has several or none."""
    labels = getattr(experience, "task_labels", None)
    return int(labels[0]) if labels is not None and len(labels) == 1 else None


def spec_at(spec: ProbeSpec | Probe, experience: Any) -> ProbeSpec | Probe:
    """Return the spec itself; for a spec of each task, the spec of the present task."""
    if isinstance(spec, Probe) or spec.from_experience is not None:
        return spec
    return replace(spec, from_experience=origin_of(experience).current_experience)


def dataset_of(strategy: Any, spec: ProbeSpec, benchmark: Any = None) -> Any:
    """Return the dataset of the experience that a spec names; None when it does not exist yet.

    Args:
        strategy: The strategy.
        spec: Names one experience.
        benchmark: The benchmark that has the streams; None for the one that the training stream names.

    Raises:
        ProbeError: The stream has no such experience, or cannot be found.
    """
    experience = origin_of(strategy.experience)
    assert spec.from_experience is not None  # `spec_at` has replaced a spec of each task
    if experience.current_experience == spec.from_experience and spec.split == "train":
        return experience.dataset
    stream = _stream_of(experience, spec, benchmark)
    known = _experiences(stream)
    if known is None and spec.split == "train":  # a lazy stream makes its experiences when training reaches them
        return None
    with preserved_rng_state():  # a lazy stream may make its experiences now
        known = list(islice(stream, spec.from_experience + 1)) if known is None else known
    if spec.from_experience >= len(known):
        raise ProbeError(
            f"the probe asks for experience {spec.from_experience} and the {stream.name} stream has {len(known)}. "
            f"Give ProbeSpec(from_experience={len(known) - 1}) or less."
        )
    return known[spec.from_experience].dataset


def check_each_task(strategy: Any, spec: ProbeSpec | Probe, benchmark: Any = None) -> None:
    """Check before training that the test stream has an experience for each task of a spec of each task.

    Raises:
        ProbeError: It has fewer.
    """
    if isinstance(spec, Probe) or spec.from_experience is not None or spec.split == "train":
        return
    experience = origin_of(strategy.experience)
    train = _experiences(_stream_of(experience, replace(spec, split="train"), benchmark))
    test = _experiences(_stream_of(experience, spec, benchmark))
    if train is not None and test is not None and len(test) < len(train):
        raise ProbeError(
            f"a test probe of each task needs a test experience for each of the {len(train)} tasks; the test stream "
            f"has {len(test)}. Give ProbeSpec(split='test', from_experience=0) for a probe of one of them."
        )


def _stream_of(experience: Any, spec: ProbeSpec, benchmark: Any) -> Any:
    """Return the whole stream that a spec names.

    Training may use a slice, such as the remainder after a checkpoint. A probe's position counts in the whole stream,
    which the benchmark has.

    Raises:
        ProbeError: It cannot be found.
    """
    trained = experience.origin_stream
    owner = benchmark if benchmark is not None else getattr(trained, "benchmark", None)
    streams = getattr(owner, "streams", {})
    if spec.split == "train":
        return streams.get(trained.name, trained)
    if "test" in streams:
        return streams["test"]
    if streams:
        raise ProbeError(
            f"the probe {spec.label!r} is taken from the stream 'test', and the benchmark has "
            f"{', '.join(map(repr, streams))}. Choose it yourself: ProbeSpec(size={spec.size}, "
            "split='test').choose(dataset)."
        )
    raise ProbeError(
        f"the probe {spec.label!r} is taken from the test stream, and the stream that is trained on does not say which "
        "benchmark it belongs to. Give it to the plugin, NTKPlugin(..., benchmark=benchmark), or choose the probe "
        f"yourself: ProbeSpec(size={spec.size}, split='test').choose(benchmark.test_stream[0].dataset)."
    )


def _experiences(stream: Any) -> Sequence[Any] | None:
    """Return the existing experiences of a stream; None for a lazy stream."""
    for found in (stream, getattr(stream, "exps_iter", None)):
        if hasattr(found, "__len__") and hasattr(found, "__getitem__"):
            return found
    return None


def reader_of(strategy: Any) -> Reader:
    """Return the function that reads samples of a dataset as the strategy's own evaluation would.

    The batch comes from the strategy's `make_eval_dataloader` and goes through its `_unpack_minibatch`, `mb_x`, `mb_y`
    and `mb_task_id`, so strategies that override them are supported. If a batch is a dict, the inputs are the entries
    that the model's forward pass takes by name.
    """
    return partial(_read_by, strategy)


def _read_by(strategy: Any, dataset: Any, indices: Sequence[int]) -> Samples:
    if not hasattr(strategy, "make_eval_dataloader") or not hasattr(dataset, "subset"):
        return read_samples(dataset, indices)
    with _borrowed(strategy, "adapted_dataset", "dataloader", "eval_mb_size", "mbatch"):
        strategy.adapted_dataset = dataset.subset(list(indices)).eval()
        strategy.eval_mb_size = len(indices)
        try:
            strategy.make_eval_dataloader()
            if getattr(strategy.dataloader, "distributed_sampling", False):
                strategy.dataloader.distributed_sampling = False  # every process reads the whole probe
            strategy.mbatch = next(iter(strategy.dataloader))
            strategy._unpack_minibatch()
            x, y = strategy.mb_x, strategy.mb_y
        except Exception as error:
            raise unreadable(error, f"the evaluation data loader of {type(strategy).__name__}") from error
        batch = strategy.mbatch
        if isinstance(batch, Mapping):
            taken = inspect.signature(model_of(strategy).forward).parameters
            x = {name: v for name, v in batch.items() if name in taken and v is not y} or x
            return samples(x, y, batch.get(TASKS))
        tasks = strategy.mb_task_id if hasattr(dataset, TASKS) and len(batch) > 2 else None
        return samples(x, y, tasks)


@contextmanager
def _borrowed(strategy: Any, *names: str) -> Generator[None]:
    """Restore some attributes of a strategy on exit."""
    before = {name: getattr(strategy, name) for name in names if hasattr(strategy, name)}
    try:
        yield
    finally:
        for name in names:
            if name in before:
                setattr(strategy, name, before[name])
            else:
                vars(strategy).pop(name, None)


def iterations_counted(strategy: Any) -> int | None:
    """Return the training iterations counted by Avalanche's clock; None for a strategy without one."""
    found = getattr(getattr(strategy, "clock", None), "train_iterations", None)
    return found if isinstance(found, int) else None


def iterations_per_epoch(dataloader: Any) -> int | None:
    """Return the number of iterations of an epoch; None if the data loader does not know it."""
    try:
        return len(dataloader)
    except Exception:  # noqa: BLE001  (a user's own loader may say so in any way)
        return None


def has_outputs_for(model: nn.Module, probe: Probe) -> bool:
    """Return whether the model has outputs for the probe's tasks: a head is made when training reaches its task."""
    known = getattr(model, "known_train_tasks_labels", None) if is_multi_task_module(model) else None
    return not known or set(probe.task_labels.tolist()) <= set(known)
