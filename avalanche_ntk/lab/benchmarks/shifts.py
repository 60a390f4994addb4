"""Controlled task shifts: each function makes an Avalanche benchmark with one change, set by one argument.

Common rules, for comparable runs:

- everything is drawn from one seed; a class's samples are drawn in an order independent of other arguments, so a sweep
  over one argument changes nothing else, and the first task is the same for each value;
- all experiences of a benchmark have the same number of training samples, and equally many of each class
  (`class_frequency_shift` changes the latter on purpose);
- labels are the data's own, so a model needs one head of `benchmark.n_classes` outputs;
- `benchmark.description` describes the change in words and as a dict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.lab.benchmarks.data import load_data
from avalanche_ntk.lab.benchmarks.pool import Data, Pool, names_of, number_of_classes, require_tasks, samples_per_class
from avalanche_ntk.lab.benchmarks.streams import benchmark_of


def reachable_similarities(classes_per_task: int, n_classes: int | None = None) -> list[Fraction]:
    """Jaccard similarities `m / (2k − m)` of two tasks of k classes that share m.

    Args:
        classes_per_task: k.
        n_classes: Number of available classes; similarities that need more are left out. None for no limit.

    Returns:
        The similarities, ascending.

    >>> [str(s) for s in reachable_similarities(2)]
    ['0', '1/3', '1']
    """
    k = classes_per_task
    return [Fraction(m, 2 * k - m) for m in range(k + 1) if n_classes is None or 2 * k - m <= n_classes]


def class_overlap_shift(
    data: Data,
    similarity: float,
    *,
    classes_per_task: int = 5,
    fresh: bool = True,
    per_class: int | None = None,
    task_labels: bool = False,
    seed: int = 0,
) -> Any:
    """Two tasks of k classes whose class sets have the Jaccard similarity `|D0 ∩ D1| / |D0 ∪ D1|`: a semantic shift.

    Sharing m of k classes gives `m / (2k − m)`. With decreasing similarity, shared classes are replaced one by one, in
    an order set by the seed; the first task is always the same.

    Args:
        data: Data, or a source for `load_data`.
        similarity: The Jaccard similarity, one of `reachable_similarities(classes_per_task)` to within 0.005.
        classes_per_task: k.
        fresh: Whether shared classes have new samples in the second task. If False they keep theirs, and the similarity
            is also that of the two sample sets.
        per_class: Training samples of each class in one task; by default the most that `fresh` allows, the same for
            every similarity.
        task_labels: Whether each experience has its own task label; otherwise all have 0.
        seed: Seed of the classes and samples.

    Returns:
        An Avalanche benchmark of two experiences.

    Raises:
        ArgumentError: The similarity is impossible with tasks of equal size, or there are too few classes or samples;
            the message gives numbers that work.

    Source: "Reactivation: Empirical NTK Dynamics Under Task Shifts" (arXiv 2507.16039).
    """
    data = load_data(data)
    k = number_of_classes(data, classes_per_task)
    near = min(reachable_similarities(k), key=lambda s: abs(float(s) - similarity))
    exact = [near] if abs(float(near) - similarity) <= 0.005 else []
    possible = reachable_similarities(k, data.n_classes)
    if not exact or exact[0] not in possible:
        why = (
            f"two tasks of {k} classes that share m have similarity m / ({2 * k} − m)"
            if not exact
            else f"two tasks of {k} classes with similarity {exact[0]} have {_union(k, exact[0])} different classes and"
            f" {data.name} has {data.n_classes}"
        )
        offers = ", ".join(f"{s} ({float(s):.3f})" if s.denominator > 1 else str(s) for s in possible)
        smaller = [n for n in range(1, k) if exact and exact[0] in reachable_similarities(n, data.n_classes)]
        other = f", or classes_per_task={max(smaller)}" if smaller else ""
        raise ArgumentError(f"{why}; found similarity={similarity}. Use one of {offers}{other}.")
    pool = Pool(data, seed)
    n = samples_per_class(pool, per_class, 2 if fresh else 1)
    shared = 2 * k - _union(k, exact[0])
    first, second = pool.order[:k], pool.order[k - shared : 2 * k - shared]
    start = n if fresh else 0
    kept = [c for c in second if c in first]
    new = [c for c in second if c not in first]
    gone = [c for c in first if c not in second]
    sentence = (
        f"class overlap: two tasks of {k} classes of {data.name} share {shared}"
        f" (Jaccard similarity {float(exact[0]):.3f})"
        + (f"; {_list(names_of(data, gone))} give way to {_list(names_of(data, new))}" if new else "")
        + (f"; shared classes have {'fresh' if fresh else 'the same'} samples." if shared else ".")
    )
    facts = {
        "similarity": float(exact[0]),
        "classes": [first, second],
        "shared": sorted(kept),
        "fresh": fresh,
        "per_class": n,
    }
    return benchmark_of(
        data,
        [pool.part(dict.fromkeys(first, (0, n))), pool.part(dict.fromkeys(second, (start, start + n)))],
        [pool.test_part(first), pool.test_part(second)],
        kind="class_overlap",
        sentence=sentence,
        facts={**facts, "seed": seed},
        task_labels=task_labels,
    )


def _union(k: int, similarity: Fraction) -> int:
    # |D0 ∪ D1| = 2k − m with similarity m / (2k − m), so it is 2k / (1 + similarity).
    return int(Fraction(2 * k) / (1 + similarity))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)


def no_shift(
    data: Data,
    *,
    fresh: bool = True,
    n_tasks: int = 2,
    classes_per_task: int | None = None,
    per_class: int | None = None,
    task_labels: bool = False,
    seed: int = 0,
) -> Any:
    """Tasks of the same classes: the control for interpreting a spike at a boundary.

    Its first task is that of `class_overlap_shift` with the same data, seed, `classes_per_task` and `per_class`.

    Args:
        data: Data, or a source for `load_data`.
        fresh: True draws new samples of the classes for each task; False repeats the same samples.
        n_tasks: Number of tasks.
        classes_per_task: Classes of each task; None for all.
        per_class: Training samples of each class in one task; None for the most that `fresh` allows.
        task_labels: Whether each experience has its own task label; otherwise all have 0.
        seed: Seed of the classes and samples.

    Returns:
        An Avalanche benchmark of `n_tasks` experiences.

    Raises:
        ArgumentError: There are too few classes or samples; the message gives numbers that work.
    """
    data = load_data(data)
    require_tasks(n_tasks)
    k = number_of_classes(data, classes_per_task)
    pool = Pool(data, seed)
    n = samples_per_class(pool, per_class, n_tasks if fresh else 1)
    classes = pool.order[:k]
    starts = [task * n if fresh else 0 for task in range(n_tasks)]
    return benchmark_of(
        data,
        [pool.part(dict.fromkeys(classes, (a, a + n))) for a in starts],
        [pool.test_part(classes)] * n_tasks,
        kind="no_shift",
        sentence=f"no shift: {n_tasks} tasks of the same {k} classes of {data.name}, "
        + ("fresh samples in each." if fresh else "the same samples in each."),
        facts={"classes": [classes] * n_tasks, "fresh": fresh, "per_class": n, "seed": seed},
        task_labels=task_labels,
    )


def class_frequency_shift(
    data: Data,
    alpha: float,
    *,
    classes_per_task: int | None = None,
    imbalance: float = 9.0,
    frequencies: tuple[Sequence[float], Sequence[float]] | None = None,
    size: int | None = None,
    task_labels: bool = False,
    seed: int = 0,
) -> Any:
    """Two tasks of the same classes whose frequencies move from D0 to `D_α = (1 − α) D0 + α D1`.

    By default D0's frequencies decrease geometrically from the first class to the last, by a total factor of
    `imbalance`, and D1 is D0 with the classes in reverse. No sample is in both tasks. The test streams have equally
    many samples of each class, so only the training distribution changes.

    Args:
        data: Data, or a source for `load_data`.
        alpha: α in [0, 1]; 0 is no shift.
        classes_per_task: Classes of both tasks; None for all.
        imbalance: Frequency of D0's most frequent class over that of its rarest.
        frequencies: Instead of `imbalance`: class frequencies of D0 and D1, in the order of
            `description.facts["classes"]`.
        size: Training samples of one task; None for the most that is possible for every α.
        task_labels: Whether each experience has its own task label; otherwise all have 0.
        seed: Seed of the classes and samples.

    Returns:
        An Avalanche benchmark of two experiences.

    Raises:
        ArgumentError: α is out of range, frequencies are not positive, or there are too few classes or samples; the
            message gives numbers that work.

    Source: "Reactivation: Empirical NTK Dynamics Under Task Shifts" (arXiv 2507.16039).
    """
    data = load_data(data)
    if not 0 <= alpha <= 1:
        raise ArgumentError(f"alpha must lie in [0, 1], found {alpha}. Use 0 for no shift and 1 for D1 itself.")
    k = number_of_classes(data, classes_per_task, least=2)
    pool = Pool(data, seed)
    classes = pool.order[:k]
    d0, d1 = _profiles(k, imbalance, frequencies)
    available = np.array([len(pool.train[c]) for c in classes])
    most = _largest_size(d0, d1, available)
    if most < k:
        need = k * (d0 + np.maximum(d0, d1)).max() + 2
        raise ArgumentError(
            f"two tasks of {k} classes with these frequencies, without a common sample, need up to {math.ceil(need)}"
            f" samples of a class and the smallest class of {data.name} has {available.min()}. Take data with more"
            " samples of each class, or use less imbalance."
        )
    if size is None:
        size = most
    if not k <= size <= most:
        raise ArgumentError(
            f"two tasks of one size, without a common sample, hold from {k} to {most} samples of {data.name} with these"
            f" frequencies; found size={size}. Use a size in that range, or less imbalance."
        )
    target = (1 - alpha) * d0 + alpha * d1
    counts = [_counts(d0, size), _counts(target, size)]
    if min(counts[0].min(), counts[1].min()) < 1:
        least = math.ceil(1 / min(d0.min(), target.min()))
        raise ArgumentError(
            f"the set of classes must stay the same, and the rarest class has no sample left in a task of {size}."
            f" Use size={least} or more" + ("" if least <= most else " (more data are needed for it)") + ", or less"
            " imbalance."
        )
    parts = [
        pool.part({c: (0, int(n)) for c, n in zip(classes, counts[0], strict=True)}),
        pool.part({c: (int(a), int(a + n)) for c, a, n in zip(classes, counts[0], counts[1], strict=True)}),
    ]
    facts = {
        "alpha": float(alpha),
        "classes": [classes, classes],
        "counts": [counts[0].tolist(), counts[1].tolist()],
        "total_variation": float(0.5 * np.abs(target - d0).sum()),
        "size": size,
        "seed": seed,
    }
    return benchmark_of(
        data,
        parts,
        [pool.test_part(classes)] * 2,
        kind="class_frequency",
        sentence=f"class frequency: two tasks of the same {k} classes of {data.name}, whose frequencies move by"
        f" α = {alpha:g} from D0 towards D1 (total variation {facts['total_variation']:.3f}); no sample is in both.",
        facts=facts,
        task_labels=task_labels,
    )


def _profiles(
    k: int, imbalance: float, frequencies: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[np.ndarray, np.ndarray]:
    if frequencies is None:
        if not 1 <= imbalance < math.inf:
            raise ArgumentError(f"imbalance must be a number of at least 1, found {imbalance}. Use 9, for example.")
        profile = float(imbalance) ** -np.linspace(0, 1, k)
        return profile / profile.sum(), profile[::-1] / profile.sum()
    d0, d1 = (np.asarray(f, dtype=np.float64) for f in frequencies)
    if d0.shape != (k,) or d1.shape != (k,) or not (np.isfinite([d0, d1]).all() and min(d0.min(), d1.min()) > 0):
        raise ArgumentError(
            f"frequencies must be two sequences of {k} positive numbers, one for each class; found {frequencies}."
            " The set of classes is the same in both tasks, so none may be 0."
        )
    return d0 / d0.sum(), d1 / d1.sum()


def _counts(frequencies: np.ndarray, size: int) -> np.ndarray:
    """Numbers of samples in these proportions with sum `size`, by largest remainders (Hamilton's method)."""
    exact = frequencies * size
    # Products such as 0.29 · 100 may be just below an integer by rounding.
    counts = np.floor(exact + 1e-9).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: size - counts.sum()]] += 1
    return counts


