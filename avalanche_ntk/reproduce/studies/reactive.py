"""Do strategies that act on the measured reactivation help?

Nobody has published an answer. This package has three strategies that read or hold the kernel (`docs/strategies.md`):
a step size that restarts while the kernel is reactivated and is annealed otherwise (ReactivationAwareLR), replay that
is on only meanwhile (ReactivationReplay), and a penalty on the drift of outputs and of the head's block of the kernel
(KernelDrift). Each is compared, seed by seed, with the plain strategy that has the same budget: the same iterations,
and where samples are remembered, the same 40 of them in all (KernelDrift: 10 of each old task). Asked here, as
statements that can fail:

1. `accuracy`: the strategy ends with a higher mean accuracy over all tasks than its plain counterpart;
2. `forgetting`: it forgets less;
3. `spike`: its kernel spikes less at the boundaries;
4. `boundary`: whatever the strategy, the kernel still spikes above a control without a shift.

Setting at the scale "small": five tasks of two classes in one head, an MLP of two hidden layers of 64 units, plain SGD
at η = 0.1, 75 iterations a task, a measurement each 5. Nothing of the strategies was tuned: they have the values of
`docs/strategies.md`. Controls train on fresh samples of the first task's classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avalanche_ntk.measures.intervals import interval
from avalanche_ntk.reproduce.around import above_control
from avalanche_ntk.reproduce.results import DoneRun, Results, per_seed
from avalanche_ntk.reproduce.settings import run_settings, stream, with_changes
from avalanche_ntk.reproduce.study import Context, Plan, Study
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS = (
    ("ReactivationAwareLR", "Naive"),
    ("ReactivationReplay", "Naive"),
    ("ReactivationReplay", "Replay"),
    ("KernelDrift", "Naive"),
    ("KernelDrift", "Replay"),
)
STRATEGIES = ("Naive", "ReactivationAwareLR", "Replay", "ReactivationReplay", "KernelDrift")
TASKS = 5


def plans(context: Context) -> Mapping[str, Plan]:
    """Return the runs: five strategies, with and without a shift."""
    memory = context.pick(16, 40, 500)
    batch = context.pick(5, 10, 64)
    arguments: dict[str, dict[str, Any]] = {
        "Naive": {},
        "ReactivationAwareLR": {},
        "Replay": {"mem_size": memory},  # its minibatches of remembered samples are as large as those of new ones
        "ReactivationReplay": {"mem_size": memory, "batch_size_mem": batch},
        # What is remembered of four old tasks makes up the same memory.
        "KernelDrift": {"n_samples": memory // (TASKS - 1)},
    }
    base = with_changes(
        run_settings(context),
        model={"width": context.pick(8, 64, 1024)},
        optimizer={"lr": 0.1},
        epochs=context.pick(1, 15, 50),
        mb_size=batch,
        probe={"size": context.pick(10, 40, 256)},
        schedule=f"every_iterations:{context.pick(1, 5, 10)}",
        keep_kernels=False,
    )
    # Five tasks of the same classes must find as many fresh samples; the strategies watch 16 of the first task.
    each = context.pick(8, 25, 500)
    base["benchmark"] = stream(context, "class_incremental", n_tasks=TASKS, classes_per_task=2, per_class=each)
    runs = [{"strategy.name": name, "strategy.arguments": arguments[name]} for name in STRATEGIES]
    return {"tasks": {"base": base, "runs": runs, "control": {"benchmark.name": "no_shift"}}}


def of_strategy(results: Results, name: str, control: bool | None = None) -> list[DoneRun]:
    """Return the runs of a strategy; controls among them where None."""
    return results.runs("tasks", {"strategy.name": name}, control=control)


def number(name: str) -> Callable[[DoneRun], float]:
    """Return what reads a column of a comparison: `accuracy`, `forgetting`, `spike` (mean over the boundaries)."""

    def read(run: DoneRun) -> float:
        return float(run.row.values.get(name, math.nan))

    return read


def learned(accuracies: Sequence[Sequence[tuple[int, int, float]]]) -> float:
    """Return the accuracy on a task just after it was trained, mean over the tasks.

    Args:
        accuracies: For each task `(experience trained last, iteration, accuracy)` of each evaluation.

    Returns:
        The mean; NaN where a task was not evaluated then.

    >>> learned([[(0, 5, 1.0), (1, 10, 0.0)], [(0, 5, 0.0), (1, 10, 0.5)]])
    0.75
    """
    found = [next((a for last, _, a in of_task if last == task), math.nan) for task, of_task in enumerate(accuracies)]
    return sum(found) / len(found)


def learned_by(run: DoneRun) -> float:
    """Return what `learned` says of a run."""
    return learned([run.run.accuracies(task) for task in range(TASKS)])


def judge(results: Results) -> Sequence[Claim]:
    """Judge the four statements."""
    seeds = results.context.seeds
    statistics = {
        "accuracy": ("accuracy over all tasks at the end", True),
        "forgetting": ("forgetting", False),
        "spike": ("spike of the velocity, mean over the boundaries", False),
    }
    by_strategy = {name: of_strategy(results, name, control=False) for name in STRATEGIES}
    told: dict[str, list[Finding]] = {}
    for key, (statistic, above) in statistics.items():
        values = {name: per_seed(runs, number(key), seeds) for name, runs in by_strategy.items()}
        told[key] = [
            found(
                f"{ours} minus {plain}",
                statistic,
                minus(values[ours], values[plain]),
                0.0,
                above=above,
            )
            for ours, plain in PAIRS
        ]
        told[key] += [reported(name, statistic, values[name]) for name in STRATEGIES]
    told["accuracy"] += [
        reported(name, "accuracy on a task just after it was trained, mean", per_seed(runs, learned_by, seeds))
        for name, runs in by_strategy.items()
    ]
    boundary = [
        found(name, "spike minus the control's", above_control(of_strategy(results, name), number("spike"), seeds), 0.0)
        for name in STRATEGIES
    ]
    return (
        Claim(
            "accuracy",
            "Strategies that act on reactivation end with a higher accuracy than plain ones of the same budget",
            tuple(told["accuracy"]),
            "ReactivationReplay makes fewer steps with replay than Replay, and KernelDrift distils outputs besides"
            " holding the kernel: what helps need not be the kernel.",
        ),
        Claim(
            "forgetting",
            "They forget less",
            tuple(told["forgetting"]),
            "A strategy that learns new tasks less well has less to forget; how well each learns stands above.",
        ),
        Claim(
            "spike",
            "Their kernels spike less at the boundaries",
            tuple(told["spike"]),
            "A velocity falls with the square of the step size, which ReactivationAwareLR lowers; it still is what the"
            " strategy does to the kernel.",
        ),
        Claim(
            "boundary",
            "Whatever the strategy, the kernel spikes at boundaries more than without a shift",
            tuple(boundary),
            "Each strategy has a control of its own, which replays and regularises too.",
        ),
    )


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw accuracy, forgetting and spike by strategy; the spike beside that of the control."""
    from avalanche_ntk.report.style import COLOURS, PAGE_INCHES, add_legend, drawing, new_figure

    seeds = results.context.seeds
    labels = {
        "accuracy": "accuracy over all tasks at the end",
        "forgetting": "forgetting",
        "spike": "spike (distance per iteration)",
    }
    with drawing():
        figure = new_figure(PAGE_INCHES, 2.5)
        axes = figure.subplots(1, len(labels), sharey=True)
        for axis, (key, label) in zip(axes, labels.items(), strict=True):
            for place, name in enumerate(STRATEGIES):
                for position, control in enumerate((False, True) if key == "spike" else (False,)):
                    runs = of_strategy(results, name, control)
                    values = [v for v in per_seed(runs, number(key), seeds) if math.isfinite(v)]
                    mean, low, high = interval(values)
                    y = place + 0.25 * position
                    style: dict[str, Any] = {"color": COLOURS[position]}
                    axis.plot([low, high], [y, y], linewidth=1, **style)
                    axis.plot([mean], [y], marker="os"[position], markersize=4, **style)
                    axis.plot(values, [y] * len(values), ".", markersize=2.5, alpha=0.4, **style)
            axis.set_xlabel(label)
        axes[0].set_yticks(range(len(STRATEGIES)), STRATEGIES)
        axes[0].invert_yaxis()
        add_legend(figure, ["new classes", "same classes, fresh samples"], markers=True)
    return {"reactive": figure}


STUDY = Study(judge=judge, draw=draw, plans=plans)
