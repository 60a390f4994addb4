"""Do other architectures reactivate too: a CNN, a small vision transformer, a recurrent network beside the MLP?

Nobody has published an answer beyond fully connected and convolutional networks (arXiv 2507.16039). Asked here, as
statements that can fail, of each architecture:

1. `spike`: the velocity of the kernel spikes at the boundary above a control without a shift;
2. `dip`: λ_max falls deeper after the boundary than in the control, relative to what it was there;
3. `alignment`: the alignment with the labels of the first task falls more than in the control;
4. `size`: in proportion to its own pace before the boundary, every architecture's rise stands beside the MLP's.

Setting at the scale "small": two tasks of five classes, none in common, 300 iterations a task of SGD with momentum 0.9,
a measurement each 10. The step sizes (MLP 0.01, CNN 0.02, ViT 0.05, GRU 0.05) were chosen on seed 0 for one thing, that
the first task is learnt before the boundary; the accuracy there stands in the results. The ViT has one block, the GRU
reads an image row by row. Each has a control on fresh samples of the same classes. Sizes and step sizes differ between
architectures, so that each is compared with its own control, and with the MLP by ratios alone.

The scale "paper" has no published setting to follow for the ViT and the GRU; it is the same with larger networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avalanche_ntk.reproduce.around import VELOCITY, above_control, draw_around, learnt
from avalanche_ntk.reproduce.results import DoneRun, Results, per_seed
from avalanche_ntk.reproduce.settings import NO_SHIFT, run_settings, with_changes
from avalanche_ntk.reproduce.study import Context, Plan, Study
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = {"mlp": "MLP", "cnn": "CNN", "vit": "ViT", "gru": "GRU"}


def plans(context: Context) -> Mapping[str, Plan]:
    """Return the runs: four architectures, with and without a shift."""
    models: list[dict[str, Any]] = [
        {"model.name": "mlp", "model.width": context.pick(8, 64, 1024), "model.depth": 2, "optimizer.lr": 0.01},
        {
            "model.name": "cnn",
            "model.width": context.pick(4, 16, 64),
            "model.depth": 2,
            "model.arguments": {"flatten": True, "pools": 1},
            "optimizer.lr": 0.02,
        },
        {
            "model.name": "vit",
            "model.width": context.pick(4, 16, 128),
            "model.depth": context.pick(1, 1, 4),
            "model.arguments": {"heads": context.pick(2, 2, 4)},
            "optimizer.lr": 0.05,
        },
        {"model.name": "gru", "model.width": context.pick(4, 32, 256), "model.depth": 1, "optimizer.lr": 0.05},
    ]
    base = with_changes(run_settings(context), model={"width": None}, optimizer={"momentum": 0.9}, keep_kernels=False)
    return {"boundary": {"base": base, "runs": models, "control": NO_SHIFT}}


def of_model(results: Results, model: str, control: bool | None = None) -> list[DoneRun]:
    """Return the runs of an architecture; controls among them where None."""
    return results.runs("boundary", {"model.name": model}, control=control)


def log_ratio(run: DoneRun) -> float:
    """Return the logarithm of the peak velocity over that before the boundary."""
    ratio = run.reactivation("ratio")
    return math.log(ratio) if ratio > 0 else math.nan


def judge(results: Results) -> Sequence[Claim]:
    """Judge the four statements."""
    seeds = results.context.seeds
    numbers = {
        "spike": ("spike of the velocity minus the control's", True),
        "norm_dip": ("least λ_max over that at the boundary, minus the control's", False),
        "alignment_drop": ("drop of the alignment minus the control's", True),
    }
    told: dict[str, list[Finding]] = {name: [] for name in numbers}
    rises: dict[str, list[float]] = {}
    for model, title in MODELS.items():
        runs = of_model(results, model)
        shifted = of_model(results, model, control=False)
        for name, (statistic, above) in numbers.items():

            def number(run: DoneRun, name: str = name) -> float:
                return run.reactivation(name)

            told[name].append(found(title, statistic, above_control(runs, number, seeds), 0.0, above=above))
            told[name].append(
                reported(title, f"{statistic.split(' minus')[0].rstrip(',')}", per_seed(shifted, number, seeds))
            )
        told["spike"].append(
            reported(title, "test accuracy on the first task at the boundary", per_seed(shifted, learnt, seeds))
        )
        rises[model] = above_control(runs, log_ratio, seeds)
    size = [found(title, "log(ratio / ratio of the control)", rises[model], 0.0) for model, title in MODELS.items()]
    size += [
        reported(title, "the same minus the MLP's", minus(rises[model], rises["mlp"]))
        for model, title in MODELS.items()
        if model != "mlp"
    ]
    return (
        Claim(
            "spike",
            "The velocity of the kernel spikes at the boundary in every architecture, beyond what fresh samples do",
            tuple(told["spike"]),
            "A network that has not settled before the boundary has a fast kernel there, above which less is seen.",
        ),
        Claim(
            "dip",
            "In every architecture λ_max falls at the boundary, more than without a shift",
            tuple(told["norm_dip"]),
            "Above 1 where λ_max never falls below what it was at the boundary.",
        ),
        Claim(
            "alignment",
            "In every architecture the alignment with the first task's labels falls, more than without a shift",
            tuple(told["alignment_drop"]),
            "The drop is from the boundary to the least alignment afterwards.",
        ),
        Claim(
            "size",
            "In proportion to its pace before, the velocity of every architecture rises more than its control's",
            tuple(size),
            "Widths and step sizes differ: the difference to the MLP says how large the rise is in these networks,"
            " not what the architecture does by itself.",
        ),
    )


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw velocity and λ_max around the boundary by architecture, with the shift and without."""
    from avalanche_ntk.report.style import PAGE_INCHES, add_legend, drawing, new_figure

    labels = {
        VELOCITY: "velocity\n(distance per iteration)",
        "spectral_norm": "$\\lambda_{\\max}$ of the kernel",
        "alignment": "alignment",
    }
    span = 10 * results.context.pick(2, 10, 10)
    with drawing():
        figure = new_figure(PAGE_INCHES, 5.0)
        grid = figure.subplots(len(labels), len(MODELS), sharex=True, squeeze=False)
        for row, (column, label) in zip(grid, labels.items(), strict=True):
            for axis, (model, title) in zip(row, MODELS.items(), strict=True):
                axis.axvline(0, color="0.6", linewidth=0.6)
                for position, control in enumerate((False, True)):
                    chosen = of_model(results, model, control)
                    log = column != "alignment"
                    draw_around(axis, chosen, column, position, before=span, after=2 * span, log=log)
                if column == VELOCITY:
                    axis.set_title(title)
            row[0].set_ylabel(label)
        figure.supxlabel("iterations since the boundary", fontsize=8)
        add_legend(figure, ["new classes", "same classes, fresh samples"])
    return {"architectures": figure}


STUDY = Study(judge=judge, draw=draw, plans=plans)
