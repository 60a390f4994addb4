"""Figures of kernels for loggers: TensorBoard and W&B show them as images, text loggers skip them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from avalanche_ntk.recorder.labels import in_form, in_order
from avalanche_ntk.report.kernel_figures import mark_samples
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import COLOURS, drawing, new_figure
from avalanche_ntk.report.text import plain

_FRAMED = {"axes.spines.top": True, "axes.spines.right": True}


def kernel_figure(kernel: np.ndarray, labels: Sequence[Any] | np.ndarray, title: str) -> Figure:
    """Draw a kernel as a heat map, samples sorted by class, class borders marked.

    With a single numeric target, samples are sorted by it; with several, their order is kept; both without borders.

    The colours show the cosines `K[n,m] / sqrt(K[n,n] K[m,m])`, so that kernels of different norm can be compared.

    Args:
        kernel: Self-kernel, shape `(N, N)`.
        labels: Class of each sample, whole numbers `(N,)`, or numeric targets, `(N, K)`.
        title: The title.

    Returns:
        A figure with its own canvas, independent of matplotlib's global state.
    """
    labels = in_form(np.asarray(labels))
    order = in_order(labels)
    matrix = np.asarray(kernel, dtype=np.float64)[np.ix_(order, order)]
    norms = np.sqrt(np.clip(np.diag(matrix), 0, None))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = matrix / np.outer(norms, norms)
    with drawing(**_FRAMED):
        figure = new_figure(4.6, 4.0)
        axis = figure.subplots()
        image = axis.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        mark_samples(axis, labels, "black")
        axis.set_title(title)
        figure.colorbar(image, ax=axis, label="cosine of gradients")
    return figure


def spectrum_figure(eigenvalues: np.ndarray, title: str) -> Figure:
    """Draw a kernel's eigenvalues by rank, both axes logarithmic.

    Args:
        eigenvalues: Eigenvalues, shape `(N,)`; non-positive ones are left out.
        title: The title.

    Returns:
        A figure with its own canvas.
    """
    values = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    ranks = np.arange(1, len(values) + 1)
    positive = values > 0
    with drawing():
        figure = new_figure(4.6, 3.4)
        axis = figure.subplots()
        axis.plot(ranks[positive], values[positive], marker="o", markersize=3, linewidth=1, color=COLOURS[0])
        for which in ("x", "y") if positive.any() else ():
            log_scale(axis, which)
        axis.set_xlabel("rank")
        axis.set_ylabel("eigenvalue")
        axis.set_title(title)
    return figure


def overlap_figure(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draw the overlap of every pair of probes, each number written in its cell.

    Args:
        matrix: Overlaps between 0 and 1, shape `(T, T)`; NaN where undefined.
        names: The probes' names.
        title: The title.

    Returns:
        A figure with its own canvas.
    """
    size = 2.2 + 0.55 * len(names)
    shown = [plain(name, 20) for name in names]
    with drawing(**_FRAMED):
        figure = new_figure(size + 0.8, size)
        axis = figure.subplots()
        image = axis.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
        for i, row in enumerate(np.asarray(matrix, dtype=np.float64)):
            for j, value in enumerate(row):
                colour = "white" if value < 0.6 else "black"  # undefined cells have a white background
                axis.text(j, i, f"{value:.2f}" if np.isfinite(value) else "–", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(shown)), shown, rotation=45, ha="right", parse_math=False)
        axis.set_yticks(range(len(shown)), shown, parse_math=False)
        axis.set_title(title)
        figure.colorbar(image, ax=axis, label="overlap")
    return figure
