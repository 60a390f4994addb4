"""Files that are there whole or as they were before."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and move it there, so that no one ever finds a part of it.

    Args:
        path: The file; what stands there is replaced.
        content: Its content; text is written in UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(temporary, path)
