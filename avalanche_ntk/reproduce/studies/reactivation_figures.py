"""Figures of the study `reactivation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import COLOURS, MARKERS, PAGE_INCHES, drawing, new_figure, put_legend
from avalanche_ntk.reproduce.drawing import draw_curve, draw_points
from avalanche_ntk.reproduce.results import DoneRun, Results
from avalanche_ntk.reproduce.studies import reactivation_claims as claims

SHOWN = 100  # iterations before and behind a switch
REGIMES = ("lazy", "rich")
LARGEST = r"$\lambda_{\max}$"


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw what the statements are about.

    Args:
        results: The runs.

    Returns:
        The figures by name.
    """
    with drawing():
        return {
            "widths": _by_width(results, "widths"),
            "convolutional": _by_width(results, "convolutional"),
            "overlaps": _overlaps(results),
            "frequencies": _frequencies(results),
            "learning-rates": _rates(results),
            "boundaries": _boundaries(results),
            "alternatives": _alternatives(results),
        }


def _curve(
    axis: Axes, runs: Sequence[DoneRun], column: str, position: int, label: str = "", shown: int = SHOWN
) -> None:
    """Draw a column around the first switch; λ_max relative to its value there."""
    by_seed: list[list[float]] = []
    grid: list[float] = []
    for run in filter(claims.survived, runs):
        times, values = claims.around(run, column)
        if column == "spectral_norm":
            values = values / values[times == 0]
        near = np.abs(times) <= shown
        grid = times[near].tolist()
        by_seed.append(values[near].tolist())
    draw_curve(axis, grid, by_seed, position, label, geometric=column != "alignment")


def _by_width(results: Results, plan: str) -> Figure:
    figure = new_figure(PAGE_INCHES, 6.0)
    axes = figure.subplots(3, 2, sharex=True, sharey="row")
    rows = (
        ("velocity_per_iteration", "kernel velocity\n(distance per iteration)"),
        ("spectral_norm", f"{LARGEST} / {LARGEST} at the switch"),
        ("alignment", "alignment with labels"),
    )
    widths = claims.levels(results, plan, "model.width")
    for column, regime in enumerate(REGIMES):
        for row, (name, label) in enumerate(rows):
            axis = axes[row, column]
            for position, width in enumerate(widths):
                at = {"model.width": width, "regime.name": regime}
                _curve(axis, claims.cells(results, plan, False, at), name, position, f"width {width}")
            control = claims.cells(results, plan, True, {"model.width": widths[-1], "regime.name": regime})
            _curve(axis, control, name, 6, f"width {widths[-1]}, no shift")
            axis.axvline(0, color="0.6", linewidth=0.6, zorder=0)
            if not column:
                axis.set_ylabel(label)
            if name != "alignment":
                log_scale(axis)
        axes[0, column].set_title(regime)
        axes[2, column].set_xlabel("iterations since the switch")
    put_legend(figure, *axes[0, 0].get_legend_handles_labels())
    return figure


