"""`measurements.jsonl`: the records, one a line, read and appended."""

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
    """Read the records one after the other, each checked, and stop before a torn last line.

    Args:
        folder: The run folder.

    Yields:
        Each record with the offset of the byte behind its line.

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
                # After a loss of power the file's end may be garbage of the right length.
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
    """The file of the records, open for its only writer. `take_up` comes first.

    Attributes:
        count: How many records there are.
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
        """Check every line, and set a torn last line aside.

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
        """Write a record and wait until it is on the disk.

        Args:
            record: Strings, numbers, booleans, None, lists and mappings, numpy's too.

        Raises:
            ArgumentError: The record lacks what it must have, or holds what cannot be stored.
            RunFolderError: It could not be written; the records before are as they were.
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
            # Whatever stops us from here on, an interrupt included, the next write cuts the file back first.
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
        """Remove all lines but the first ones, and wait until they are gone from the disk.

        Args:
            kept: Those that stay, as `scan` yields them.

        Raises:
            OSError: The file cannot be cut.
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
        # Removes what an unfinished write left behind the last record.
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
        # First the copy, then the cut: killed between the two, the copy is made again, and nothing is lost.
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
