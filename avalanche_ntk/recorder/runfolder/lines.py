"""`measurements.jsonl`: the records, one per line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_ntk.errors import ArgumentError, NTKWarning, RunFolderError
from avalanche_ntk.recorder.runfolder import files
from avalanche_ntk.recorder.runfolder.codec import decode, dump, encode, parse
from avalanche_ntk.recorder.runfolder.faults import Invalid, reading, writing
from avalanche_ntk.recorder.runfolder.schema import check_record, remember_index

MAX_LINE_BYTES = 1 << 26


def scan(folder: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Read and check the records one by one, and stop before an incomplete last line.

    Args:
        folder: The run folder.

    Yields:
        Each record with the byte offset of its line's end.

    Raises:
        RunFolderError: A line other than the last is damaged, or a record lacks what it must have.
    """  # noqa: DOC501
    if not os.path.lexists(folder / files.LINES):
        return
    last: dict[str, int] = {}
    with reading(folder, files.LINES), os.fdopen(files.open_regular(folder / files.LINES, os.O_RDONLY), "rb") as file:
        end, number = 0, 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise Invalid(f"line {number}: expected at most {MAX_LINE_BYTES} bytes, found more")
            if not line.endswith(b"\n"):
                return
            try:
                record = parse(line)
            except Invalid as error:
                # After a power failure the end of the file may be garbage of the right length.
                if not file.read(1):
                    return
                raise Invalid(f"line {number}: {error}") from None
            try:
                check_record(record, last)
            except Invalid as error:
                raise Invalid(f"line {number}: {error}") from None
            remember_index(record, last)
            end += len(line)
            yield record, end


class Lines:
    """The file of records, open for its only writer; call `take_up` first.

    Attributes:
        count: Number of records.
        last_index: The index of each probe's last measurement.
    """

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self.last_index: dict[str, int] = {}
        self._folder = folder
        self._path = folder / files.LINES
        self._offset = 0
        self._dirty = False
        with writing(folder, files.LINES):
            self._fd = files.open_regular(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def take_up(self) -> None:
        """Check every line, and set an incomplete last line aside.

        Raises:
            RunFolderError: A line other than the last is damaged, or the file cannot be read or written.
        """
        for record, end in scan(self._folder):
            self._offset = end
            self.count += 1
            remember_index(record, self.last_index)
        with writing(self._folder, files.LINES):
            self._set_torn_line_aside()

    def append(self, record: Mapping[str, Any]) -> None:
        """Append a record and flush it to the disk.

        Args:
            record: Strings, numbers, booleans, None, lists and mappings, including numpy's.

        Raises:
            ArgumentError: The record lacks a required field or holds an unsupported type.
            RunFolderError: It could not be written; earlier records are intact.
        """
        encoded = encode(dict(record), "record")
        line = dump(encoded)
        if len(line) > MAX_LINE_BYTES:
            raise ArgumentError(
                f"record: expected at most {MAX_LINE_BYTES} bytes of JSON, found {len(line)}. Store arrays "
                "by save_kernel."
            )
        try:
            self._check_new(decode(line))
        except Invalid as error:
            raise ArgumentError(f"record: {error}") from None
        with writing(self._folder, f"a record to {files.LINES}"):
            self._cut_to_last_record()
            # After any failure from here on, including an interrupt, the next write truncates the file first.
            self._dirty = True
            try:
                files.write_all(self._fd, line)
                os.fsync(self._fd)
            except BaseException:
                self._cut_to_last_record(quietly=True)
                raise
            self._offset += len(line)
            self._dirty = False
        self.count += 1
        remember_index(encoded, self.last_index)

    def cut_behind(self, kept: Sequence[tuple[dict[str, Any], int]]) -> None:
        """Truncate the file after some lines, and flush it to the disk.

        Args:
            kept: The lines to keep, as yielded by `scan`.

        Raises:
            OSError: The file cannot be truncated.
        """
        offset = kept[-1][1] if kept else 0
        os.ftruncate(self._fd, offset)
        self._offset, self.count, self.last_index = offset, len(kept), {}
        for record, _ in kept:
            remember_index(record, self.last_index)
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _check_new(self, record: dict[str, Any]) -> None:
        check_record(record, self.last_index)
        kernel = record["kernel"] if record["kind"] == "measurement" else None
        if kernel is not None and not os.path.lexists(self._folder / kernel):
            raise Invalid(f"it names the kernel {kernel}, which is not there; call save_kernel first")

    def _cut_to_last_record(self, quietly: bool = False) -> None:
        # Remove the remains of an unfinished write after the last record.
        try:
            if self._dirty:
                os.ftruncate(self._fd, self._offset)
                self._dirty = False
            elif os.fstat(self._fd).st_size != self._offset:
                raise RunFolderError(
                    f"{self._path} was changed by something else while this process was writing it: expected "
                    f"{self._offset} bytes, found {os.fstat(self._fd).st_size}. Close the folder and resume it."
                )
        except OSError:
            if not quietly:
                raise

    def _set_torn_line_aside(self) -> None:
        torn = os.fstat(self._fd).st_size - self._offset
        if torn == 0:
            return
        os.lseek(self._fd, self._offset, os.SEEK_SET)
        with os.fdopen(os.dup(self._fd), "rb") as file:
            content = file.read(torn)
        # Copy first, then truncate: after a kill in between, the copy is made again and nothing is lost.
        fd = files.open_regular(self._folder / files.TORN, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            files.write_all(fd, content + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.ftruncate(self._fd, self._offset)
        os.fsync(self._fd)
        warnings.warn(
            f"{self._path} ended in an incomplete line of {torn} bytes, left by a process that was stopped "
            f"while writing it; it was moved to {files.TORN}. The {self.count} records before it are intact.",
            NTKWarning,
            stacklevel=6,
        )
