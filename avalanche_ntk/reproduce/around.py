"""Series around a task boundary from the runs of a plan, and comparison with the controls."""

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
        Number of training iterations before it.

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
    """Return a column around the boundary at which an experience began.

    The velocity at iteration t is that of the interval that ends at t, so at the boundary it is the last one of the old
    task. Numbers relative to a boundary (such as a distance from it) refer to the new experience from b on.

    Args:
        trajectory: The series.
        column: Its column, such as `velocity_per_iteration`.
        experience: Number of the experience.
        before: Iterations before the boundary.
        after: Iterations after it.

    Returns:
        Iterations since the boundary (negative before it), without duplicates, and the values; NaN if undefined.
    """
    at = boundary_at(trajectory, experience)
    found: dict[int, float] = {}
    for m in trajectory.measurements:
        since = m.clock.iteration - at
        value = m.values.get(column, math.nan)
        # There is no training between two measurements at one iteration (an end and a start): the second has no
        # velocity.
        if -before <= since <= after and (since not in found or math.isfinite(value)):
            found[since] = value
    return list(found), list(found.values())


def reactivation_of(trajectory: Trajectory, column: str, experience: int = 1) -> measures.Reactivation:
    """Return the reactivation of any column of velocities at a boundary, such as that of a layer's kernel.

    Args:
        trajectory: The series.
        column: The column of velocities.
        experience: Number of the experience, at least 1.

    Returns:
        The reactivation; `base`, `peak`, `spike` and `ratio` are defined if there are enough velocities.
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
    """Return a number of a reactivation; NaN if undefined."""
    value = getattr(found, name)
    return math.nan if value is None else float(value)


def above_control(runs: Iterable[DoneRun], number: Callable[[DoneRun], float], seeds: Sequence[int]) -> list[float]:
    """Return, for each seed, a number of the run with the shift minus that of its control.

    Args:
        runs: Runs of one case, including controls.
        number: The number of a run.
        seeds: The seeds in order.

    Returns:
        The differences; NaN if one of the two is undefined.
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
        runs: The runs, one per seed.
        column: The column.
        experience: Number of the experience.
        before: Iterations before the boundary.
        after: Iterations after it.

    Returns:
        Iterations since the boundary, and the values of each run.
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
        axis: The axes.
        runs: The runs, one per seed.
        column: The column.
        position: Index of the series, for colour and line style.
        before: Iterations before the boundary.
        after: Iterations after it.
        log: Whether to use a logarithmic axis, with mean and interval of the logarithm.
        experience: Number of the experience.
    """
    from avalanche_ntk.report.scales import log_scale
    from avalanche_ntk.reproduce.drawing import draw_curve

    x, values = curves(runs, column, experience=experience, before=before, after=after)
    draw_curve(axis, x, values, position, geometric=log)
    if log:
        log_scale(axis)


def learnt(run: DoneRun, experience: int = 0) -> float:
    """Return the accuracy on an experience's test samples just after its training; NaN if it was not evaluated."""
    return next((a for last, _, a in run.run.accuracies(experience) if last == experience), math.nan)


def mean(values: Iterable[float]) -> float:
    """Return the mean of the finite values; NaN if there are none."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else math.nan
