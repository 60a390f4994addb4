"""What the study `plasticity` says of its numbers: statements, and the figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from avalanche_ntk.measures.intervals import interval, rank_correlation
from avalanche_ntk.report.style import COLOURS, FAINT, INK, MARKERS, PAGE_INCHES, drawing, new_figure, put_legend
from avalanche_ntk.reproduce.around import mean
from avalanche_ntk.reproduce.drawing import draw_curve
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported, with_own_and_others

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERMUTED, RELABELLED = "permuted", "relabelled"
STREAMS = (PERMUTED, RELABELLED)
NAIVE, REPLAY, DECAY, NORM, PERTURBED = "naive", "replay", "weight-decay", "layer-norm", "shrink-and-perturb"
REPEATED, FRESH, FRESH_NORM = "repeated", "fresh", "fresh-layer-norm"
REMEDIES = {
    REPLAY: "replay",
    DECAY: "weight decay",
    NORM: "layer norm",
    PERTURBED: "shrink-and-perturb",
}
AHEAD = {1: "ahead by one", 5: "ahead by five"}
WEAK = 0.2  # a rank correlation, or a difference of two, below this does not matter
SMALL = 0.05  # a difference of log₁₀ losses


@dataclass(frozen=True)
class Number:
    """What might foretell.

    Attributes:
        name: What it is called in statistics and in the figure.
        column: Its column.
        worse: 1 where more of it should mean worse learning, −1 where better.
        text: The statement.
        remark: What else is to be known.
    """

    name: str
    column: str
    worse: int
    text: str
    remark: str


NUMBERS = {
    "kernel-rank": Number(
        "kernel rank",
        "kernel_rank_approximate",
        -1,
        "The lower the approximate rank of the kernel at a boundary, the worse the next tasks are learnt",
        "C-CHAIN says that both go together; arXiv 2605.09044 that they need not. δ = 0.01.",
    ),
    "feature-rank": Number(
        "feature rank",
        "feature_rank_srank",
        -1,
        "The lower the srank of the features, the worse the next tasks are learnt",
        "Lyle et al. 2022 and Kumar et al. 2021 use such a rank; arXiv 2605.09044 says that it need not foretell.",
    ),
    "dormant": Number(
        "dormant units",
        "dormant_share",
        1,
        "The more units are dormant, the worse the next tasks are learnt",
        "Sokar et al. 2023, τ = 0.1.",
    ),
    "churn": Number(
        "churn",
        "churn",
        1,
        "The larger the churn in a task's last epoch, the worse the next tasks are learnt",
        "C-CHAIN's churn is that of a minibatch. A task that is learnt badly also ends with larger steps.",
    ),
    "weights": Number(
        "weight norm",
        "weight_norm",
        1,
        "The larger the weights, the worse the next tasks are learnt",
        "One of several causes in Lyle et al. 2024.",
    ),
    "cosine": Number(
        "gradient cosine",
        "gradient_cosine",
        1,
        "The more alike the gradients of all samples, the worse the next tasks are learnt",
        "After Lyle et al. 2023; the labels are those of the fresh task.",
    ),
    "gradient": Number(
        "gradient norm",
        "gradient_norm",
        -1,
        "The larger the gradient on a fresh task, the better the next tasks are learnt",
        "It stands in for the readiness of arXiv 2605.09044, whose formula could not be read: to first order its "
        "square is what a small step gains. A network that is sure of wrong labels has a large gradient, too.",
    ),
    "trial": Number(
        "trial",
        "trainability_area",
        1,
        "The worse a copy learns a fresh task, the worse the next tasks are learnt",
        "Another task, with fewer samples and another step size: what can be had by trying instead of looking.",
    ),
}
COLUMNS = tuple(number.column for number in NUMBERS.values())

Arms = Mapping[str, Mapping[str, Sequence[float]]]
"""Of one seed, by arm: `loss` of each task, and each number before each task but the first."""
Streams = Mapping[str, Sequence[Arms]]
"""For each stream the arms of each seed."""


def learnt(arms: Arms, arm: str) -> list[float]:
    """Return for each task log₁₀ of the loss over that of the network as it was before any training.

    >>> learnt({"naive": {"loss": [2.0, 10.0]}, "fresh": {"loss": [2.0, 1.0]}}, "naive")
    [0.0, 1.0]
    """
    fresh = arms[FRESH_NORM if arm == NORM else FRESH]["loss"]
    return [math.log10(a / b) for a, b in zip(arms[arm]["loss"], fresh, strict=True)]


def late(series: Sequence[float]) -> float:
    """Return the mean of the last quarter of a series.

    >>> late([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0])
    1.5
    """
    return mean(series[-max(1, len(series) // 4) :])


def early(series: Sequence[float]) -> float:
    """Return the mean of the first quarter of a series."""
    return mean(series[: max(1, len(series) // 4)])


def foretelling(seeds: Sequence[Arms], arm: str, column: str, ahead: int) -> tuple[list[float], list[float]]:
    """Return how a number at a boundary goes with the learning of a later task.

    Args:
        seeds: The arms of each seed.
        arm: Which arm.
        column: The number; the i-th stands before task i + 1, from 0 on.
        ahead: 1 for the task that begins there, 5 for the fourth after it.

    Returns:
        For each seed the rank correlation over boundaries, and the mean of those with other seeds' learning.
    """
    outcomes = [learnt(one, arm)[ahead:] for one in seeds]
    series = [one[arm][column][: len(later)] for one, later in zip(seeds, outcomes, strict=True)]
    return with_own_and_others(series, outcomes)


def over_time(seeds: Sequence[Arms], arm: str, ahead: int) -> list[float]:
    """Return what the number of the boundary foretells, for each seed."""
    outcomes = [learnt(one, arm)[ahead:] for one in seeds]
    return [rank_correlation(range(len(later)), later) for later in outcomes]


def profile(arms: Arms, arm: str) -> list[float]:
    """Return what each number foretells of the next task, in the order of `NUMBERS`."""
    return [foretelling([arms], arm, number.column, 1)[0][0] for number in NUMBERS.values()]


def likeness(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the rank correlation of two profiles over the numbers that are defined in both."""
    both = [(a, b) for a, b in zip(one, other, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return rank_correlation([a for a, _ in both], [b for _, b in both]) if len(both) > 2 else math.nan


def like_the_plain(seeds: Sequence[Arms], arm: str) -> list[float]:
    """Return, for each seed, how like an arm's profile is to those of plain training with other seeds."""
    own, plain = [profile(one, arm) for one in seeds], [profile(one, NAIVE) for one in seeds]
    return [mean(likeness(mine, other) for j, other in enumerate(plain) if j != i) for i, mine in enumerate(own)]


def judge(results: Results) -> list[Claim]:
    """Judge the statements, in their order."""
    streams = {stream: results.measured(stream) for stream in STREAMS}
    return [
        _loses(streams),
        *(_foretells(streams, key, number) for key, number in NUMBERS.items()),
        _better(streams),
        _remedies(streams),
        _change(streams),
    ]


def _loses(streams: Streams) -> Claim:
    findings = []
    for stream, seeds in streams.items():
        told = "log₁₀ of the loss over the untrained network's, last quarter of the tasks"
        last = [late(learnt(one, NAIVE)) for one in seeds]
        trial = [
            [late([math.log10(v) for v in one[arm]["trainability_area"]]) for one in seeds] for arm in (NAIVE, REPEATED)
        ]
        findings += [
            found(stream, told, last, 0.0, margin=SMALL),
            found(
                stream,
                f"{told}, minus that of the first quarter",
                minus(last, [early(learnt(one, NAIVE)) for one in seeds]),
                0.0,
                margin=SMALL,
            ),
            found(
                stream,
                "log₁₀ of the loss on the fresh task, last quarter, minus that after one task throughout",
                minus(*trial),
                0.0,
                margin=SMALL,
            ),
            reported(stream, "mean loss over the epochs of a task, untrained", [mean(o[FRESH]["loss"]) for o in seeds]),
            reported(stream, "rank correlation of the learning with the task", over_time(seeds, NAIVE, 1)),
        ]
    return Claim(
        "loses",
        "The last of the tasks are learnt worse than by the untrained network, than the first, and than after one task",
        tuple(findings),
        "The optimizer was chosen so that this is so, on a seed that is not among these.",
    )


def _foretells(streams: Streams, key: str, number: Number) -> Claim:
    findings: list[Finding] = []
    above = number.worse > 0
    for stream, seeds in streams.items():
        for ahead, words in AHEAD.items():
            own, others = foretelling(seeds, NAIVE, number.column, ahead)
            told = f"rank correlation of the {number.name} with how badly a task is learnt"
            case = f"{stream}, {words}"
            findings += [
                found(case, told, own, 0.0, above=above, margin=WEAK),
                found(case, f"{told}, minus other seeds'", minus(own, others), 0.0, above=above, margin=WEAK),
                reported(case, "rank correlation of the number of the boundary", over_time(seeds, NAIVE, ahead)),
            ]
        findings += [
            reported(
                f"{stream}, ahead by one",
                f"rank correlation of the {number.name}, with {name}",
                foretelling(seeds, arm, number.column, 1)[0],
            )
            for arm, name in REMEDIES.items()
        ]
    return Claim(key, number.text, tuple(findings), number.remark)


def _better(streams: Streams) -> Claim:
    findings = []
    for stream, seeds in streams.items():
        for ahead, words in AHEAD.items():
            gradient, _ = foretelling(seeds, NAIVE, NUMBERS["gradient"].column, ahead)
            for key in ("kernel-rank", "feature-rank"):
                rank, _ = foretelling(seeds, NAIVE, NUMBERS[key].column, ahead)
                statistic = f"rank correlation of the gradient norm, minus that of the {NUMBERS[key].name}"
                findings.append(
                    found(f"{stream}, {words}", statistic, minus(gradient, rank), 0.0, above=False, margin=WEAK)
                )
    return Claim(
        "better-than-rank",
        "The gradient on a fresh task foretells better than the ranks do",
        tuple(findings),
        "Both should be negative: the more so, the better it foretells. The gradient norm stands in for the readiness "
        "of arXiv 2605.09044.",
    )


def _remedies(streams: Streams) -> Claim:
    findings = []
    for stream, seeds in streams.items():
        plain = [late(learnt(one, NAIVE)) for one in seeds]
        for arm, name in REMEDIES.items():
            with_it = [late(learnt(one, arm)) for one in seeds]
            case, told = f"{stream}, {name}", "log₁₀ of the loss over the untrained network's, last quarter"
            findings += [
                found(case, f"{told}, minus without", minus(with_it, plain), 0.0, above=False, margin=SMALL),
                reported(case, told, with_it),
            ]
    return Claim(
        "remedies",
        "With replay, weight decay, layer norm, or shrinking and perturbing the last tasks are learnt better",
        tuple(findings),
        "With layer norm the untrained network has it, too. With replay a step goes for old samples as well as for new "
        "ones, so that the same number of steps learns less of the new.",
    )


def _change(streams: Streams) -> Claim:
    findings = []
    for stream, seeds in streams.items():
        plain = like_the_plain(seeds, NAIVE)
        for arm, name in REMEDIES.items():
            like = minus(like_the_plain(seeds, arm), plain)
            told = "likeness of what the numbers foretell to other seeds without the remedy"
            findings += [
                found(f"{stream}, {name}", f"{told}, minus plain training's", like, 0.0, above=False, margin=WEAK),
            ]
        findings.append(reported(f"{stream}, plain", told, plain))
    return Claim(
        "change",
        "A remedy changes which numbers foretell",
        tuple(findings),
        "Likeness is the rank correlation, over the eight numbers, of what each foretells (ahead by one).",
    )


def draw(results: Results) -> dict[str, Figure]:
    """Draw the learning of each task by arm, and what each number foretells."""
    shown = {NAIVE: "plain training", **REMEDIES}
    with drawing():
        figure = new_figure(PAGE_INCHES, 5.0)
        grid = figure.subplots(len(STREAMS), 2, sharex="col", squeeze=False)
        for (left, right), stream in zip(grid, STREAMS, strict=True):
            seeds = results.measured(stream)
            for position, (arm, name) in enumerate(shown.items()):
                by_seed = [learnt(one, arm) for one in seeds]
                draw_curve(left, range(1, len(by_seed[0]) + 1), by_seed, position, name)
            left.axhline(0, color="black", linewidth=0.6)
            left.set(title=stream, ylabel="log₁₀ of loss over\nthe untrained network's")
            _draw_numbers(right, seeds)
            right.set(title=stream, ylabel="rank correlation", ylim=(-1.05, 1.05))
        grid[-1, 0].set_xlabel("task")
        handles = [axis.get_legend_handles_labels() for axis in grid[0]]
        put_legend(figure, *(list(parts[0]) + list(parts[1]) for parts in zip(*handles, strict=True)))
    return {"plasticity": figure}


def _draw_numbers(axis: Any, seeds: Sequence[Arms]) -> None:
    """Draw what each number foretells, beside other seeds' learning."""
    series = {
        "ahead by one": [foretelling(seeds, NAIVE, number.column, 1)[0] for number in NUMBERS.values()],
        "ahead by five": [foretelling(seeds, NAIVE, number.column, 5)[0] for number in NUMBERS.values()],
        "other seeds' tasks, ahead by one": [
            foretelling(seeds, NAIVE, number.column, 1)[1] for number in NUMBERS.values()
        ],
    }
    axis.axhline(0, color="black", linewidth=0.6)
    for place, (name, by_number) in enumerate(series.items()):
        mean_, low, high = np.array([interval([v for v in values if math.isfinite(v)]) for values in by_number]).T
        at = np.arange(len(by_number)) + 0.22 * (place - 1)
        spread = np.nan_to_num(np.array([mean_ - low, high - mean_]))
        # Other colours than those of the arms: all of these are of plain training.
        style = {"color": (INK, COLOURS[5], FAINT)[place], "marker": MARKERS[place], "markersize": 3.5, "linestyle": ""}
        axis.errorbar(at, mean_, yerr=spread, capsize=2, elinewidth=0.8, label=name, **style)
    axis.set_xticks(range(len(NUMBERS)), [n.name for n in NUMBERS.values()], rotation=40, ha="right")
