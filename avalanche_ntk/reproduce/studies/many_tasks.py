"""Twenty tasks in a row: does what moves the kernel of the first task add up, decay or settle?

Nobody has published it: studies of the tangent kernel under a change of task (arXiv 2507.16039 reports spikes at every
boundary) have few boundaries. Twenty tasks of the same five classes, the pixels in another order in each but the first
and the samples the same; plain training, in the rich regime and in the lazy one; the kernel is that of samples of the
first task throughout. The control repeats the first task twenty times.

Three series are followed from boundary to boundary: the spike of the velocity; the distance from the kernel of the
first boundary; and the effective rank. The distance *adds up* where its rank correlation with the number of the
boundary is above 0. It *settles* where the last quarter of the boundaries adds less than 10 % of the distance there:
what grew at a constant rate would add a quarter.

Differs from larger settings: five digits, 100 samples and 60 iterations a task; a network of width 256. At this width
the lazy regime is not lazy: from its smaller initial weights its kernel moves further than that of the rich one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.report.style import PAGE_INCHES, drawing, new_figure, put_legend
from avalanche_ntk.reproduce.around import mean
from avalanche_ntk.reproduce.drawing import draw_curve
from avalanche_ntk.reproduce.results import DoneRun, Results
from avalanche_ntk.reproduce.settings import run_settings, stream, with_changes
from avalanche_ntk.reproduce.study import Context, Plan, Study
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported, trend_by_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REGIMES = ("rich", "lazy")
SETTLED = 0.1
PLAN = "tasks"


def plans(context: Context) -> Mapping[str, Plan]:
    """Return one plan: both regimes, and the first task repeated."""
    base = with_changes(
        run_settings(context),
        epochs=context.pick(3, 12, 5),
        mb_size=context.pick(12, 20, 128),
        probe={"size": context.pick(10, 30, 256)},
    )
    base["benchmark"] = stream(
        context,
        "permuted",
        n_tasks=context.pick(5, 20, 20),
        classes_per_task=context.pick(5, 5, None),
        per_class=context.pick(5, 20, None),
        fresh=False,
    )
    # `lazy` divides its rate by width/64: at width 256 both begin with steps that are neither too long nor idle.
    runs = [
        {"regime.name": "rich", "optimizer.lr": context.pick(0.05, 0.1, 0.1)},
        {"regime.name": "lazy", "optimizer.lr": context.pick(0.05, 0.2, 0.2)},
    ]
    return {PLAN: {"base": base, "runs": runs, "control": {"benchmark.name": "no_shift"}}}


def spikes(run: DoneRun) -> list[float]:
    """Return the spike at each boundary."""
    return [run.reactivation("spike", boundary) for boundary in sorted(run.trajectory().reactivations)[1:]]


def _starts(run: DoneRun) -> list[Any]:
    """Return the measurements at the boundaries, and the last of all."""
    trajectory = run.trajectory()
    at = [m for m in trajectory if m.clock.event == "experience_start" and m.clock.experience > 0]
    return [*at, trajectory[-1]]


def distances(run: DoneRun) -> list[float]:
    """Return the distance of the kernel from that of the first boundary: at each later boundary, and at the end."""
    first, *later = (run.trajectory().kernel(m.index) for m in _starts(run))
    reference = measures.KernelView(first)
    return [measures.kernel_distance(reference, kernel) for kernel in later]


def from_start(run: DoneRun) -> list[float]:
    """Return the distance of the kernel from the one before any training: at each boundary, and at the end."""
    return [m.values.get("distance_init", math.nan) for m in _starts(run)]


def ranks(run: DoneRun) -> list[float]:
    """Return the effective rank of the kernel at each boundary, and at the end."""
    return [m.values.get("effective_rank", math.nan) for m in _starts(run)]


def over_time(series: Sequence[Sequence[float]]) -> list[float]:
    """Return, for each seed, the rank correlation of a series with time, as `verdicts.trend` defines it.

    Args:
        series: For each seed numbers in order of time.

    Returns:
        A correlation a seed.

    >>> over_time([[1.0, 2.0, 5.0], [3.0, 2.0, 1.0]])
    [1.0, -1.0]
    """
    return trend_by_seed(range(len(series[0])), series)


def late(series: Sequence[float]) -> list[float]:
    """Return the last quarter of a series, at least two numbers.

    >>> late([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    [7.0, 8.0]
    """
    return list(series[-max(2, len(series) // 4) :])


def gained_late(series: Sequence[float]) -> float:
    """Return what the last quarter of a series adds, over its mean there.

    The slope by least squares over the last quarter, times a quarter of the series' length. A series that grows from 0
    at a constant rate gains about 0.29; one that is settled 0.

    Args:
        series: Numbers in order of time.

    Returns:
        The share; NaN where the mean is 0 or a number is undefined.

    >>> gained_late([5.0, 1.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0])
    0.0
    """
    last = np.array(late(series))
    if not np.all(np.isfinite(last)) or last.mean() == 0:
        return math.nan
    steps = np.arange(len(last)) - (len(last) - 1) / 2
    slope = float((steps * last).sum() / (steps * steps).sum())
    return slope * len(series) / 4 / float(last.mean())


def means(series: Sequence[Sequence[float]]) -> list[float]:
    """Return each series' mean over its defined numbers; NaN where there is none."""
    return [mean(one) for one in series]


def _series(results: Results, of: Callable[[DoneRun], list[float]], regime: str, control: bool) -> list[list[float]]:
    return [of(run) for run in results.runs(PLAN, {"regime.name": regime}, control=control)]


def _grows(
    regime: str, what: str, shifted: Sequence[Sequence[float]], still: Sequence[Sequence[float]]
) -> list[Finding]:
    """Return whether a number grows with time, and whether it ends above the control's."""
    ends = minus([one[-1] for one in shifted], [one[-1] for one in still])
    return [
        found(regime, f"rank correlation of the {what} with time", over_time(shifted), 0.0),
        found(regime, f"{what} at the end − the control's", ends, 0.0),
    ]


Series = Mapping[str, tuple[list[list[float]], list[list[float]]]]
"""For each regime and seed a number a boundary: of the runs, and of their controls."""


def judge(results: Results) -> list[Claim]:
    """Follow spike, distance and rank from boundary to boundary, beside the control's."""

    def both(of: Callable[[DoneRun], list[float]]) -> Series:
        return {r: (_series(results, of, r, False), _series(results, of, r, True)) for r in REGIMES}

    spike, distance = both(spikes), both(distances)
    first = {
        regime: _series(results, lambda run: [value for _, _, value in run.run.accuracies(0)], regime, False)
        for regime in REGIMES
    }
    return [
        _decays(spike),
        _stays(spike),
        _adds_up(distance),
        _settles(distance),
        _goes_back(both(from_start)),
        _rank_grows(both(ranks), first),
    ]


def _decays(spike: Series) -> Claim:
    return Claim(
        "spike-decays",
        "The spike becomes smaller from boundary to boundary",
        tuple(
            found(
                regime,
                f"rank correlation of the spike{told} with the boundary",
                over_time(series),
                0.0,
                above=False,
            )
            for regime in REGIMES
            for told, series in (
                ("", spike[regime][0]),
                (" − the control's", [minus(*pair) for pair in zip(*spike[regime], strict=True)]),
            )
        ),
        "Threshold 0: neither growing nor decaying. The first task is not yet at rest when it ends, which makes "
        "the first spike smaller, also the control's.",
    )


def _stays(spike: Series) -> Claim:
    return Claim(
        "spike-stays",
        "The last boundaries are still seen in the first task's kernel",
        tuple(
            finding
            for regime in REGIMES
            for finding in (
                found(
                    regime,
                    "mean spike of the last quarter of boundaries − the control's",
                    minus(means([late(s) for s in spike[regime][0]]), means([late(s) for s in spike[regime][1]])),
                    0.0,
                ),
                reported(regime, "mean spike of all boundaries", means(spike[regime][0])),
                reported(regime, "mean spike of all boundaries, control", means(spike[regime][1])),
            )
        ),
        "The control has boundaries in name only: the same samples go on.",
    )


def _adds_up(distance: Series) -> Claim:
    return Claim(
        "adds-up",
        "The movement adds up: the kernel goes ever further from that of the first boundary",
        tuple(
            finding
            for regime in REGIMES
            for finding in (
                *_grows(regime, "distance", *distance[regime]),
                reported(regime, "distance at the end", [d[-1] for d in distance[regime][0]]),
            )
        ),
    )


def _settles(distance: Series) -> Claim:
    return Claim(
        "settles",
        "It settles: the last quarter of the tasks adds less than a tenth",
        tuple(
            finding
            for regime in REGIMES
            for finding in (
                found(
                    regime,
                    "share of the distance that the last quarter adds",
                    [gained_late(d) for d in distance[regime][0]],
                    SETTLED,
                    above=False,
                ),
                reported(
                    regime,
                    "the same, of the control",
                    [gained_late(d) for d in distance[regime][1]],
                ),
            )
        ),
        "What grows at a constant rate adds a quarter of its end, 0.29 of its mean there.",
    )


def _goes_back(begin: Series) -> Claim:
    return Claim(
        "goes-back",
        "The kernel goes back towards the one before any training",
        tuple(
            finding
            for regime in REGIMES
            for finding in (
                found(
                    regime,
                    "rank correlation of the distance from the initial kernel with time",
                    over_time(begin[regime][0]),
                    0.0,
                    above=False,
                ),
                reported(regime, "the same, of the control", over_time(begin[regime][1])),
            )
        ),
        "From the first boundary on. What the first task has made of the kernel is then undone, not only moved.",
    )


def _rank_grows(rank: Series, first: Mapping[str, list[list[float]]]) -> Claim:
    return Claim(
        "rank-grows",
        "The effective rank of the first task's kernel grows over the tasks",
        tuple(
            finding
            for regime in REGIMES
            for finding in (
                *_grows(regime, "effective rank", *rank[regime]),
                reported(regime, "accuracy on the first task at the end", [a[-1] for a in first[regime]]),
            )
        ),
        "A kernel that is trained for its labels becomes low in rank; later tasks take that away again.",
    )


def draw(results: Results) -> dict[str, Figure]:
    """Spike, distance from the first boundary and effective rank by boundary, with the control."""
    shown: tuple[tuple[str, Callable[[DoneRun], list[float]], int], ...] = (
        ("spike\n(distance per iteration)", spikes, 1),
        ("distance from\nthe first boundary", distances, 2),
        ("effective rank", ranks, 1),
    )
    with drawing():
        figure = new_figure(PAGE_INCHES, 4.2)
        axes = figure.subplots(len(REGIMES), len(shown))
        for row, regime in zip(axes, REGIMES, strict=True):
            for axis, (label, of, begin) in zip(row, shown, strict=True):
                for position, told in enumerate(("another order of pixels in each task", "first task repeated")):
                    by_seed = _series(results, of, regime, bool(position))
                    draw_curve(axis, list(range(begin, begin + len(by_seed[0]))), by_seed, position, told)
                axis.set(xlabel="boundary", ylabel=label)
                axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]) if of is not ranks else None)
            row[0].set_title(regime)
        put_legend(figure, *axes[0][0].get_legend_handles_labels())
    return {"boundary-by-boundary": figure}


STUDY = Study(judge=judge, draw=draw, plans=plans)
