"""What is wrong with a run folder, and how it is told."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from avalanche_ntk.errors import RunFolderError


class Invalid(Exception):
    """What is wrong with a piece of data; the caller says where."""


def short(value: object) -> str:
    """Return a value for a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def listing(names: Collection[str]) -> str:
    """Return the first few names for a message, and how many more there are."""
    shown = sorted(names)
    if not shown:
        return "nothing"
    return ", ".join(map(repr, shown[:5])) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


@contextmanager
def writing(folder: Path, what: str) -> Generator[None, None, None]:
    """Tell what could not be written when the system refuses it inside this context.

    Args:
        folder: The run folder.
        what: What is written.

    Yields:
        Nothing.

    Raises:
        RunFolderError: In the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"run folder {folder}: could not write {what}: {error.strerror or error}. What was recorded before "
            "is intact. Make room or allow writing there, then write again or go on with RunFolder.resume."
        ) from error


@contextmanager
def reading(folder: Path, what: str) -> Generator[None, None, None]:
    """Tell what could not be read when it is refused inside this context, by the system or for what it is.

    Args:
        folder: The run folder.
        what: What is read.

    Yields:
        Nothing.

    Raises:
        RunFolderError: In the place of an OSError or `Invalid`.
    """
    try:
        yield
    except Invalid as error:
        raise RunFolderError(f"run folder {folder}: {what} cannot be used: {error}.") from None
    except OSError as error:
        raise RunFolderError(f"run folder {folder}: {what} cannot be read: {error.strerror or error}.") from error
