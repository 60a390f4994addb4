"""Whether the texts of a figure can be read as it is saved: none lies on another, none is cut off at the edge."""

import io
from collections.abc import Generator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Affine2D

CLOSE = 0.01  # of a text's height, by which its box is made smaller on each side: what only touches does not overlap


def box_of(text: Text, renderer: RendererBase) -> np.ndarray:
    """Return the corners `(4, 2)` of the box of a text, turned as the text is, in pixels."""
    around, angle = text.get_window_extent(renderer), text.get_rotation()
    text.set_rotation(0)
    straight = text.get_window_extent(renderer)
    text.set_rotation(angle)
    close = CLOSE * straight.height
    width, height = straight.width / 2 - close, straight.height / 2 - close
    middle = ((around.x0 + around.x1) / 2, (around.y0 + around.y1) / 2)
    corners = [(-width, -height), (width, -height), (width, height), (-width, height)]
    return Affine2D().rotate_deg(angle).translate(*middle).transform(corners)


def overlap(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether two boxes overlap: convex shapes do unless a side of one of them parts them.

    >>> square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    >>> overlap(square, square + 0.9), overlap(square, square + (0, 1.1))
    (True, False)
    """
    for corners in (one, other):
        for side in corners[1] - corners[0], corners[2] - corners[1]:
            a, b = one @ side, other @ side
            if a.max() < b.min() or b.max() < a.min():
                return False
    return True


class Drawn:
    """The texts that were drawn last: ticks out of view and axes switched off hold texts too, which no one sees."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, np.ndarray]] = []
        self.page: Any = None

    @contextmanager
    def watching(self) -> Generator[None]:
        """Note what is drawn."""
        with pytest.MonkeyPatch.context() as patch:
            draw_text, draw_figure = Text.draw, Figure.draw

            def note_text(text: Text, renderer: RendererBase, *arguments: Any, **options: Any) -> Any:
                if text.get_visible() and text.get_text().strip():
                    self.texts.append((text.get_text(), box_of(text, renderer)))
                return draw_text(text, renderer, *arguments, **options)

            def note_figure(figure: Figure, *arguments: Any, **options: Any) -> Any:
                self.texts.clear()
                self.page = figure.bbox.frozen()
                return draw_figure(figure, *arguments, **options)

            patch.setattr(Text, "draw", note_text)
            patch.setattr(Figure, "draw", note_figure)
            yield

    def check(self) -> None:
        """Fail where two texts overlap or one is cut off."""
        close = [(a, b) for (a, one), (b, other) in combinations(self.texts, 2) if overlap(one, other)]
        assert not close, f"texts lie on each other: {close}"
        low, high = (self.page.x0, self.page.y0), (self.page.x1, self.page.y1)
        cut = [text for text, box in self.texts if (box < low).any() or (box > high).any()]
        assert not cut, f"texts are cut off at the figure's edge: {cut}"


def check_texts(figure: Figure, **options: Any) -> None:
    """Save a figure, and fail where two of its texts overlap or one is cut off.

    Args:
        figure: The figure.
        **options: Of `savefig`.
    """
    drawn = Drawn()
    with drawn.watching():
        figure.canvas.print_figure(io.BytesIO(), **options)  # what `savefig` does, which `conftest.py` watches itself
    drawn.check()
