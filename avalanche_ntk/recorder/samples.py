"""Samples as the model sees them: read through the dataset's transforms and collate function.

A dataset's attributes (`targets`) may differ from its items: a transform may rename classes, and a collate function may
pad or scale values. So a batch is made here as a data loader makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import default_collate

from avalanche_ntk.errors import ProbeError, ended
from avalanche_ntk.measures._arrays import as_numpy
from avalanche_ntk.recorder.labels import in_form

TASKS = "targets_task_labels"
"""Avalanche's name of a dataset's task labels, and of their entry in a dict batch."""

_LABELS = ("labels", "label", "targets", "target", "y")


class Samples(NamedTuple):
    """The contents of a batch.

    Attributes:
        x: The inputs.
        y: The labels, in the form of `labels.in_form`.
        task_labels: The task labels; None if the data have none.
    """

    x: Any
    y: np.ndarray
    task_labels: Any


Reader = Callable[[Any, Sequence[int]], Samples]
"""Reads the samples at some positions of a dataset, as one batch."""


def read_samples(dataset: Any, indices: Sequence[int]) -> Samples:
    """Read samples in evaluation mode, as one batch of the dataset's own collate function.

    Args:
        dataset: A dataset whose items are `(x, y, …)` or dicts; for an Avalanche dataset, the evaluation transforms and
            the `collate_fn` are used.
        indices: Positions in it.

    Returns:
        The samples.

    Raises:
        ProbeError: The items have no label or cannot be collated into one batch.
    """  # noqa: DOC501
    evaluation = dataset.eval() if hasattr(dataset, "eval") else dataset
    collate = getattr(dataset, "collate_fn", None) or default_collate
    with_tasks = hasattr(dataset, TASKS)
    try:
        batch = collate([evaluation[i] for i in indices])
    except Exception as error:
        raise unreadable(error, f"the collate function of {type(dataset).__name__}") from error
    if isinstance(batch, Mapping):
        key = next((name for name in _LABELS if name in batch), None)
        if key is None:
            raise no_labels(f"batches with the entries {', '.join(map(repr, batch))}")
        x = {name: value for name, value in batch.items() if name not in (key, TASKS)}
        return samples(x, batch[key], batch.get(TASKS))
    if not isinstance(batch, (list, tuple)) or len(batch) < 2:
        one = isinstance(batch, (list, tuple))
        raise no_labels("batches of one entry" if one else f"batches of type {type(batch).__name__}")
    # The last entry, as Avalanche's strategies take it.
    return samples(batch[0], batch[1], batch[-1] if with_tasks and len(batch) > 2 else None)


def samples(x: Any, y: Any, task_labels: Any) -> Samples:
    """Return inputs, labels in their form, and task labels.

    Raises:
        ProbeError: The labels are neither classes nor numeric targets.
    """
    return Samples(x, in_form(as_array(y)), task_labels)


def as_array(values: Any) -> np.ndarray:
    """Convert labels to an array: a tensor on any device, an array, or a sequence of numbers or tensors."""
    if isinstance(values, (list, tuple)):
        values = [as_numpy(value) if hasattr(value, "detach") else value for value in values]
    try:
        return as_numpy(values)
    except ValueError:  # rows of different lengths
        return np.asarray([None])


def unreadable(error: Exception, how: str) -> ProbeError:
    """Return the error for samples that cannot be read."""
    return ProbeError(
        f"the samples of the probe cannot be read through {how}: {ended(f'{type(error).__name__}: {error}')} Training "
        "reads its batches in the same way: fix the data, or give the probe's samples with Probe.from_tensors(x, y)."
    )


def no_labels(found: str) -> ProbeError:
    """Return the error for data without labels."""
    return ProbeError(
        "a probe needs labelled samples: batches (x, y) or (x, y, task labels), or a dict with 'labels'; found "
        f"{found}. Give the samples with Probe.from_tensors(x, y)."
    )
