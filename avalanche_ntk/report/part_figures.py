"""Figures of layers' kernels, the feature kernel, and the linearisation error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from matplotlib.figure import Figure

from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report.figures import Panel, curves, mark_boundaries, series_of
from avalanche_ntk.report.runs import Run
from avalanche_ntk.report.style import PAGE_INCHES, add_legend, drawing, legend_height, look, new_figure, set_log
from avalanche_ntk.report.text import plain

_LAYER = re.compile(r"layer\[(?P<name>.+)\]\.(?P<column>[a-z_]+)", re.DOTALL)
MOST_LAYERS = 7
LAYER_PANELS = (
    Panel("distance_init", "distance from\ninitialisation"),
    Panel("velocity_per_iteration", "velocity\n(1/iteration)", log=True),
    Panel("trace_share", "share of\nthe trace"),
)
LINEARISATION_PANELS = (
    Panel("linearisation_error_boundary", "error from the\nlast boundary"),
    Panel("linearisation_error_init", "error from\ninitialisation"),
)
FEATURE_PANELS = (
    Panel("features.distance_init", "distance from\ninitialisation"),
    Panel("features.velocity_per_iteration", "velocity\n(1/iteration)", log=True),
    Panel("features.alignment", "alignment with\nthe labels"),
)


_SHOWN = {panel.column for panel in (*LINEARISATION_PANELS, *FEATURE_PANELS)}
MOST_FURTHER = 10


@dataclass(frozen=True)
class Layer:
    """One layer's kernel in a run; undefined numbers are None.

    Attributes:
        name: The group of parameters.
        moved: Distance of its kernel from initialisation, at the last measurement.
        peak: Its largest velocity, per iteration.
        share_first: Its share of the kernel's trace at the first measurement.
        share_last: The same at the last.
    """

    name: str
    moved: float | None
    peak: float | None
    share_first: float | None
    share_last: float | None


def layers_of(trajectory: Trajectory) -> list[Layer]:
    """Return all measured layers, ordered by distance moved."""
    names: dict[str, None] = {}
    for m in trajectory:
        for column in m.values:
            if match := _LAYER.fullmatch(column):
                names[match["name"]] = None
    layers = []
    for name in names:
        moved, velocity, part = (
            [y for _, y in series_of(trajectory, f"layer[{name}].{column}") if y == y]
            for column in ("distance_init", "velocity_per_iteration", "trace_share")
        )
        layers.append(
            Layer(
                name,
                moved[-1] if moved else None,
                max(velocity, default=None),
                part[0] if part else None,
                part[-1] if part else None,
            )
        )
    return sorted(layers, key=lambda layer: -1.0 if layer.moved is None else layer.moved, reverse=True)


def layer_figure(trajectory: Trajectory, *, width: float = PAGE_INCHES) -> Figure | None:
    """Draw distance, velocity and share of the trace of the layers that moved most.

    Args:
        trajectory: The series.
        width: Width in inches.

    Returns:
        The figure; None if no layer was measured.
    """
    layers = layers_of(trajectory)[:MOST_LAYERS]
    if not layers:
        return None
    with drawing():
        names = [layer.name for layer in layers]
        height = 0.45 + (1.15 if width < 5 else 1.4) * len(LAYER_PANELS)
        figure = new_figure(width, height + legend_height(names, width))
        axes = figure.subplots(len(LAYER_PANELS), 1, sharex=True)
        for panel, axis in zip(LAYER_PANELS, axes, strict=True):
            seen = []
            for position, layer in enumerate(layers):
                points = series_of(trajectory, f"layer[{layer.name}].{panel.column}")
                axis.plot([x for x, _ in points], [y for _, y in points], **look(position))
                seen += [y for _, y in points]
            axis.set_ylabel(panel.label)
            if panel.log:
                set_log(axis, seen)
        mark_boundaries(axes, [trajectory])
        axes[-1].set_xlabel("training iteration")
        add_legend(figure, names)
        figure.align_ylabels(list(axes))
    return figure


def column_figure(
    runs: Sequence[Run], panels: Sequence[Panel], probe: str | None = None, *, width: float = PAGE_INCHES
) -> Figure | None:
    """Draw the panels for which a run has numbers.

    Args:
        runs: The runs.
        panels: The panels.
        probe: Name of the probe; None for each folder's first.
        width: Width in inches.

    Returns:
        The figure; None if no run has any of the columns.
    """
    measured = [p for p in panels if any(series_of(run.trajectory(probe), p.column) for run in runs)]
    return curves(runs, probe, width=width, panels=measured, accuracy=False) if measured else None


def further_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return a panel for each number declared by the runs' observables in `run.json` and not shown in other figures.

    Columns with a varying part (a number per layer or pair of classes) are only in the tables.
    """
    panels = {}
    for run in runs:
        declared = run.folder.meta.get("columns")
        for one in declared if isinstance(declared, list) else []:
            column, unit = (one.get("column"), one.get("unit")) if isinstance(one, dict) else (None, None)
            if isinstance(column, str) and "{" not in column and column not in _SHOWN:
                panels[column] = Panel(column, _label(column, unit if isinstance(unit, str) else ""))
    return list(panels.values())[:MOST_FURTHER]


def _label(column: str, unit: str) -> str:
    """Return a column's name as an axis label, wrapped to fit beside a panel."""
    lines = wrap(plain(column.replace("_", " "), 54), 18) + ([f"({plain(unit, 16)})"] if unit else [])
    return "\n".join(lines).replace("$", r"\$")
