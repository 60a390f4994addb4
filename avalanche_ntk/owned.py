"""An output folder in which a command replaces only files that it wrote itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.files import write_whole

LIST = "written.json"
"""The list of the files that a command has written: the SHA-256 of each content by path inside the folder."""


def refuse_strangers(folder: Path, names: Iterable[str]) -> None:
    """Refuse to replace files that no earlier call has written, or that were changed since.

    Args:
        folder: The folder; it may not exist.
        names: Paths inside it, with slashes.

    Raises:
        RunFolderError: A file would be replaced; the message names it.
    """
    known = _written(folder)
    for name in names:
        path = folder / name
        if os.path.lexists(path) and _digest_of(path) not in known.get(name, []):
            raise RunFolderError(
                f"{path} exists and was not written by this command, or was changed since: it is not replaced. Choose "
                "another --out, or move the file away."
            )


def write_owned(folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Write files into a folder and record there that this command wrote them.

    Only files written by earlier calls are replaced. Every path is checked before the first file is written.

    Args:
        folder: The folder; it is created if needed.
        files: Contents by path inside it, with slashes.

    Returns:
        The files.

    Raises:
        RunFolderError: A file written by something else would be replaced.
        OSError: A file cannot be written.
    """
    contents = {
        name: content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        for name, content in files.items()
    }
    refuse_strangers(folder, [*contents, *([] if _written(folder) else [LIST])])
    folder.mkdir(parents=True, exist_ok=True)
    known = _written(folder)
    new = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    # List old and new contents until all are written: after a kill in between, no file is refused.
    _note(folder, {**known, **{name: [*known.get(name, []), digest] for name, digest in new.items()}})
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    _note(folder, {**known, **{name: [digest] for name, digest in new.items()}})
    return [folder / name for name in contents]


def _note(folder: Path, known: Mapping[str, list[str]]) -> None:
    write_whole(folder / LIST, json.dumps({"made by": "avalanche-ntk", "files": known}, indent=1) + "\n")


def _written(folder: Path) -> dict[str, list[str]]:
    """Read the list; empty if there is none, or a foreign file of that name."""
    try:
        found = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("made by") != "avalanche-ntk" or not isinstance(found["files"], dict):
        return {}
    return {str(name): list(map(str, digests)) for name, digests in found["files"].items()}


def _digest_of(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # a folder or a dangling link, which was not written here
        return None
