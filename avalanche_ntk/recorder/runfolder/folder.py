"""`RunFolder`: create, read, resume, write and close a run on disk."""

from __future__ import annotations

import json
import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.recorder.names import checked_name
from avalanche_ntk.recorder.runfolder import description, files, kernels, lock
from avalanche_ntk.recorder.runfolder.codec import decode
from avalanche_ntk.recorder.runfolder.faults import writing
from avalanche_ntk.recorder.runfolder.kernels import MAX_KERNEL_BYTES
from avalanche_ntk.recorder.runfolder.lines import Lines, scan
from avalanche_ntk.recorder.runfolder.overwriting import refuse_occupied, remove_run
from avalanche_ntk.recorder.runfolder.rewinding import rewind
from avalanche_ntk.recorder.runfolder.table import as_csv

_open_writers: weakref.WeakSet[RunFolder] = weakref.WeakSet()


class RunFolder:
    """A run on disk, made by `RunFolder.create`, opened by `RunFolder.open` (to read) or `RunFolder.resume` (to write).

    A writer holds the folder's lock until `close`. A writer that was closed, pickled, deep-copied or inherited by a
    forked child holds no lock and acquires it again at the next write. A pickled writer remembers the number of
    records, so that `rewind` can restore that state.

    Attributes:
        path: The folder, absolute.
        mode: "r" for a reader, "a" for a writer.

    Example:
        >>> import tempfile
        >>> from avalanche_ntk.recorder.clock import TrainingClock
        >>> clock = TrainingClock("experience_start", 0, 0, 0, 0, 0, 0)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with RunFolder.create(f"{parent}/run", {"seed": 0}) as folder:
        ...         kernel = folder.save_kernel("task1", 0, {"kernel": np.eye(2)})
        ...         folder.append({"kind": "measurement", "probe": "task1", "index": 0, "clock": clock.as_dict(),
        ...                        "segment": 0, "values": {"NTK_Norm": float("nan")}, "reasons": {}, "notes": [],
        ...                        "trust": {}, "kernel": kernel, "failure": None})
        ...     reader = RunFolder.open(f"{parent}/run")
        ...     reader.records()[0]["values"], reader.load_kernel(kernel)["kernel"].trace()
        ({'NTK_Norm': nan}, np.float64(2.0))
    """

    path: Path
    mode: str

    def __init__(self, path: str | os.PathLike[str], mode: str) -> None:
        self.path = Path(os.path.abspath(path))
        self.mode = mode
        self._run: dict[str, Any] | None = None
        self._count_when_copied: int | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop the lock and open files."""
        self._lock_fd: int | None = None
        self._lines: Lines | None = None

    # --- opening and closing -----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> RunFolder:
        """Create a run folder and acquire its lock.

        Args:
            path: The folder to create, with its parents; it may exist if it is empty.
            meta: Description of the run; see the package's docstring for `seed` and `probes`.
            overwrite: Whether to replace a run in the folder; a run without records is replaced in any case. Only files
                of a run folder are removed; other files are kept.

        Returns:
            The writer.

        Raises:
            RunFolderError: The folder is not empty, is being written, or cannot be written.
            ArgumentError: `meta` cannot be stored.
        """
        folder = cls(path, "a")
        run = description.make(meta or {})
        refuse_occupied(folder.path, overwrite)
        with writing(folder.path, "the folder itself"):
            folder.path.mkdir(parents=True, exist_ok=True)
        folder._take_lock()
        try:
            # Another process may have created a run between the check and the lock.
            if refuse_occupied(folder.path, overwrite):
                with writing(folder.path, "the removal of the run that was there"):
                    remove_run(folder.path)
            description.write(folder.path, run)
            folder._run = description.read(folder.path)
            folder._open_lines()
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open a run folder for reading, also while another process writes it.

        Args:
            path: The folder.

        Returns:
            The reader.

        Raises:
            RunFolderError: It is not a run folder, is damaged, or was written by a newer version.
        """
        folder = cls(path, "r")
        folder._run = description.read(folder.path)
        return folder

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open a run folder to continue writing: acquire its lock, check every line, set an incomplete last line aside.

        Args:
            path: The folder.

        Returns:
            The writer.

        Raises:
            RunFolderError: It is not a run folder, is damaged, is being written, or cannot be written.
        """
        folder = cls(path, "a")
        folder._ensure_writer()
        return folder

    def close(self) -> None:
        """Release the lock. Reading still works, and a later write acquires the lock again."""
        lines, lock_fd = self._lines, self._lock_fd
        if lines is not None:
            self._count_when_copied = lines.count
        self._forget()
        _open_writers.discard(self)
        if lines is not None:
            lines.close()
        if lock_fd is not None:
            lock.release(lock_fd)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # At interpreter shutdown needed modules may be gone; the system closes the files itself.
        if sys is None or sys.is_finalizing():
            return
        if getattr(self, "_lock_fd", None) is not None or getattr(self, "_lines", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        count = self._count_when_copied if self._lines is None else self._lines.count
        return {"path": str(self.path), "mode": self.mode, "count": count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["mode"])  # type: ignore[misc]
        self._count_when_copied = state["count"]

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r}, mode={self.mode!r})"

    # --- what the folder holds ---------------------------------------------------------------------------------

    @property
    def meta(self) -> dict[str, Any]:
        """The run's description (a fresh copy)."""
        meta: dict[str, Any] = decode(json.dumps(self._info()["meta"]))
        return meta

    @property
    def created(self) -> str:
        """Time of the folder's creation: ISO 8601, UTC."""
        created: str = self._info()["created"]
        return created

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of the libraries when the folder was created."""
        return dict(self._info()["versions"])

    def update_meta(self, changes: Mapping[str, Any]) -> None:
        """Change keys of `meta`; others are kept.

        Args:
            changes: The new values by key.

        Raises:
            RunFolderError: The folder was opened for reading or cannot be written.
            ArgumentError: A value cannot be stored.
        """
        self._ensure_writer()
        run = description.change(description.read(self.path), changes)
        description.write(self.path, run)
        self._run = run

    def records(self) -> list[dict[str, Any]]:
        """Return all complete records, checked, in the order of writing.

        An incomplete last line is omitted: it is being written, or its writer was killed.

        Returns:
            The records, with non-finite floats restored.

        Raises:
            RunFolderError: A line other than the last is damaged, or a record lacks what it must have.
        """
        return [record for record, _ in scan(self.path)]

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record and flush it to the disk.

        Args:
            record: Strings, numbers, booleans, None, lists and mappings (including numpy's), with a `kind`.

        Raises:
            ArgumentError: The record lacks a required field or holds an unsupported type; nothing is written.
            RunFolderError: It could not be written; earlier records are intact, and `append` may be called again.
        """
        self._ensure_writer().append(record)

    def rewind(self, count: int | None = None) -> int:
        """Restore an earlier state of the run, as after resuming from a checkpoint older than the last record.

        Later records are not lost: they move to `measurements.rewound001.jsonl` (the next free number), and their
        kernels to `<index>.rewound001.safetensors`. `meta` is unchanged.

        Args:
            count: Number of records to keep; None for the number when this handle was pickled, copied or closed.

        Returns:
            Number of records set aside.

        Raises:
            ArgumentError: `count` is not an integer of at least 0, or None on a handle that was neither copied nor
                closed.
            RunFolderError: The folder has fewer records, or cannot be written; it is then unchanged.
        """
        keep = self._count_when_copied if count is None else count
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            found = "no count, by a handle that was neither copied nor closed" if count is None else repr(count)
            raise ArgumentError(f"rewind: count must be an integer of at least 0, found {found}.")
        return rewind(self.path, self._ensure_writer(), keep)

    def save_kernel(
        self, probe: str, index: int, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
    ) -> str:
        """Store arrays and flush them to the disk; call it before writing the record that names them.

        Args:
            probe: The probe's name.
            index: The measurement's index within the probe; larger than all recorded ones.
            arrays: Real numbers, integers or booleans by name.
            metadata: Text to store beside them.

        Returns:
            The file's path within the folder, to put into the record.

        Raises:
            ArgumentError: A name, the index or an array cannot be stored.
            RunFolderError: The file could not be written; earlier data are intact.
        """
        checked_name(probe, "probe")
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < 10**12:
            raise ArgumentError(f"index: expected an integer of at least 0 and below 10**12, found {index!r}.")
        content = kernels.pack(arrays, metadata or {})
        last = self._ensure_writer().last_index.get(probe, -1)
        if index <= last:
            raise ArgumentError(
                f"index: probe {probe!r} has records up to index {last}, whose kernels are never "
                f"replaced: found {index}. Pass {last + 1}."
            )
        return kernels.store(self.path, probe, index, content)

    def load_kernel(self, path: str, *, max_bytes: int = MAX_KERNEL_BYTES) -> dict[str, np.ndarray]:
        """Read the arrays that `save_kernel` stored.

        Args:
            path: The file's path within the folder, as a record has it.
            max_bytes: The largest file to read into memory.

        Returns:
            The arrays by name.

        Raises:
            RunFolderError: The path is not that of a kernel, or the file is missing, damaged or too large.
        """
        return kernels.load(self.path, path, max_bytes)[0]

    def load_kernel_metadata(self, path: str, *, max_bytes: int = MAX_KERNEL_BYTES) -> dict[str, str]:
        """Read the text that `save_kernel` stored beside the arrays.

        Args:
            path: The file's path within the folder, as a record has it.
            max_bytes: The largest file to read into memory.

        Returns:
            The text by name.

        Raises:
            RunFolderError: As for `load_kernel`.
        """
        return kernels.load(self.path, path, max_bytes)[1]

    def export_csv(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the measurements as a table, one row each.

        The columns are `probe`, `index`, the clock's fields, `segment`, every key of `values` in the order of first
        appearance, `kernel` and `failure`. Non-finite numbers are written as nan, inf or -inf; missing values are
        empty.

        Args:
            path: The file to write; None for `measurements.csv` in the folder.

        Returns:
            The file's path.

        Raises:
            RunFolderError: The records cannot be read or the file cannot be written.
        """
        target = self.path / files.TABLE if path is None else Path(os.path.abspath(path))
        table = as_csv(self.records())
        with writing(self.path, str(target) if path is not None else files.TABLE):
            files.replace(target, table)
        return target

    # --- holding what a writer holds -------------------------------------------------------------------------------

    def _info(self) -> dict[str, Any]:
        if self._run is None:
            self._run = description.read(self.path)
        return self._run

    def _ensure_writer(self) -> Lines:
        if self.mode != "a":
            raise RunFolderError(
                f"run folder {self.path} was opened for reading: use RunFolder.resume to continue writing it."
            )
        if self._lines is not None:
            return self._lines
        self._run = description.read(self.path)
        self._take_lock()
        try:
            return self._open_lines()
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        with writing(self.path, "its lock"):
            self._lock_fd = lock.acquire(self.path)
        _open_writers.add(self)

    def _open_lines(self) -> Lines:
        self._lines = Lines(self.path)
        self._lines.take_up()
        return self._lines


def _drop_in_forked_child() -> None:
    """Close files inherited by a forked child without unlocking: the lock belongs to the parent."""
    for folder in list(_open_writers):
        if folder._lines is not None:
            folder._lines.close()
        if folder._lock_fd is not None:
            os.close(folder._lock_fd)
        folder._forget()
    _open_writers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_forked_child)
