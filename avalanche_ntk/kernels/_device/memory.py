"""Memory that was freed, but that the C library keeps.

The GNU C library keeps freed blocks of up to 32 MB for the next request, in pieces that the next request may not fit:
tens of signals of some megabytes that come and go take up more and more. Elsewhere these functions do nothing.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


class _Info(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    )


@cache
def _library() -> Any:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):  # musl, for one
        return None
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _Info
    return library


def free_bytes() -> int:
    """Return the bytes that were freed and are kept; 0 where this cannot be told."""
    library = _library()
    return int(library.mallinfo2().fordblks) if hasattr(library, "mallinfo2") else 0


def release() -> None:
    """Give freed memory back to the system."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)
