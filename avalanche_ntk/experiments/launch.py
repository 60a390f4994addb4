"""How the runs of a sweep, and measurements of checkpoints, are started: as processes here, or through submitit."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from avalanche_ntk.errors import ProcessError
from avalanche_ntk.experiments.schema import ConfigError, unknown_choice
from avalanche_ntk.experiments.worker import PROGRESS, attempt, caught

EXECUTORS = {"processes": 1, "slurm": 1_000_000, "local": 1}
"""How many run at the same time when nothing is said, by executor: a cluster's scheduler sees to that by itself."""


class Handle(ABC):
    """A run that was started.

    Attributes:
        log: Where its output is.
    """

    log: Path | None

    @abstractmethod
    def is_done(self) -> bool:
        """Return whether it has ended."""

    @abstractmethod
    def failure(self) -> str | None:
        """Return why it failed, or None; to be asked when it has ended."""

    @abstractmethod
    def stop(self) -> None:
        """End it."""

    def progress(self) -> tuple[int, int] | None:
        """Return how many experiences are finished, and of how many; None when nothing is known."""
        lines = [line for line in _tail(self.log) if line.startswith(PROGRESS)]
        if not lines:
            return None
        done, total = lines[-1].removeprefix(PROGRESS).split()
        return int(done), int(total)


class Launcher(ABC):
    """Starts runs.

    Attributes:
        default_jobs: How many at the same time when nothing is said.
    """

    default_jobs: int = 1

    @abstractmethod
    def start(self, name: str, job: dict[str, Any]) -> Handle:
        """Start a run.

        Args:
            name: Its name.
            job: What `worker.work` takes.

        Returns:
            What was started.
        """

    def close(self) -> None:
        """End what waits for further runs; most launchers have nothing that does."""
        return


def launcher(executor: str, folder: Path, parameters: Mapping[str, Any], workers: Workers | None = None) -> Launcher:
    """Return what starts runs.

    Args:
        executor: A word of `EXECUTORS`.
        folder: The sweep's folder.
        parameters: What submitit's executor is told.
        workers: Processes to use, which the caller ends; own ones when None.

    Returns:
        The launcher.

    Raises:
        ConfigError: The executor is unknown, or submitit is not installed, or does not take a parameter.
    """
    cluster = submitit_executor(executor, folder / "submitit", parameters)
    if cluster is None:
        return _Processes(folder, workers)
    return _Submitit(cluster, EXECUTORS[executor])


def submitit_executor(executor: str, folder: Path, parameters: Mapping[str, Any]) -> Any:
    """Return submitit's executor, told what it needs.

    Args:
        executor: A word of `EXECUTORS`.
        folder: Where submitit keeps its jobs' files.
        parameters: What submitit's executor is told.

    Returns:
        The executor; None for processes of this machine, which need none.

    Raises:
        ConfigError: The executor is unknown, or submitit is not installed, or does not take a parameter.
    """
    if executor not in EXECUTORS:
        raise ConfigError(unknown_choice("executor", executor, EXECUTORS))
    if executor == "processes":
        if parameters:
            raise ConfigError(
                f"parameters are for submitit's executors, found {', '.join(map(repr, parameters))} with executor "
                "'processes'. Leave them out, or give executor 'slurm'."
            )
        return None
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError(
            f"executor {executor!r} needs the package submitit, which is not installed. "
            "Run: pip install 'avalanche-ntk[cluster]'"
        )
    import submitit

    try:
        made = submitit.AutoExecutor(folder=folder, cluster=executor)
        made.update_parameters(**{"timeout_min": 24 * 60, **parameters})
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(
            f"submitit refuses executor {executor!r} with {dict(parameters)!r} ({type(error).__name__}: {told}). "
            "Change --parameter, or give executor 'processes'."
        ) from None
    return made


class JobPool:
    """Calls of functions as jobs of submitit, to be used as a pool of `concurrent.futures`.

    Args:
        executor: What `submitit_executor` returns.
    """

    def __init__(self, executor: Any) -> None:
        self.executor = executor

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> JobCall:
        """Begin a call in a job.

        Args:
            function: The function.
            *arguments: What it takes.

        Returns:
            The call.
        """
        return JobCall(self.executor.submit(caught, function, *arguments))


class JobCall:
    """A call of a function in a job of submitit.

    Args:
        job: The job.
    """

    def __init__(self, job: Any) -> None:
        self.job = job

    def result(self) -> Any:
        """Wait for the call and return what the function returned; what it raised is raised.

        Returns:
            The result.

        Raises:
            ProcessError: The job has ended without a result.
        """
        if (lost := _lost(self.job)) is not None:
            raise ProcessError(
                f"job {self.job.job_id} ended without a result ({lost}). Look into {self.job.paths.stderr}, and give "
                "the same command again: what was measured stays."
            )
        result, error = self.job.result()
        if error is not None:
            raise error
        return result

    def cancel(self) -> None:
        """End the job."""
        self.job.cancel()


