"""A worker process that makes runs of a sweep in sequence: `python -m avalanche_ntk.experiments.worker PARENT`.

It reads the paths of a job file and of its reply from its input, one job per line, separated by a NUL. A run's output,
with a line of progress per experience, goes to the job's log, and its outcome to the reply. The worker ends when its
input or its parent process ends.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avalanche_ntk.children import end_with
from avalanche_ntk.files import write_whole

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


def caught(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """Call a function, and print the traceback of a failure.

    Args:
        function: The function.
        *arguments: Its arguments.

    Returns:
        Its result and its exception; one of them is None.
    """
    try:
        return function(*arguments), None
    except Exception as error:  # noqa: BLE001  (whatever it is, who asked for it is told)
        traceback.print_exc()
        return None, error


def attempt(job: Mapping[str, Any]) -> str | None:
    """Make one run, and print the traceback of a failure.

    Args:
        job: As for `work`.

    Returns:
        Why it failed, or None.
    """
    _, error = caught(work, job)
    return None if error is None else f"{type(error).__name__}: {' '.join(str(error).split())}"


def serve(job: Mapping[str, Any], reply: Path) -> None:
    """Make one run; its output goes to the job's log, its outcome to the reply.

    Args:
        job: As for `work`, and the path `log`.
        reply: The file to write: `failure`, why it failed, or null.
    """
    with open(job["log"], "ab") as log:
        for stream in (1, 2):  # the streams themselves, so that output of C libraries is logged too
            os.dup2(log.fileno(), stream)
    failure = attempt(job)
    sys.stdout.flush()
    sys.stderr.flush()
    write_whole(reply, json.dumps({"failure": failure}))


def main() -> int:
    """Serve the jobs named on the input until it ends."""
    if hasattr(os, "getppid"):
        end_with(int(sys.argv[1]))  # a killed sweep leaves no process with a run's lock
    for line in sys.stdin.buffer:  # a path is bytes and may not be valid text
        job, reply = (Path(os.fsdecode(path)) for path in line.rstrip(b"\n").split(b"\0"))
        serve(json.loads(job.read_text(encoding="utf-8")), reply)
    return 0


if __name__ == "__main__":
    sys.exit(main())
