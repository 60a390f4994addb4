"""Worker processes that end when the process that started them has ended."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

SECONDS = 0.5  # between two looks at the parent


def end_with(parent: int) -> None:
    """End this process when its parent has ended: a killed parent cannot end it, and it would wait or work for nobody.

    Args:
        parent: Process number of the parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def pool_of(processes: int) -> ProcessPoolExecutor:
    """Return a pool of new processes (`spawn`) that end with this one, also when it is killed.

    Args:
        processes: Their number.

    Returns:
        The pool, to be used in a `with` statement.
    """
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=spawn, initializer=end_with, initargs=(os.getpid(),))
