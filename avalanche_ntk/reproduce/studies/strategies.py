"""Do methods that forget less move the kernel of the first task less?

Nobody has published it. The question: plain training moves the kernel of the first task when the task changes
(arXiv 2507.16039), and plain training forgets. Seven strategies are trained side by side on the same stream, from the
same initial weights: Naive, EWC (Kirkpatrick et al. 2017), LwF (Li & Hoiem 2016), Replay, DER (Buzzega et al. 2020),
PackNet (Mallya & Lazebnik 2018) and OGD (Farajtabar et al. 2020). If the movement of the kernel is what forgetting is
made of, then over strategies the two have the same order.

Three tasks of the same ten classes, the pixels in another order in each: one head for all tasks, so that accuracy is
lost in part and strategies can differ (with new classes in each task Naive, EWC, LwF and OGD lose nearly everything on
one head, and with a head for each task they lose nearly nothing). The control of each run repeats the first task.
What remembers has the same memory: 40 samples, or 40 directions of OGD, for each earlier task. EWC's λ is 100
(with 300 one run of five was unstable, with and without a change of task), LwF's α
is 1 at temperature 2, PackNet keeps half of its free weights for each task and refines them in the last fifth of a
task's epochs.

How each kernel is measured: in all runs it is the kernel of the same 30 samples of the first task with respect to all
weights and biases. PackNet's is that of the first task's subnetwork: weights outside its mask do not act on the
outputs and have no gradient. Weights that it holds fixed are counted, as in other runs those are that EWC or OGD hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from avalanche.models.packnet import PackNetModel
from matplotlib.lines import Line2D

from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures.intervals import rank_correlation
from avalanche_ntk.report.style import COLOURS, MARKERS, PAGE_INCHES, drawing, new_figure, put_legend
from avalanche_ntk.reproduce.around import mean
from avalanche_ntk.reproduce.results import DoneRun, Results, per_seed
from avalanche_ntk.reproduce.settings import run_settings, stream, with_changes
from avalanche_ntk.reproduce.study import Context, Plan, Study
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("Naive", "EWC", "LwF", "Replay", "DER", "PackNet", "OGD")
MOVEMENTS = {
    "moved": "distance from each boundary to the end of its task",
    "path": "length of the kernel's path after each boundary",
    "spike": "peak of the velocity after a boundary − before",
    "ratio": "peak of the velocity after a boundary over before",
}
TINY = ("Naive", "Replay", "PackNet")
TASKS = 3
REMEMBERED = 40  # samples, or directions, for each earlier task


def packed_mlp(input_shape: Sequence[int], n_classes: int, width: int = 256, depth: int = 2) -> PackNetModel:
    """Return the network of the other strategies, with the same initial weights, in the form that PackNet prunes.

    Args:
        input_shape: Shape of one input.
        n_classes: Number of outputs.
        width: Units of a hidden layer.
        depth: Hidden layers.

    Returns:
        The network.
    """
    return PackNetModel(MLP(math.prod(input_shape), n_classes, width=width, depth=depth))


def names(context: Context) -> tuple[str, ...]:
    """Return the strategies that are compared at a scale."""
    return tuple(context.pick(TINY, NAMES, NAMES))


def plans(context: Context) -> Mapping[str, Plan]:
    """Return every strategy on the stream, and on one that repeats its first task; PackNet on the stream alone.

    What PackNet has learned of the first task is fixed, whatever comes: a control would repeat it to the bit.
    """
    tasks = context.pick(2, TASKS, 5)
    memory = REMEMBERED * (tasks - 1)
    epochs = context.pick(2, 12, 10)
    arguments: dict[str, dict[str, Any]] = {
        "EWC": {"ewc_lambda": 100.0},
        "LwF": {"alpha": 1.0, "temperature": 2.0},
        "Replay": {"mem_size": memory},
        "DER": {"mem_size": memory},
        "PackNet": {"prune_proportion": 0.5, "post_prune_epochs": max(1, epochs // 5)},
        "OGD": {"n_samples": REMEMBERED},
    }
    runs = [
        {"strategy.name": name} | ({"strategy.arguments": arguments[name]} if name in arguments else {})
        for name in names(context)
        if name != "PackNet"
    ]
    base = with_changes(
        run_settings(context),
        model={"width": context.pick(16, 128, 1024)},
        optimizer={"lr": 0.1},
        epochs=epochs,
        mb_size=context.pick(12, 30, 128),
        probe={"size": context.pick(10, 30, 256)},
    )
    each = context.pick(6, 30, None)
    base["benchmark"] = stream(context, "permuted", n_tasks=tasks, per_class=each, fresh=False, task_labels=True)
    packed = {
        **base,
        "strategy": {"name": "PackNet", "arguments": arguments["PackNet"]},
        "model": {**base["model"], "name": f"{packed_mlp.__module__}:{packed_mlp.__name__}"},
    }
    return {
        "strategies": {"base": base, "runs": runs, "control": {"benchmark.name": "no_shift"}},
        "packnet": {"base": packed},
    }


def at_boundaries(run: DoneRun, name: str) -> float:
    """Return the mean over a run's boundaries of a number of `measures.Reactivation`; NaN where none is defined."""
    return mean(run.reactivation(name, boundary) for boundary in sorted(run.trajectory().reactivations)[1:])


