"""Does the linearisation error jump where the kernel's velocity does?

Nobody has published an answer. A kernel that moves and a network that leaves its linearisation are often taken for the
same thing. They are not the same number: the velocity compares kernels an interval apart, the error compares the
function with its first-order expansion at an anchor (`docs/definitions.md`), either the initialisation or the last
boundary. Asked here, as statements that can fail:

1. `together`: around a boundary the error to initialisation changes most in the intervals in which the kernel is
   fastest (rank correlation over ten measurements before the boundary and ten after it);
2. `jump`: at the boundary its change spikes above that without a shift;
3. `anchor`: with the boundary as the anchor, the error soon after it is larger than without a shift;
4. `regime`: that error is larger in the rich regime than in the lazy one, and in the lazy one smaller in a wider
   network.

Setting at the scale "small": two tasks of five classes, none in common, MLPs of two hidden layers of 64 and 256 units,
lazy (η = 0.1 · 64/width) and rich (He's uniform weights, η = 0.1), 300 iterations a task, a measurement each 10; each
with a control on fresh samples of the same classes. The error is relative to how far the outputs on the probe have gone
from the anchor. With the boundary as the anchor this distance is itself small where no class is new: the control's
error is that of a small motion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from avalanche_ntk import measures
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.reproduce import verdicts
from avalanche_ntk.reproduce.around import (
    VELOCITY,
    above_control,
    boundary_at,
    draw_around,
    learnt,
    number_of,
    series_around,
)
from avalanche_ntk.reproduce.results import DoneRun, Results, per_seed
from avalanche_ntk.reproduce.settings import NO_SHIFT, run_settings, with_changes
from avalanche_ntk.reproduce.study import Context, Plan, Study
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INIT, BOUNDARY = "linearisation_error_init", "linearisation_error_boundary"
REGIMES = ("lazy", "rich")
AROUND = 10  # measurements on each side, as many as a reactivation's base takes
SOON = 3  # measurements, as many as a reactivation's peak is looked for in


def widths(context: Context) -> tuple[int, int]:
    """Return the two widths."""
    found: tuple[int, int] = context.pick((8, 16), (64, 256), (256, 2048))
    return found


def every(context: Context) -> int:
    """Return the iterations between measurements."""
    found: int = context.pick(2, 10, 10)
    return found


def plans(context: Context) -> Mapping[str, Plan]:
    """Return the runs: two regimes, two widths, with and without a shift."""
    base = with_changes(
        run_settings(context),
        model={"depth": 2},
        # The narrower network has the same step size in both regimes.
        regime={"name": REGIMES[0], "base_width": widths(context)[0]},
        optimizer={"lr": 0.1},
        observables=["linearisation"],
        keep_kernels=False,
    )
    grid: dict[str, Any] = {"regime.name": list(REGIMES), "model.width": list(widths(context))}
    return {"boundary": {"base": base, "grid": grid, "control": NO_SHIFT}}


def changes(times: Sequence[int], values: Sequence[float]) -> list[float]:
    """Return how fast a number changes in each interval, `|x_{i+1} − x_i| / (t_{i+1} − t_i)`.

    Args:
        times: n iterations, rising.
        values: n numbers; NaN where undefined.

    Returns:
        n numbers, of the interval that ends at each time; the first NaN.

    >>> changes([0, 10, 20], [0.5, 0.25, 0.75])[1:]
    [0.025, 0.05]
    """
    pairs = zip(times, times[1:], values, values[1:], strict=False)
    return [math.nan, *(abs(b - a) / (t1 - t0) for t0, t1, a, b in pairs)]


def together(trajectory: Trajectory, interval: int) -> float:
    """Return Spearman's rank correlation of the velocity with the change of the error, over the intervals around b.

    Args:
        trajectory: The series.
        interval: Iterations between measurements.

    Returns:
        The correlation over ten intervals before the boundary and ten after it; NaN where either is constant.
    """
    # One measurement more, from which the first interval begins.
    window = {"before": AROUND * interval, "after": AROUND * interval}
    times, errors = series_around(trajectory, INIT, **window)
    _, velocities = series_around(trajectory, VELOCITY, **window)
    return rank_correlation(velocities, changes(times, errors))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation over the pairs of which both are defined.

    Args:
        a: n numbers; NaN where undefined.
        b: n numbers.

    Returns:
        The correlation; NaN for fewer than three pairs, or where one of the two is constant.

    >>> rank_correlation([1.0, 2.0, math.nan, 5.0], [2.0, 3.0, 0.0, 9.0])
    1.0
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return verdicts.rank_correlation(*zip(*pairs, strict=True)) if len(pairs) >= 3 else math.nan


def jump(trajectory: Trajectory) -> float:
    """Return the spike of the change of the error to initialisation at the boundary, per iteration.

    As that of a velocity: the largest of the first three changes minus the median of the last ten before.
    """
    times, errors = series_around(trajectory, INIT)
    at = boundary_at(trajectory)
    return number_of(
        measures.reactivation(times=[t + at for t in times], velocities=changes(times, errors), boundary=at), "spike"
    )


def soon(trajectory: Trajectory, interval: int) -> float:
    """Return the largest error to the boundary in the first three measurements after it."""
    times, errors = series_around(trajectory, BOUNDARY, before=0, after=SOON * interval)
    return max((e for t, e in zip(times, errors, strict=True) if t > 0 and math.isfinite(e)), default=math.nan)


def judge(results: Results) -> Sequence[Claim]:
    """Judge the four statements."""
    both, jumps, anchored, after = _by_case(results)
    return (
        Claim(
            "together",
            "Around a boundary the linearisation error to initialisation changes most where the kernel is fastest",
            tuple(both),
            "Both settle in the course of a task, so that a part of the correlation is common decay; whether it is more"
            " than this, the difference to the control says.",
        ),
        Claim(
            "jump",
            "The linearisation error to initialisation changes abruptly at the boundary, beyond what fresh samples do",
            tuple(jumps),
            "The change is counted without its sign: the error can fall at a boundary, where the outputs on the old"
            " samples go where the first kernel would have sent them.",
        ),
        Claim(
            "anchor",
            "Linearised at the boundary, the network leaves its linearisation sooner than without a shift",
            tuple(anchored),
            "The error is relative to the motion of the outputs, which is small in the control.",
        ),
        Claim(
            "regime",
            "The error soon after a boundary is larger in the rich regime, and smaller in a wider lazy network",
            _compared(*widths(results.context), after),
            "At these widths and step sizes the lazy regime is no limit: its networks leave their linearisation too.",
        ),
    )


def _by_case(
    results: Results,
) -> tuple[list[Finding], list[Finding], list[Finding], dict[tuple[str, int], list[float]]]:
    """Return, over regimes and widths: correlations, jumps, errors from the boundary, and the latter's numbers."""
    context = results.context
    seeds, interval = context.seeds, every(context)

    def correlation(run: DoneRun) -> float:
        return together(run.trajectory(), interval)

    def spike(run: DoneRun) -> float:
        return jump(run.trajectory())

    def error(run: DoneRun) -> float:
        return soon(run.trajectory(), interval)

    both, jumps, anchored = [], [], []
    after: dict[tuple[str, int], list[float]] = {}
    for regime in REGIMES:
        for width in widths(context):
            case = f"{regime}, width {width}"
            runs = runs_of(results, regime, width)
            shifted = runs_of(results, regime, width, control=False)
            after[regime, width] = per_seed(shifted, error, seeds)
            statistic = "rank correlation of velocity and change of the error"
            both += [
                found(case, statistic, per_seed(shifted, correlation, seeds), 0.0),
                found(case, "that correlation minus the control's", above_control(runs, correlation, seeds), 0.0),
            ]
            statistic = "spike of the error's change, per iteration, minus the control's"
            jumps.append(found(case, statistic, above_control(runs, spike, seeds), 0.0))
            statistic = "largest error of the first three measurements minus the control's"
            anchored += [
                found(case, statistic, above_control(runs, error, seeds), 0.0),
                reported(case, "that error", after[regime, width]),
                reported(case, "test accuracy on the first task at the boundary", per_seed(shifted, learnt, seeds)),
            ]
    return both, jumps, anchored, after


