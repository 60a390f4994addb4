"""Atomic file writes."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: to a temporary file beside it, which then replaces it.

    Args:
        path: The file; an existing one is replaced.
        content: Its content; text is encoded as UTF-8, with escapes for surrogates, which file names may contain.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary.write_bytes(data)
    os.replace(temporary, path)
