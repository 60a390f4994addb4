"""The pool of samples for shifts: samples by class in an order drawn from the seed, and checks of requested numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from avalanche_ntk.errors import ArgumentError, checked_seed
from avalanche_ntk.lab.benchmarks.data import LabelledData
from avalanche_ntk.lab.benchmarks.streams import Part

Data = LabelledData | str | Path


class Pool:
    """Samples by class, and the classes, in random orders drawn from the seed."""

    def __init__(self, data: LabelledData, seed: int) -> None:
        self.data, self.seed = data, checked_seed(seed)
        self.train = _by_class(data.train_labels, data.n_classes, np.random.default_rng([seed, 0]))
        self.test = _by_class(data.test_labels, data.n_classes, np.random.default_rng([seed, 1]))
        self.order: list[int] = np.random.default_rng([seed, 2]).permutation(data.n_classes).tolist()

    def fewest(self, classes: Sequence[int] | None = None) -> int:
        """Training samples of the smallest class."""
        return min(len(self.train[c]) for c in (range(self.data.n_classes) if classes is None else classes))

    def part(self, samples: Mapping[int, tuple[int, int]]) -> Part:
        """Training samples `start … stop` of each class."""
        # In the data's own order, so that an unshuffled loader does not get the classes one after another.
        return Part(self.data.train, sorted((i, c) for c, (a, b) in samples.items() for i in self.train[c][a:b]))

    def test_part(self, classes: Sequence[int]) -> Part:
        """Equally many test samples of each class."""
        n = min(len(members) for members in self.test)
        return Part(self.data.test, sorted((i, c) for c in classes for i in self.test[c][:n]))


def _by_class(labels: Tensor, n_classes: int, generator: np.random.Generator) -> list[list[int]]:
    values = labels.numpy()
    return [generator.permutation(np.flatnonzero(values == c)).tolist() for c in range(n_classes)]


def number_of_classes(data: LabelledData, wanted: int | None, least: int = 1) -> int:
    """Return the number of classes of a task; all classes if `wanted` is None.

    Raises:
        ArgumentError: It is below `least` or above the number of classes.
    """
    n = data.n_classes if wanted is None else wanted
    if not least <= n <= data.n_classes:
        raise ArgumentError(
            f"{data.name} has {data.n_classes} classes, found classes_per_task={wanted}."
            f" Use a number from {least} to {data.n_classes}."
        )
    return n


def samples_per_class(pool: Pool, wanted: int | None, draws: int, classes: Sequence[int] | None = None) -> int:
    """Return the samples per class in one task if each class is drawn from `draws` times; None for the maximum.

    Raises:
        ArgumentError: There are too few samples.
    """
    fewest = pool.fewest(classes)
    most = fewest // draws
    if most < 1 or (wanted is not None and not 1 <= wanted <= most):
        times = "once" if draws == 1 else f"{draws} times, without repetition,"
        remedy = f"Use per_class={most} or less" if most else "Take data with more samples of each class"
        if draws > 1:
            remedy += ", or the same samples in each task (fresh=False)" if draws == 2 else ", or fewer tasks"
        raise ArgumentError(
            f"each task takes samples of a class {times} and the smallest class of {pool.data.name} has {fewest};"
            f" found per_class={wanted}. {remedy}."
        )
    return most if wanted is None else wanted


def require_tasks(n_tasks: int) -> None:
    """Refuse fewer than two tasks.

    Raises:
        ArgumentError: There are fewer than two.
    """
    if n_tasks < 2:
        raise ArgumentError(f"a shift needs at least two tasks, found n_tasks={n_tasks}. Use n_tasks=2 or more.")


def names_of(data: LabelledData, classes: Sequence[int]) -> list[str]:
    """Return the names of classes."""
    return [data.class_names[c] for c in classes]
