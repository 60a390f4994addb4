"""Figures that need the stored kernels: heat maps around the boundaries, and the spectrum over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_ntk import measures
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.recorder.labels import are_classes, in_order, order_told
from avalanche_ntk.recorder.trajectory import Measurement, Trajectory
from avalanche_ntk.report.figures import mark_boundaries, series_of
from avalanche_ntk.report.scales import text_width
from avalanche_ntk.report.style import (
    PAGE_INCHES,
    add_legend,
    drawable,
    drawing,
    legend_height,
    look,
    new_figure,
    set_log,
)

# Colours whose lightness grows with the value, also readable in greyscale.
SEQUENTIAL = "cividis"
MOST_BOUNDARIES = 6
# In points: the side of a map of a kernel, at least; a cell that has room for its number; two names beside each other.
_SIDE, _NUMBER, _NAME = 110, 14, 13
_MOST_POINTS = 80
_BELOW = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def kernel_of(trajectory: Trajectory, index: int) -> np.ndarray | str:
    """Return a stored kernel in float64, or the reason why it cannot be drawn."""
    try:
        kernel = trajectory.kernel(index)
    except RunFolderError as error:
        return str(error)
    n = len(trajectory.labels)
    if kernel.shape != (n, n):
        return f"measurement {index} has a kernel of shape {kernel.shape}, and the probe has {n} samples."
    if not np.isfinite(kernel).all():
        return f"measurement {index} has a kernel with entries that are not finite."
    return np.asarray(kernel, dtype=np.float64)


def boundary_moments(trajectory: Trajectory, experience: int) -> list[tuple[str, Measurement]]:
    """Return the measurements to show at a boundary: at it, at the velocity's peak, at the task's end."""
    mine = [m for m in trajectory if m.clock.experience == experience and m.failure is None]
    starts = [m for m in mine if m.clock.event == "experience_start"]
    if not starts:
        return []
    boundary = starts[-1]
    after = [m for m in mine if m.index > boundary.index and m.segment == boundary.segment]
    found = [("before: at the boundary", boundary)]
    r = trajectory.reactivations.get(experience)
    if r is not None and r.time_to_peak is not None:
        peaks = [m for m in after if m.clock.iteration >= boundary.clock.iteration + r.time_to_peak]
        if peaks and peaks[0].index != after[-1].index:
            found.append(("after: at the peak velocity", peaks[0]))
    if after:
        found.append(("after: end of the new task", after[-1]))
    return found


def kernel_maps(
    trajectory: Trajectory, experience: int, *, width: float = PAGE_INCHES
) -> tuple[Figure | None, list[str]]:
    """Draw the kernel before and after a boundary as heat maps, samples sorted by class.

    The colours show the cosines `K[n,m] / sqrt(K[n,n] K[m,m])`, so that kernels of different norm can be compared.

    Args:
        trajectory: The series.
        experience: Number of the experience that began at the boundary.
        width: Width in inches; the maps are side by side if they fit.

    Returns:
        The figure, or None if no kernel was kept, and reasons for missing maps.
    """
    maps, missing = [], []
    for title, m in boundary_moments(trajectory, experience):
        kernel = kernel_of(trajectory, m.index)
        if isinstance(kernel, str):
            missing.append(kernel)
        else:
            maps.append((f"{title}\n(iteration {m.clock.iteration:,})", kernel))
    if not maps:
        return None, missing
    labels = trajectory.labels
    order = in_order(labels)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = [k[np.ix_(order, order)] / np.sqrt(np.outer(np.diag(k)[order], np.diag(k)[order])) for _, k in maps]
    finite = [c[np.isfinite(c)] for c in cosines]
    # The scale begins a tenth below the lowest value, to show differences; it is the same for all maps of a boundary.
    lowest = np.floor(10 * min((float(c.min()) for c in finite if c.size), default=0.0)) / 10
    side = (width - 0.7) / 3 if width > 5 else width * 0.68
    with drawing(**{"axes.spines.top": True, "axes.spines.right": True}):
        wide = width > 5
        figure = new_figure(width, side + 0.65 if wide else (side + 0.45) * len(maps))
        axes = figure.subplots(*((1, 3) if wide else (len(maps), 1)), squeeze=False).ravel()
        for axis in axes[len(maps) :]:
            axis.set_axis_off()
        for axis, (title, _), values in zip(axes, maps, cosines, strict=False):
            image = axis.imshow(values, vmin=min(lowest, 0.9), vmax=1, cmap=SEQUENTIAL, interpolation="nearest")
            axis.set_title(title, loc="left")
            mark_samples(axis, labels)
        figure.colorbar(image, ax=list(axes), label="cosine of gradients", shrink=0.9, aspect=30, pad=0.02)
    return figure, missing


def mark_samples(axis: Axes, labels: np.ndarray, colour: str = "white") -> None:
    """Label the samples of a heat map: draw borders between classes and name classes that have room.

    Args:
        axis: The heat map's axes, some hundred points wide.
        labels: Class of each sample, or its targets, in the order of the map.
        colour: Colour of the borders.
    """
    if are_classes(labels):
        _mark_classes(axis, labels, colour)
    axis.set_xlabel(order_told(labels))
    axis.set_ylabel(order_told(labels))
    axis.tick_params(length=0)


def _mark_classes(axis: Axes, labels: np.ndarray, colour: str) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    edges = np.cumsum(counts)
    for edge in edges[:-1]:
        axis.axhline(edge - 0.5, color=colour, linewidth=0.7)
        axis.axvline(edge - 0.5, color=colour, linewidth=0.7)
    centres = edges - counts / 2 - 0.5
    apart = len(labels) * (max(len(f"{c}") for c in classes) * 4.6 + 4) / _SIDE
    shown: list[int] = []
    for place, centre in enumerate(centres):
        if not shown or centre >= centres[shown[-1]] + apart:
            shown.append(place)
    axis.set_xticks(centres[shown], [f"{c}" for c in classes[shown]], fontsize=7)
    axis.set_yticks(centres[shown], [f"{c}" for c in classes[shown]], fontsize=7)


def spectrum_over_time(trajectory: Trajectory, *, width: float = PAGE_INCHES) -> tuple[Figure | None, list[str]]:
    """Draw eigenvalues of ranks 1, 2, 4, 8 … over training, and the effective rank beneath.

    Args:
        trajectory: The series.
        width: Width in inches.

    Returns:
        The figure, or None if there is nothing to draw, and reasons for missing data.
    """
    points, missing = _spectra(trajectory)
    ranks = [r for r in (1, 2, 4, 8, 16, 32, 64) if r <= len(trajectory.labels)]
    effective = series_of(trajectory, "effective_rank")
    if not points and not effective:
        return None, missing
    rows = bool(points) + bool(effective)
    with drawing():
        names = [f"λ{rank}".translate(_BELOW) for rank in ranks]
        above = 0.2 + legend_height(names, width) if points else 0
        figure = new_figure(width, 0.5 + above + (2.1 if points else 0) + (1.0 if effective else 0))
        heights = ([2.1] if points else []) + ([1.0] if effective else [])
        axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0].tolist()
        if points:
            times = [m.clock.iteration for m, _ in points]
            for position, rank in enumerate(ranks):
                values = [v[rank - 1] if v[rank - 1] > 0 and drawable(v[rank - 1]) else np.nan for _, v in points]
                marker = "." if len(points) < 3 else None
                axes[0].plot(times, values, marker=marker, **look(position))
            set_log(axes[0], [float(v[0]) for _, v in points if drawable(v[0])])
            axes[0].set_ylabel("eigenvalue of rank 1, 2, 4 …")
            add_legend(figure, names)
        if effective:
            axes[-1].plot([x for x, _ in effective], [y for _, y in effective], **look(0))
            axes[-1].set_ylabel("effective\nrank")
        mark_boundaries(axes, [trajectory])
        axes[-1].set_xlabel("training iteration")
    return figure, missing


def _spectra(trajectory: Trajectory) -> tuple[list[tuple[Measurement, np.ndarray]], list[str]]:
    """Decompose as many kernels as possible in a few seconds, those at the boundaries first."""
    n = len(trajectory.labels)
    most = max(4, min(_MOST_POINTS, int(3e10 / max(1, n) ** 3)))
    good: Sequence[Measurement] = [m for m in trajectory if m.failure is None]
    ends = [m for m in good if m.clock.is_boundary][:most]
    others = [m for m in good if not m.clock.is_boundary]
    places: list[int] = (
        np.unique(np.linspace(0, len(others) - 1, most - len(ends)).astype(int)).tolist() if others else []
    )
    chosen = sorted([*ends, *(others[i] for i in places)], key=lambda m: m.index)
    points, missing = [], []
    for m in chosen:
        kernel = kernel_of(trajectory, m.index)
        if isinstance(kernel, str):
            missing.append(kernel)
        else:
            points.append((m, measures.eigenvalues(kernel)))
    return points, missing


def overlap_maps(matrices: Sequence[tuple[str, Sequence[str], np.ndarray]], *, width: float = PAGE_INCHES) -> Figure:
    """Draw task overlaps as heat maps, with numbers in cells that have room.

    Args:
        matrices: Title, names of the probes and overlaps `(T, T)` of each.
        width: Width in inches.

    Returns:
        The figure.
    """
    across = min(len(matrices), 4) if width > 5 else 1 if len(matrices) == 1 else 2
    down = -(-len(matrices) // across)
    side = (width - 0.6) / max(across, 3 if width > 5 else 1)
    with drawing(**{"axes.spines.top": True, "axes.spines.right": True}):
        figure = new_figure(width, down * (side + 0.55))
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for axis in axes[len(matrices) :]:
            axis.set_axis_off()
        for axis, (title, names, matrix) in zip(axes, matrices, strict=False):
            image = axis.imshow(matrix, vmin=0, vmax=1, cmap=SEQUENTIAL)
            axis.set_title(title, loc="left")
            size, shown = len(names), [_short(name) for name in names]
            cell = max(10.0, side * 72 - 12 - max(text_width(name, 7.0) for name in shown)) / size
            if cell >= _NUMBER:
                for i in range(size):
                    for j in range(size):
                        value = matrix[i, j]
                        text = f"{value:.2f}".removeprefix("0") if np.isfinite(value) else "–"
                        colour = "white" if value < 0.55 else "black"
                        axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=6.5)
            step = math.ceil(_NAME / cell)
            axis.set_xticks(range(0, size, step), shown[::step], parse_math=False)
            axis.set_yticks(range(0, size, step), shown[::step], parse_math=False)
            axis.tick_params(length=0)
            axis.tick_params(axis="x", rotation=45 if max(map(len, shown)) > 2 else 0)
        figure.colorbar(image, ax=list(axes), label="overlap", shrink=0.9, aspect=25, pad=0.02)
    return figure


def _short(name: str) -> str:
    """Shorten a default probe name to its task's number (experience 2 is task 3)."""
    digits = name.removeprefix("Exp")
    return f"{int(digits) + 1}" if name.startswith("Exp") and digits.isdecimal() else name[:12]
