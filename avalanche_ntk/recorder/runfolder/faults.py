"""Faults of a run folder, and their messages."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path

from avalanche_ntk.errors import RunFolderError


class Invalid(Exception):
    """A fault in data; the caller adds its location."""


def short(value: object) -> str:
    """Return a value for a message, truncated if long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def listing(names: Collection[str]) -> str:
    """Return the first few names for a message, and the number of others."""
    shown = sorted(names)
    if not shown:
        return "nothing"
    return ", ".join(map(repr, shown[:5])) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


@contextmanager
def writing(folder: Path, what: str) -> Generator[None, None, None]:
    """Turn an OSError inside this context into an error that names what could not be written.

    Args:
        folder: The run folder.
        what: What is written.

    Yields:
        Nothing.

    Raises:
        RunFolderError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"run folder {folder}: could not write {what}: {error.strerror or error}. What was recorded before "
            "is intact. Make room or allow writing there, then write again or continue with RunFolder.resume."
        ) from error


@contextmanager
def reading(folder: Path, what: str) -> Generator[None, None, None]:
    """Turn an OSError or `Invalid` inside this context into an error that names what could not be read.

    Args:
        folder: The run folder.
        what: What is read.

    Yields:
        Nothing.

    Raises:
        RunFolderError: Instead of an OSError or `Invalid`.
    """
    try:
        yield
    except Invalid as error:
        raise RunFolderError(f"run folder {folder}: {what} cannot be used: {error}.") from None
    except OSError as error:
        raise RunFolderError(f"run folder {folder}: {what} cannot be read: {error.strerror or error}.") from error
