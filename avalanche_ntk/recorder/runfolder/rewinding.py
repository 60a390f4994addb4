"""Setting aside records later than the point at which a run continues."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.recorder.runfolder import files
from avalanche_ntk.recorder.runfolder.codec import dump, encode
from avalanche_ntk.recorder.runfolder.faults import writing
from avalanche_ntk.recorder.runfolder.kernels import MAX_KERNEL_BYTES
from avalanche_ntk.recorder.runfolder.lines import Lines, scan


def rewind(folder: Path, lines: Lines, keep: int) -> int:
    """Set aside all records but the first ones, with their kernels.

    Args:
        folder: The run folder.
        lines: Its file of records, open for writing.
        keep: Number of records to keep.

    Returns:
        Number of records set aside.

    Raises:
        RunFolderError: There are fewer records, or the folder cannot be written; it is then unchanged.
    """
    if keep > lines.count:
        raise RunFolderError(
            f"run folder {folder} cannot be rewound to {keep} records: it has {lines.count}. Give the folder that "
            "belongs to the checkpoint."
        )
    if keep == lines.count:
        return 0
    scanned = list(scan(folder))
    behind = [record for record, _ in scanned[keep:]]
    with writing(folder, "what is set aside by rewinding"):
        # The copies are complete before the lines are removed: a kill in between loses nothing.
        kernels = _set_aside(folder, behind)
        lines.cut_behind(scanned[:keep])
        for kernel in kernels:
            files.unlink(kernel)
    return len(behind)


def _set_aside(folder: Path, behind: Sequence[dict[str, Any]]) -> list[Path]:
    # Copy the records to a new file, and their kernels to new names that the copies refer to. Return the kernels'
    # original files.
    numbers = [int(match["number"]) for match in map(files.REWOUND.fullmatch, files.entries(folder)) if match]
    suffix = f".rewound{max(numbers, default=0) + 1:03d}"
    kernels: list[Path] = []
    for record in behind:
        if record["kind"] == "measurement" and record["kernel"] is not None:
            kernel = folder / record["kernel"]
            if os.path.lexists(kernel):
                kernels.append(kernel)
                record["kernel"] = record["kernel"].removesuffix(".safetensors") + f"{suffix}.safetensors"
                _duplicate(kernel, folder / record["kernel"])
    content = b"".join(dump(encode(record, "record")) for record in behind)
    files.replace(folder / f"measurements{suffix}.jsonl", content)
    return kernels


def _duplicate(source: Path, target: Path) -> None:
    """Give a file a second name, which survives when the first is replaced or removed."""
    files.unlink(target)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        # Not every file system supports hard links.
        files.replace(target, files.read_bytes(source, MAX_KERNEL_BYTES))
    else:
        files.sync_directory(target.parent)
