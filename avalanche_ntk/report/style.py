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

# Okabe and Ito's colours: told apart under every common colour-vision deficiency; the line styles and markers tell them
# apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")

INK = "#1a1b1c"
FAINT = "#8a8b8c"
# In a page the colours are variables, which its light and its dark theme set.
_VARIABLES = {INK: "--ink", FAINT: "--faint", **{colour: f"--s{i}" for i, colour in enumerate(COLOURS)}}

_LEGEND_SIZE, _TITLE_SIZE = 7.5, 9.0
# Of a legend in points: the line before a name with the space behind it, and the space between two columns.
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
    """Draw in this style, and leave matplotlib's settings as they were."""
    settings: dict[Any, Any] = {**_RC, **changes}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A run's name may hold letters that the font has not; a browser shows them all the same.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


class _Layout(ConstrainedLayoutEngine):
    """A layout made again where it does not fit: it moves the axes, whose ticks then change, and may need more room."""

    def execute(self, fig: Figure) -> None:
        """Lay the figure out until nothing is beyond its edge; a text that is too long for it stays so."""
        for _ in range(4):
            super().execute(fig)
            drawn, page = fig.get_tightbbox(), fig.bbox_inches.padded(0.005)
            if all(page.contains(*corner) for corner in drawn.corners()):
                break


class _Figure(Figure):
    """A figure in this style whoever saves it: matplotlib makes ticks when it draws, by the settings of that time."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure."""
        with drawing():
            super().draw(renderer)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure with a canvas of its own, which no global state of matplotlib knows."""
    figure = _Figure(figsize=(width, height), layout=_Layout())
    FigureCanvasAgg(figure)
    return figure


def look(position: int) -> dict[str, Any]:
    """Return colour and line style of the series at a position."""
    again = position // len(COLOURS)  # a colour that comes back has another line style
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": STYLES[(position + again) % len(STYLES)]}


def shortened(text: str, points: float, size: float = _LEGEND_SIZE) -> str:
    """Return a foreign string in one line, and no wider than so many points."""
    longest = _MOST_LETTERS
    while longest > 1 and text_width(plain(text, longest), size) > points:
        longest -= 1
    return plain(text, longest)


def legend_columns(names: Sequence[str], width: float, *, math: bool = False) -> int:
    """Return how many names fit side by side into a figure of that width in inches."""
    widths = [text_width(name, _LEGEND_SIZE, math=math) + _HANDLE for name in names]

    def taken(columns: int) -> float:
        widest = sum(float(max(column)) for column in np.array_split(widths, columns))
        return widest + _COLUMN_SPACE * (columns - 1)

    return next((n for n in range(len(names), 1, -1) if taken(n) <= _room(width)), 1)


def legend_height(names: Sequence[str], width: float) -> float:
    """Return the height in inches of a legend's rows beyond the first, by which a figure must be higher."""
    return 0.155 * (-(-len(names) // legend_columns(_shown(names, width), width)) - 1) if names else 0.0


def add_legend(figure: Figure, names: Sequence[str], *, markers: bool = False, title: str | None = None) -> None:
    """Name the series above the axes, in the order of their positions; names are shown as they are, never as TeX.

    Args:
        figure: The figure.
        names: The series' names.
        markers: Whether they have markers.
        title: The figure's title, which stands above the names: a title of its own would take the legend's place.
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
    """Name series above the axes, as many side by side as fit.

    Args:
        figure: The figure.
        handles: What each series looks like.
        names: Its name, in which formulas stand between dollar signs.
        columns: How many names stand side by side; as many as fit when None.
        **options: Of matplotlib's legend.

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
    """Name the series of one panel above it, where the legend is never on the data.

    Args:
        axis: The panel.
        columns: How many names stand side by side.
        **options: Of matplotlib's legend.
    """
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2, "alignment": "left"}
    axis.legend(ncols=columns, **{**place, **options})


def _room(width: float) -> float:
    """Return the points that a legend's lines may take in a figure of that width in inches."""
    return width * 72 - 2 * 0.5 * _LEGEND_SIZE


def _shown(names: Sequence[str], width: float) -> list[str]:
    return [shortened(plain(name, 40), _room(width) - _HANDLE) for name in names]


def write_label(axis: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Write a foreign string into axes as it is, never as TeX."""
    axis.annotate(plain(text, 40), (x, y), parse_math=False, annotation_clip=False, **options)


def drawable(value: float | None) -> bool:
    """Tell whether a number can be drawn: finite, and far from where the arithmetic of axes overflows."""
    return value is not None and abs(value) < 1e100 and (value == 0 or abs(value) > 1e-100)


def set_log(axis: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic where something can be seen on it."""
    if any(np.isfinite(v) and v > 0 for v in values):
        log_scale(axis)


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
