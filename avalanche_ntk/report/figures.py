"""Figures of one or several runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from avalanche_ntk.runfolder import RunFolder
from avalanche_ntk.trajectory import Trajectory

# Okabe and Ito's colours: told apart under every common colour-vision deficiency; the line styles tell them apart in
# grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


@dataclass(frozen=True)
class Panel:
    """One of the figure's panels: a column of the trajectory, its axis label, and how it is drawn."""

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
        probe: Name of the probe; each folder's first when None.
        title: The figure's title.

    Returns:
        A matplotlib figure, to be saved with `figure.savefig(path)`.

    Raises:
        RunFolderError: A folder cannot be read.
    """
    figure = Figure(figsize=(7.2, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        axes = figure.subplots(len(PANELS), 1, sharex=True)
        boundaries: list[int] = []
        for position, (name, path) in enumerate(runs.items()):
            trajectory = Trajectory.load(RunFolder.open(path), probe)
            starts = [m.clock.iteration for m in trajectory if m.clock.event == "experience_start"]
            boundaries = starts if len(starts) > len(boundaries) else boundaries
            for panel, axis in zip(PANELS, axes, strict=True):
                _draw(axis, trajectory, panel, name, position)
        for panel, axis in zip(PANELS, axes, strict=True):
            axis.set_ylabel(panel.label)
            if panel.log:
                axis.set_yscale("log")
            for boundary in boundaries[1:]:
                axis.axvline(boundary, color="0.55", linewidth=0.8, zorder=0)
        for number, boundary in enumerate(boundaries, start=1):
            axes[0].annotate(
                f"task {number}",
                (boundary, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 2),
                textcoords="offset points",
                color="0.35",
                fontsize=8,
            )
        axes[-1].set_xlabel("training iteration (grey lines: the task changes)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _draw(axis: Axes, trajectory: Trajectory, panel: Panel, name: str, position: int) -> None:
    points = [
        (m.clock.iteration, m.values[panel.column])
        for m in trajectory
        if m.failure is None and panel.column in m.values
    ]
    axis.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=COLOURS[position % len(COLOURS)],
        linestyle=STYLES[position % len(STYLES)],
        linewidth=1.3,
        label=name,
    )
