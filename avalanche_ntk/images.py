"""Pictures of kernels for the loggers: figures, which TensorBoard and W&B show as images and text loggers pass over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from avalanche_ntk.labels import are_classes, in_form, in_order, order_told


def kernel_figure(kernel: np.ndarray, labels: Sequence[Any] | np.ndarray, title: str) -> Figure:
    """Draw a kernel as a heat map, samples sorted by class, class borders marked.

    Samples with one numeric target are sorted by it, those with several stay in their order; there are no borders then.

    The colours show the cosines `K[n,m] / sqrt(K[n,n] K[m,m])`, so that kernels of different norm can be compared.

    Args:
        kernel: Self-kernel, shape `(N, N)`.
        labels: Class of each sample, whole numbers `(N,)`, or numeric targets, `(N, K)`.
        title: What the figure shows.

    Returns:
        A figure with a canvas of its own, which no global state of matplotlib knows.
    """
    labels = in_form(np.asarray(labels))
    order = in_order(labels)
    matrix = np.asarray(kernel, dtype=np.float64)[np.ix_(order, order)]
    norms = np.sqrt(np.clip(np.diag(matrix), 0, None))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = matrix / np.outer(norms, norms)
    figure, axis = _figure(4.6, 4.0)
    image = axis.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    if are_classes(labels):
        _mark_classes(axis, labels)
    axis.set_xlabel(order_told(labels))
    axis.set_ylabel(order_told(labels))
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axis, label="cosine of gradients")
    return figure


def _mark_classes(axis: Axes, labels: np.ndarray) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    edges = np.cumsum(counts)
    for edge in edges[:-1]:
        axis.axhline(edge - 0.5, color="black", linewidth=0.6)
        axis.axvline(edge - 0.5, color="black", linewidth=0.6)
    centres = edges - counts / 2 - 0.5
    axis.set_xticks(centres, [f"{c}" for c in classes])
    axis.set_yticks(centres, [f"{c}" for c in classes])


def spectrum_figure(eigenvalues: np.ndarray, title: str) -> Figure:
    """Draw a kernel's eigenvalues by rank, both axes logarithmic.

    Args:
        eigenvalues: Eigenvalues, shape `(N,)`; those that are not positive are left out.
        title: What the figure shows.

    Returns:
        A figure with a canvas of its own.
    """
    values = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    figure, axis = _figure(4.6, 3.4)
    ranks = np.arange(1, len(values) + 1)
    positive = values > 0
    axis.loglog(ranks[positive], values[positive], marker="o", markersize=3, linewidth=1, color="#0072B2")
    axis.set_xlabel("rank")
    axis.set_ylabel("eigenvalue")
    axis.set_title(title, fontsize=9)
    return figure


def overlap_figure(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draw the overlap of every pair of probes, each number written in its cell.

    Args:
        matrix: Overlaps between 0 and 1, shape `(T, T)`.
        names: The probes' names.
        title: What the figure shows.

    Returns:
        A figure with a canvas of its own.
    """
    size = 2.2 + 0.55 * len(names)
    figure, axis = _figure(size + 0.8, size)
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    for i, row in enumerate(np.asarray(matrix, dtype=np.float64)):
        for j, value in enumerate(row):
            colour = "white" if value < 0.6 else "black"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axis, label="overlap")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()
