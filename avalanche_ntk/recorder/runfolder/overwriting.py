"""Replacement of an existing run by a new one."""

from __future__ import annotations

import os
from pathlib import Path

from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.recorder.runfolder import description, files
from avalanche_ntk.recorder.runfolder.faults import listing
from avalanche_ntk.recorder.runfolder.lines import scan


def refuse_occupied(folder: Path, overwrite: bool) -> bool:
    """Refuse a folder that holds anything but a replaceable run.

    Args:
        folder: The folder.
        overwrite: Whether to replace a run with records too.

    Returns:
        Whether there is a run to replace.

    Raises:
        RunFolderError: The folder holds other files or cannot be read.
    """
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        raise RunFolderError(f"{folder} exists and is not a folder: choose another path for the run folder.")
    # A process killed during creation leaves at most these two.
    found = files.entries(folder) - {files.LOCK, files.RUN + files.TMP}
    if not found:
        return False
    if not overwrite and not _holds_nothing(folder, found):
        if files.RUN not in found:
            raise RunFolderError(
                f"{folder} holds files of another kind ({listing(found)}) and no run: expected an empty folder or "
                "one that does not exist. Choose another folder; only a run is ever replaced."
            )
        raise RunFolderError(
            f"run folder {folder} exists already and is not empty: found a run of {_recorded(folder)}. Choose another "
            "folder, continue it with NTKPlugin(resume=True) (RunFolder.resume), or replace it with overwrite=True "
            "(--overwrite); only a run is ever replaced, no other files."
        )
    if folder.is_symlink():
        raise RunFolderError(
            f"{folder} is a symbolic link, and overwriting does not follow links: give the folder that it points to."
        )
    try:
        description.read(folder)
    except RunFolderError as error:
        raise RunFolderError(
            f"overwrite: {folder} is not replaced, since it is not recognised as a run folder ({error}) Choose "
            "another folder, or remove this one by hand."
        ) from None
    return True


def remove_run(folder: Path) -> None:
    """Remove a run's files: lines before the kernels they name; `run.json` is kept, to be replaced.

    Args:
        folder: The run folder.

    Raises:
        RunFolderError: The folder cannot be listed.
        OSError: A file cannot be removed.
    """
    rewound = [name for name in files.entries(folder) if files.REWOUND.fullmatch(name)]
    table, run = files.TABLE + files.TMP, files.RUN + files.TMP
    for name in (files.LINES, files.TORN, files.TABLE, table, run, *rewound):
        files.unlink(folder / name)
    kernels = folder / files.KERNELS
    if not os.path.lexists(kernels) or not files.is_directory(kernels):
        return
    for probe in kernels.iterdir():
        if not files.is_directory(probe) or not files.PROBE_FOLDER.fullmatch(probe.name):
            continue
        for file in probe.iterdir():
            if files.KERNEL_FILE.fullmatch(file.name):
                files.unlink(file)
        files.remove_if_empty(probe)
    files.remove_if_empty(kernels)


def _holds_nothing(folder: Path, found: set[str]) -> bool:
    """Return whether the folder's run has no records (training failed before its first step)."""
    try:
        allowed = {files.RUN, files.LINES}
        return files.RUN in found and found <= allowed and not (folder / files.LINES).stat().st_size
    except OSError:
        return False


def _recorded(folder: Path) -> str:
    try:
        return f"{sum(1 for _ in scan(folder))} records"
    except RunFolderError:
        return "unreadable records"
