"""Common settings of studies: data, sizes and measurements by scale."""

from __future__ import annotations

from typing import Any

from avalanche_ntk.reproduce.study import Context

CLASSES = 5  # per task, of ten classes


# Training samples per class in the published settings, split between a task and its control's fresh samples; 1,300
# (ImageNet-100) for data given by path.
PAPER_SAMPLES = {"CIFAR10": 5000, "CIFAR100": 500, "digits": 130}
PAPER_IMAGE_SIZE = 64  # for images given by path, which have various sizes


def paper_per_class(context: Context, tasks: int = 2) -> int:
    """Return the number of samples per class and task at the scale "paper".

    A task with new classes could use all samples, but its control needs fresh samples for every task. Both use the same
    share, so that their first tasks are equal.

    Args:
        context: The setting.
        tasks: Number of tasks.

    Returns:
        The number.
    """
    return PAPER_SAMPLES.get(context.data, 1300) // tasks


def stream(context: Context, name: str, **keys: Any) -> dict[str, Any]:
    """Return the section `benchmark` of a run on the study's data, each channel standardised.

    Args:
        context: The setting.
        name: Name of the benchmark.
        **keys: Its arguments.

    Returns:
        The section.
    """
    is_path = context.data not in PAPER_SAMPLES
    return {
        "name": name,
        "data": context.data,
        "data_root": context.data_root,
        "image_size": context.pick(None, None, PAPER_IMAGE_SIZE if is_path else None),
        "standardise": True,
        **keys,
    }


def run_settings(context: Context) -> dict[str, Any]:
    """Return the keys that the runs of a study share: two tasks of five classes, a probe of the first.

    At the scale "small" a task has 100 samples of each class (60 of the smaller digits), minibatches of 50 (30) and 30
    epochs: 300 iterations, with a measurement every 10, as in the Reactivation paper.

    Args:
        context: The setting of the study.

    Returns:
        Keys of a run's configuration; a plan replaces the varying ones.
    """
    per_class = context.pick(12, 60 if context.is_digits else 100, paper_per_class(context))
    return {
        "strategy": "Naive",
        "benchmark": stream(context, "class_overlap", similarity=0, classes_per_task=CLASSES, per_class=per_class),
        "model": {"name": "mlp", "width": context.pick(16, 256, 1024), "depth": 2},
        "optimizer": {"name": "SGD", "lr": 0.05},
        "epochs": context.pick(4, 30, 50),
        "mb_size": context.pick(10, 30 if context.is_digits else 50, 128),
        "probe": {"size": context.pick(20, 64, 256), "from_experience": 0},
        "schedule": f"every_iterations:{context.pick(2, 10, 10)}",
        "spot_check_every": 0,
        "threads": 1,
        "device": context.device,
    }


NO_SHIFT = {"benchmark.name": "no_shift", "benchmark.similarity": None}
"""Changes that make the control of a run of `run_settings`: the same first task, then fresh samples of its classes."""


def with_changes(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return settings with other values; a section given as a mapping is updated, not replaced.

    Args:
        settings: The settings.
        **changes: Values by key.

    Returns:
        New settings.

    >>> with_changes({"model": {"name": "mlp", "width": 8}, "epochs": 1}, model={"width": 16})
    {'model': {'name': 'mlp', 'width': 16}, 'epochs': 1}
    """
    made = dict(settings)
    for key, value in changes.items():
        old = made.get(key)
        made[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return made
