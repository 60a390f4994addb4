"""Freed memory kept by the C library, and recovery from running out of memory.

The GNU C library keeps freed blocks of up to 32 MB for reuse, but a later request may not fit them: memory grows when
many signals of some megabytes are allocated and freed. With other libraries `free_bytes` and `release` do nothing.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn

from avalanche_ntk.errors import MemoryBudgetError, MemoryWarning
from avalanche_ntk.kernels._device.profile import empty_cache, exhausted

T = TypeVar("T")
LEAST = 2**20  # smallest budget to try, in bytes


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
    """Return the freed bytes that are kept; 0 if unknown."""
    library = _library()
    return int(library.mallinfo2().fordblks) if hasattr(library, "mallinfo2") else 0


def release() -> None:
    """Return freed memory to the system."""
    library = _library()
    if library is not None:
        library.malloc_trim(0)


# By model, the budget with which its last measurement fitted after memory had run out
_FITTED: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def as_fits(attempt: Callable[[int], T], budget: int, model: nn.Module, device: torch.device) -> T:
    """Measure, halving the budget as long as memory runs out; later measurements start with the reduced budget.

    A smaller budget means smaller blocks of samples and outputs; the kernel is the same to rounding.

    Args:
        attempt: Measures with a budget in bytes.
        budget: The first budget.
        model: The model.
        device: The device.

    Returns:
        The result of the first attempt that fitted.

    Raises:
        MemoryBudgetError: The budget is too small for one sample.
        _no_room: Memory runs out with every budget (a `MemoryBudgetError`).
    """
    told = ""
    budget = min(budget, _FITTED.get(model, budget))
    while True:
        try:
            return attempt(budget)
        except MemoryBudgetError as exc:
            if not told:
                raise
            raise _no_room(told) from exc
        except Exception as exc:
            if not exhausted(exc):
                raise
            told = _told(exc)
            if budget < 2 * LEAST:
                raise _no_room(told) from exc
        # here the error is gone, and with it the frames that held what was made
        gc.collect()
        release()
        empty_cache(device)
        budget //= 2
        _FITTED[model] = budget
        warnings.warn(
            f"memory ran out in a measurement ({told}): this and later measurements of this model use "
            f"memory_budget={budget} bytes. Give memory_budget={budget} or less to avoid the failed attempt.",
            MemoryWarning,
            stacklevel=5,
        )


def _told(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__


def _no_room(told: str) -> MemoryBudgetError:
    return MemoryBudgetError(
        f"memory ran out with the smallest blocks too ({told}): expected room for one sample. Free memory, measure"
        " fewer outputs (`outputs=`, `reduction='sum_logits'`), or measure on another device."
    )
