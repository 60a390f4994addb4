"""Do the kernels of recurrent classifiers of token sequences reactivate when classes change?

Nobody has published an answer: what is known is about images. Asked here, as statements that can fail, of a GRU and of
a plain recurrent network, at each of two boundaries:

1. `spike`: the velocity of the first task's kernel spikes at the boundary above a control without a shift;
2. `dip`: λ_max falls deeper after the boundary than in the control, relative to what it was there;
3. `alignment`: the alignment with the labels of the first task falls more than in the control;
4. `forgetting`: more of the first task is forgotten than in the control.

The data are sequences made from the seed, whatever `--data` says: each class is a Markov chain of its own over the same
tokens, and nothing but the order of the tokens tells the classes apart (`docs/laboratory.md`). Setting at the scale
"small": three tasks of three classes, 50 sequences of 16 tokens of a class in a task, 200 iterations a task, a
measurement each 10; the kernel counts the table of tokens, the recurrent layer and the head. The GRU has 24 units and
is trained by SGD with momentum 0.9 at η = 0.1, the plain network by SGD at η = 0.2; with momentum its kernel jumped
within the tasks as well. Both were chosen on seed 0 for the accuracy on the first task, which stands in the results.
Controls draw fresh sequences of the same classes at both boundaries.

The scale "paper" has no published setting to follow; it is the same with wider networks and longer tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avalanche_ntk.reproduce.around import VELOCITY, above_control, boundary_at, draw_around, learnt
from avalanche_ntk.reproduce.results import DoneRun, Results, per_seed
from avalanche_ntk.reproduce.settings import run_settings, with_changes
from avalanche_ntk.reproduce.study import Context, Plan, Study
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS = {"gru": "GRU", "rnn": "plain RNN"}
TASKS, CLASSES = 3, 3
VOCABULARY = 16  # of the data `markov`


def plans(context: Context) -> Mapping[str, Plan]:
    """Return the runs: two kinds of cells, with and without a shift; `context.data` is not used."""
    width = context.pick(6, 24, 128)
    shared: dict[str, Any] = {"model.width": width, "model.arguments": {"vocabulary": VOCABULARY}}
    cells = [
        {"model.name": "gru", **shared, "optimizer.lr": 0.1, "optimizer.momentum": 0.9},
        {"model.name": "rnn", **shared, "optimizer.lr": 0.2, "optimizer.momentum": 0.0},
    ]
    base = with_changes(run_settings(context), model={"width": None, "depth": 1}, keep_kernels=False)
    base["benchmark"] = {
        "name": "class_incremental",
        "data": "markov",
        "n_tasks": TASKS,
        "classes_per_task": CLASSES,
        # Three tasks of the same classes must find as many fresh sequences; a class has 150.
        "per_class": context.pick(10, 50, 50),
    }
    base["epochs"] = context.pick(4, 40, 100)
    base["mb_size"] = context.pick(10, 30, 30)
    base["probe"] = {"size": context.pick(12, 30, 90), "from_experience": 0}
    return {"boundaries": {"base": base, "runs": cells, "control": {"benchmark.name": "no_shift"}}}


def of_cell(results: Results, cell: str, control: bool | None = None) -> list[DoneRun]:
    """Return the runs of a kind of cell; controls among them where None."""
    return results.runs("boundaries", {"model.name": cell}, control=control)


def forgetting(run: DoneRun) -> float:
    """Return how much of the first task was forgotten: the accuracy just after it minus that at the end."""
    return learnt(run) - run.run.accuracies(0)[-1][2]


def judge(results: Results) -> Sequence[Claim]:
    """Judge the four statements."""
    seeds = results.context.seeds
    numbers = {
        "spike": ("spike of the velocity", True),
        "norm_dip": ("least λ_max over that at the boundary", False),
        "alignment_drop": ("drop of the alignment", True),
    }
    told: dict[str, list[Finding]] = {name: [] for name in numbers}
    forgotten: list[Finding] = []
    for cell, title in CELLS.items():
        runs = of_cell(results, cell)
        shifted = of_cell(results, cell, control=False)
        for boundary in range(1, TASKS):
            case = f"{title}, boundary {boundary}"
            for name, (statistic, above) in numbers.items():

                def number(run: DoneRun, name: str = name, boundary: int = boundary) -> float:
                    return run.reactivation(name, boundary)

                values = above_control(runs, number, seeds)
                told[name].append(found(case, f"{statistic}, minus the control's", values, 0.0, above=above))
                told[name].append(reported(case, statistic, per_seed(shifted, number, seeds)))
        forgotten.append(
            found(
                title,
                "accuracy on the first task lost by the end minus the control's",
                above_control(runs, forgetting, seeds),
                0.0,
            )
        )
        forgotten.append(
            reported(title, "test accuracy on the first task just after it", per_seed(shifted, learnt, seeds))
        )
    remark = "The probe is of the first task: at the second boundary it is two tasks old."
    return (
        Claim(
            "spike",
            "The velocity of the kernel spikes at each boundary of sequence tasks, beyond what fresh sequences do",
            tuple(told["spike"]),
            f"{remark} A network that has not settled before the boundary has a fast kernel there already.",
        ),
        Claim(
            "dip",
            "λ_max falls at each boundary, more than without a shift",
            tuple(told["norm_dip"]),
            f"{remark} Above 1 where λ_max never falls below what it was at the boundary.",
        ),
        Claim(
            "alignment",
            "The alignment with the first task's labels falls at each boundary, more than without a shift",
            tuple(told["alignment_drop"]),
            f"{remark} What has fallen at the first boundary is not there to fall at the second.",
        ),
        Claim(
            "forgetting",
            "More of the first task is forgotten than without a shift",
            tuple(forgotten),
            "New classes in one head, without replay: what is forgotten is nearly all of it in images too.",
        ),
    )


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw velocity, λ_max and alignment over all tasks by kind of cell, with the shift and without."""
    from avalanche_ntk.report.style import PAGE_INCHES, add_legend, drawing, new_figure

    labels = {
        VELOCITY: "velocity\n(distance per iteration)",
        "spectral_norm": "$\\lambda_{\\max}$ of the kernel",
        "alignment": "alignment",
    }
    with drawing():
        figure = new_figure(PAGE_INCHES, 3.9)
        grid = figure.subplots(len(CELLS), len(labels), sharex=True, squeeze=False)
        for row, (cell, title) in zip(grid, CELLS.items(), strict=True):
            series = of_cell(results, cell)[0].trajectory()
            first = boundary_at(series)
            for axis, (column, label) in zip(row, labels.items(), strict=True):
                for boundary in range(1, TASKS):
                    axis.axvline(boundary_at(series, boundary) - first, color="0.6", linewidth=0.6)
                for position, control in enumerate((False, True)):
                    chosen = of_cell(results, cell, control)
                    log = column != "alignment"
                    draw_around(axis, chosen, column, position, before=first, after=(TASKS - 1) * first, log=log)
                axis.set_title(title)
                axis.set_ylabel(label)
        figure.supxlabel("iterations since the first boundary", fontsize=8)
        add_legend(figure, ["new classes", "same classes, fresh sequences"])
    return {"sequences": figure}


STUDY = Study(judge=judge, draw=draw, plans=plans)
