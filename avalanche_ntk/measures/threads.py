"""One thread for small matrices: threads of numpy's own would spin beside those that train.

numpy's OpenBLAS keeps a pool of threads apart from torch's. They go on spinning after each call, on the
cores that the next training steps need: a kernel of 64 samples, decomposed in less than a millisecond, made the steps
between two measurements three times slower. Below `LARGE` rows a second thread gains nothing either.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

LARGE = 512  # rows from which more threads decompose a matrix faster than one does

_BUSY = threading.Lock()


@contextmanager
def few_threads(rows: int) -> Generator[None]:
    """Let numpy's linear algebra run on one thread, when its matrices are small; the number is put back on exit.

    Only pools of a BLAS library's own are limited (OpenBLAS and BLIS as numpy's and scipy's wheels have them). MKL and
    what else computes on OpenMP shares torch's threads, which stay as they are. The setting belongs to the process:
    where another thread is inside already, or this one, nothing is done.

    Args:
        rows: Rows of the largest matrix; from `LARGE` on nothing is limited.

    >>> with few_threads(64):
    ...     pass
    """
    # Two limits that overlap would each put back what the other had set.
    if rows >= LARGE or not _BUSY.acquire(blocking=False):
        yield
        return
    try:
        with _own_pools().limit(limits=1):
            yield
    finally:
        _BUSY.release()


@functools.cache
def _own_pools() -> Any:
    # Looking for the libraries takes milliseconds, a limit some microseconds. numpy's is loaded by the first call.
    return ThreadpoolController().select(threading_layer="pthreads")