def _largest_size(d0: np.ndarray, d1: np.ndarray, available: np.ndarray) -> int:
    """Largest task size such that both tasks fit the available samples for every α."""
    # D_α is linear in α, so its largest frequencies are at the ends; rounding may add one sample per task.
    need = d0 + np.maximum(d0, d1)
    return max(0, int(np.floor((available - 2) / need).min()))


def class_incremental(
    data: Data,
    classes_per_task: int = 2,
    *,
    n_tasks: int | None = None,
    per_class: int | None = None,
    task_labels: bool = False,
    seed: int = 0,
) -> Any:
    """Tasks of k classes each, without common classes.

    Args:
        data: Data, or a source for `load_data`.
        classes_per_task: k.
        n_tasks: Number of tasks; None for as many as possible, and then k must divide the number of classes.
        per_class: Training samples of each class; None for as many as the smallest class has.
        task_labels: Whether each experience has its own task label; otherwise all have 0.
        seed: Seed of the classes and samples.

    Returns:
        An Avalanche benchmark.

    Raises:
        ArgumentError: There are too few classes or samples; the message gives numbers that work.

    Source: van de Ven & Tolias 2019 (class-incremental; with task labels, task-incremental).
    """
    data = load_data(data)
    k = number_of_classes(data, classes_per_task)
    if n_tasks is None:
        if data.n_classes % k:
            divisors = [n for n in range(1, data.n_classes + 1) if data.n_classes % n == 0]
            raise ArgumentError(
                f"{data.name} has {data.n_classes} classes and each task takes as many; found classes_per_task={k}."
                f" Use one of {', '.join(map(str, divisors))}, or n_tasks={data.n_classes // k} to leave some out."
            )
        n_tasks = data.n_classes // k
    if n_tasks < 1 or n_tasks * k > data.n_classes:
        raise ArgumentError(
            f"{n_tasks} tasks of {k} classes need {n_tasks * k} classes and {data.name} has {data.n_classes}."
            f" Use n_tasks from 1 to {data.n_classes // k}, or fewer classes_per_task."
        )
    pool = Pool(data, seed)
    n = samples_per_class(pool, per_class, 1)
    tasks = [pool.order[t * k : (t + 1) * k] for t in range(n_tasks)]
    return benchmark_of(
        data,
        [pool.part(dict.fromkeys(classes, (0, n))) for classes in tasks],
        [pool.test_part(classes) for classes in tasks],
        kind="class_incremental",
        sentence=f"class-incremental: {n_tasks} tasks of {k} classes of {data.name}, each class in one task.",
        facts={"classes": tasks, "per_class": n, "seed": seed},
        task_labels=task_labels,
    )
