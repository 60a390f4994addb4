"""Gradual boundaries: mixtures of two tasks between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.lab.benchmarks.data import load_data
from avalanche_ntk.lab.benchmarks.pool import Data, Pool
from avalanche_ntk.lab.benchmarks.shifts import class_incremental
from avalanche_ntk.lab.benchmarks.streams import Part, benchmark_of


def blurred(
    data: Data,
    classes_per_task: int = 2,
    *,
    steps: int = 3,
    n_tasks: int | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Any:
    """Class-incremental tasks with gradual boundaries: `steps` mixtures of A and B between two tasks A and B.

    Mixture j of `steps` holds `1 − j/(steps+1)` of A and `j/(steps+1)` of B; all experiences have the same size, no
    sample is in two of them, and all have task label 0. Its limit `steps=0` is `class_incremental`.

    Args:
        data: Data, or a source for `load_data`.
        classes_per_task: k.
        steps: Mixtures at each boundary.
        n_tasks: Number of pure tasks, as in `class_incremental`.
        per_class: Training samples of each class in a pure task; None for the maximum.
        seed: Seed of the classes and samples.

    Returns:
        An Avalanche benchmark of `n_tasks + (n_tasks − 1) · steps` experiences.

    Raises:
        ArgumentError: There are too few classes or samples; the message gives numbers that work.
    """
    data = load_data(data)
    if steps < 0:
        raise ArgumentError(f"steps must be 0 or more, found {steps}. Use 3, for example.")
    pure = class_incremental(data, classes_per_task, n_tasks=n_tasks, seed=seed).description.facts["classes"]
    pool = Pool(data, seed)
    fewest = pool.fewest()
    # A class with a task before and after it takes part in two boundaries.
    most = next((n for n in range(fewest, 0, -1) if _blurred_need(n, steps, len(pure)) <= fewest), 0)
    if not most or (per_class is not None and not 1 <= per_class <= most):
        remedy = f"Use per_class={most} or less, or fewer steps" if most else f"Use steps={fewest - 1} or less"
        raise ArgumentError(
            f"a class is spread over its task and {steps} mixtures at each side, and the smallest class of {data.name}"
            f" has {fewest} samples; found per_class={per_class}. {remedy}."
        )
    n = most if per_class is None else per_class
    used = dict.fromkeys([c for classes in pure for c in classes], 0)

    def take(share: Mapping[int, int]) -> Part:
        span = {c: (used[c], used[c] + count) for c, count in share.items() if count}
        used.update({c: stop for c, (_, stop) in span.items()})
        return pool.part(span)

    train, test, present = [], [], []
    for number, classes in enumerate(pure):
        train.append(take(dict.fromkeys(classes, n)))
        present.append(classes)
        if number + 1 < len(pure):
            for new in _mixture(n, steps):
                after = pure[number + 1]
                train.append(take({**dict.fromkeys(classes, n - new), **dict.fromkeys(after, new)}))
                present.append([*(classes if new < n else []), *(after if new else [])])
    test = [pool.test_part(classes) for classes in present]
    return benchmark_of(
        data,
        train,
        test,
        kind="blurred",
        sentence=f"blurred boundaries: {len(pure)} tasks of {len(pure[0])} classes of {data.name}, and {steps} mixtures"
        " of both tasks at each boundary.",
        facts={"classes": present, "pure": [i * (steps + 1) for i in range(len(pure))], "per_class": n, "seed": seed},
    )


def _mixture(n: int, steps: int) -> list[int]:
    """Number of samples of the new task in each mixture of n samples."""
    return [round(n * j / (steps + 1)) for j in range(1, steps + 1)]


def _blurred_need(n: int, steps: int, n_tasks: int) -> int:
    new = sum(_mixture(n, steps))
    old = n * steps - new
    sides = [old if n_tasks > 1 else 0, new if n_tasks > 1 else 0]
    return n + (sum(sides) if n_tasks > 2 else max(sides))