def _overlaps(results: Results) -> Figure:
    figure = new_figure(PAGE_INCHES, 2.6)
    axes = figure.subplots(1, 2)
    panels = (
        (claims.at_boundary("spike"), "spike of the velocity\n(distance per iteration)"),
        (claims.norm_change, f"max |{LARGEST} / {LARGEST} at the switch − 1|"),
    )
    for axis, (number, label) in zip(axes, panels, strict=True):
        for position, regime in enumerate(REGIMES):
            by_overlap = claims._by_overlap(results, number, regime)
            draw_points(axis, list(by_overlap), list(by_overlap.values()), position, regime)
        axis.set_xlabel("class overlap of the two tasks (1: no shift)")
        axis.set_ylabel(label)
    put_legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def _frequencies(results: Results) -> Figure:
    figure = new_figure(PAGE_INCHES, 2.6)
    axes = figure.subplots(1, 2)
    alphas = claims.levels(results, "frequencies", "benchmark.alpha")
    rich = {"regime.name": "rich"}
    new = claims.cells(results, "overlaps", False, {**rich, "benchmark.similarity": 0})
    _curve(axes[0], new, "velocity_per_iteration", 0, "new classes")
    for position, alpha in enumerate(alphas, 1):
        runs = claims.cells(results, "frequencies", False, {"benchmark.alpha": alpha})
        _curve(axes[0], runs, "velocity_per_iteration", position, f"α = {alpha:g}")
    _curve(axes[0], claims.cells(results, "frequencies", True), "velocity_per_iteration", 6, "α = 0 (no shift)")
    axes[0].axvline(0, color="0.6", linewidth=0.6, zorder=0)
    log_scale(axes[0])
    axes[0].set_xlabel("iterations since the switch")
    axes[0].set_ylabel("kernel velocity\n(distance per iteration)")
    spike = claims.at_boundary("spike")
    none = claims.numbers(results, "frequencies", spike, {}, control=True)
    spikes = [none, *(claims.numbers(results, "frequencies", spike, {"benchmark.alpha": a}) for a in alphas)]
    draw_points(axes[1], [0, *alphas], spikes, 1)
    axes[1].set_xlabel("frequency shift α (0: no shift)")
    axes[1].set_ylabel("spike of the velocity\n(distance per iteration)")
    put_legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def _rates(results: Results) -> Figure:
    figure = new_figure(PAGE_INCHES, 2.6)
    axes = figure.subplots(1, 3)
    rates = claims.levels(results, "learning-rates", "optimizer.lr")
    for position, rate in enumerate(rates):
        runs = claims.cells(results, "learning-rates", False, {"optimizer.lr": rate})
        _curve(axes[0], runs, "velocity_per_iteration", position, f"η = {rate:g}")
        _curve(axes[1], runs, "spectral_norm", position, shown=1000)
    log_scale(axes[0])
    log_scale(axes[1])
    for axis, label in zip(
        axes, ("kernel velocity\n(distance per iteration)", f"{LARGEST} / {LARGEST} at the switch"), strict=False
    ):
        axis.axvline(0, color="0.6", linewidth=0.6, zorder=0)
        axis.set_xlabel("iterations since the switch")
        axis.set_ylabel(label)
    dips = [
        claims.numbers(results, "learning-rates", claims.at_boundary("norm_dip"), {"optimizer.lr": r}) for r in rates
    ]
    draw_points(axes[2], rates, dips, 0)
    log_scale(axes[2], "x")
    axes[2].set_xlabel("learning rate η")
    axes[2].set_ylabel(f"min {LARGEST} / {LARGEST} at the switch")
    put_legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def _boundaries(results: Results) -> Figure:
    figure = new_figure(PAGE_INCHES, 2.6)
    axes = figure.subplots(1, 2)
    boundaries = claims.boundaries_of(results)
    for axis, regime in zip(axes, REGIMES, strict=True):
        for position, (control, name) in enumerate(((False, "new classes"), (True, "no shift"))):
            spikes = [
                claims.numbers(
                    results, "boundaries", claims.at_boundary("spike", b), {"regime.name": regime}, control=control
                )
                for b in boundaries
            ]
            draw_points(axis, list(boundaries), spikes, position, name)
        axis.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        axis.set_title(regime)
        axis.set_xticks(list(boundaries))
        axis.set_xlabel("boundary")
    axes[0].set_ylabel("spike of the velocity\n(distance per iteration)")
    put_legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def _alternatives(results: Results) -> Figure:
    figure = new_figure(PAGE_INCHES, 2.6)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, regime in zip(axes, REGIMES, strict=True):
        ways = claims.alternatives(results, regime)
        for position, (plan, at, reader) in enumerate(ways.values()):
            control = {k: v for k, v in at.items() if k != "benchmark.similarity"}
            for series, (there, values) in enumerate(((False, at), (True, control))):
                ratios = claims.numbers(results, plan, reader("ratio"), values, control=there)
                name = ("new classes", "no shift")[series] if not position else ""
                draw_points_sideways(axis, position + 0.2 * series, ratios, series, name)
        axis.set_yticks(range(len(ways)), list(ways))
        log_scale(axis, "x")
        axis.set_xlabel("ratio peak/base")
        axis.set_title(regime)
    axes[0].invert_yaxis()
    put_legend(figure, *axes[0].get_legend_handles_labels())
    return figure


def draw_points_sideways(axis: Axes, y: float, values: Sequence[float], position: int, label: str = "") -> None:
    """Draw every seed at a height, and their mean."""
    finite = [v for v in values if np.isfinite(v)]
    colour = COLOURS[position]
    axis.plot(finite, [y] * len(finite), ".", color=colour, markersize=3, alpha=0.5)
    if finite:
        marker = MARKERS[position]
        axis.plot([float(np.mean(finite))], [y], marker, color=colour, markersize=4.5, label=label or None)
