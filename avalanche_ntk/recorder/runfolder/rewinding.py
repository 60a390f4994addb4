"""Setting aside what a run holds beyond the point from which it goes on."""

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
    """Set every record but the first ones aside, with their kernels.

    Args:
        folder: The run folder.
        lines: Its file of records, open for writing.
        keep: How many records stay.

    Returns:
        How many were set aside.

    Raises:
        RunFolderError: There are fewer records, or the folder cannot be written; it is then as it was.
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
        # All that is set aside is complete before the lines go: killed on the way, nothing is lost.
        kernels = _set_aside(folder, behind)
        lines.cut_behind(scanned[:keep])
        for kernel in kernels:
            files.unlink(kernel)
    return len(behind)


def _set_aside(folder: Path, behind: Sequence[dict[str, Any]]) -> list[Path]:
    # Writes the records a second time, under a name of their own, and so their kernels, which they name from then on.
    # Returns the kernels' first files.
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
    """Give a file a second name; the first may then be replaced or removed without harm to the second."""
    files.unlink(target)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        # Not every file system has second names.
        files.replace(target, files.read_bytes(source, MAX_KERNEL_BYTES))
    else:
        files.sync_directory(target.parent)
