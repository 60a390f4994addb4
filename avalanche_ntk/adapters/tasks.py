"""Boundaries between tasks.

On most streams every experience is a task. An online stream cuts each task into pieces, each trained as an experience;
its boundaries are where the task changes. This module does not import Avalanche; it reads the attributes of
experiences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def is_piece(experience: Any) -> bool:
    """Return whether an experience is a piece of a task, as in an online stream."""
    return hasattr(experience.logging(), "origin_experience")


def is_first_piece(experience: Any) -> bool:
    """Return whether a piece is marked as the first one of its task."""
    return bool(getattr(experience.logging(), "is_first_subexp", False))


def origin_of(experience: Any) -> Any:
    """Return an experience with its position in the stream; for a piece of an online stream, the task it is cut from.

    In training mode Avalanche hides an experience's position from strategies; in logging mode, used here, it is
    visible. A piece that mixes several tasks (where tasks fade into each other) has no origin and is returned itself.
    """
    experience = experience.logging()
    task = getattr(experience, "origin_experience", None)
    return experience if task is None else task.logging()


@dataclass
class Tasks:
    """Follows the experiences of a training run and finds where tasks begin and end.

    A piece continues the task of the previous piece if both are cut from the same experience and it is not marked as
    the first one. Consecutive pieces that mix tasks count as one task.

    Attributes:
        unfinished: Whether the last experience was a piece that did not end its task.
    """

    unfinished: bool = False
    _in_pieces: bool = False
    _place: tuple[str | None, int | None] = (None, None)
    _seen: int = 0

    def begins(self, experience: Any) -> bool:
        """Register an experience before its training; return whether a task begins with it."""
        self.unfinished = False
        if not is_piece(experience):
            self._in_pieces = False
            return True
        task = experience.logging().origin_experience
        place = (None, None) if task is None else _place_of(task.logging())
        goes_on = self._in_pieces and place == self._place and not is_first_piece(experience)
        self._in_pieces, self._place = True, place
        if not goes_on:
            self._seen = 0
        return not goes_on

    def ends(self, experience: Any) -> bool:
        """Register an experience after its training; return whether its task ended with it.

        A task ends with the piece marked as the last one, or when its pieces have held all of its samples: the last
        piece is not always marked (avalanche 0.6 omits the mark if all pieces have one size).
        """  # noqa: DOC201  (the first line says what is returned)
        if not is_piece(experience):
            return True
        piece = experience.logging()
        self._seen += len(piece.dataset)
        whole = piece.origin_experience is not None and self._seen >= len(piece.origin_experience.dataset)
        self.unfinished = not (whole or getattr(piece, "is_last_subexp", False))
        return not self.unfinished


def _place_of(experience: Any) -> tuple[str | None, int | None]:
    """Return the name of an experience's stream and its position there; None for an experience outside a stream."""
    try:
        return experience.origin_stream.name, experience.current_experience
    except AssertionError:  # Avalanche raises this for an experience outside a stream
        return None, None
