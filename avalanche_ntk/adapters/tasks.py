"""Where one task ends and the next begins.

On most streams every experience is a task. An online stream cuts each task into pieces, which training sees as
experiences of their own; its boundaries are where the task changes. Nothing here imports Avalanche: an experience is
asked for what it knows of itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def is_piece(experience: Any) -> bool:
    """Return whether an experience is a piece of a task, as those of an online stream are."""
    return hasattr(experience.logging(), "origin_experience")


def is_first_piece(experience: Any) -> bool:
    """Return whether a piece says that it is the first one of its task."""
    return bool(getattr(experience.logging(), "is_first_subexp", False))


def origin_of(experience: Any) -> Any:
    """Return an experience with its place in the stream; of a piece of an online stream, the task that it is cut from.

    In training mode Avalanche hides an experience's place from strategies; measuring is logging, which sees it. A piece
    that mixes several tasks (a stream in which they fade into each other) is cut from none, and is returned itself.
    """
    experience = experience.logging()
    task = getattr(experience, "origin_experience", None)
    return experience if task is None else task.logging()


@dataclass
class Tasks:
    """Follows the experiences of a training run, and tells where a task begins and where it ends.

    A piece goes on with the task of the piece before it when both are cut from the same experience and it does not call
    itself the first one. The pieces that mix tasks are one task from the first to the last of them.

    Attributes:
        unfinished: Whether the last experience was a piece with which its task did not end.
    """

    unfinished: bool = False
    _in_pieces: bool = False
    _place: tuple[str | None, int | None] = (None, None)
    _seen: int = 0

    def begins(self, experience: Any) -> bool:
        """Take note of an experience that is about to be trained; return whether a task begins with it."""
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
        """Take note of an experience that was trained; return whether its task ended with it.

        A task has ended with the piece that calls itself the last one, or when its pieces have held as many samples as
        it has: the last piece does not always know that it is (avalanche 0.6 leaves it out when all are of one size).
        """  # noqa: DOC201  (what is returned stands in the first line)
        if not is_piece(experience):
            return True
        piece = experience.logging()
        self._seen += len(piece.dataset)
        whole = piece.origin_experience is not None and self._seen >= len(piece.origin_experience.dataset)
        self.unfinished = not (whole or getattr(piece, "is_last_subexp", False))
        return not self.unfinished


def _place_of(experience: Any) -> tuple[str | None, int | None]:
    """Return the name of an experience's stream and its place there, as far as it is in one."""
    try:
        return experience.origin_stream.name, experience.current_experience
    except AssertionError:  # how Avalanche says that an experience was never put into a stream
        return None, None
