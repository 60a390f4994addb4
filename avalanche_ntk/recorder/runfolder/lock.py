"""One writer at a time: a lock that the operating system releases whenever its holder ends."""

import errno
import json
import os
import socket
import sys
import warnings
from datetime import datetime, timezone
from pathlib import Path

from avalanche_ntk.errors import NTKWarning, RunFolderError
from avalanche_ntk.recorder.runfolder.files import LOCK, open_regular

if sys.platform == "win32":
    import msvcrt

    # Windows' locks block reading of the locked bytes, so lock a byte far behind the text.
    _LOCKED_BYTE = 1 << 30

    def _take(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def _release(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _take(fd: int) -> None:
        # flock, not lockf: the latter is lost as soon as *any* descriptor of the file is closed by this process.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


_BUSY = {errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def acquire(folder: Path) -> int:
    """Lock a run folder for this process, and write its holder to the lock file.

    Args:
        folder: The run folder.

    Returns:
        The descriptor that holds the lock, for `release`.

    Raises:
        RunFolderError: Another holder, named with its process id and host, has the lock.
        OSError: The operating system refuses the file or the lock for another reason.
    """
    fd = open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        _lock(fd, folder)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, folder: Path) -> None:
    try:
        _take(fd)
    except OSError as error:
        if error.errno in _BUSY:
            raise RunFolderError(
                f"run folder {folder} is being written by {_holder(fd)}: two writers would mix their measurements. "
                "Wait until it has ended or close it there (NTKPlugin.close), or choose another folder. Reading with "
                "RunFolder.open is possible meanwhile."
            ) from None
        if error.errno not in _UNSUPPORTED:
            raise
        warnings.warn(
            f"run folder {folder} is on a file system without locks ({error.strerror}): nothing keeps a second process "
            "from writing it too. Make sure that only one does.",
            NTKWarning,
            stacklevel=4,
        )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}).encode() + b"\n"
    try:
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, text)
    except OSError:
        pass  # The text only serves the message for a second writer: keep the lock even if the disk is full.


def release(fd: int) -> None:
    """Release the lock and close its file.

    It is unlocked explicitly: a forked child that still has the descriptor would otherwise keep the lock.

    Args:
        fd: The descriptor from `acquire`.
    """
    try:
        os.ftruncate(fd, 0)
        _release(fd)
    except OSError:
        pass  # Closing releases it as well.
    os.close(fd)


def _holder(fd: int) -> str:
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        found = json.loads(os.read(fd, 4096))
        pid, host, since = int(found["pid"]), str(found["host"]), str(found["since"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process (it left no process id)"
    here = " (this process)" if pid == os.getpid() and host == socket.gethostname() else ""
    return f"process {pid} on host {host}{here} since {since}"