def order_shared(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> list[float]:
    """Return, for each seed, Spearman's rank correlation over strategies of two numbers.

    Args:
        a: For each strategy a number a seed.
        b: The same for the other number.

    Returns:
        A correlation a seed, as `verdicts.rank_correlation` defines it.

    >>> order_shared([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]], [[1.0, 3.0], [4.0, 2.0], [9.0, 1.0]])
    [1.0, -1.0]
    """
    return [rank_correlation(*pair) for pair in zip(np.transpose(a), np.transpose(b), strict=True)]


Table = Mapping[str, Mapping[str, Sequence[float]]]


def _table(results: Results, control: bool = False) -> Table:
    """Numbers by strategy and name, a number a seed."""
    table: dict[str, dict[str, list[float]]] = {}
    for name in names(results.context):
        mine = results.runs("strategies", {"strategy.name": name}, control=control)
        if name == "PackNet" and not control:
            mine = results.runs("packnet")

        def number(of: Callable[[DoneRun], float], mine: Sequence[DoneRun] = mine) -> list[float]:
            return per_seed(mine, of, results.context.seeds)

        table[name] = {kind: number(partial(at_boundaries, name=kind)) for kind in MOVEMENTS}
        for column in ("forgetting", "accuracy"):
            table[name][column] = number(partial(_column, name=column))
    return table


def _column(run: DoneRun, name: str) -> float:
    return run.row.values[name]


def judge(results: Results) -> list[Claim]:
    """Compare the order of the strategies by forgetting with that by each movement of the kernel."""
    shifted, still = _table(results), _table(results, control=True)
    held = [name for name in shifted if name != "PackNet"]
    others = [name for name in shifted if name != "Naive"]
    return [
        Claim(
            "moves-less",
            "A strategy that forgets less moves the kernel of the first task less",
            _over_strategies(shifted, "moved", "path"),
            "Threshold 0: no common order of the strategies. PackNet's place is given by construction, as what it "
            "has learned of the first task is fixed; the lines without it say whether the others have an order. "
            "An order is no cause: replay and distillation change the loss, and with it both numbers. And forgetting "
            "needs no kernel that moves: one linearised at the boundary (the strategy Linearised) forgets as Naive.",
        ),
        Claim(
            "spikes-less",
            "A strategy that forgets less has a smaller spike at the boundary",
            _over_strategies(shifted, "spike", "ratio"),
            "The spike is the largest velocity of the first 30 iterations: most strategies act later, when outputs or "
            "weights have left what they hold.",
        ),
        Claim(
            "forget-less",
            "Each strategy forgets less than Naive",
            (
                *_beside_naive(shifted, "forgetting"),
                *(reported(name, "forgetting", shifted[name]["forgetting"]) for name in shifted),
                *(reported(name, "accuracy on all tasks at the end", shifted[name]["accuracy"]) for name in shifted),
            ),
            "The premise of the question: without strategies that differ in forgetting there is nothing to order.",
        ),
        Claim(
            "naive-spikes-most",
            "Each strategy has a smaller spike than Naive",
            (
                *_beside_naive(shifted, "spike"),
                *(
                    reported(name, "moved − Naive's", minus(shifted[name]["moved"], shifted["Naive"]["moved"]))
                    for name in others
                ),
            ),
            "PackNet's spike is negative: after the boundary its kernel of the first task stands still.",
        ),
        Claim(
            "shift-seen",
            "With every strategy but PackNet the kernel moves more when the task changes than when it does not",
            tuple(
                found(
                    name,
                    f"{kind} − that of the run that repeats its first task",
                    minus(shifted[name][kind], still[name][kind]),
                    0.0,
                )
                for name in held
                for kind in ("moved", "spike")
            ),
            "The control trains on with the same samples, under the same strategy.",
        ),
    ]


def _over_strategies(shifted: Table, *kinds: str) -> tuple[Finding, ...]:
    def order(kind: str, among: Sequence[str]) -> list[float]:
        return order_shared([shifted[n]["forgetting"] for n in among], [shifted[n][kind] for n in among])

    held = [name for name in shifted if name != "PackNet"]
    told = [
        found(
            f"{len(shifted)} strategies",
            f"rank correlation of forgetting with {kind}: {MOVEMENTS[kind]}",
            order(kind, list(shifted)),
            0.0,
        )
        for kind in kinds
    ]
    # PackNet neither forgets nor moves the kernel by construction: it alone makes the two go together.
    return (*told, *(reported("without PackNet", f"rank correlation, {k}", order(k, held)) for k in kinds))


def _beside_naive(shifted: Table, kind: str) -> tuple[Finding, ...]:
    return tuple(
        found(name, f"{kind} − Naive's {kind}", minus(shifted[name][kind], shifted["Naive"][kind]), 0.0, above=False)
        for name in shifted
        if name != "Naive"
    )


def draw(results: Results) -> dict[str, Figure]:
    """Forgetting against three movements of the kernel: a faint marker a seed, a full one for their mean."""
    shifted = _table(results)
    labels = {"moved": "moved (distance S)", "spike": "spike (distance per iteration)", "ratio": "ratio of velocities"}
    with drawing():
        figure = new_figure(PAGE_INCHES, 2.7)
        axes = figure.subplots(1, 3)
        for axis, (kind, label) in zip(axes, labels.items(), strict=True):
            for position, name in enumerate(shifted):
                _draw_cloud(axis, shifted[name]["forgetting"], shifted[name][kind], position)
            axis.set(xlabel="forgetting (accuracy lost)", ylabel=label)
        handles = [_marker(position) for position in range(len(shifted))]
        put_legend(figure, handles, list(shifted), handletextpad=0.1)
    return {"forgetting-and-movement": figure}


def _draw_cloud(axis: Axes, x: Sequence[float], y: Sequence[float], position: int) -> None:
    look: dict[str, Any] = {
        "marker": MARKERS[position],
        "color": COLOURS[position],
        "linestyle": "None",
        "markeredgewidth": 0,
    }
    axis.plot(x, y, markersize=3.5, alpha=0.4, **look)
    axis.plot(np.nanmean(x), np.nanmean(y), markersize=7, **look)


def _marker(position: int) -> Line2D:
    return Line2D([], [], marker=MARKERS[position], color=COLOURS[position], linestyle="None", markersize=5)


STUDY = Study(judge=judge, draw=draw, plans=plans)
