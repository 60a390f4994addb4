"""Which layers' kernels move when the task changes?

Nobody has published an answer. The tangent kernel is a sum over the parameters, `Θ = Σ_l Θ_l`, one term a layer, so
that the motion at a boundary can be looked up layer by layer. Asked here, as statements that can fail:

1. `every-layer`: the kernel of every layer is faster after the boundary than without a shift;
2. `depth`: the nearer a layer is to the output, the more its velocity rises, and the more it rises in proportion;
3. `trace`: the boundary changes how the trace of the kernel is shared among the layers.

Setting at the scale "small": two tasks of five classes, none in common; an MLP of three hidden layers of 64 units and a
CNN of three convolutions of 16 channels whose head reads every position, plain SGD, 300 iterations a task, a
measurement each 10; each with a control on fresh samples of the same classes. A layer's velocity is that of its own
kernel, `1 − CKA` an iteration, which does not depend on the layer's share of the whole. The last layer's kernel is
`φφᵀ + 1` for each output: it depends on the features alone, that of the first on the inputs and the backpropagated
signals.

The scale "paper" has no published setting to follow; it is the same with larger networks and tasks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avalanche_ntk.recorder.trajectory import EXPERIENCE_START, Trajectory
from avalanche_ntk.reproduce.around import VELOCITY, above_control, draw_around, learnt, number_of, reactivation_of
from avalanche_ntk.reproduce.results import DoneRun, Results, per_seed
from avalanche_ntk.reproduce.settings import NO_SHIFT, run_settings, with_changes
from avalanche_ntk.reproduce.study import Context, Plan, Study
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, reported, trend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = {"mlp": "MLP", "cnn": "CNN"}
_COLUMN = re.compile(r"layer\[(?P<layer>.+)\]\.trace_share")


def plans(context: Context) -> Mapping[str, Plan]:
    """Return the runs: an MLP and a CNN, with and without a shift."""
    models: list[dict[str, Any]] = [
        {"model.name": "mlp", "model.width": context.pick(8, 64, 1024), "optimizer.lr": 0.05},
        {
            "model.name": "cnn",
            "model.width": context.pick(4, 16, 64),
            "model.arguments": {"flatten": True, "pools": 1},
            "optimizer.lr": 0.1,
        },
    ]
    base = with_changes(run_settings(context), model={"depth": 3, "width": None}, observables=["per_layer"])
    base["keep_kernels"] = False
    return {"boundary": {"base": base, "runs": models, "control": NO_SHIFT}}


def layers_of(trajectory: Trajectory) -> list[str]:
    """Return the names of the layers whose kernels were measured, from the input to the output."""
    return [match["layer"] for name in trajectory[0].values if (match := _COLUMN.fullmatch(name))]


def called(layers: Sequence[str]) -> list[str]:
    """Return what the layers are called: by their number from the input, the last one the head."""
    return [*(f"layer {number}" for number in range(1, len(layers))), "head"]


def column(layer: str, name: str = VELOCITY) -> str:
    """Return the column of a layer's number."""
    return f"layer[{layer}].{name}"


def rises_with_depth(by_layer: Sequence[Sequence[float]]) -> list[float]:
    """Return, for each seed, Spearman's rank correlation of a number with the layer's place.

    Args:
        by_layer: For each layer, from the input to the output, a number a seed.

    Returns:
        A correlation a seed; NaN where a number is undefined or all are equal.

    >>> rises_with_depth([[1.0, 3.0], [2.0, 2.0], [5.0, 1.0]])
    [1.0, -1.0]
    """
    return trend(list(enumerate(by_layer)))


def head_apart(by_layer: Sequence[Sequence[float]]) -> list[float]:
    """Return, for each seed, the head's number minus the mean of the other layers'.

    Args:
        by_layer: For each layer, from the input to the output, a number a seed.

    Returns:
        A difference a seed; NaN where a number is undefined.

    >>> head_apart([[1.0], [3.0], [5.0]])
    [3.0]
    """
    return [head - sum(others) / len(others) for *others, head in zip(*by_layer, strict=True)]


def redistribution(before: Sequence[float], after: Sequence[float]) -> float:
    """Return how much of the trace has gone to other layers, `½ Σ_l |p_l' − p_l|`: 0 none, 1 all.

    Args:
        before: Shares p of the layers, which sum to 1.
        after: Shares p'.

    Returns:
        The total variation distance.

    >>> redistribution([0.5, 0.5, 0.0], [0.25, 0.5, 0.25])
    0.25
    """
    return 0.5 * sum(abs(b - a) for a, b in zip(before, after, strict=True))


def shares(run: DoneRun, at_end: bool) -> list[float]:
    """Return the layers' shares of the trace at the boundary or at the end."""
    series = run.trajectory()
    starts = [m for m in series if m.clock.event == EXPERIENCE_START and m.clock.experience == 1]
    measured = series[len(series) - 1] if at_end else starts[0]
    return [measured.values[column(layer, "trace_share")] for layer in layers_of(series)]


def of_model(results: Results, model: str, control: bool | None = None) -> list[DoneRun]:
    """Return the runs of an architecture; controls among them where None."""
    return results.runs("boundary", {"model.name": model}, control=control)


