"""Series around a task boundary, read from the runs of a plan, and what stands apart from the runs without a shift."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.recorder.trajectory import EXPERIENCE_START, Trajectory
from avalanche_ntk.reproduce.results import DoneRun, per_seed
from avalanche_ntk.reproduce.verdicts import minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VELOCITY = "velocity_per_iteration"


def boundary_at(trajectory: Trajectory, experience: int = 1) -> int:
    """Return the iteration at which an experience began.

    Args:
        trajectory: The series.
        experience: Number of the experience.

    Returns:
        Training iterations made before it.

    Raises:
        ValueError: The experience was not measured.
    """
    for m in trajectory.measurements:
        if m.clock.event == EXPERIENCE_START and m.clock.experience == experience:
            return m.clock.iteration
    raise ValueError(f"the series of {trajectory.probe} has no start of experience {experience}.")


def series_around(
    trajectory: Trajectory, column: str, *, experience: int = 1, before: float = math.inf, after: float = math.inf
) -> tuple[list[int], list[float]]:
    """Return a column around the boundary with which an experience began.

    The velocity at iteration t is that of the interval that ends at t; at the boundary itself it is the last of the old
    task. A number that depends on the boundary (such as a distance since it) is the new experience's from b on.

    Args:
        trajectory: The series.
        column: Its column, such as `velocity_per_iteration`.
        experience: Number of the experience.
        before: Iterations before the boundary.
        after: Iterations behind it.

    Returns:
        Iterations since the boundary (negative before it), each once, and the values; NaN where undefined.
    """
    at = boundary_at(trajectory, experience)
    found: dict[int, float] = {}
    for m in trajectory.measurements:
        since = m.clock.iteration - at
        value = m.values.get(column, math.nan)
        # Two measurements at one iteration (an end, a start) enclose no training: the second has no velocity.
        if -before <= since <= after and (since not in found or math.isfinite(value)):
            found[since] = value
    return list(found), list(found.values())


def reactivation_of(trajectory: Trajectory, column: str, experience: int = 1) -> measures.Reactivation:
    """Return the reactivation that any column of velocities shows at a boundary, such as that of one layer's kernel.

    Args:
        trajectory: The series.
        column: The column of velocities.
        experience: Number of the experience, from 1 on.

    Returns:
        The reactivation; `base`, `peak`, `spike` and `ratio` have a value where enough velocities are defined.
    """
    good = [m for m in trajectory.measurements if m.failure is None and m.clock.experience <= experience]
    start = boundary_at(trajectory, experience - 1)
    return measures.reactivation(
        times=[m.clock.iteration for m in good],
        velocities=[m.values.get(column) for m in good],
        boundary=boundary_at(trajectory, experience),
        start=start,
        floor=measures.distance_floor(len(trajectory.labels), trajectory.kernel_dtype),
    )


def number_of(found: measures.Reactivation, name: str) -> float:
    """Return a number of a reactivation; NaN where it has none."""
    value = getattr(found, name)
    return math.nan if value is None else float(value)


def above_control(runs: Iterable[DoneRun], number: Callable[[DoneRun], float], seeds: Sequence[int]) -> list[float]:
    """Return, for each seed, a number of the run with the shift minus that of its control.

    Args:
        runs: Runs of one case, controls among them.
        number: The number of a run.
        seeds: The seeds in order.

    Returns:
        The differences; NaN where one of the two is undefined.
    """
    both = list(runs)
    shifted = per_seed([run for run in both if not run.control], number, seeds)
    control = per_seed([run for run in both if run.control], number, seeds)
    return minus(shifted, control)


def curves(
    runs: Sequence[DoneRun], column: str, *, experience: int = 1, before: float = math.inf, after: float = math.inf
) -> tuple[list[int], list[list[float]]]:
    """Return a column around a boundary for several runs on the same schedule, for `drawing.draw_curve`.

    Args:
        runs: The runs, one a seed.
        column: The column.
        experience: Number of the experience.
        before: Iterations before the boundary.
        after: Iterations behind it.

    Returns:
        Iterations since the boundary, and for each run the values.
    """
    each = [series_around(r.trajectory(), column, experience=experience, before=before, after=after) for r in runs]
    x = each[0][0]
    return x, [[dict(zip(*one, strict=True)).get(t, math.nan) for t in x] for one in each]


def draw_around(
    axis: Axes,
    runs: Sequence[DoneRun],
    column: str,
    position: int,
    *,
    before: float,
    after: float,
    log: bool = False,
    experience: int = 1,
) -> None:
    """Draw a column around a boundary, as a mean over seeds with its 95 % interval.

    Args:
        axis: Where.
        runs: The runs, one a seed.
        column: The column.
        position: Number of the series, which sets colour and line style.
        before: Iterations before the boundary.
        after: Iterations behind it.
        log: Whether to draw on a logarithmic axis: mean and interval are then those of the logarithm.
        experience: Number of the experience.
    """
    from avalanche_ntk.report.scales import log_scale
    from avalanche_ntk.reproduce.drawing import draw_curve

    x, values = curves(runs, column, experience=experience, before=before, after=after)
    draw_curve(axis, x, values, position, geometric=log)
    if log:
        log_scale(axis)


def learnt(run: DoneRun, experience: int = 0) -> float:
    """Return the accuracy on an experience's test samples just after it was trained; NaN where it was not evaluated."""
    return next((a for last, _, a in run.run.accuracies(experience) if last == experience), math.nan)


def mean(values: Iterable[float]) -> float:
    """Return the mean of the finite values; NaN where there is none."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan
