"""Shared parts of the studies' figures: curves over seeds, means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from avalanche_ntk.measures.intervals import interval, log_intervals
from avalanche_ntk.report.style import MARKERS, look


def draw_curve(
    axis: Axes,
    x: Sequence[float],
    by_seed: Sequence[Sequence[float]],
    position: int,
    label: str = "",
    *,
    geometric: bool = False,
) -> None:
    """Draw the mean over seeds and, as a band, its 95 % interval.

    Args:
        axis: The axes.
        x: n positions.
        by_seed: For each seed n numbers; NaN if undefined.
        position: Index of the series, for colour and line style.
        label: Its name in a legend.
        geometric: Whether to draw the geometric mean with the interval of the logarithms, for logarithmic axes;
            non-positive numbers are then left out.
    """
    if geometric:
        mean, low, high = np.array(log_intervals(by_seed))
    else:
        columns = [[v for v in column if np.isfinite(v)] for column in zip(*by_seed, strict=True)]
        mean, low, high = np.array([interval(column) for column in columns]).T
    axis.plot(x, mean, label=label or None, **look(position))
    axis.fill_between(x, low, high, color=look(position)["color"], alpha=0.18, linewidth=0)


def draw_points(
    axis: Axes, x: Sequence[float], by_level: Sequence[Sequence[float]], position: int, label: str = ""
) -> None:
    """Draw means with 95 % intervals over seeds at some levels, joined, and every seed as a faint dot.

    Args:
        axis: The axes.
        x: The levels.
        by_level: For each level one number per seed; NaN if undefined.
        position: Index of the series, for colour, line style and marker.
        label: Its name in a legend.
    """
    style: dict[str, Any] = {**look(position), "marker": MARKERS[position % len(MARKERS)], "markersize": 3.5}
    finite = [[v for v in values if np.isfinite(v)] for values in by_level]
    mean, low, high = np.array([interval(values) for values in finite]).T
    spread = np.nan_to_num(np.array([mean - low, high - mean]))
    axis.errorbar(x, mean, yerr=spread, capsize=2, elinewidth=0.8, label=label or None, **style)
    for level, values in zip(x, finite, strict=True):
        axis.plot([level] * len(values), values, ".", color=style["color"], markersize=2.5, alpha=0.4, zorder=1)