def share_of(number: int, at_end: bool) -> Callable[[DoneRun], float]:
    """Return what reads the share of the trace of one layer, at the boundary or at the end."""

    def read(run: DoneRun) -> float:
        return shares(run, at_end)[number]

    return read


def _judge_model(results: Results, model: str) -> tuple[list[Finding], list[Finding], list[Finding]]:
    seeds = results.context.seeds
    runs = of_model(results, model)
    names = layers_of(runs[0].trajectory())
    name = MODELS[model]
    spikes, rises = [], []
    for layer in names:

        def spike(run: DoneRun, layer: str = layer) -> float:
            return number_of(reactivation_of(run.trajectory(), column(layer)), "spike")

        def log_ratio(run: DoneRun, layer: str = layer) -> float:
            ratio = number_of(reactivation_of(run.trajectory(), column(layer)), "ratio")
            return math.log(ratio) if ratio > 0 else math.nan

        spikes.append(above_control(runs, spike, seeds))
        rises.append(above_control(runs, log_ratio, seeds))
    every = [
        found(f"{name}, {title}", "spike of the velocity minus that without a shift", values, 0.0)
        for title, values in zip(called(names), spikes, strict=True)
    ]
    depth = [
        found(
            name,
            "rank correlation of the layer's place with its spike above the control's",
            rises_with_depth(spikes),
            0.0,
        ),
        found(
            name,
            "rank correlation of the layer's place with log(ratio / ratio of the control)",
            rises_with_depth(rises),
            0.0,
        ),
    ]
    depth += [
        reported(f"{name}, {title}", "log(ratio / ratio of the control)", values)
        for title, values in zip(called(names), rises, strict=True)
    ]
    depth.append(
        reported(
            name, "log(ratio / ratio of the control) of the head minus the mean of the other layers", head_apart(rises)
        )
    )
    shifted = of_model(results, model, control=False)
    moved = above_control(runs, lambda run: redistribution(shares(run, False), shares(run, True)), seeds)
    trace = [found(name, "redistribution of the trace from the boundary to the end minus the control's", moved, 0.0)]
    for number, title in enumerate(called(names)):
        trace.append(
            reported(
                f"{name}, {title}",
                "share of the trace at the boundary",
                per_seed(shifted, share_of(number, False), seeds),
            )
        )
        trace.append(
            reported(
                f"{name}, {title}",
                "share at the end minus the control's",
                above_control(runs, share_of(number, True), seeds),
            )
        )
    return every, depth, trace


def judge(results: Results) -> Sequence[Claim]:
    """Judge the three statements."""
    every: list[Finding] = []
    depth: list[Finding] = []
    trace: list[Finding] = []
    for model in MODELS:
        for whole, part in zip((every, depth, trace), _judge_model(results, model), strict=True):
            whole += part
        shifted = of_model(results, model, control=False)
        every.append(
            reported(
                MODELS[model],
                "test accuracy on the first task at the boundary",
                per_seed(shifted, learnt, results.context.seeds),
            )
        )
    return (
        Claim(
            "every-layer",
            "The kernel of every layer is faster after the boundary than without a shift",
            tuple(every),
            "A layer's velocity is relative to its own kernel. The controls draw fresh samples of the same classes.",
        ),
        Claim(
            "depth",
            "The nearer a layer is to the output, the more its kernel's velocity rises at the boundary",
            tuple(depth),
            "Four layers make a coarse rank correlation. In absolute terms a layer that always moves more also spikes"
            " more; the second statistic takes each layer by its own pace before the boundary. A trend can be the"
            " head's doing alone: how far it stands apart is told beside.",
        ),
        Claim(
            "trace",
            "The boundary changes how the trace of the kernel is shared among the layers",
            tuple(trace),
            "What counts is what remains at the end of the second task, beyond what training on without a shift does.",
        ),
    )


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw each layer's velocity around the boundary, with the shift and without."""
    from avalanche_ntk.report.style import PAGE_INCHES, add_legend, drawing, new_figure

    every = results.context.pick(2, 10, 10)  # iterations between measurements
    with drawing():
        figure = new_figure(PAGE_INCHES, 3.7)
        grid = figure.subplots(len(MODELS), 4, sharex=True, sharey="row", squeeze=False)
        for row, (model, name) in zip(grid, MODELS.items(), strict=True):
            names = layers_of(of_model(results, model)[0].trajectory())
            for axis, layer, title in zip(row, names, called(names), strict=True):
                axis.axvline(0, color="0.6", linewidth=0.6)
                for position, control in enumerate((False, True)):
                    chosen = of_model(results, model, control)
                    draw_around(axis, chosen, column(layer), position, before=10 * every, after=20 * every, log=True)
                axis.set_title(f"{name}, {title}")
            row[0].set_ylabel("velocity\n(distance per iteration)")
        figure.supxlabel("iterations since the boundary", fontsize=8)
        add_legend(figure, ["new classes", "same classes, fresh samples"])
    return {"layers": figure}


STUDY = Study(judge=judge, draw=draw, plans=plans)
