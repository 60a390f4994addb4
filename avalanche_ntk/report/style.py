"""How figures look: one column of a paper, told apart in colour, by colour-blind readers and in grey."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from avalanche_ntk.report.text import escaped, plain

COLUMN_INCHES = 3.3
PAGE_INCHES = 7.2

# Okabe and Ito's colours: told apart under every common colour-vision deficiency; the line styles and markers tell them
# apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")

INK = "#1a1b1c"
FAINT = "#8a8b8c"
# In a page the colours are variables, which its light and its dark theme set.
_VARIABLES = {INK: "--ink", FAINT: "--faint", **{colour: f"--s{i}" for i, colour in enumerate(COLOURS)}}

_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.limits": (-4, 6),
    "pdf.fonttype": 42,
}


@contextmanager
def drawing(**changes: Any) -> Generator[None]:
    """Draw in this style, and leave matplotlib's settings as they were."""
    settings: dict[Any, Any] = {**_RC, **changes}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A run's name may hold letters that the font has not; a browser shows them all the same.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with a canvas of its own, which no global state of matplotlib knows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def look(position: int) -> dict[str, Any]:
    """Return colour and line style of the series at a position."""
    again = position // len(COLOURS)  # a colour that comes back has another line style
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": STYLES[(position + again) % len(STYLES)]}


def legend_columns(names: Sequence[str], width: float) -> int:
    """Return how many names fit side by side into a figure of that width in inches."""
    longest = max((len(plain(name, 40)) for name in names), default=1)
    return min(len(names), max(1, int(width * 72 / (longest * 4.6 + 38))))


def legend_height(names: Sequence[str], width: float) -> float:
    """Return the height in inches of a legend's rows beyond the first, by which a figure must be higher."""
    return 0.155 * (-(-len(names) // max(1, legend_columns(names, width))) - 1) if names else 0.0


def add_legend(figure: Figure, names: Sequence[str], *, markers: bool = False) -> None:
    """Name the series above the axes, in the order of their positions; names are shown as they are, never as TeX."""
    handles = [
        Line2D([], [], marker=MARKERS[i % len(MARKERS)] if markers else "None", markersize=3.5, **look(i))
        for i in range(len(names))
    ]
    legend = figure.legend(
        handles,
        [str(i) for i in range(len(names))],
        loc="outside upper left",
        ncols=legend_columns(names, figure.get_figwidth()),
        handlelength=2.6,
        columnspacing=1.2,
        borderaxespad=0.1,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(plain(name, 40))


def write_label(axis: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Write a foreign string into axes as it is, never as TeX."""
    axis.annotate(plain(text, 40), (x, y), parse_math=False, annotation_clip=False, **options)


def drawable(value: float | None) -> bool:
    """Tell whether a number can be drawn: finite, and far from where the arithmetic of axes overflows."""
    return value is not None and abs(value) < 1e100 and (value == 0 or abs(value) > 1e-100)


def set_log(axis: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic where something can be seen on it."""
    positive = [v for v in values if np.isfinite(v) and v > 0]
    if positive:
        axis.set_yscale("log")
        decades = np.log10(max(positive) / min(positive))
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,), numticks=6))
        axis.yaxis.set_minor_formatter(NullFormatter())


def settle(figure: Figure) -> Figure:
    """Lay a figure out once and for all, so that saving it again and again does not do it anew."""
    with drawing():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def to_bytes(figure: Figure, kind: str) -> bytes:
    """Return a figure as a PDF, SVG or PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "svg": {"Date": None, "Creator": None},
        "png": {"Software": None},
    }[kind]
    with drawing(**{"svg.fonttype": "path", "svg.hashsalt": "figure"}):
        figure.savefig(buffer, format=kind, dpi=300, metadata=metadata)
    return buffer.getvalue()


def to_inline_svg(figure: Figure, ident: str, description: str) -> str:
    """Return a figure as an SVG element for an HTML page, in the page's own colours.

    Args:
        figure: The figure.
        ident: What makes the element's ids different from all others on the page; letters and digits.
        description: What a screen reader says.

    Returns:
        The element, whose text stays text.
    """
    buffer = io.BytesIO()
    with drawing(**{"svg.fonttype": "none", "svg.hashsalt": ident}):
        figure.savefig(buffer, format="svg", transparent=True, dpi=150, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    seen: Counter[str] = Counter()

    def own(match: re.Match[str]) -> str:
        # matplotlib gives the same id to pictures that are the same.
        name = match[1]
        seen[name] += 1
        return f'id="{ident}-{name}"' if seen[name] == 1 else f'id="{ident}-{name}-{seen[name]}"'

    svg = re.sub(r'\bid="([^"]+)"', own, svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{ident}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{ident}-\1)", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(rf"(?<=[: ]){colour}\b", f"var({variable})", svg, flags=re.IGNORECASE)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escaped(description)}">{rest}'
