"""`RunFolder`: made, read, gone on with, written and closed."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import stat
import sys
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata as importlib_metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from avalanche_ntk.errors import ArgumentError, NTKError, NTKWarning, RunFolderError
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.names import checked_name, folder_of, is_name
from avalanche_ntk.recorder.runfolder import lock

SCHEMA = "avalanche-ntk-run"
SCHEMA_VERSION = 1

MAX_RUN_JSON_BYTES = 1 << 28
MAX_LINE_BYTES = 1 << 26
MAX_HEADER_BYTES = 1 << 24
MAX_KERNEL_BYTES = 1 << 34
_MAX_DEPTH = 50

_RUN = "run.json"
_LINES = "measurements.jsonl"
_TORN = "measurements.torn"
_TABLE = "measurements.csv"
_KERNELS = "kernels"
_LOCK = "lock"
_TMP = ".tmp"
_LIBRARIES = ("avalanche-ntk", "avalanche-lib", "torch", "torchvision", "numpy", "safetensors")

_PROBE_FOLDER = re.compile(r"[A-Za-z0-9%+][A-Za-z0-9%+._-]{0,239}", re.ASCII)
_KERNEL_NAME = r"[0-9]{6,12}(\.rewound[0-9]{3,9})?\.safetensors"
_KERNEL_PATH = re.compile(f"kernels/(?P<probe>{_PROBE_FOLDER.pattern})/{_KERNEL_NAME}", re.ASCII)
_KERNEL_FILE = re.compile(_KERNEL_NAME + r"(\.tmp)?", re.ASCII)
_REWOUND = re.compile(r"measurements\.rewound(?P<number>[0-9]{3,9})\.jsonl(\.tmp)?", re.ASCII)
_DIGEST = "content_sha256"
_ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

# Without O_NOFOLLOW a link planted in a folder from elsewhere would have us write where it points; without O_NONBLOCK a
# pipe in the place of a file would make us wait for ever. Windows has neither and needs O_BINARY.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

_open_writers: "weakref.WeakSet[RunFolder]" = weakref.WeakSet()


class RunFolder:
    """A run on disk. Made by `RunFolder.create`, `RunFolder.open` (to read) or `RunFolder.resume` (to go on writing).

    A writer holds the folder's lock from its making until `close`. After `close`, or when it has been pickled,
    deep-copied or inherited by a forked child, it holds nothing, and takes the lock again at the next write. A pickled
    writer remembers how many records there were, so that `rewind` can go back to them.

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
        """Hold nothing: no lock, no open file, nothing counted."""
        self._lock_fd: int | None = None
        self._fd: int | None = None
        self._offset = 0
        self._count = 0
        self._dirty = False
        self._last_index: dict[str, int] = {}

    # --- opening and closing -----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None, *, overwrite: bool = False
    ) -> "RunFolder":
        """Make a run folder and take its lock.

        Args:
            path: The folder to make; its parents are made too. It may exist when it is empty.
            meta: What to store about the run; see the package's text for `seed` and `probes`.
            overwrite: Replace the run that the folder holds; one that recorded nothing is replaced in any case. Only
                files of a run folder are ever removed; anything else in it stays.

        Returns:
            The writer.

        Raises:
            RunFolderError: The folder holds something already, is being written, or cannot be written.
            ArgumentError: `meta` cannot be stored.
        """
        folder = cls(path, "a")
        run = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": _versions(),
            "meta": _encode(dict(meta or {}), "meta"),
        }
        try:
            _check_meta(run["meta"])
        except _Invalid as error:
            raise ArgumentError(f"meta: {error}") from None
        text = _dump(run, indent=1)
        folder._refuse_occupied(overwrite)
        with folder._writing("the folder itself"):
            folder.path.mkdir(parents=True, exist_ok=True)
        folder._take_lock()
        try:
            # Another process may have made a run here between the look and the lock.
            if folder._refuse_occupied(overwrite):
                with folder._writing("the removal of the run that was there"):
                    folder._remove_run()
            with folder._writing(_RUN):
                _replace(folder.path / _RUN, text)
            folder._run = folder._read_run()
            folder._open_lines()
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """Open a run folder to read it, also while another process writes it.

        Args:
            path: The folder.

        Returns:
            The reader.

        Raises:
            RunFolderError: It is no run folder, is damaged, or was written by a newer version.
        """
        folder = cls(path, "r")
        folder._run = folder._read_run()
        return folder

    @classmethod
    def resume(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """Open a run folder to go on writing it: take its lock, check every line, set a torn last line aside.

        Args:
            path: The folder.

        Returns:
            The writer.

        Raises:
            RunFolderError: It is no run folder, is damaged, is being written, or cannot be written.
        """
        folder = cls(path, "a")
        folder._run = folder._read_run()
        folder._ensure_writer()
        return folder

    def close(self) -> None:
        """Give the lock up. Reading goes on working, and a later write takes the lock again."""
        fd, lock_fd = self._fd, self._lock_fd
        if fd is not None:
            self._count_when_copied = self._count
        self._forget()
        _open_writers.discard(self)
        if fd is not None:
            os.close(fd)
        if lock_fd is not None:
            lock.release(lock_fd)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # At the interpreter's end what closing needs may be gone already, and the system closes the files itself.
        if sys is None or sys.is_finalizing():
            return
        if getattr(self, "_lock_fd", None) is not None or getattr(self, "_fd", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        count = self._count_when_copied if self._fd is None else self._count
        return {"path": str(self.path), "mode": self.mode, "count": count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["mode"])  # type: ignore[misc]
        self._count_when_copied = state["count"]

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r}, mode={self.mode!r})"

    # --- what the folder holds ---------------------------------------------------------------------------------

    @property
    def meta(self) -> dict[str, Any]:
        """What the run's maker stored about it (a fresh copy)."""
        meta: dict[str, Any] = _decode(json.dumps(self._info()["meta"]))
        return meta

    @property
    def created(self) -> str:
        """When the folder was made: ISO 8601, UTC."""
        created: str = self._info()["created"]
        return created

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of the libraries at the folder's making."""
        return dict(self._info()["versions"])

    def update_meta(self, changes: Mapping[str, Any]) -> None:
        """Change keys of `meta`; the others stay.

        Args:
            changes: The new values by key.

        Raises:
            RunFolderError: The folder was opened for reading or cannot be written.
            ArgumentError: A value cannot be stored.
        """
        self._ensure_writer()
        run = self._read_run()
        run["meta"] = {**run["meta"], **_encode(dict(changes), "meta")}
        try:
            _check_meta(run["meta"])
        except _Invalid as error:
            raise ArgumentError(f"meta: {error}") from None
        with self._writing(_RUN):
            _replace(self.path / _RUN, _dump(run, indent=1))
        self._run = run

    def records(self) -> list[dict[str, Any]]:
        """Return every complete record, in the order of writing, each checked.

        A last line that is not complete is left out: it is being written, or its writer was killed.

        Returns:
            The records, with the floats that are not finite restored.

        Raises:
            RunFolderError: A line other than the last is damaged, or a record lacks what it must have.
        """
        return [record for record, _ in self._scan()]

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record and wait until it is on the disk.

        Args:
            record: Strings, numbers, booleans, None, lists and mappings (numpy's too), with a `kind`.

        Raises:
            ArgumentError: The record lacks what it must have, or holds what cannot be stored; nothing is written.
            RunFolderError: It could not be written; the records before are as they were, and `append` may be called
                again.
        """
        self._ensure_writer()
        assert self._fd is not None
        encoded = _encode(dict(record), "record")
        line = _dump(encoded)
        if len(line) > MAX_LINE_BYTES:
            raise ArgumentError(
                f"record: expected at most {MAX_LINE_BYTES} bytes of JSON, found {len(line)}. Store arrays "
                "by save_kernel."
            )
        try:
            self._check_new_record(_decode(line))
        except _Invalid as error:
            raise ArgumentError(f"record: {error}") from None
        with self._writing(f"a record to {_LINES}"):
            self._cut_to_last_record()
            # Whatever stops us from here on, an interrupt included, the next write cuts the file back first.
            self._dirty = True
            try:
                _write_all(self._fd, line)
                os.fsync(self._fd)
            except BaseException:
                self._cut_to_last_record(quietly=True)
                raise
            self._offset += len(line)
            self._dirty = False
        self._count += 1
        _remember_index(encoded, self._last_index)

    def rewind(self, count: int | None = None) -> int:
        """Go back to an earlier state of the run, as after resuming from a checkpoint older than the last record.

        The records behind it are not lost: they go to `measurements.rewound001.jsonl` (the next free number), with
        their kernels beside the others as `<index>.rewound001.safetensors`. `meta` stays as it is.

        Args:
            count: How many records to keep. When None, as many as there were when this handle was pickled, copied or
                closed.

        Returns:
            How many records were set aside.

        Raises:
            ArgumentError: `count` is no integer of at least 0, or None on a handle that was neither copied nor closed.
            RunFolderError: The folder has fewer records, or cannot be written; it is then as it was.
        """
        keep = self._count_when_copied if count is None else count
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            found = "no count, by a handle that was neither copied nor closed" if count is None else repr(count)
            raise ArgumentError(f"rewind: count must be an integer of at least 0, found {found}.")
        self._ensure_writer()
        assert self._fd is not None
        if keep > self._count:
            raise RunFolderError(
                f"run folder {self.path} cannot be rewound to {keep} records: it has {self._count}. Give the folder "
                "that belongs to the checkpoint."
            )
        if keep == self._count:
            return 0
        scanned = list(self._scan())
        behind = [record for record, _ in scanned[keep:]]
        numbers = [int(match["number"]) for match in map(_REWOUND.fullmatch, _entries(self.path)) if match]
        suffix = f".rewound{max(numbers, default=0) + 1:03d}"
        kernels: list[Path] = []
        with self._writing("what is set aside by rewinding"):
            # All that is set aside is complete before the lines go: killed on the way, nothing is lost.
            for record in behind:
                if record["kind"] == "measurement" and record["kernel"] is not None:
                    kernel = self.path / record["kernel"]
                    if os.path.lexists(kernel):
                        kernels.append(kernel)
                        record["kernel"] = record["kernel"].removesuffix(".safetensors") + f"{suffix}.safetensors"
                        _duplicate(kernel, self.path / record["kernel"])
            lines = b"".join(_dump(_encode(record, "record")) for record in behind)
            _replace(self.path / f"measurements{suffix}.jsonl", lines)
            offset = scanned[keep - 1][1] if keep else 0
            os.ftruncate(self._fd, offset)
            self._offset, self._count, self._last_index = offset, keep, {}
            for record, _ in scanned[:keep]:
                _remember_index(record, self._last_index)
            os.fsync(self._fd)
            for kernel in kernels:
                _unlink(kernel)
        return len(behind)

    def save_kernel(
        self, probe: str, index: int, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
    ) -> str:
        """Store arrays and wait until they are on the disk; to be called before the record that names them.

        Args:
            probe: The probe's name.
            index: The measurement's index within the probe; larger than that of every record of the probe.
            arrays: Real numbers, integers or booleans by name.
            metadata: Text to store beside them.

        Returns:
            The file's path within the folder, to put into the record.

        Raises:
            ArgumentError: A name, the index or an array cannot be stored.
            RunFolderError: The file could not be written; everything before is as it was.
        """
        checked_name(probe, "probe")
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or not 0 <= index < 10**12:
            raise ArgumentError(f"index: expected an integer of at least 0 and below 10**12, found {index!r}.")
        content = _safetensors_bytes(arrays, metadata or {})
        self._ensure_writer()
        if index <= self._last_index.get(probe, -1):
            raise ArgumentError(
                f"index: probe {probe!r} has records up to index {self._last_index[probe]}, whose kernels are never "
                f"replaced: found {index}. Pass {self._last_index[probe] + 1}."
            )
        relative = f"{_KERNELS}/{folder_of(probe)}/{index:06d}.safetensors"
        with self._writing(relative):
            for directory in (self.path / _KERNELS, self.path / _KERNELS / folder_of(probe)):
                _make_directory(directory)
            _replace(self.path / relative, content)
        return relative

    def load_kernel(self, path: str, *, max_bytes: int = MAX_KERNEL_BYTES) -> dict[str, np.ndarray]:
        """Read the arrays that `save_kernel` stored.

        Args:
            path: The file's path within the folder, as a record has it.
            max_bytes: The largest file to read into memory.

        Returns:
            The arrays by name.

        Raises:
            RunFolderError: The path is none of a kernel, or the file is missing, damaged or too large.
        """
        return self._load_safetensors(path, max_bytes)[0]

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
        return self._load_safetensors(path, max_bytes)[1]

    def export_csv(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the measurements as a table, one row each.

        The columns are `probe`, `index`, the clock's fields, `segment`, every key of `values` in the order of first
        appearance, `kernel` and `failure`. A number that is not finite is written as nan, inf or -inf; what a row does
        not have is empty.

        Args:
            path: The file to write; `measurements.csv` in the folder when None.

        Returns:
            The file's path.

        Raises:
            RunFolderError: The records cannot be read or the file cannot be written.
        """
        target = self.path / _TABLE if path is None else Path(os.path.abspath(path))
        rows = [record for record in self.records() if record["kind"] == "measurement"]
        numbers = list(dict.fromkeys(name for row in rows for name in row["values"]))
        clock = list(TrainingClock.__dataclass_fields__)
        buffer = io.StringIO(newline="")
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(["probe", "index", *clock, "segment", *numbers, "kernel", "failure"])
        for row in rows:
            table.writerow(
                [row["probe"], row["index"]]
                + [row["clock"].get(name) for name in clock]
                + [row["segment"], *(row["values"].get(name) for name in numbers), row["kernel"], row["failure"]]
            )
        with self._writing(str(target) if path is not None else _TABLE):
            _replace(target, buffer.getvalue().encode("utf-8", "backslashreplace"))
        return target

    # --- reading -----------------------------------------------------------------------------------------------

    def _info(self) -> dict[str, Any]:
        if self._run is None:
            self._run = self._read_run()
        return self._run

    def _read_run(self) -> dict[str, Any]:
        path = self.path
        if not os.path.lexists(path):
            raise RunFolderError(f"there is no run folder {path}: nothing exists at that path. Check it.")
        if not path.is_dir():
            raise RunFolderError(f"{path} is no run folder: expected a folder with {_RUN} in it, found a file.")
        if not os.path.lexists(path / _RUN):
            raise RunFolderError(
                f"{path} is no run folder: expected {_RUN} in it, found {_listing(_entries(path))}. Give the folder "
                "that RunFolder.create made."
            )
        with self._reading(_RUN):
            content = _read_bytes(path / _RUN, MAX_RUN_JSON_BYTES)
            run = _parse(content)
            if not isinstance(run, dict) or run.get("schema") != SCHEMA:
                raise _Invalid(f'expected an object with "schema": "{SCHEMA}", so it is no file of this package')
            version = run.get("schema_version")
            if isinstance(version, bool) or not isinstance(version, int) or version < 1:
                raise _Invalid(f"expected a schema_version of at least 1, found {_short(version)}")
            if version > SCHEMA_VERSION:
                raise _Invalid(
                    f"it has schema version {version}, and this avalanche-ntk reads versions up to {SCHEMA_VERSION}; "
                    "install a newer one"
                )
            _require(run, "created", str)
            versions = _require(run, "versions", dict)
            if not all(isinstance(value, str) for value in versions.values()):
                raise _Invalid(f"expected versions to hold strings, found {_short(versions)}")
            _check_meta(_require(run, "meta", dict))
        # Kept as written; `meta` is decoded at each look, so that no caller changes what another sees.
        written: dict[str, Any] = json.loads(content.decode("utf-8"))
        return written

    def _scan(self) -> Iterator[tuple[dict[str, Any], int]]:
        # Yields each record with the offset of the byte behind its line, and stops before a torn last line.
        if not os.path.lexists(self.path / _LINES):
            return
        last: dict[str, int] = {}
        with self._reading(_LINES), os.fdopen(_open_regular(self.path / _LINES, os.O_RDONLY), "rb") as file:
            end, number = 0, 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise _Invalid(f"line {number}: expected at most {MAX_LINE_BYTES} bytes, found more")
                if not line.endswith(b"\n"):
                    return
                try:
                    record = _parse(line)
                except _Invalid as error:
                    # After a loss of power the file's end may be garbage of the right length.
                    if not file.read(1):
                        return
                    raise _Invalid(f"line {number}: {error}") from None
                try:
                    _check_record(record, last)
                except _Invalid as error:
                    raise _Invalid(f"line {number}: {error}") from None
                _remember_index(record, last)
                end += len(line)
                yield record, end

    def _load_safetensors(self, path: str, max_bytes: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        match = _KERNEL_PATH.fullmatch(path) if isinstance(path, str) else None
        if match is None:
            raise RunFolderError(
                f"expected the path of a kernel of run folder {self.path}, such as kernels/Exp000/000000.safetensors, "
                f"found {_short(path)}. Take it from a record."
            )
        with self._reading(path):
            for directory in (self.path / _KERNELS, self.path / _KERNELS / match["probe"]):
                if not os.path.lexists(directory):
                    raise _Invalid("the file is missing")
                if not stat.S_ISDIR(os.lstat(directory).st_mode):
                    raise _Invalid(f"{directory.name} is no folder, or a symbolic link, which is not followed")
            if not os.path.lexists(self.path / path):
                raise _Invalid("the file is missing")
            content = _read_bytes(self.path / path, max_bytes)
            header_metadata = _check_safetensors(content)
            arrays = safetensors.numpy.load(content)
            expected = header_metadata.pop(_DIGEST, None)
            if expected is None:
                raise _Invalid(f"it has no {_DIGEST}, so save_kernel did not write it")
            if expected != _digest(arrays, header_metadata):
                raise _Invalid(
                    "its content does not match its checksum: it was changed or damaged after it was written"
                )
        return arrays, header_metadata

    # --- writing -----------------------------------------------------------------------------------------------

    def _ensure_writer(self) -> None:
        if self.mode != "a":
            raise RunFolderError(
                f"run folder {self.path} was opened for reading: use RunFolder.resume to go on writing it."
            )
        if self._fd is not None:
            return
        self._run = self._read_run()
        self._take_lock()
        try:
            self._open_lines()
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        with self._writing("its lock"):
            fd = _open_regular(self.path / _LOCK, os.O_RDWR | os.O_CREAT)
            try:
                lock.acquire(fd, self.path)
            except BaseException:
                os.close(fd)
                raise
            self._lock_fd = fd
        _open_writers.add(self)

    def _open_lines(self) -> None:
        with self._writing(_LINES):
            self._fd = _open_regular(self.path / _LINES, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for record, end in self._scan():
            self._offset = end
            self._count += 1
            _remember_index(record, self._last_index)
        with self._writing(_LINES):
            self._set_torn_line_aside()

    def _set_torn_line_aside(self) -> None:
        assert self._fd is not None
        torn = os.fstat(self._fd).st_size - self._offset
        if torn == 0:
            return
        os.lseek(self._fd, self._offset, os.SEEK_SET)
        with os.fdopen(os.dup(self._fd), "rb") as file:
            content = file.read(torn)
        # First the copy, then the cut: killed between the two, the copy is made again, and nothing is lost.
        fd = _open_regular(self.path / _TORN, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            _write_all(fd, content + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.ftruncate(self._fd, self._offset)
        os.fsync(self._fd)
        warnings.warn(
            f"{self.path / _LINES} ended in an incomplete line of {torn} bytes, left by a process that was stopped "
            f"while writing it; it was moved to {_TORN}. The {self._count} records before it are intact.",
            NTKWarning,
            stacklevel=5,
        )

    def _check_new_record(self, record: dict[str, Any]) -> None:
        _check_record(record, self._last_index)
        kernel = record["kernel"] if record["kind"] == "measurement" else None
        if kernel is not None and not os.path.lexists(self.path / kernel):
            raise _Invalid(f"it names the kernel {kernel}, which is not there; call save_kernel first")

    def _cut_to_last_record(self, quietly: bool = False) -> None:
        # Removes what an unfinished write left behind the last record.
        assert self._fd is not None
        try:
            if self._dirty:
                os.ftruncate(self._fd, self._offset)
                self._dirty = False
            elif os.fstat(self._fd).st_size != self._offset:
                raise RunFolderError(
                    f"{self.path / _LINES} was changed by something else while this process was writing it: expected "
                    f"{self._offset} bytes, found {os.fstat(self._fd).st_size}. Close the folder and resume it."
                )
        except OSError:
            if not quietly:
                raise

    def _refuse_occupied(self, overwrite: bool) -> bool:
        # Returns whether a run is there that may be replaced, and refuses anything else that is there.
        path = self.path
        if not os.path.lexists(path):
            return False
        if not path.is_dir():
            raise RunFolderError(f"{path} exists and is no folder: choose another path for the run folder.")
        # A process killed while creating leaves these two at most.
        found = _entries(path) - {_LOCK, _RUN + _TMP}
        if not found:
            return False
        if not overwrite and not self._holds_nothing(found):
            if _RUN not in found:
                raise RunFolderError(
                    f"{path} holds files of another kind ({_listing(found)}) and no run: expected an empty folder or "
                    "one that does not exist. Choose another folder; only a run is ever replaced."
                )
            raise RunFolderError(
                f"run folder {path} exists already and is not empty: found a run of {self._recorded()}. Choose another "
                "folder, go on with it by NTKPlugin(resume=True) (RunFolder.resume), or replace it with overwrite=True "
                "(--overwrite); only a run is ever replaced, no other files."
            )
        if path.is_symlink():
            raise RunFolderError(
                f"{path} is a symbolic link, through which nothing is overwritten: give the folder that it points to."
            )
        try:
            self._read_run()
        except RunFolderError as error:
            raise RunFolderError(
                f"overwrite: {path} is not replaced, since it is not recognised as a run folder ({error}) Choose "
                "another folder, or remove this one by hand."
            ) from None
        return True

    def _holds_nothing(self, found: set[str]) -> bool:
        """Tell whether the folder is that of a run which recorded nothing (training failed before its first step)."""
        try:
            return _RUN in found and found <= {_RUN, _LINES} and not (self.path / _LINES).stat().st_size
        except OSError:
            return False

    def _recorded(self) -> str:
        try:
            return f"{sum(1 for _ in self._scan())} records"
        except RunFolderError:
            return "unreadable records"

    def _remove_run(self) -> None:
        """Remove a run's own files: lines before the kernels they name, `run.json` not at all (it is replaced)."""
        rewound = [name for name in _entries(self.path) if _REWOUND.fullmatch(name)]
        for name in (_LINES, _TORN, _TABLE, _TABLE + _TMP, _RUN + _TMP, *rewound):
            _unlink(self.path / name)
        kernels = self.path / _KERNELS
        if not os.path.lexists(kernels) or not stat.S_ISDIR(os.lstat(kernels).st_mode):
            return
        for probe in kernels.iterdir():
            if not stat.S_ISDIR(os.lstat(probe).st_mode) or not _PROBE_FOLDER.fullmatch(probe.name):
                continue
            for file in probe.iterdir():
                if _KERNEL_FILE.fullmatch(file.name):
                    _unlink(file)
            _remove_if_empty(probe)
        _remove_if_empty(kernels)

    # --- errors ------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, what: str) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"run folder {self.path}: could not write {what}: {error.strerror or error}. What was recorded before "
                "is intact. Make room or allow writing there, then write again or go on with RunFolder.resume."
            ) from error

    @contextmanager
    def _reading(self, what: str) -> Generator[None, None, None]:
        try:
            yield
        except (_Invalid, safetensors.SafetensorError) as error:
            raise RunFolderError(f"run folder {self.path}: {what} cannot be used: {error}.") from None
        except OSError as error:
            raise RunFolderError(
                f"run folder {self.path}: {what} cannot be read: {error.strerror or error}."
            ) from error


def _drop_in_forked_child() -> None:
    """Close what a forked child inherited, without unlocking: the lock is the parent's, and dies with it alone."""
    for folder in list(_open_writers):
        for fd in (folder._fd, folder._lock_fd):
            if fd is not None:
                os.close(fd)
        folder._forget()
    _open_writers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_forked_child)


# --- JSON ------------------------------------------------------------------------------------------------------


class _Invalid(Exception):
    """What is wrong with a piece of data; the caller says where."""


def _encode(value: Any, where: str, depth: int = 0) -> Any:
    # Returns `value` as strict JSON can hold it; `where` names it in messages.
    if depth > _MAX_DEPTH:
        raise ArgumentError(f"{where[:80]}: expected at most {_MAX_DEPTH} levels of nesting, found more (or a loop).")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.bool_, np.integer, np.floating, np.ndarray)):
        return _encode(value.tolist(), where, depth)
    if isinstance(value, int):
        if abs(value) >= 1 << 64:
            raise ArgumentError(f"{where}: expected integers below 2**64, found one of {value.bit_length()} bits.")
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return {"nonfinite": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArgumentError(f"{where}: expected strings as keys, found {key!r}.")
            if key == "nonfinite":
                raise ArgumentError(
                    f"{where}: the key 'nonfinite' is reserved for floats that are not finite; rename it."
                )
        return {str(key): _encode(part, f"{where}.{key}", depth + 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(part, f"{where}[{i}]", depth + 1) for i, part in enumerate(value)]
    raise ArgumentError(
        f"{where}: expected strings, numbers, booleans, None, lists, mappings or numpy arrays, found "
        f"{type(value).__name__}. Convert it first."
    )


def _dump(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, allow_nan=False, indent=indent).encode("ascii") + b"\n"


def _restore_nonfinite(found: dict[str, Any]) -> Any:
    if "nonfinite" not in found:
        return found
    name = found["nonfinite"]
    if len(found) > 1 or not isinstance(name, str) or name not in _NONFINITE:
        raise _Invalid(f'expected {{"nonfinite": "nan"}}, "inf" or "-inf", found {_short(found)}')
    return _NONFINITE[name]


def _refuse_constant(name: str) -> Any:
    raise _Invalid(f'expected strict JSON, found {name}; floats that are not finite are written {{"nonfinite": "nan"}}')


def _bounded_int(text: str) -> int:
    # The length first: converting a million digits takes quadratic time.
    if len(text) > 20 or abs(int(text)) >= 1 << 64:
        raise _Invalid(f"expected integers below 2**64, found one of {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Invalid(f"expected floats within double precision, found {text[:40]}")
    return number


def _decode(content: bytes | str) -> Any:
    return json.loads(
        content,
        object_hook=_restore_nonfinite,
        parse_constant=_refuse_constant,
        parse_int=_bounded_int,
        parse_float=_finite_float,
    )


def _parse(content: bytes) -> Any:
    try:
        return _decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Invalid(f"expected UTF-8 text, found the byte {content[error.start]:#04x}") from None
    except RecursionError:
        raise _Invalid("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _Invalid(f"it is not JSON ({error.msg} at character {error.pos})") from None


# --- what must be in there ---------------------------------------------------------------------------------------


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _require(found: Mapping[str, Any], key: str, kind: type | tuple[type, ...], or_none: bool = False) -> Any:
    names = {str: "a string", int: "an integer", dict: "an object", list: "a list"}
    if key not in found:
        raise _Invalid(f"the key {key!r} is missing")
    value = found[key]
    if or_none and value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        expected = names[kind] if isinstance(kind, type) else "a value"
        raise _Invalid(f"expected {key!r} to be {expected}{' or null' if or_none else ''}, found {_short(value)}")
    return value


def _require_natural(found: Mapping[str, Any], key: str) -> int:
    value: int = _require(found, key, int)
    if value < 0:
        raise _Invalid(f"expected {key!r} to be at least 0, found {value}")
    return value


def _require_probe_name(found: Mapping[str, Any], key: str) -> str:
    name: str = _require(found, key, str)
    if not is_name(name):
        raise _Invalid(
            f"expected {key!r} to be at most 100 letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            f"found {_short(name)}"
        )
    return name


def _check_meta(meta: Mapping[str, Any]) -> None:
    if meta.get("seed") is not None:
        _require(meta, "seed", int)
    if "probes" not in meta:
        return
    names = []
    for probe in _require(meta, "probes", list):
        if not isinstance(probe, dict):
            raise _Invalid(f"expected 'probes' to hold objects, found {_short(probe)}")
        names.append(_require_probe_name(probe, "name"))
        _require(probe, "hash", str)
    if len(set(names)) < len(names):
        raise _Invalid(f"expected 'probes' with different names, found {_short(names)}")


def _check_record(record: Any, last_index: Mapping[str, int]) -> None:
    # `last_index` holds the index of each probe's last measurement before this record.
    if not isinstance(record, dict):
        raise _Invalid(f"expected an object, found {_short(record)}")
    if _require(record, "kind", str) != "measurement":
        return
    probe = _require_probe_name(record, "probe")
    index = _require_natural(record, "index")
    if index <= last_index.get(probe, -1):
        raise _Invalid(f"expected the index of probe {probe!r} to be above {last_index[probe]}, found {index}")
    try:
        TrainingClock.from_dict(_require(record, "clock", dict))
    except NTKError as error:
        raise _Invalid(str(error).rstrip(".")) from None
    _require_natural(record, "segment")
    for key, value in _require(record, "values", dict).items():
        if not isinstance(value, (int, float)):
            raise _Invalid(f"expected 'values' to hold numbers, found {key}={_short(value)}")
    for key, value in _require(record, "reasons", dict).items():
        if not isinstance(value, str):
            raise _Invalid(f"expected 'reasons' to hold strings, found {key}={_short(value)}")
    for note in _require(record, "notes", list):
        if not isinstance(note, str):
            raise _Invalid(f"expected 'notes' to hold strings, found {_short(note)}")
    _require(record, "trust", dict)
    kernel = _require(record, "kernel", str, or_none=True)
    if kernel is not None and not _KERNEL_PATH.fullmatch(kernel):
        raise _Invalid(
            f"expected 'kernel' to be a path such as kernels/Exp000/000000.safetensors, found {_short(kernel)}"
        )
    _require(record, "failure", str, or_none=True)


def _remember_index(record: Mapping[str, Any], last_index: dict[str, int]) -> None:
    if record["kind"] == "measurement":
        last_index[record["probe"]] = record["index"]


# --- safetensors ---------------------------------------------------------------------------------------------------


def _safetensors_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    if not arrays:
        raise ArgumentError("arrays: expected at least one, found none.")
    stored = {}
    for name, array in arrays.items():
        if not isinstance(name, str) or name in ("", "__metadata__"):
            raise ArgumentError(f"arrays: expected names that are strings, not empty, found {name!r}.")
        if not isinstance(array, np.ndarray):
            raise ArgumentError(f"arrays: expected {name!r} to be a numpy array, found {type(array).__name__}.")
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise ArgumentError(
                f"arrays: expected {name!r} to hold real numbers of at most 64 bits, integers or booleans, found "
                f"{array.dtype}. Convert it first."
            )
        # Own memory in row order and this machine's byte order (0-d stays 0-d, which ascontiguousarray would not keep).
        stored[name] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or key == _DIGEST:
            raise ArgumentError(
                f"metadata: expected strings by names other than {_DIGEST!r}, found {key!r}: {_short(value)}."
            )
    return safetensors.numpy.save(stored, {**metadata, _DIGEST: _digest(stored, metadata)})


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, types, shapes, numbers and metadata, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        head = json.dumps([name, array.dtype.str, array.shape])
        digest.update(f"{len(head)}:{head}".encode())
        digest.update(array.tobytes())
    digest.update(json.dumps(sorted(metadata.items())).encode())
    return digest.hexdigest()


def _check_safetensors(content: bytes) -> dict[str, str]:
    # Header and data must fit each other before anything is allocated on the header's word. Returns the metadata.
    if len(content) < 8:
        raise _Invalid(f"expected a safetensors file, found {len(content)} bytes")
    length = int.from_bytes(content[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(content) - 8):
        raise _Invalid(f"its header claims {length} bytes, and the file has {len(content)}: it is cut off or damaged")
    header = _parse(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise _Invalid(f"expected an object as header, found {_short(header)}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Invalid(f"expected strings as metadata, found {_short(metadata)}")
    spans = []
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise _Invalid(f"expected an object for array {_short(name)}, found {_short(entry)}")
        kind = _require(entry, "dtype", str)
        if kind not in _ITEM_BYTES:
            raise _Invalid(f"expected real numbers, integers or booleans in array {_short(name)}, found {_short(kind)}")
        shape, offsets = _require(entry, "shape", list), _require(entry, "data_offsets", list)
        if not all(_is_natural(size) for size in shape) or len(shape) > 32:
            raise _Invalid(f"expected sizes of at least 0 in array {_short(name)}, found {_short(shape)}")
        if len(offsets) != 2 or not all(_is_natural(offset) for offset in offsets):
            raise _Invalid(f"expected two offsets for array {_short(name)}, found {_short(offsets)}")
        if math.prod(shape) * _ITEM_BYTES[kind] != offsets[1] - offsets[0]:
            raise _Invalid(
                f"array {_short(name)}: shape {_short(shape)} of {kind} does not fill bytes {_short(offsets)}"
            )
        spans.append(tuple(offsets))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise _Invalid("its arrays overlap or leave gaps")
        end = last
    if end != len(content) - 8 - length:
        raise _Invalid(
            f"its arrays need {end} bytes, and the file has {len(content) - 8 - length}: it is cut off or damaged"
        )
    return metadata


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# --- files -----------------------------------------------------------------------------------------------------------


def _open_regular(path: Path, flags: int) -> int:
    # Never through a link, and never anything but a plain file.
    fd = os.open(path, flags | _SAFE, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is no plain file")
    return fd


def _read_bytes(path: Path, limit: int) -> bytes:
    with os.fdopen(_open_regular(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise _Invalid(f"expected at most {limit} bytes, found {size}")
        return file.read(size)


def _write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there either as before or complete, also after a loss of power."""
    temporary = path.with_name(path.name + _TMP)
    _unlink(temporary)
    fd = _open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            _write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        _quietly(_unlink, temporary)
        raise
    _sync_directory(path.parent)


def _duplicate(source: Path, target: Path) -> None:
    """Give a file a second name; the first may then be replaced or removed without harm to the second."""
    _unlink(target)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        # Not every file system has second names.
        _replace(target, _read_bytes(source, MAX_KERNEL_BYTES))
    else:
        _sync_directory(target.parent)


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return  # Windows has no such thing and needs none.
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder; the files themselves are synced all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _make_directory(path: Path) -> None:
    if os.path.lexists(path):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise OSError(0, f"{path.name} is no folder, or a symbolic link, which is not followed")
        return
    path.mkdir()
    _sync_directory(path.parent)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_if_empty(path: Path) -> None:
    if not any(path.iterdir()):
        path.rmdir()


def _quietly(action: Callable[[Path], None], path: Path) -> None:
    with suppress(OSError):
        action(path)


def _entries(path: Path) -> set[str]:
    try:
        return set(os.listdir(path))
    except OSError as error:
        raise RunFolderError(f"run folder {path} cannot be read: {error.strerror}.") from error


def _listing(names: Sequence[str] | set[str]) -> str:
    shown = sorted(names)
    if not shown:
        return "nothing"
    return ", ".join(map(repr, shown[:5])) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
