"""Required fields of `run.json` and the records, and their types; unknown fields are allowed everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche_ntk.errors import NTKError
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.names import is_name
from avalanche_ntk.recorder.runfolder.faults import Invalid, short
from avalanche_ntk.recorder.runfolder.files import KERNEL_PATH

SCHEMA = "avalanche-ntk-run"
SCHEMA_VERSION = 1


def require(found: Mapping[str, Any], key: str, kind: type, or_none: bool = False) -> Any:
    """Return an object's value under a key, checked for its type.

    Args:
        found: The object.
        key: The key.
        kind: `str`, `int`, `dict` or `list`.
        or_none: Whether it may be null.

    Returns:
        The value.

    Raises:
        Invalid: It is missing or of another type.
    """
    names = {str: "a string", int: "an integer", dict: "an object", list: "a list"}
    if key not in found:
        raise Invalid(f"the key {key!r} is missing")
    value = found[key]
    if or_none and value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise Invalid(f"expected {key!r} to be {names[kind]}{' or null' if or_none else ''}, found {short(value)}")
    return value


def _require_natural(found: Mapping[str, Any], key: str) -> int:
    value: int = require(found, key, int)
    if value < 0:
        raise Invalid(f"expected {key!r} to be at least 0, found {value}")
    return value


def _require_probe_name(found: Mapping[str, Any], key: str) -> str:
    name: str = require(found, key, str)
    if not is_name(name):
        raise Invalid(
            f"expected {key!r} to be at most 100 letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            f"found {short(name)}"
        )
    return name


def check_run(run: Any) -> None:
    """Check the content of `run.json`.

    Args:
        run: Its content, decoded.

    Raises:
        Invalid: It is not a run's, is from a newer version, or lacks a required field.
    """
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        raise Invalid(f'expected an object with "schema": "{SCHEMA}", so it is not a file of this package')
    version = run.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise Invalid(f"expected a schema_version of at least 1, found {short(version)}")
    if version > SCHEMA_VERSION:
        raise Invalid(
            f"it has schema version {version}, and this avalanche-ntk reads versions up to {SCHEMA_VERSION}; "
            "install a newer one"
        )
    require(run, "created", str)
    versions = require(run, "versions", dict)
    if not all(isinstance(value, str) for value in versions.values()):
        raise Invalid(f"expected versions to hold strings, found {short(versions)}")
    check_meta(require(run, "meta", dict))


def check_meta(meta: Mapping[str, Any]) -> None:
    """Check the caller's description of a run.

    Args:
        meta: The description, encoded by `encode` or decoded.

    Raises:
        Invalid: Its `seed` or `probes` are invalid.
    """
    if meta.get("seed") is not None:
        require(meta, "seed", int)
    if "probes" not in meta:
        return
    names = []
    for probe in require(meta, "probes", list):
        if not isinstance(probe, dict):
            raise Invalid(f"expected 'probes' to hold objects, found {short(probe)}")
        names.append(_require_probe_name(probe, "name"))
        require(probe, "hash", str)
    if len(set(names)) < len(names):
        raise Invalid(f"expected 'probes' with different names, found {short(names)}")


def check_record(record: Any, last_index: Mapping[str, int]) -> None:
    """Check a record.

    Args:
        record: The decoded record.
        last_index: The index of each probe's last measurement before it.

    Raises:
        Invalid: It lacks a required field, or its index does not increase.
    """
    if not isinstance(record, dict):
        raise Invalid(f"expected an object, found {short(record)}")
    if require(record, "kind", str) != "measurement":
        return
    probe = _require_probe_name(record, "probe")
    index = _require_natural(record, "index")
    if index <= last_index.get(probe, -1):
        raise Invalid(f"expected the index of probe {probe!r} to be above {last_index[probe]}, found {index}")
    try:
        TrainingClock.from_dict(require(record, "clock", dict))
    except NTKError as error:
        raise Invalid(str(error).rstrip(".")) from None
    _require_natural(record, "segment")
    for key, value in require(record, "values", dict).items():
        if not isinstance(value, (int, float)):
            raise Invalid(f"expected 'values' to hold numbers, found {key}={short(value)}")
    for key, value in require(record, "reasons", dict).items():
        if not isinstance(value, str):
            raise Invalid(f"expected 'reasons' to hold strings, found {key}={short(value)}")
    for note in require(record, "notes", list):
        if not isinstance(note, str):
            raise Invalid(f"expected 'notes' to hold strings, found {short(note)}")
    require(record, "trust", dict)
    kernel = require(record, "kernel", str, or_none=True)
    if kernel is not None and not KERNEL_PATH.fullmatch(kernel):
        raise Invalid(
            f"expected 'kernel' to be a path such as kernels/Exp000/000000.safetensors, found {short(kernel)}"
        )
    require(record, "failure", str, or_none=True)


def remember_index(record: Mapping[str, Any], last_index: dict[str, int]) -> None:
    """Store the index of a measurement in `last_index`."""
    if record["kind"] == "measurement":
        last_index[record["probe"]] = record["index"]
