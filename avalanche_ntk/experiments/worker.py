"""One run of a sweep in a process of its own: `python -m avalanche_ntk.experiments.worker JOB.json`.

It prints a line of progress an experience, and ends when the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FAILURE = "failed: "
PROGRESS = "progress "


def work(job: Mapping[str, Any]) -> str:
    """Make one run.

    Args:
        job: `config`, `out`, `tags` and `overwrite`, as plain values.

    Returns:
        The run folder.
    """
    from avalanche_ntk.experiments.quiet import without_avalanches_own_warnings
    from avalanche_ntk.experiments.runner import run

    def on_progress(done: int, total: int) -> None:
        print(f"{PROGRESS}{done} {total}", flush=True)

    with without_avalanches_own_warnings():
        return str(
            run(job["config"], job["out"], tags=job["tags"], overwrite=job["overwrite"], on_progress=on_progress)
        )


def _end_with(parent: int) -> None:
    """End this process when its parent has: a sweep that was killed leaves nobody behind who holds a run's lock."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def attempt(job: Mapping[str, Any]) -> str | None:
    """Make one run; the traceback of a failure is printed.

    Args:
        job: As for `work`.

    Returns:
        Why it failed, or None.
    """
    try:
        work(job)
    except Exception as error:  # noqa: BLE001  (whatever it is, the sweep reports it and goes on)
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def main() -> int:
    """Run the job in the file named on the command line; the reason of a failure is the last line of output."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if job.get("parent") and hasattr(os, "getppid"):
        _end_with(job["parent"])
    failure = attempt(job)
    if failure is not None:
        print(f"{FAILURE}{failure}", flush=True)
    return 0 if failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
