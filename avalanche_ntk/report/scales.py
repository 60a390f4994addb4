"""Logarithmic axes with readable labels, for ranges from a factor of two to twenty decades."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullFormatter

# In font sizes: the height of a label's line, and the least space between two labels.
_LINE, _SPACE = 1.7, 0.8
_DIGIT = 0.67  # width of a digit, slightly enlarged for signs


def text_width(text: str, size: float, *, math: bool = False) -> float:
    """Return the width of a text in points.

    Args:
        text: One line.
        size: Size of the font in points.
        math: Whether text between dollar signs is a formula.
    """
    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), math)[0])


def log_scale(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic.

    Args:
        axes: The axes.
        which: "x" or "y".
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogTicks())
    axis.set_major_formatter(LogLabels())
    axis.set_minor_formatter(NullFormatter())


class LogTicks(LogLocator):
    """Ticks at 1, 2, 5, 10, … if there is room, otherwise at every power of ten, every second one, or fewer.

    If the axis spans less than half a decade, ticks are round numbers in equal steps.
    """

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks between two positive numbers."""
        axis: Any = self.axis
        low, high = sorted((vmin, vmax))
        low = low if low > 0 else axis.get_minpos()
        beside = axis.axis_name == "x"
        sizes = axis.get_tick_space() * (3 if beside else 2)  # matplotlib assumes that labels need this many
        inside = np.array([])  # ticks out of view affect neither the room nor the number format
        for ticks in _choices(low, high):
            inside = ticks[(ticks >= low * (1 - 1e-9)) & (ticks <= high * (1 + 1e-9))]
            gaps = np.diff(np.log10(inside)) / np.log10(high / low) * sizes
            needed = _widths(inside) if beside and len(inside) < sizes else _LINE
            if (gaps >= needed).all():
                break
        else:
            inside = inside[:1]
        found: list[float] = inside.tolist()
        return found


def _widths(ticks: np.ndarray) -> np.ndarray:
    """Return the least distance of neighbouring labels, in font sizes."""
    widths = np.array([_width(label) for label in LogLabels().format_ticks(ticks.tolist())])
    apart: np.ndarray = (widths[1:] + widths[:-1]) / 2 + _SPACE
    return apart


def _width(label: str) -> float:
    """Return the width of a label in font sizes, estimated, since measuring the font is slow."""
    base, _, exponent = label.removeprefix("$\\mathdefault{").partition("^")
    return _DIGIT * len(base.replace("\\cdot", "·")) + 0.7 * _DIGIT * len(exponent.strip("{}$"))


def _choices(low: float, high: float) -> Iterator[np.ndarray]:
    """Yield sets of ticks between two positive numbers, in decreasing number."""
    if high < 4 * low:
        for intervals in (5, 4, 3, 2, 1):
            ticks = np.asarray(MaxNLocator(intervals, steps=[1, 2, 5, 10]).tick_values(low, high))
            yield ticks[ticks > 0]
        return
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    yield np.ravel(np.outer(10.0**powers, (1.0, 2.0, 5.0)))
    for stride in range(1, len(powers) + 1):
        yield 10.0 ** powers[powers % stride == 0]


class LogLabels(Formatter):
    """Plain numbers if all are between a thousandth and ten thousand, otherwise powers of ten."""

    def __call__(self, value: float, position: int | None = None) -> str:
        """Return the label of one tick."""
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Return the labels of all ticks."""
        if all(1e-3 <= value < 1e4 for value in values):
            return [f"{value:g}" for value in values]
        return [_power(value) for value in values]


def _power(value: float) -> str:
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    factor = "" if float(mantissa) == 1 else f"{float(mantissa):g}\\cdot"
    return f"$\\mathdefault{{{factor}10^{{{int(exponent)}}}}}$"
