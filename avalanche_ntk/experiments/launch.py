"""Launchers for the runs of a sweep and measurements of checkpoints: local processes, or submitit."""

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
from uuid import uuid4

from avalanche_ntk.errors import ProcessError
from avalanche_ntk.experiments.schema import ConfigError, unknown_choice
from avalanche_ntk.experiments.worker import PROGRESS, attempt, caught

EXECUTORS = {"processes": 1, "slurm": 1_000_000, "local": 1}
"""Default number of parallel jobs by executor; a cluster's scheduler sets its own limit."""


class Handle(ABC):
    """A started run.

    Attributes:
        log: Path of its output.
    """

    log: Path | None

    @abstractmethod
    def is_done(self) -> bool:
        """Return whether it has ended."""

    @abstractmethod
    def failure(self) -> str | None:
        """Return why it failed, or None; call it after the run has ended."""

    @abstractmethod
    def stop(self) -> None:
        """End it."""

    def progress(self) -> tuple[int, int] | None:
        """Return the numbers of finished and of all experiences; None if unknown."""
        lines = [line for line in _tail(self.log) if line.startswith(PROGRESS)]
        if not lines:
            return None
        done, total = lines[-1].removeprefix(PROGRESS).split()
        return int(done), int(total)


class Launcher(ABC):
    """Starts runs.

    Attributes:
        default_jobs: Default number of parallel runs.
    """

    default_jobs: int = 1

    @abstractmethod
    def start(self, name: str, job: dict[str, Any]) -> Handle:
        """Start a run.

        Args:
            name: Its name.
            job: Argument of `worker.work`.

        Returns:
            The started run.
        """

    def close(self) -> None:
        """End idle workers; most launchers have none."""
        return


def launcher(executor: str, folder: Path, parameters: Mapping[str, Any], workers: Workers | None = None) -> Launcher:
    """Return a launcher of runs.

    Args:
        executor: A name of `EXECUTORS`.
        folder: The sweep's folder.
        parameters: Parameters of submitit's executor.
        workers: Worker processes, ended by the caller; None for new ones.

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
    """Return submitit's executor with its parameters.

    Args:
        executor: A name of `EXECUTORS`.
        folder: Folder for submitit's job files.
        parameters: Parameters of submitit's executor.

    Returns:
        The executor; None for local processes.

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
    """A pool like those of `concurrent.futures` that runs calls as submitit jobs.

    Args:
        executor: The result of `submitit_executor`.
    """

    def __init__(self, executor: Any) -> None:
        self.executor = executor

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> JobCall:
        """Start a call in a job.

        Args:
            function: The function.
            *arguments: Its arguments.

        Returns:
            The call.
        """
        return JobCall(self.executor.submit(caught, function, *arguments))


class JobCall:
    """A function call in a submitit job.

    Args:
        job: The job.
    """

    def __init__(self, job: Any) -> None:
        self.job = job

    def result(self) -> Any:
        """Wait for the call and return its result, or raise its exception.

        Returns:
            The result.

        Raises:
            ProcessError: The job has ended without a result.
        """
        if (lost := _lost(self.job)) is not None:
            raise ProcessError(
                f"job {self.job.job_id} ended without a result ({lost}). Look into {self.job.paths.stderr}, and give "
                "the same command again: finished measurements are kept."
            )
        result, error = self.job.result()
        if error is not None:
            raise error
        return result

    def cancel(self) -> None:
        """End the job."""
        self.job.cancel()


class Workers:
    """Processes that make several runs each, so that torch and Avalanche are imported only once per process.

    After a failed run its worker is ended, and the next run begins in a new process. Use it as a context manager, which
    ends the workers on exit.
    """

    def __init__(self) -> None:
        self.idle: dict[str, list[subprocess.Popen[bytes]]] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End idle workers."""
        for workers in self.idle.values():
            for process in workers:
                process.communicate()  # a worker ends when its input ends
        self.idle.clear()

    def take(self, threads: str) -> subprocess.Popen[bytes]:
        """Return an idle worker, or a new one.

        Args:
            threads: Number of threads for its libraries.

        Returns:
            The process, to be returned by `put_back`.
        """
        while workers := self.idle.get(threads):
            process = workers.pop()
            if process.poll() is None:
                return process
            _ended(process)
        # Threads of other libraries than torch would compete with the other runs for cores. Logs are in UTF-8, whatever
        # the terminal's encoding, so that every character can be written.
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
        """Return a worker for its next run."""
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
        # Each start has its own: the same command given twice would take the reply that the other one waits for.
        reply = file.with_suffix(f".{uuid4().hex}.reply.json")
        log.write_bytes(b"")
        job = {**job, "log": str(log)}
        file.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
        threads = str(job["config"]["threads"])
        process = self.workers.take(threads)
        assert process.stdin is not None
        try:
            process.stdin.write(os.fsencode(f"{file}\0{reply}\n"))
            process.stdin.flush()
        except OSError:
            process.wait()  # the process has ended, as its handle reports
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
        self.reply.unlink(missing_ok=True)  # read once: the folder keeps the job, not the reply
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
        with contextlib.suppress(OSError):  # unwritten data are lost
            process.stdin.close()
    return code


class _Submitit(Launcher):
    """Submitit jobs: on a cluster ("slurm") or as local processes ("local")."""

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
    """Return why a submitit job has no result (it was killed, or never began); None if it has one."""
    error = job.exception()
    if error is None:
        return None
    # The first line of submitit's message gives the reason.
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
