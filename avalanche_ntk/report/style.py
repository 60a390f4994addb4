"""Style of figures: for one column of a paper, readable for colour-blind readers and in greyscale."""

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
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from avalanche_ntk.report.scales import log_scale, text_width
from avalanche_ntk.report.text import escaped, plain

COLUMN_INCHES = 3.3
PAGE_INCHES = 7.2

# Okabe and Ito's colours, distinguishable under all common colour-vision deficiencies; line styles and markers
# distinguish series in greyscale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")

INK = "#1a1b1c"
FAINT = "#8a8b8c"
# In a page the colours are variables, set by its light and dark themes.
_VARIABLES = {INK: "--ink", FAINT: "--faint", **{colour: f"--s{i}" for i, colour in enumerate(COLOURS)}}

_LEGEND_SIZE, _TITLE_SIZE = 7.5, 9.0
# For a legend, in points: the line before a name with the space behind it, and the space between columns.
_HANDLE, _COLUMN_SPACE = 3.4 * _LEGEND_SIZE, 1.2 * _LEGEND_SIZE
_MOST_LETTERS = 80

_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": _LEGEND_SIZE,
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
    """Draw in this style, and restore matplotlib's settings on exit."""
    settings: dict[Any, Any] = {**_RC, **changes}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A run's name may have letters missing from the font; a browser still shows them.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


class _Layout(ConstrainedLayoutEngine):
    """A layout that is repeated until it fits: moving axes changes their ticks, which may need more room."""

    def execute(self, fig: Figure) -> None:
        """Repeat the layout until nothing exceeds the figure's edge, except text that is too long."""
        for _ in range(4):
            super().execute(fig)
            drawn, page = fig.get_tightbbox(), fig.bbox_inches.padded(0.005)
            if all(page.contains(*corner) for corner in drawn.corners()):
                break


class _Figure(Figure):
    """A figure that is always drawn in this style: matplotlib makes ticks when drawing, with the current settings."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure."""
        with drawing():
            super().draw(renderer)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with its own canvas, independent of matplotlib's global state."""
    figure = _Figure(figsize=(width, height), layout=_Layout())
    FigureCanvasAgg(figure)
    return figure


def look(position: int) -> dict[str, Any]:
    """Return colour and line style of the series at a position."""
    again = position // len(COLOURS)  # a repeated colour has another line style
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": STYLES[(position + again) % len(STYLES)]}


def shortened(text: str, points: float, size: float = _LEGEND_SIZE) -> str:
    """Return a string in one line, shortened to a width in points."""
    longest = _MOST_LETTERS
    while longest > 1 and text_width(plain(text, longest), size) > points:
        longest -= 1
    return plain(text, longest)


def legend_columns(names: Sequence[str], width: float, *, math: bool = False) -> int:
    """Return how many names fit side by side into a figure of this width in inches."""
    widths = [text_width(name, _LEGEND_SIZE, math=math) + _HANDLE for name in names]

    def taken(columns: int) -> float:
        widest = sum(float(max(column)) for column in np.array_split(widths, columns))
        return widest + _COLUMN_SPACE * (columns - 1)

    return next((n for n in range(len(names), 1, -1) if taken(n) <= _room(width)), 1)


def legend_height(names: Sequence[str], width: float) -> float:
    """Return the height in inches of a legend's rows beyond the first, to add to the figure's height."""
    return 0.155 * (-(-len(names) // legend_columns(_shown(names, width), width)) - 1) if names else 0.0


def add_legend(figure: Figure, names: Sequence[str], *, markers: bool = False, title: str | None = None) -> None:
    """Add a legend above the axes, in the order of positions; names are shown literally, not as TeX.

    Args:
        figure: The figure.
        names: The series' names.
        markers: Whether they have markers.
        title: The figure's title, drawn above the names; a separate title would overlap the legend.
    """
    handles = [
        Line2D([], [], marker=MARKERS[i % len(MARKERS)] if markers else "None", markersize=3.5, **look(i))
        for i in range(len(names))
    ]
    shown = _shown(names, figure.get_figwidth())
    legend = put_legend(
        figure, handles, [str(i) for i in range(len(names))], columns=legend_columns(shown, figure.get_figwidth())
    )
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    if title:
        heading = legend.get_title()
        heading.set_parse_math(False)
        legend.set_title(shortened(title, _room(figure.get_figwidth()), _TITLE_SIZE), FontProperties(size=_TITLE_SIZE))


def put_legend(
    figure: Figure, handles: Sequence[Artist], names: Sequence[str], *, columns: int | None = None, **options: Any
) -> Legend:
    """Add a legend above the axes, with as many columns as fit.

    Args:
        figure: The figure.
        handles: The series' legend handles.
        names: The series' names, with formulas between dollar signs.
        columns: Number of columns; None for as many as fit.
        **options: Options of matplotlib's legend.

    Returns:
        The legend.
    """
    across = columns or legend_columns(names, figure.get_figwidth(), math=True)
    return figure.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=across,
        **{"handlelength": 2.6, "columnspacing": 1.2, "borderaxespad": 0.1, "alignment": "left", **options},
    )


def legend_above(axis: Axes, columns: int = 1, **options: Any) -> None:
    """Add the legend of one panel above it, so that it does not cover data.

    Args:
        axis: The panel.
        columns: Number of columns.
        **options: Options of matplotlib's legend.
    """
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2, "alignment": "left"}
    axis.legend(ncols=columns, **{**place, **options})


def _room(width: float) -> float:
    """Return the width in points available for a legend in a figure of this width in inches."""
    return width * 72 - 2 * 0.5 * _LEGEND_SIZE


def _shown(names: Sequence[str], width: float) -> list[str]:
    return [shortened(plain(name, 40), _room(width) - _HANDLE) for name in names]


def write_label(axis: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Write a string into axes literally, not as TeX."""
    axis.annotate(plain(text, 40), (x, y), parse_math=False, annotation_clip=False, **options)


def drawable(value: float | None) -> bool:
    """Return whether a number can be drawn: finite, and without overflow in axis arithmetic."""
    return value is not None and abs(value) < 1e100 and (value == 0 or abs(value) > 1e-100)


def set_log(axis: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic if it has positive values."""
    if any(np.isfinite(v) and v > 0 for v in values):
        log_scale(axis)


def settle(figure: Figure) -> Figure:
    """Fix a figure's layout, so that saving it does not repeat it."""
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
        ident: Prefix that makes the element's ids unique on the page; letters and digits.
        description: Text for screen readers.

    Returns:
        The element; its text remains text.
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
        # matplotlib gives equal images the same id.
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
