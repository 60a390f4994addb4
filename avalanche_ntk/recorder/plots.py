"""Plots of a trajectory in matplotlib axes, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.recorder.measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {
    "spectral_norm": "spectral norm λ_max",
    "distance_init": "distance from init",
    "alignment": "alignment with labels",
    "velocity_per_iteration": "velocity (1/iteration)",
}


class Series(Protocol):
    """The series to draw."""

    probe: str
    measurements: list[Measurement]


def plot(series: Series, columns: Sequence[str], axes: Sequence[Axes] | None) -> list[Axes]:
    """Draw columns of a trajectory, see `Trajectory.plot`.

    Args:
        series: The trajectory.
        columns: Columns to draw, from top to bottom.
        axes: Axes to draw into; a new figure if None.

    Returns:
        The axes.

    Raises:
        ArgumentError: The numbers of axes and columns differ, or a column was never measured.
    """
    known = {name for m in series.measurements for name in (*m.values, *m.reasons)}
    if unknown := [column for column in columns if column not in known]:
        raise ArgumentError(
            f"probe {series.probe!r} has no column {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none yet'}. "
            "Give names of these."
        )
    if axes is None:
        from matplotlib import pyplot

        figure, made = pyplot.subplots(
            len(columns), 1, sharex=True, squeeze=False, figsize=(6, 1 + 1.5 * len(columns)), layout="constrained"
        )
        figure.suptitle(f"kernel of probe {series.probe}")
        axes = list(made[:, 0])
    if len(axes) != len(columns):
        raise ArgumentError(f"plot takes one axes for each column: expected {len(columns)}, found {len(axes)}.")
    starts = [m.clock.iteration for m in series.measurements if m.clock.event == "experience_start"]
    for column, axis in zip(columns, axes, strict=True):
        points = [(m.clock.iteration, m.values.get(column, np.nan)) for m in series.measurements if m.failure is None]
        defined = [(x, y) for x, y in points if np.isfinite(y)]
        axis.plot([x for x, _ in defined], [y for _, y in defined], marker=".")
        for start in starts:
            axis.axvline(start, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        if "velocity" in column and any(y > 0 for _, y in defined):
            axis.set_yscale("log")
        axis.set_ylabel(_LABELS.get(column, column.replace("_", " ")))
    axes[-1].set_xlabel("training iteration")
    return list(axes)
