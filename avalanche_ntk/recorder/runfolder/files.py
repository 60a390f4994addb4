"""The files of a run folder: their names, and how they are opened, written, replaced and removed."""

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

# Without O_NOFOLLOW a link planted in a folder from elsewhere would have us write where it points; without O_NONBLOCK a
# pipe in the place of a file would make us wait for ever. Windows has neither and needs O_BINARY.
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, flags: int) -> int:
    """Open a file, never through a link, and never anything but a plain file.

    Args:
        path: The file.
        flags: Those of `os.open`.

    Returns:
        The descriptor.

    Raises:
        OSError: The system refuses, or it is something else.
    """
    fd = os.open(path, flags | _SAFE, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is no plain file")
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
    """Write all of `content`, in as many calls as the system needs."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there either as before or complete, also after a loss of power.

    Args:
        path: The file.
        content: All that it is to hold.

    Raises:
        OSError: It cannot be written; it is then as before.
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
    """Wait until the names in a folder are on the disk; OSError when they cannot be."""
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


def is_directory(path: Path) -> bool:
    """Return whether what is there is a folder itself, not a link to one; OSError when nothing is there."""
    return stat.S_ISDIR(os.lstat(path).st_mode)


def no_directory(path: Path) -> str:
    """Return what is wrong with something that stands in a folder's place."""
    return f"{path.name} is no folder, or a symbolic link, which is not followed"


def make_directory(path: Path) -> None:
    """Make a folder where none is; OSError when it cannot be made or something else is there."""
    if os.path.lexists(path):
        if not is_directory(path):
            raise OSError(0, no_directory(path))
        return
    path.mkdir()
    sync_directory(path.parent)


def unlink(path: Path) -> None:
    """Remove a file if it is there; OSError when it stays."""
    path.unlink(missing_ok=True)


def remove_if_empty(path: Path) -> None:
    """Remove a folder that holds nothing; OSError when it stays."""
    if not any(path.iterdir()):
        path.rmdir()


def entries(folder: Path) -> set[str]:
    """Return the names of all that a run folder holds; RunFolderError when they cannot be read."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise RunFolderError(f"run folder {folder} cannot be read: {error.strerror}.") from error