class Workers:
    """Processes that take one run after the other, so that torch and Avalanche are imported once for many.

    A run that fails, or whose process dies, takes its worker along: the next one begins in a new process. To be used as
    a context, at whose end the workers end.
    """

    def __init__(self) -> None:
        self.idle: dict[str, list[subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers that wait."""
        for workers in self.idle.values():
            for process in workers:
                process.communicate()  # the end of its input ends it
        self.idle.clear()

    def take(self, threads: str) -> subprocess.Popen[bytes]:
        """Return a worker that waits, or a new one.

        Args:
            threads: How many threads its libraries may use.

        Returns:
            The process; whoever is done with it puts it back.
        """
        while workers := self.idle.get(threads):
            process = workers.pop()
            if process.poll() is None:
                return process
            _ended(process)
        # Threads of the libraries beside torch's own would fight for the cores with the other runs.
        # A log is in UTF-8, whatever the terminal shows, and takes every character that a run prints.
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8:backslashreplace",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        return subprocess.Popen(
            [sys.executable, "-m", "avalanche_ntk.experiments.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            env=environment,
        )

    def put_back(self, threads: str, process: subprocess.Popen[bytes]) -> None:
        """Let a worker wait for its next run."""
        self.idle.setdefault(threads, []).append(process)


class _Processes(Launcher):
    def __init__(self, folder: Path, workers: Workers | None) -> None:
        self.folder = folder
        self.workers = workers or Workers()
        self.own = workers is None

    def start(self, name: str, job: dict[str, Any]) -> Handle:
        for part in ("jobs", "logs"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        file, log = self.folder / "jobs" / f"{name}.json", self.folder / "logs" / f"{name}.log"
        reply = file.with_suffix(".reply.json")
        reply.unlink(missing_ok=True)
        log.write_bytes(b"")
        job = {**job, "log": str(log), "reply": str(reply)}
        file.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
        threads = str(job["config"]["threads"])
        process = self.workers.take(threads)
        assert process.stdin is not None
        try:
            process.stdin.write(os.fsencode(f"{file}\n"))
            process.stdin.flush()
        except OSError:
            process.wait()  # it is gone: its handle says so
        return _Process(process, log, reply, lambda: self.workers.put_back(threads, process))

    def close(self) -> None:
        if self.own:
            self.workers.close()


class _Process(Handle):
    def __init__(self, process: subprocess.Popen[bytes], log: Path, reply: Path, put_back: Callable[[], None]) -> None:
        self.process, self.log, self.reply, self.put_back = process, log, reply, put_back

    def is_done(self) -> bool:
        return self.reply.exists() or self.process.poll() is not None

    def failure(self) -> str | None:
        try:
            told: str | None = json.loads(self.reply.read_text(encoding="utf-8"))["failure"]
        except OSError:
            code = _ended(self.process)
            if code < 0:
                return f"its process was ended by {signal.Signals(-code).name}"
            return f"its process ended with exit code {code}"
        self.reply.unlink(missing_ok=True)  # told once: the folder keeps what the job was, not how its end was told
        if told is None:
            self.put_back()
        else:
            self.stop()
        return told

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        _ended(self.process)


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process and close its input; return its exit code."""
    code = process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what was not written yet cannot be any more
            process.stdin.close()
    return code


class _Submitit(Launcher):
    """Jobs of submitit: its "slurm" executor hands them to a cluster, its "local" one to processes of this machine."""

    def __init__(self, executor: Any, default_jobs: int) -> None:
        self.executor = executor
        self.default_jobs = default_jobs

    def start(self, name: str, job: dict[str, Any]) -> Handle:
        self.executor.update_parameters(name=name)
        return _Job(self.executor.submit(attempt, job))


class _Job(Handle):
    def __init__(self, job: Any) -> None:
        self.job = job

    @property
    def log(self) -> Path | None:  # type: ignore[override]
        return Path(self.job.paths.stdout)

    def is_done(self) -> bool:
        return bool(self.job.done())

    def failure(self) -> str | None:
        lost = _lost(self.job)
        told: str | None = self.job.result() if lost is None else lost
        return told

    def stop(self) -> None:
        self.job.cancel()


def _lost(job: Any) -> str | None:
    """Return why a job of submitit has no result (it was killed, or never began); None when it has one."""
    error = job.exception()
    if error is None:
        return None
    # Submitit's own words, of which the first line says what happened.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason was given'}"


def _tail(path: Path | None, size: int = 20_000) -> list[str]:
    """Return the last lines of a file."""
    try:
        with open(path, "rb") as file:  # type: ignore[arg-type]
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            tail: str = file.read().decode("utf-8", "replace")
        return tail.splitlines()
    except (OSError, TypeError):
        return []
