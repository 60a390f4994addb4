"""What may be replaced by a new run, and how the old one's own files are removed."""

from __future__ import annotations

import os
from pathlib import Path

from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.recorder.runfolder import description, files
from avalanche_ntk.recorder.runfolder.faults import listing
from avalanche_ntk.recorder.runfolder.lines import scan


def refuse_occupied(folder: Path, overwrite: bool) -> bool:
    """Refuse a folder that holds anything but a run that may be replaced.

    Args:
        folder: The folder to be.
        overwrite: Whether a run that recorded something may be replaced too.

    Returns:
        Whether there is a run to replace.

    Raises:
        RunFolderError: The folder holds something else, or cannot be read.
    """
    if not os.path.lexists(folder):
        return False
    if not folder.is_dir():
        raise RunFolderError(f"{folder} exists and is no folder: choose another path for the run folder.")
    # A process killed while creating leaves these two at most.
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
            "folder, go on with it by NTKPlugin(resume=True) (RunFolder.resume), or replace it with overwrite=True "
            "(--overwrite); only a run is ever replaced, no other files."
        )
    if folder.is_symlink():
        raise RunFolderError(
            f"{folder} is a symbolic link, through which nothing is overwritten: give the folder that it points to."
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
    """Remove a run's own files: lines before the kernels they name, `run.json` not at all (it is replaced).

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
    """Tell whether the folder is that of a run which recorded nothing (training failed before its first step)."""
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
