"""The files of a run folder: names, and functions to open, write, replace and remove them."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.recorder.runfolder.faults import Invalid

RUN = "run.json"
LINES = "measurements.jsonl"
TORN = "measurements.torn"
TABLE = "measurements.csv"
KERNELS = "kernels"
LOCK = "lock"
TMP = ".tmp"

PROBE_FOLDER = re.compile(r"[A-Za-z0-9%+][A-Za-z0-9%+._-]{0,239}", re.ASCII)
_KERNEL_NAME = r"[0-9]{6,12}(\.rewound[0-9]{3,9})?\.safetensors"
KERNEL_PATH = re.compile(f"kernels/(?P<probe>{PROBE_FOLDER.pattern})/{_KERNEL_NAME}", re.ASCII)
KERNEL_FILE = re.compile(_KERNEL_NAME + r"(\.tmp)?", re.ASCII)
REWOUND = re.compile(r"measurements\.rewound(?P<number>[0-9]{3,9})\.jsonl(\.tmp)?", re.ASCII)

# O_NOFOLLOW refuses symbolic links in a foreign folder, which could point anywhere; O_NONBLOCK avoids waiting forever
# on a pipe. Windows has neither and needs O_BINARY.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file, not through a link.

    Args:
        path: The file.
        flags: Flags of `os.open`.

    Returns:
        The descriptor.

    Raises:
        OSError: The system refuses, or it is not a regular file.
    """
    fd = os.open(path, flags | _SAFE, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is not a regular file")
    return fd


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a whole file that is not too large.

    Args:
        path: The file.
        limit: The largest size to read, in bytes.

    Returns:
        Its content.

    Raises:
        Invalid: It is larger.
        OSError: It cannot be read.
    """
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise Invalid(f"expected at most {limit} bytes, found {size}")
        return file.read(size)


def write_all(fd: int, content: bytes) -> None:
    """Write all of `content`, in several calls if needed."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically, also in case of a power failure.

    Args:
        path: The file.
        content: The new content.

    Raises:
        OSError: It cannot be written; the file is then unchanged.
    """
    temporary = path.with_name(path.name + TMP)
    unlink(temporary)
    fd = open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            unlink(temporary)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a folder's entries to the disk; OSError if that fails."""
    if os.name != "posix":
        return  # Windows has no such call and needs none.
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder; the files themselves are synced all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def is_directory(path: Path) -> bool:
    """Return whether a path is a folder and not a link to one; OSError if nothing is there."""
    return stat.S_ISDIR(os.lstat(path).st_mode)


def no_directory(path: Path) -> str:
    """Return the message for a path that should be a folder."""
    return f"{path.name} is not a folder, or is a symbolic link, which is not followed"


def make_directory(path: Path) -> None:
    """Create a folder if there is none; OSError if that fails or something else is there."""
    if os.path.lexists(path):
        if not is_directory(path):
            raise OSError(0, no_directory(path))
        return
    path.mkdir()
    sync_directory(path.parent)


def unlink(path: Path) -> None:
    """Remove a file if it exists; OSError if that fails."""
    path.unlink(missing_ok=True)


def remove_if_empty(path: Path) -> None:
    """Remove an empty folder; OSError if that fails."""
    if not any(path.iterdir()):
        path.rmdir()


def entries(folder: Path) -> set[str]:
    """Return the names of all entries of a run folder; RunFolderError if they cannot be read."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise RunFolderError(f"run folder {folder} cannot be read: {error.strerror}.") from error
