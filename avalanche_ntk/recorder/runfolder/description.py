"""`run.json`: the run's description, written and read as a whole."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata as importlib_metadata
from pathlib import Path
from typing import Any

from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.recorder.runfolder import files
from avalanche_ntk.recorder.runfolder.codec import dump, encode, parse
from avalanche_ntk.recorder.runfolder.faults import Invalid, listing, reading, writing
from avalanche_ntk.recorder.runfolder.schema import SCHEMA, SCHEMA_VERSION, check_meta, check_run

MAX_RUN_JSON_BYTES = 1 << 28
_LIBRARIES = ("avalanche-ntk", "avalanche-lib", "torch", "torchvision", "numpy", "safetensors")


def make(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a new run.

    Args:
        meta: The caller's part of it.

    Returns:
        The content of `run.json`.

    Raises:
        ArgumentError: `meta` cannot be stored.
    """
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(),
        "meta": _changed({}, meta),
    }


def change(run: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's description with some keys of its `meta` changed.

    Args:
        run: The content of `run.json`.
        changes: The new values by key.

    Returns:
        The new content.

    Raises:
        ArgumentError: A value cannot be stored.
    """
    return {**run, "meta": _changed(run["meta"], changes)}


def write(folder: Path, run: Mapping[str, Any]) -> None:
    """Write `run.json`.

    Args:
        folder: The run folder.
        run: The content.

    Raises:
        RunFolderError: It could not be written; the file is then unchanged.
    """
    with writing(folder, files.RUN):
        files.replace(folder / files.RUN, dump(run, indent=1))


def read(folder: Path) -> dict[str, Any]:
    """Read and check `run.json`.

    Args:
        folder: The run folder.

    Returns:
        Its content as written: non-finite floats of `meta` are not restored.

    Raises:
        RunFolderError: It is not a run folder, is damaged, or was written by a newer version.
    """
    if not os.path.lexists(folder):
        raise RunFolderError(f"there is no run folder {folder}: nothing exists at that path. Check it.")
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a run folder: expected a folder with {files.RUN} in it, found a file.")
    if not os.path.lexists(folder / files.RUN):
        raise RunFolderError(
            f"{folder} is not a run folder: expected {files.RUN} in it, found {listing(files.entries(folder))}. Give "
            "the "
            "folder that RunFolder.create made."
        )
    with reading(folder, files.RUN):
        content = files.read_bytes(folder / files.RUN, MAX_RUN_JSON_BYTES)
        check_run(parse(content))
    # Not decoded here: each access decodes `meta` afresh, so callers cannot change each other's copy.
    written: dict[str, Any] = json.loads(content.decode("utf-8"))
    return written


def _changed(meta: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = {**meta, **encode(dict(changes), "meta")}
    try:
        check_meta(changed)
    except Invalid as error:
        raise ArgumentError(f"meta: {error}") from None
    return changed


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib_metadata.version(name)
        except importlib_metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
