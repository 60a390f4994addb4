"""The lifecycle of a run on disk: create, continue, add probes, rewind to a checkpoint."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.recorder.host import Host
from avalanche_ntk.recorder.resume import State, check_probes, is_run, reopen
from avalanche_ntk.recorder.runfolder import RunFolder


class Session:
    """The run folder of one recorder.

    Args:
        run_folder: Its path; None keeps everything in memory.
        overwrite: Whether to replace an existing run.
        resume: Whether to continue it, or the number of experiences trained before.
        keep_kernels: Whether kernels are kept.

    Attributes:
        folder: The open folder; None before the first experience, without a folder, and in processes that do not write.

    Raises:
        ArgumentError: The arguments contradict each other.
    """

    def __init__(
        self, run_folder: str | PathLike[str] | None, *, overwrite: bool, resume: bool | int, keep_kernels: bool
    ) -> None:
        _check_resume(resume, run_folder, overwrite, keep_kernels)
        self.run_folder = run_folder
        self.overwrite = overwrite
        self.resume = resume
        self.folder: RunFolder | None = None
        self._shapes_before: dict[str, tuple[int, ...]] = {}
        self._must_rewind = False

    @property
    def may_resume(self) -> bool:
        """Whether the next experience may continue a run on disk."""
        return self.resume is not False and self.folder is None

    def look(self, host: Host) -> None:
        """Remember the model's shapes before it is adapted to a new experience."""
        if self.may_resume:
            self._shapes_before = {name: tuple(p.shape) for name, p in host.model.named_parameters()}

    def open(
        self, host: Host, meta: dict[str, Any], names: Sequence[str], owner: object
    ) -> tuple[set[str], tuple[int, State | None] | None]:
        """Create, continue or extend the run folder. In distributed training only one process has a folder.

        Args:
            host: What trains.
            meta: The run's description, with the probes chosen so far.
            names: Names of the probes measured now.
            owner: The folder is closed when this object is garbage-collected.

        Returns:
            Names of the probes that the folder already had; and, for a continued run, the number of the experience that
            begins and the state before it.

        Raises:
            RunFolderError: The folder cannot be used.
        """
        if self.run_folder is None or not host.measures:
            return set(), None
        resumed = None
        if self.folder is None:
            resumed = self._continue(host, meta, names) if self.resume is not False else None
            if resumed is None:
                self.folder = RunFolder.create(self.run_folder, meta, overwrite=self.overwrite)
            assert self.folder is not None
            self._close_with(owner)
            if resumed is None:
                return set(), None
        known = check_probes(self.folder, meta["probes"])
        if added := [probe for probe in meta["probes"] if probe["name"] not in known]:
            self.folder.update_meta({"probes": [*self.folder.meta["probes"], *added]})
        return known, resumed

    def _continue(self, host: Host, meta: dict[str, Any], names: Sequence[str]) -> tuple[int, State | None] | None:
        """Continue the run in the folder; None if there is none."""
        assert self.run_folder is not None
        number = host.position if self.resume is True else int(self.resume)
        if not is_run(self.run_folder):
            if number:
                raise RunFolderError(
                    f"there is no run in {self.run_folder} to continue: training continues with experience {number}, "
                    "and the earlier ones should be recorded there. Give the folder of that run, or resume=False to "
                    "begin a new one."
                )
            return None
        host.check_resumable(self.run_folder)
        self.folder, experience, state = reopen(self.run_folder, number, meta, names, self._shapes_before)
        if state is None:
            self.folder.update_meta({**meta, "probes": self.folder.meta["probes"]})
        return experience, state

    def rewind(self, owner: object) -> None:
        """Set aside records later than the checkpoint that this object was loaded from."""
        if self._must_rewind and self.folder is not None:
            self.folder.rewind()
            self._close_with(owner)
        self._must_rewind = False

    def append(self, record: dict[str, Any], owner: object) -> None:
        """Append a record; no effect without a folder."""
        if self.folder is not None:
            self.rewind(owner)
            self.folder.append(record)

    def update_meta(self, changes: Mapping[str, Any], owner: object) -> None:
        """Change `run.json`; no effect without a folder."""
        if self.folder is not None:
            self.rewind(owner)
            self.folder.update_meta(changes)

    def close(self) -> None:
        """Release the folder, so that another process can write it."""
        if self.folder is not None:
            self.folder.close()

    def _close_with(self, owner: object) -> None:
        # Close before the interpreter shuts down, while the needed modules still exist.
        assert self.folder is not None
        weakref.finalize(owner, self.folder.close)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The folder may have grown since. It is rewound only when this copy first writes; most copies never do.
        self._must_rewind = self.folder is not None


def _check_resume(resume: bool | int, run_folder: Any, overwrite: bool, keep_kernels: bool) -> None:
    if not isinstance(resume, int) or resume < 0:
        raise ArgumentError(
            "resume must be True, False, or the number of experiences trained before, at least 0; found "
            f"{resume!r}. Give resume=True."
        )
    if resume is False:
        return
    if run_folder is None:
        raise ArgumentError("resume continues a run on disk; found run_folder=None. Give run_folder= too.")
    if overwrite:
        raise ArgumentError(
            "resume continues a run and overwrite replaces it; found both. Give one of them: resume=True begins a "
            "new run where there is none."
        )
    if not keep_kernels:
        raise ArgumentError(
            "resume needs the stored kernels, with which the next measurement is compared; found keep_kernels=False. "
            "Give keep_kernels=True."
        )
