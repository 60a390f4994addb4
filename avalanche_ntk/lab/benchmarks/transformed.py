"""Tasks of the same classes whose inputs or labels are transformed: permuted, rotated, relabelled."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_ntk.errors import ArgumentError, checked_seed
from avalanche_ntk.lab.benchmarks.data import LabelledData, load_data
from avalanche_ntk.lab.benchmarks.pool import Data, Pool, number_of_classes, require_tasks, samples_per_class
from avalanche_ntk.lab.benchmarks.streams import benchmark_of


class Permute:
    """Permutes the positions of an input, in the same way for every channel.

    Args:
        order: A permutation of the positions H·W (or of the features of a vector).
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order

    def __call__(self, x: Tensor) -> Tensor:
        """Return the permuted input."""
        flat = x.flatten(1) if x.dim() > 1 else x
        return flat[..., self.order].reshape(x.shape)


class Rotate:
    """Rotates an image counter-clockwise; new corners are 0.

    Args:
        degrees: The angle.
    """

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rotated image; multiples of 90° move pixels without interpolation."""
        quarters, rest = divmod(self.degrees, 90)
        x = torch.rot90(x, int(quarters) % 4, dims=(-2, -1)) if quarters % 4 else x
        if not rest:
            return x
        transforms = importlib.import_module("torchvision.transforms")
        turned: Tensor = transforms.functional.rotate(x, rest, transforms.InterpolationMode.BILINEAR)
        return turned


def permuted(
    data: Data,
    *,
    n_tasks: int = 2,
    classes_per_task: int | None = None,
    fresh: bool = False,
    per_class: int | None = None,
    task_labels: bool = False,
    seed: int = 0,
) -> Any:
    """Tasks with the same classes and different permutations of the pixels; the first task's are not permuted.

    Args:
        data: Data, or a source for `load_data`.
        n_tasks: Number of tasks.
        classes_per_task: Classes of each task; None for all.
        fresh: Whether each task has new samples; the original benchmark repeats them.
        per_class: Training samples of each class in one task; None for the most that `fresh` allows.
        task_labels: Whether each experience has its own task label; otherwise all have 0.
        seed: Seed of classes, samples and orders.

    Returns:
        An Avalanche benchmark of `n_tasks` experiences.

    Raises:
        ArgumentError: There are too few classes or samples; the message gives numbers that work.

    Source: Goodfellow et al. 2013 (permuted MNIST).
    """
    data = load_data(data)
    require_tasks(n_tasks)
    shape = data.input_shape
    positions = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    generator = np.random.default_rng([checked_seed(seed), 3])
    orders = [torch.from_numpy(generator.permutation(positions)) for _ in range(n_tasks - 1)]
    return _transformed(
        data,
        [None, *map(Permute, orders)],
        "permuted",
        "the pixels are in another order in each task but the first",
        {},
        classes_per_task,
        fresh,
        per_class,
        task_labels,
        seed,
    )


def rotated(
    data: Data,
    degrees: Sequence[float] = (0.0, 90.0),
    *,
    classes_per_task: int | None = None,
    fresh: bool = False,
    per_class: int | None = None,
    task_labels: bool = False,
    seed: int = 0,
) -> Any:
    """Tasks with the same classes and images rotated by a different angle each.

    Args:
        data: Images, or a source for `load_data`.
        degrees: The angle of each task, counter-clockwise.
        classes_per_task: Classes of each task; None for all.
        fresh: Whether each task has new samples; the original benchmark repeats them.
        per_class: Training samples of each class in one task; None for the most that `fresh` allows.
        task_labels: Whether each experience has its own task label; otherwise all have 0.
        seed: Seed of classes and samples.

    Returns:
        An Avalanche benchmark with one experience for each angle.

    Raises:
        ArgumentError: The data are not square images, or there are too few classes or samples; the message gives
            numbers that work.

    Source: Lopez-Paz & Ranzato 2017 (MNIST rotations).
    """
    data = load_data(data)
    require_tasks(len(degrees))
    shape = data.input_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ArgumentError(
            f"only square images can be rotated, found inputs of shape {shape}. Give images (channels, side, side), or"
            " use permuted."
        )
    angles = [float(d) for d in degrees]
    return _transformed(
        data,
        [Rotate(d) if d % 360 else None for d in angles],
        "rotated",
        f"images are turned by {', '.join(f'{d:g}°' for d in angles)}",
        {"degrees": angles},
        classes_per_task,
        fresh,
        per_class,
        task_labels,
        seed,
    )


def label_permuted(
    data: Data,
    *,
    n_tasks: int = 2,
    classes_per_task: int | None = None,
    fresh: bool = False,
    per_class: int | None = None,
    task_labels: bool = False,
    seed: int = 0,
) -> Any:
    """Tasks with the same inputs and permuted labels: at each boundary, every class gets another label.

    Args:
        data: Data, or a source for `load_data`.
        n_tasks: Number of tasks.
        classes_per_task: Classes of each task, at least 2; None for all.
        fresh: Whether each task has new samples.
        per_class: Training samples of each class in one task; None for the most that `fresh` allows.
        task_labels: Whether each experience has its own task label; otherwise all have 0.
        seed: Seed of classes, samples and labels.

    Returns:
        An Avalanche benchmark of `n_tasks` experiences.

    Raises:
        ArgumentError: There are too few classes or samples; the message gives numbers that work.
    """
    data = load_data(data)
    require_tasks(n_tasks)
    k = number_of_classes(data, classes_per_task, least=2)
    classes = Pool(data, seed).order[:k]
    generator = np.random.default_rng([seed, 4])
    maps = [{c: c for c in classes}]
    for _ in range(n_tasks - 1):
        # A cycle through all classes in random order changes every label (Sattolo 1986).
        cycle = generator.permutation(classes).tolist()
        onward = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
        maps.append({c: onward[label] for c, label in maps[-1].items()})
    return _transformed(
        data,
        [None] * n_tasks,
        "label_permuted",
        "at each boundary every class gets another label",
        {"labels": [[m[c] for c in classes] for m in maps]},
        k,
        fresh,
        per_class,
        task_labels,
        seed,
        maps,
    )


def _transformed(
    data: LabelledData,
    transforms: Sequence[Callable[[Tensor], Tensor] | None],
    kind: str,
    what: str,
    facts: dict[str, Any],
    classes_per_task: int | None,
    fresh: bool,
    per_class: int | None,
    task_labels: bool,
    seed: int,
    labels: Sequence[Mapping[int, int]] | None = None,
) -> Any:
    """Tasks of the same classes that differ by a transform of inputs or labels."""
    k = number_of_classes(data, classes_per_task)
    pool = Pool(data, seed)
    n_tasks = len(transforms)
    n = samples_per_class(pool, per_class, n_tasks if fresh else 1)
    classes = pool.order[:k]
    train, test = [], []
    for task, transform in enumerate(transforms):
        start = task * n if fresh else 0
        mapping = None if labels is None else labels[task]
        train.append(pool.part(dict.fromkeys(classes, (start, start + n))).changed(transform, mapping))
        test.append(pool.test_part(classes).changed(transform, mapping))
    return benchmark_of(
        data,
        train,
        test,
        kind=kind,
        sentence=f"{kind.replace('_', ' ')}: {n_tasks} tasks of the same {k} classes of {data.name}; {what}; "
        + ("fresh samples in each." if fresh else "the same samples in each."),
        facts={"classes": [classes] * n_tasks, **facts, "fresh": fresh, "per_class": n, "seed": seed},
        task_labels=task_labels,
    )
