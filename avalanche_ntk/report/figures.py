"""Figures over training time: the paper's four panels, and accuracy beneath on the same axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report.runs import Run, read_runs
from avalanche_ntk.report.scales import text_width
from avalanche_ntk.report.style import (
    FAINT,
    MARKERS,
    PAGE_INCHES,
    add_legend,
    drawable,
    drawing,
    legend_height,
    look,
    new_figure,
    set_log,
    write_label,
)

# A task's label above its start: size of its font and distance from the line, in points; and the width in inches that
# the vertical axis's labels and the margins take of a figure.
_LABEL_SIZE, _LABEL_SHIFT, _BESIDE_AXES = 7.0, 2.0, 0.9


@dataclass(frozen=True)
class Panel:
    """A panel of a figure: a column of the trajectory, its axis label and its scale."""

    column: str
    label: str
    log: bool = False


PANELS = (
    Panel("spectral_norm", "spectral norm\n$\\lambda_{\\max}$"),
    Panel("distance_init", "distance from\ninitialisation"),
    Panel("alignment", "alignment with\nthe labels"),
    Panel("velocity_per_iteration", "velocity\n(1/iteration)", log=True),
)


def four_panels(runs: Mapping[str, str | PathLike[str]], probe: str | None = None, title: str | None = None) -> Figure:
    """Draw λ_max, distance from initialisation, alignment and velocity over training, boundaries marked.

    Args:
        runs: Run folders by the names that the legend shows.
        probe: Name of the probe; None for each folder's first.
        title: The figure's title.

    Returns:
        A matplotlib figure, to be saved with `figure.savefig(path)`.

    Raises:
        RunFolderError: A folder cannot be read.
    """
    return curves(read_runs(runs)[0], probe, width=PAGE_INCHES, accuracy=False, title=title)


def curves(
    runs: Sequence[Run],
    probe: str | None = None,
    *,
    width: float = PAGE_INCHES,
    panels: Sequence[Panel] = PANELS,
    accuracy: bool = True,
    title: str | None = None,
) -> Figure:
    """Draw columns of the trajectories over training, boundaries marked, and accuracy beneath.

    Args:
        runs: The runs.
        probe: Name of the probe; None for each folder's first.
        width: Width in inches.
        panels: The panels, from top to bottom.
        accuracy: Whether a last panel shows the accuracy on the probe's task, where it was evaluated.
        title: The figure's title.

    Returns:
        The figure.

    Raises:
        RunFolderError: A run has no such probe.
    """
    trajectories = [run.trajectory(probe) for run in runs]
    evaluated = [run.accuracies(run.experience_of(t.probe)) for run, t in zip(runs, trajectories, strict=True)]
    accuracy = accuracy and any(evaluated)
    rows = len(panels) + accuracy
    with drawing():
        names = [run.name for run in runs]
        above = legend_height(names, width) + (0.2 if title else 0.0)
        figure = new_figure(width, 0.35 + (1.12 if width < 5 else 1.4) * rows + above)
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0].tolist()
        for panel, axis in zip(panels, axes, strict=False):
            drawn = [_draw(axis, t, panel.column, position) for position, t in enumerate(trajectories)]
            axis.set_ylabel(panel.label)
            if panel.log:
                set_log(axis, [y for values in drawn for y in values])
        if accuracy:
            for position, points in enumerate(evaluated):
                axes[-1].plot(
                    [x for _, x, _ in points],
                    [y for _, _, y in points],
                    marker=MARKERS[position % len(MARKERS)],
                    markersize=3.5,
                    **look(position),
                )
            axes[-1].set_ylim(-0.05, 1.05)
            axes[-1].set_ylabel("accuracy on\nthe probe's task")
        mark_boundaries(axes, trajectories)
        axes[-1].set_xlabel("training iteration")
        add_legend(figure, names, title=title)
        figure.align_ylabels(axes)
    return figure


def starts_of(trajectory: Trajectory) -> list[tuple[int, int]]:
    """Return `(experience, iteration)` of each experience's start, in the order of training."""
    found = {m.clock.experience: m.clock.iteration for m in trajectory if m.clock.event == "experience_start"}
    return list(found.items())


def mark_boundaries(axes: Sequence[Axes], trajectories: Sequence[Trajectory]) -> None:
    """Mark where each task begins: grey lines if common to all runs, coloured ones if runs differ."""
    starts = [starts_of(t) for t in trajectories]
    longest = max(starts, key=len, default=[])
    alike = all(one == longest[: len(one)] for one in starts)
    for axis in axes:
        if alike:
            for number, (_, iteration) in enumerate(longest):
                # The first task's start is invisible but part of the axis, as the place of its label.
                axis.axvline(iteration, color=FAINT, linewidth=0.7 if number else 0, zorder=0)
            continue
        for position, one in enumerate(starts):
            for _, iteration in one[1:]:
                axis.axvline(iteration, linewidth=0.7, alpha=0.6, zorder=0, **look(position))
    # Tasks differ in length: draw a label only if the previous one leaves room.
    points = (axes[0].figure.get_figwidth() - _BESIDE_AXES) * 72  # type: ignore[union-attr]
    last = max((m.clock.iteration for t in trajectories for m in t), default=0)
    spelt = points / max(1, len(longest)) > text_width("task 100", _LABEL_SIZE)
    free = -math.inf
    for experience, iteration in longest if alike else []:
        text = f"task {experience + 1}" if spelt or not iteration else f"{experience + 1}"
        place = points * iteration / max(1, last)
        if place < free:
            continue
        free = place + text_width(text, _LABEL_SIZE) + 2 * _LABEL_SHIFT
        write_label(
            axes[0],
            iteration,
            1.0,
            text,
            xycoords=("data", "axes fraction"),
            xytext=(_LABEL_SHIFT, 2),
            textcoords="offset points",
            color=FAINT,
            fontsize=_LABEL_SIZE,
        )


def _draw(axis: Axes, trajectory: Trajectory, column: str, position: int) -> list[float]:
    points = series_of(trajectory, column)
    values = [y for _, y in points]
    # A single number makes no line.
    marker = MARKERS[position % len(MARKERS)] if len(points) < 3 else None
    axis.plot([x for x, _ in points], values, marker=marker, markersize=3.5, **look(position))
    return values


def series_of(trajectory: Trajectory, column: str) -> list[tuple[int, float]]:
    """Return `(iteration, value)` of a column's defined values, with a gap (NaN) at each reinitialisation."""
    points: list[tuple[int, float]] = []
    segment = None
    for m in trajectory:
        value = m.values.get(column)
        if m.failure is not None or value is None or not drawable(value):
            continue
        if segment is not None and m.segment != segment:
            points.append((m.clock.iteration, math.nan))
        segment = m.segment
        points.append((m.clock.iteration, value))
    return points
