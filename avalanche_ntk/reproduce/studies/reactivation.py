"""The Reactivation paper (arXiv 2507.16039): what the kernel of the first task does when the task changes.

Published setting: CIFAR-10/100 and ImageNet-100, fully connected and convolutional networks, cross-entropy, two tasks
of five classes, the first trained to convergence, the kernel measured each 10 iterations on a probe of the first task;
widths 64 to 2048; lazy (standard network, η ∝ 1/width) and rich (Kaiming uniform). Its seven statements, as
`docs/definitions.md` has them, are judged here against no-shift controls: the same first task, then fresh samples of
the same classes. The paper names neither the kernel's reduction nor its centring nor the size of the probe: the last
claim shows what the first depends on.

At the scale "small" a task has 500 images (300 of the digits) and 300 iterations; the convolutional network has 8 to 32
channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_ntk.reproduce.settings import NO_SHIFT, paper_per_class, run_settings, with_changes
from avalanche_ntk.reproduce.studies.reactivation_claims import judge
from avalanche_ntk.reproduce.studies.reactivation_figures import draw
from avalanche_ntk.reproduce.study import Context, Plan, Study

# η at which the first task is learnt by heart; in the lazy regime at the base width, beyond which it falls as 1/width.
RATES = {"mlp": {"rich": 0.05, "lazy": 0.2}, "cnn": {"rich": 0.1, "lazy": 0.1}}
REGIMES = ("lazy", "rich")
SEVERAL = 5  # tasks


def _regimes(context: Context, model: str) -> list[dict[str, Any]]:
    base_width = {"mlp": context.pick(16, 64, 64), "cnn": context.pick(4, 16, 64)}[model]
    return [
        {"regime": {"name": name, "base_width": base_width}, "optimizer.lr": RATES[model][name]} for name in REGIMES
    ]


def plans(context: Context) -> Mapping[str, Plan]:
    """Return the sweeps: one for each thing that the paper varies."""
    base = run_settings(context)
    cnn = with_changes(base, model={"name": "cnn", "depth": 2, "arguments": {"flatten": True}})
    rich = with_changes(base, regime={"name": "rich"})
    per_class = context.pick(12, 24 if context.is_digits else 100, paper_per_class(context, SEVERAL))
    several = with_changes(
        base,
        benchmark={"name": "class_incremental", "similarity": None, "classes_per_task": 2, "n_tasks": SEVERAL,
                   "per_class": per_class},
        epochs=context.pick(3, 30, 30),
        mb_size=context.pick(6, 12 if context.is_digits else 20, 128),
        probe={"size": context.pick(8, 64 if not context.is_digits else 48, 256)},
    )  # fmt: skip
    frequencies = with_changes(rich, benchmark={"name": "class_frequency", "similarity": None})
    frequencies["benchmark"].pop("per_class")
    frequencies["benchmark"]["classes_per_task"] = None
    frequencies["benchmark"]["size"] = context.pick(60, 250 if context.is_digits else 500, None)
    return {
        "widths": {
            "base": base,
            "runs": _regimes(context, "mlp"),
            "grid": {"model.width": context.pick([8, 16], [64, 256, 1024, 2048], [64, 128, 256, 512, 1024, 2048])},
            "control": NO_SHIFT,
        },
        "convolutional": {
            "base": cnn,
            "runs": _regimes(context, "cnn"),
            "grid": {"model.width": context.pick([2, 4], [8, 16, 32], [64, 128, 256, 512])},
            "control": NO_SHIFT,
        },
        "learning-rates": {
            "base": rich,
            "grid": {
                "optimizer.lr": context.pick(
                    [0.02, 0.05, 0.1], [0.003, 0.01, 0.03, 0.06, 0.1], [0.001, 0.003, 0.01, 0.03, 0.1]
                )
            },
            "control": NO_SHIFT,
        },
        "overlaps": {
            "base": base,
            "runs": _regimes(context, "mlp"),
            "grid": {
                "benchmark.similarity": context.pick(
                    [0, 0.25, 0.6667], [0, 0.1111, 0.25, 0.4286, 0.6667], [0, 0.1111, 0.25, 0.4286, 0.6667]
                )
            },
            "control": NO_SHIFT,
        },
        "frequencies": {
            "base": frequencies,
            "grid": {"benchmark.alpha": context.pick([0.5, 1.0], [0.25, 0.5, 0.75, 1.0], [0.25, 0.5, 0.75, 1.0])},
            "control": {"benchmark.alpha": 0},
        },
        "durations": {
            "base": rich,
            "grid": {"epochs": context.pick([3, 5], [10, 30, 60], [10, 50, 200])},
            "control": NO_SHIFT,
        },
        "boundaries": {"base": several, "runs": _regimes(context, "mlp"), "control": {"benchmark.name": "no_shift"}},
        "reductions": {
            "base": with_changes(base, reduction="sum_logits"),
            "runs": _regimes(context, "mlp"),
            "control": NO_SHIFT,
        },
        "probes": {
            "base": base,
            "runs": _regimes(context, "mlp"),
            "grid": {"probe.size": context.pick([10], [20, 250], [50, 1000])},
            "control": NO_SHIFT,
        },
    }


STUDY = Study(judge=judge, draw=draw, plans=plans)
