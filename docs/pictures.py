"""The drawings of the design and of the kernel engine: `python docs/pictures.py` writes `docs/assets/*.svg`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from avalanche_ntk.report.style import COLOURS, FAINT, INK, drawing

ASSETS = Path(__file__).parent / "assets"
BLUE, RED, GREEN = COLOURS[:3]


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure whose axes count inches from the lower left, and are not seen."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = INK) -> None:
    """Draw a box with a text in its middle; x and y are its lower left corner."""
    patch = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.06", facecolor="white", edgecolor=colour
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", colour: str = INK) -> None:
    """Draw an arrow, with a text above its middle."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=colour, linewidth=0.9))
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x, y + 0.06, text, ha="center", va="bottom", fontsize=7, color=colour)


def idea() -> Figure:
    """A kernel from Jacobians, and the same kernel from what two passes leave behind."""
    figure, axes = canvas(7.2, 3.5)
    axes.text(0.15, 3.28, "textbook: a row of P numbers for each sample and output", fontsize=8.5, weight="bold")
    box(axes, 0.15, 2.35, 0.95, 0.65, "N samples\nX")
    arrow(axes, (1.1, 2.67), (1.95, 2.67), "C backward\npasses each")
    box(
        axes,
        1.95,
        2.25,
        2.9,
        0.85,
        "J:  N·C rows, P columns\n64 samples, 10 outputs, ResNet-18:\n29 GB in float32",
        RED,
    )
    arrow(axes, (4.85, 2.67), (5.75, 2.67), "J Jᵀ")
    box(axes, 5.75, 2.35, 1.3, 0.65, "Θ:  N × N")
    axes.axhline(2.02, 0.02, 0.98, color=FAINT, linewidth=0.6)
    axes.text(
        0.15,
        1.78,
        "here: inputs and signals, which one forward pass and C backward passes leave behind",
        fontsize=8.5,
        weight="bold",
    )
    box(axes, 0.15, 0.62, 0.95, 0.65, "N samples\nX")
    arrow(axes, (1.1, 1.05), (1.95, 1.22), "forward", BLUE)
    arrow(axes, (1.1, 0.85), (1.95, 0.55), "", GREEN)
    axes.text(1.5, 0.5, "backward", ha="center", fontsize=7, color=GREEN)
    box(axes, 1.95, 0.98, 1.75, 0.5, "inputs of each layer\n$a_n$   (kept by autograd)", BLUE)
    box(axes, 1.95, 0.3, 1.75, 0.5, "signals at its output\n$g_{n,c} = \\partial f_c/\\partial h$", GREEN)
    arrow(axes, (3.7, 1.23), (4.25, 0.97), "", BLUE)
    arrow(axes, (3.7, 0.55), (4.25, 0.83), "", GREEN)
    box(
        axes,
        4.25,
        0.55,
        1.6,
        0.7,
        "$\\langle a_n, a_m\\rangle \\cdot \\sum_c \\langle g_{n,c}, g_{m,c}\\rangle$\n\nfor each layer",
    )
    arrow(axes, (5.85, 0.9), (6.15, 0.9), "+")
    box(axes, 6.15, 0.57, 0.9, 0.65, "Θ:  N × N")
    note = "A linear layer; convolutions and tokens add a sum over positions, other operators have their own rule."
    axes.text(0.15, 0.05, note, fontsize=7, color=FAINT)
    return figure


def measurement() -> Figure:
    """What happens in one measurement: what is done once, each time, and now and then."""
    figure, axes = canvas(7.2, 2.3)
    steps = [
        ("read the graph\nwhich node uses\nwhich parameter", BLUE),
        ("prove the plan\nfive samples alone,\nordinary gradients", BLUE),
        ("forward pass,\nsignals of all\noutputs", INK),
        ("contract\nby the cheaper\nexact form", INK),
        ("symmetric, finite,\npositive; one copy\nto the host", INK),
        ("three samples\nalone; an entry\nby the oracle", GREEN),
    ]
    width, gap = 1.0, 0.18
    for i, (text, colour) in enumerate(steps):
        x = 0.15 + i * (width + gap)
        box(axes, x, 0.85, width, 0.8, text, colour)
        if i:
            arrow(axes, (x - gap, 1.25), (x, 1.25))
    for first, last, text, colour in (
        (0, 1, "once for a model and shape of batch", BLUE),
        (2, 4, "each measurement", INK),
        (5, 5, "now and then", GREEN),
    ):
        left, right = 0.15 + first * (width + gap), 0.15 + last * (width + gap) + width
        axes.plot((left, right), (1.82, 1.82), color=colour, linewidth=0.9)
        axes.text((left + right) / 2, 1.88, text, ha="center", fontsize=7.5, color=colour)
    note = "What disagrees goes through explicit Jacobians, and the record says so."
    axes.text(0.15, 0.45, note, fontsize=7.5)
    note = "Model, gradients, buffers, random states and precision are afterwards what they were before."
    axes.text(0.15, 0.2, note, fontsize=7.5)
    return figure


def flow() -> Figure:
    """From training to a report."""
    figure, axes = canvas(7.2, 2.2)
    for i, text in enumerate(
        ("Avalanche's hooks\nadapters/", "a loop of your own\nrecorder/", "checkpoints\nof a finished run")
    ):
        y = 1.6 - i * 0.68
        box(axes, 0.1, y, 1.25, 0.5, text)
        arrow(axes, (1.35, y + 0.25), (1.75, 1.17 + (1 - i) * 0.08))
    box(axes, 1.75, 0.92, 0.95, 0.5, "probe, clock,\nschedule", BLUE)
    arrow(axes, (2.7, 1.17), (2.95, 1.17))
    box(axes, 2.95, 0.92, 0.9, 0.5, "kernel\nkernels/", RED)
    arrow(axes, (3.85, 1.17), (4.1, 1.17))
    box(axes, 4.1, 0.92, 0.95, 0.5, "numbers\nmeasures/", RED)
    arrow(axes, (5.05, 1.17), (5.3, 1.17))
    box(axes, 5.3, 0.92, 0.75, 0.5, "trajectory", BLUE)
    arrow(axes, (6.05, 1.25), (6.25, 1.65))
    arrow(axes, (6.05, 1.09), (6.25, 0.69))
    box(axes, 6.25, 1.45, 0.85, 0.5, "metrics,\nloggers")
    box(axes, 6.25, 0.4, 0.85, 0.5, "run folder,\nreport/")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {"engine-idea": idea, "engine-measurement": measurement, "flow": flow}


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to")
    out = parser.parse_args().out
    for name, draw in PICTURES.items():
        with drawing(**{"svg.hashsalt": name}):
            draw().savefig(out / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