def _compared(narrow: int, wide: int, after: Mapping[tuple[str, int], list[float]]) -> tuple[Finding, ...]:
    rich = [
        found(
            f"width {width}",
            "error soon after the boundary, rich minus lazy",
            minus(after["rich", width], after["lazy", width]),
            0.0,
        )
        for width in (narrow, wide)
    ]
    lazy = found(
        "lazy",
        f"error soon after the boundary, width {wide} minus width {narrow}",
        minus(after["lazy", wide], after["lazy", narrow]),
        0.0,
        above=False,
    )
    return (*rich, lazy)


def runs_of(results: Results, regime: str, width: int, control: bool | None = None) -> list[DoneRun]:
    """Return the runs of a regime and a width; controls among them where None."""
    return results.runs("boundary", {"regime.name": regime, "model.width": width}, control=control)


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw velocity and both errors around the boundary, by regime and width, with the shift and without."""
    from avalanche_ntk.report.style import PAGE_INCHES, add_legend, drawing, new_figure

    cases = [(regime, width) for regime in REGIMES for width in widths(results.context)]
    labels = {
        VELOCITY: "velocity\n(per iteration)",
        INIT: "error to\ninitialisation",
        BOUNDARY: "error to the\nlast boundary",
    }
    span = 10 * every(results.context)
    with drawing():
        figure = new_figure(PAGE_INCHES, 5.0)
        grid = figure.subplots(len(labels), len(cases), sharex=True, sharey="row", squeeze=False)
        for row, (column, label) in zip(grid, labels.items(), strict=True):
            for axis, (regime, width) in zip(row, cases, strict=True):
                axis.axvline(0, color="0.6", linewidth=0.6)
                for position, control in enumerate((False, True)):
                    runs = runs_of(results, regime, width, control)
                    log = column == VELOCITY
                    # Across the boundary the error to it has two anchors, which no line should join.
                    for before, after in (
                        [(span, 0), (-every(results.context), 2 * span)] if column == BOUNDARY else [(span, 2 * span)]
                    ):
                        draw_around(axis, runs, column, position, before=before, after=after, log=log)
                if column == VELOCITY:
                    axis.set_title(f"{regime}, width {width}")
            row[0].set_ylabel(label)
        figure.supxlabel("iterations since the boundary", fontsize=8)
        add_legend(figure, ["new classes", "same classes, fresh samples"])
    return {"linearisation": figure}


STUDY = Study(judge=judge, draw=draw, plans=plans)
