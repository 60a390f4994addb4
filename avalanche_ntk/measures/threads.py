"""Use one thread for small matrices: numpy's own threads would compete with those of training.

numpy's OpenBLAS keeps a pool of threads apart from torch's. After each call these threads keep spinning on the cores
that the next training steps need: a kernel of 64 samples, decomposed in less than a millisecond, made the steps between
two measurements three times slower. Below `LARGE` rows a second thread does not help anyway.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

LARGE = 512  # rows from which several threads decompose a matrix faster than one

_BUSY = threading.Lock()


@contextmanager
def few_threads(rows: int) -> Generator[None]:
    """Run numpy's linear algebra on one thread if its matrices are small; restore the number of threads on exit.

    Only separate thread pools of BLAS libraries are limited (OpenBLAS and BLIS, as in numpy's and scipy's wheels). MKL
    and other OpenMP libraries share torch's threads, which are not changed. The setting belongs to the process: nested
    or concurrent calls do nothing.

    Args:
        rows: Rows of the largest matrix; there is no limit from `LARGE` on.

    >>> with few_threads(64):
    ...     pass
    """
    # Overlapping limits would restore each other's settings.
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
    # Finding the libraries takes milliseconds, setting a limit microseconds. The first call loads numpy's library.
    return ThreadpoolController().select(threading_layer="pthreads")
