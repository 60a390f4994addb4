"""Figures over seeds: the mean of each setting as a line, its 95 % interval as a band."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_ntk.measures import interval, log_intervals
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report.boundary_figure import boundary_panels, finish_panels
from avalanche_ntk.report.figures import PANELS, Panel, mark_boundaries, series_of
from avalanche_ntk.report.groups import Group, groups_of
from avalanche_ntk.report.runs import Runs, read_runs
from avalanche_ntk.report.seeds import boundaries, number_at
from avalanche_ntk.report.style import (
    COLOURS,
    COLUMN_INCHES,
    FAINT,
    MARKERS,
    add_legend,
    drawable,
    drawing,
    legend_height,
    look,
    new_figure,
    set_log,
)

_ACCURACY = "accuracy on\nthe probe's task"


def seed_curves(
    runs: Runs, probe: str | None = None, *, width: float = COLUMN_INCHES, controls: bool = False
) -> Figure:
    """Draw λ_max, distance, alignment, velocity and accuracy over training: mean and band per setting.

    Args:
        runs: A run folder, a folder of run folders (a sweep's), several of them, or paths by name. Runs that differ
            only in the seed are one setting, with one colour.
        probe: Name of the probe; None for each folder's first.
        width: Width in inches; one column of a paper by default.
        controls: Whether controls, in which no task changes, are drawn too.

    Returns:
        A matplotlib figure, to be saved with `figure.savefig(path)`.

    Raises:
        RunFolderError: A named folder cannot be read, or has no such probe.
    """
    groups = groups_of(read_runs(runs)[0])
    return curves_of([g for g in groups if controls or not g.control] or groups, probe, width=width)


def curves_of(
    groups: Sequence[Group],
    probe: str | None = None,
    *,
    width: float = COLUMN_INCHES,
    panels: Sequence[Panel] = PANELS,
) -> Figure:
    """Draw the curves of groups; see `seed_curves`."""
    evaluated = any(run.accuracies(run.experience_of(run.trajectory(probe).probe)) for g in groups for run in g.runs)
    rows = len(panels) + evaluated
    with drawing():
        names = [group.name for group in groups]
        figure = new_figure(width, 0.35 + (1.12 if width < 5 else 1.4) * rows + legend_height(names, width))
        axes: list[Axes] = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0].tolist()
        for panel, axis in zip(panels, axes, strict=False):
            drawn: list[float] = []
            for position, group in enumerate(groups):
                series = [series_of(run.trajectory(probe), panel.column) for run in group.runs]
                drawn += _band(axis, series, position, geometric=panel.log)
            axis.set_ylabel(panel.label)
            if panel.log:
                set_log(axis, drawn)
        if evaluated:
            for position, group in enumerate(groups):
                told = [run.accuracies(run.experience_of(run.trajectory(probe).probe)) for run in group.runs]
                _band(axes[-1], [[(x, y) for _, x, y in points] for points in told], position, markers=True)
            axes[-1].set_ylim(-0.05, 1.05)
            axes[-1].set_ylabel(_ACCURACY)
        mark_boundaries(axes, _longest(groups, probe))
        axes[-1].set_xlabel("training iteration")
        add_legend(figure, names)
        figure.align_ylabels(axes)
    return figure


def _longest(groups: Sequence[Group], probe: str | None) -> list[Trajectory]:
    """Return one series per group, for marking its boundaries."""
    return [max((run.trajectory(probe) for run in group.runs), key=len) for group in groups]


def _band(
    axis: Axes,
    series: Sequence[Sequence[tuple[int, float]]],
    position: int,
    *,
    geometric: bool = False,
    markers: bool = False,
) -> list[float]:
    """Draw the mean of some series and its band.

    Of two points at one iteration (the end of a task and the start of the next one) the last counts. If seeds were
    measured at different iterations, each point is the mean over the seeds measured there.

    Returns:
        The drawn mean.
    """
    by_seed = [dict(points) for points in series]
    at = sorted({x for points in by_seed for x in points})
    columns = [[points[x] for points in by_seed if math.isfinite(points.get(x, math.nan))] for x in at]
    if geometric:
        told = [log_intervals([[value] for value in column]) if column else ([], [], []) for column in columns]
        numbers = [tuple(part[0] for part in one) if one[0] else (math.nan,) * 3 for one in told]
    else:
        numbers = [interval(column) for column in columns]
    mean, low, high = np.array(numbers, dtype=float).reshape(-1, 3).T
    few = markers or len(at) < 3
    axis.plot(at, mean, marker=MARKERS[position % len(MARKERS)] if few else None, markersize=3.5, **look(position))
    axis.fill_between(at, low, high, color=look(position)["color"], alpha=0.18, linewidth=0)
    return [float(value) for value in mean if math.isfinite(value)]


def boundary_figure_of(groups: Sequence[Group], probe: str | None = None, *, width: float) -> Figure | None:
    """Draw, for each boundary, spike, λ_max dip and accuracy of each setting: means with intervals.

    Args:
        groups: The groups; controls are drawn hollow, in the colours of the settings of the same name.
        probe: Name of the probe; None for each folder's first.
        width: Width in inches; panels are side by side if they fit.

    Returns:
        The figure; None if no run has completed a boundary.
    """
    at = sorted({e for group in groups for run in group.runs for e in boundaries(run, probe)})
    if not at:
        return None
    shown = [group for group in groups if not group.control] or list(groups)
    panels: list[tuple[str, str, Callable[[Axes], object]]] = [
        ("spike", "Spike of the velocity\n(1/iteration)", lambda axis: axis.axhline(0, color=FAINT, linewidth=0.7)),
        ("norm_dip", "Lowest $\\lambda_{\\max}$ after, as a share\nof that at the boundary", _from_zero),
        ("accuracy", "Accuracy on the probe's\ntask, after", lambda axis: axis.set_ylim(-0.05, 1.05)),
    ]
    names = [group.name for group in shown]
    with drawing():
        figure, axes = boundary_panels(len(panels), names, width)
        for axis, (column, title, finish) in zip(axes, panels, strict=True):
            for group in groups:
                position = names.index(group.name) if group.name in names else len(names)
                shift = 0.7 * ((position + 0.5 * group.control + 0.25) / max(1, len(names)) - 0.5)
                _points(axis, group, column, at, position, shift, probe)
            finish(axis)
            axis.set_title(title, loc="left")
        finish_panels(figure, axes, names, at)
    return figure


def _from_zero(axis: Axes) -> None:
    axis.axhline(1, color=FAINT, linewidth=0.7, zorder=0)
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])


def _points(
    axis: Axes, group: Group, column: str, at: Sequence[int], position: int, shift: float, probe: str | None
) -> None:
    colour, marker = COLOURS[position % len(COLOURS)], MARKERS[position % len(MARKERS)]
    for place, experience in enumerate(at):
        members = [run for run in group.runs if experience in boundaries(run, probe)]
        values = [v for v in (number_at(run, column, experience, probe) for run in members) if drawable(v)]
        mean, low, high = interval(values)
        if not values:
            continue
        axis.plot(
            place + shift,
            mean,
            marker=marker,
            color=colour,
            markerfacecolor="none" if group.control else colour,
            markersize=4,
            linestyle="",
        )
        if math.isfinite(low):
            axis.plot([place + shift] * 2, [low, high], color=colour, linewidth=1.0)
