"""Kernel files: arrays in safetensors format with a checksum of the content."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.recorder.names import folder_of
from avalanche_ntk.recorder.runfolder import files
from avalanche_ntk.recorder.runfolder.codec import parse
from avalanche_ntk.recorder.runfolder.faults import Invalid, reading, short, writing
from avalanche_ntk.recorder.runfolder.schema import require

MAX_HEADER_BYTES = 1 << 24
MAX_KERNEL_BYTES = 1 << 34
_DIGEST = "content_sha256"
_ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}


def pack(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a kernel's file.

    Args:
        arrays: Real numbers, integers or booleans by name.
        metadata: Text to store beside them.

    Returns:
        A safetensors file.

    Raises:
        ArgumentError: An array, a name or a text cannot be stored.
    """
    if not arrays:
        raise ArgumentError("arrays: expected at least one, found none.")
    stored = {}
    for name, array in arrays.items():
        if not isinstance(name, str) or name in ("", "__metadata__"):
            raise ArgumentError(f"arrays: expected names that are strings, not empty, found {name!r}.")
        if not isinstance(array, np.ndarray):
            raise ArgumentError(f"arrays: expected {name!r} to be a numpy array, found {type(array).__name__}.")
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise ArgumentError(
                f"arrays: expected {name!r} to hold real numbers of at most 64 bits, integers or booleans, found "
                f"{array.dtype}. Convert it first."
            )
        # A copy in row order and native byte order (ascontiguousarray would make 0-d arrays 1-d).
        stored[name] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or key == _DIGEST:
            raise ArgumentError(
                f"metadata: expected strings by names other than {_DIGEST!r}, found {key!r}: {short(value)}."
            )
    return safetensors.numpy.save(stored, {**metadata, _DIGEST: _digest(stored, metadata)})


def store(folder: Path, probe: str, index: int, content: bytes) -> str:
    """Write a kernel's file and flush it to the disk.

    Args:
        folder: The run folder.
        probe: The probe's name.
        index: The measurement's index within the probe.
        content: The result of `pack`.

    Returns:
        The file's path within the folder.

    Raises:
        RunFolderError: It could not be written.
    """
    relative = f"{files.KERNELS}/{folder_of(probe)}/{index:06d}.safetensors"
    with writing(folder, relative):
        for directory in (folder / files.KERNELS, folder / files.KERNELS / folder_of(probe)):
            files.make_directory(directory)
        files.replace(folder / relative, content)
    return relative


def load(folder: Path, path: str, max_bytes: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a kernel's file.

    Args:
        folder: The run folder.
        path: The file's path within the folder, as a record has it.
        max_bytes: The largest file to read into memory.

    Returns:
        The arrays, and the text stored beside them.

    Raises:
        RunFolderError: The path is not that of a kernel, or the file is missing, damaged or too large.
    """  # noqa: DOC501
    match = files.KERNEL_PATH.fullmatch(path) if isinstance(path, str) else None
    if match is None:
        raise RunFolderError(
            f"expected the path of a kernel of run folder {folder}, such as kernels/Exp000/000000.safetensors, "
            f"found {short(path)}. Take it from a record."
        )
    with reading(folder, path):
        for directory in (folder / files.KERNELS, folder / files.KERNELS / match["probe"]):
            if not os.path.lexists(directory):
                raise Invalid("the file is missing")
            if not files.is_directory(directory):
                raise Invalid(files.no_directory(directory))
        if not os.path.lexists(folder / path):
            raise Invalid("the file is missing")
        return _unpack(files.read_bytes(folder / path, max_bytes))


def _unpack(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    metadata = _checked_metadata(content)
    try:
        arrays = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise Invalid(str(error)) from None
    expected = metadata.pop(_DIGEST, None)
    if expected is None:
        raise Invalid(f"it has no {_DIGEST}, so save_kernel did not write it")
    if expected != _digest(arrays, metadata):
        raise Invalid("its content does not match its checksum: it was changed or damaged after it was written")
    return arrays, metadata


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of names, types, shapes, numbers and metadata, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        head = json.dumps([name, array.dtype.str, array.shape])
        digest.update(f"{len(head)}:{head}".encode())
        digest.update(array.tobytes())
    digest.update(json.dumps(sorted(metadata.items())).encode())
    return digest.hexdigest()


def _checked_metadata(content: bytes) -> dict[str, str]:
    # Check that header and data are consistent before allocating memory for the arrays; return the metadata.
    if len(content) < 8:
        raise Invalid(f"expected a safetensors file, found {len(content)} bytes")
    length = int.from_bytes(content[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(content) - 8):
        raise Invalid(f"its header claims {length} bytes, and the file has {len(content)}: it is cut off or damaged")
    header = parse(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise Invalid(f"expected an object as header, found {short(header)}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Invalid(f"expected strings as metadata, found {short(metadata)}")
    spans = []
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise Invalid(f"expected an object for array {short(name)}, found {short(entry)}")
        kind = require(entry, "dtype", str)
        if kind not in _ITEM_BYTES:
            raise Invalid(f"expected real numbers, integers or booleans in array {short(name)}, found {short(kind)}")
        shape, offsets = require(entry, "shape", list), require(entry, "data_offsets", list)
        if not all(_is_natural(size) for size in shape) or len(shape) > 32:
            raise Invalid(f"expected sizes of at least 0 in array {short(name)}, found {short(shape)}")
        if len(offsets) != 2 or not all(_is_natural(offset) for offset in offsets):
            raise Invalid(f"expected two offsets for array {short(name)}, found {short(offsets)}")
        if math.prod(shape) * _ITEM_BYTES[kind] != offsets[1] - offsets[0]:
            raise Invalid(f"array {short(name)}: shape {short(shape)} of {kind} does not fill bytes {short(offsets)}")
        spans.append(tuple(offsets))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise Invalid("its arrays overlap or leave gaps")
        end = last
    if end != len(content) - 8 - length:
        raise Invalid(
            f"its arrays need {end} bytes, and the file has {len(content) - 8 - length}: it is cut off or damaged"
        )
    return metadata


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
