"""Files that are there whole or as they were before."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and move it there, so that no one ever finds a part of it.

    Args:
        path: The file; what stands there is replaced.
        content: Its content; text is written in UTF-8, with escapes for what UTF-8 lacks: names of files may hold it.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary.write_bytes(data)
    os.replace(temporary, path)
