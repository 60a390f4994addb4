"""The main figure: the kernel and the accuracy at each boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_ntk.report.runs import Run
from avalanche_ntk.report.style import (
    COLOURS,
    FAINT,
    MARKERS,
    PAGE_INCHES,
    add_legend,
    drawable,
    drawing,
    legend_height,
    new_figure,
    set_log,
)

_MOST_LABELS = 5
_NARROW = 5  # inches: one column of a paper


def boundary_figure(runs: Sequence[Run], probe: str | None = None, *, width: float = PAGE_INCHES) -> Figure | None:
    """Draw, for each boundary, the kernel's velocity before and after, λ_max after it, and the accuracy.

    Args:
        runs: The runs.
        probe: Name of the probe; None for each folder's first.
        width: Width in inches; panels stand side by side where they fit.

    Returns:
        The figure; None if no run has completed a boundary.

    Raises:
        RunFolderError: A run has no such probe.
    """
    boundaries = sorted({e for run in runs for e, r in run.trajectory(probe).reactivations.items() if _is_boundary(r)})
    if not boundaries:
        return None
    accuracy = any(run.accuracies(run.experience_of(run.trajectory(probe).probe)) for run in runs)
    drawers: list[Callable[[Axes, Sequence[Run], str | None, list[int]], None]] = [_pace, _norm]
    if accuracy:
        drawers.append(_accuracy)
    names = [run.name for run in runs]
    with drawing():
        figure, axes = boundary_panels(len(drawers), names, width)
        for axis, draw in zip(axes, drawers, strict=True):
            draw(axis, runs, probe, boundaries)
        finish_panels(figure, axes, names, boundaries)
    return figure


def boundary_panels(count: int, names: Sequence[str], width: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels beside each other, or below each other if it is narrow.

    Args:
        count: Number of panels.
        names: Names for the legend.
        width: Width in inches.

    Returns:
        The figure and its axes.
    """
    wide = width > _NARROW
    figure = new_figure(width, (2.5 if wide else 0.3 + 1.65 * count) + legend_height(names, width))
    shape = (1, count) if wide else (count, 1)
    return figure, figure.subplots(*shape, squeeze=False).ravel().tolist()


def finish_panels(figure: Figure, axes: Sequence[Axes], names: Sequence[str], boundaries: Sequence[int]) -> None:
    """Label the boundaries below the panels and add the legend.

    Args:
        figure: The figure.
        axes: Its axes, with boundary i at position i.
        names: Names for the legend.
        boundaries: The experience that begins at each boundary.
    """
    step = -(-len(boundaries) // _MOST_LABELS)
    places = list(range(0, len(boundaries), step))
    for axis in axes:
        axis.set_xticks(places, [f"{boundaries[i]}→{boundaries[i] + 1}" for i in places])
        axis.set_xlim(-0.6, len(boundaries) - 0.4)
    axes[-1].set_xlabel("boundary (from task → to task)")
    if figure.get_figwidth() > _NARROW:
        for axis in axes[:-1]:
            axis.set_xlabel(" ")
    add_legend(figure, names, markers=True)


def _is_boundary(reactivation: object) -> bool:
    # The first experience has an onset only.
    return getattr(reactivation, "peak", None) is not None or getattr(reactivation, "norm_dip", None) is not None


def _places(position: int, runs: int, boundaries: Sequence[int]) -> dict[int, float]:
    """Put the runs side by side at each boundary."""
    spread = min(0.6, 0.16 * (runs - 1))
    shift = 0.0 if runs == 1 else -spread / 2 + spread * position / (runs - 1)
    return {experience: i + shift for i, experience in enumerate(boundaries)}


def _pace(axis: Axes, runs: Sequence[Run], probe: str | None, boundaries: list[int]) -> None:
    seen: list[float] = []
    for position, run in enumerate(runs):
        places = _places(position, len(runs), boundaries)
        colour, marker = COLOURS[position % len(COLOURS)], MARKERS[position % len(MARKERS)]
        for experience, r in run.trajectory(probe).reactivations.items():
            if experience not in places or r.peak is None or not drawable(r.peak):
                continue
            x = places[experience]
            if r.base is not None and drawable(r.base):
                axis.plot([x, x], [r.base, r.peak], color=colour, linewidth=1.2)
                axis.plot(x, r.base, marker=marker, color=colour, markerfacecolor="none", markersize=4, linestyle="")
                seen.append(r.base)
            axis.plot(x, r.peak, marker=marker, color=colour, markersize=4.5, linestyle="")
            seen.append(r.peak)
    set_log(axis, seen)
    axis.set_ylabel("velocity (1/iteration)")
    axis.set_title("Kernel's velocity: before (hollow),\npeak after (filled)", loc="left")


def _norm(axis: Axes, runs: Sequence[Run], probe: str | None, boundaries: list[int]) -> None:
    axis.axhline(1, color=FAINT, linewidth=0.7, zorder=0)
    for position, run in enumerate(runs):
        places = _places(position, len(runs), boundaries)
        colour, marker = COLOURS[position % len(COLOURS)], MARKERS[position % len(MARKERS)]
        for experience, r in run.trajectory(probe).reactivations.items():
            if experience not in places or not (drawable(r.norm_dip) and drawable(r.norm_recovery)):
                continue
            x = places[experience]
            assert r.norm_dip is not None and r.norm_recovery is not None
            axis.plot([x, x], [r.norm_dip, r.norm_recovery], color=colour, linewidth=1.2)
            axis.plot(x, r.norm_dip, marker=marker, color=colour, markersize=4.5, linestyle="")
            axis.plot(x, r.norm_recovery, marker=marker, color=colour, markerfacecolor="none", markersize=4, ls="")
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])  # space for the markers, which exceed the margin
    axis.set_ylabel("share of $\\lambda_{\\max}$ at the boundary")
    axis.set_title("$\\lambda_{\\max}$: lowest after (filled),\nat the task's end (hollow)", loc="left")


def _accuracy(axis: Axes, runs: Sequence[Run], probe: str | None, boundaries: list[int]) -> None:
    for position, run in enumerate(runs):
        places = _places(position, len(runs), boundaries)
        colour, marker = COLOURS[position % len(COLOURS)], MARKERS[position % len(MARKERS)]
        # The last evaluation during an experience gives the accuracy after it.
        after = {e: y for e, _, y in run.accuracies(run.experience_of(run.trajectory(probe).probe))}
        for experience, x in places.items():
            before, now = after.get(experience - 1), after.get(experience)
            if before is not None and now is not None:
                axis.plot([x, x], [before, now], color=colour, linewidth=1.2)
                axis.plot(x, before, marker=marker, color=colour, markerfacecolor="none", markersize=4, linestyle="")
            if now is not None:
                axis.plot(x, now, marker=marker, color=colour, markersize=4.5, linestyle="")
    axis.set_ylim(-0.05, 1.05)
    axis.set_ylabel("accuracy")
    axis.set_title("Accuracy on the probe's task:\nbefore (hollow), after (filled)", loc="left")
