"""Strict, bounded JSON encoding and decoding, with names for non-finite floats."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.recorder.runfolder.faults import Invalid, short

_MAX_DEPTH = 50
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: Any, where: str, depth: int = 0) -> Any:
    """Convert a value to types of strict JSON.

    Args:
        value: Strings, numbers, booleans, None, lists and mappings, including numpy's.
        where: Its name in messages.
        depth: Its nesting depth.

    Returns:
        The value in Python's own types; a non-finite float becomes an object that names it.

    Raises:
        ArgumentError: It holds other types, is nested too deeply, or uses the key "nonfinite".
    """
    if depth > _MAX_DEPTH:
        raise ArgumentError(f"{where[:80]}: expected at most {_MAX_DEPTH} levels of nesting, found more (or a loop).")
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.bool_, np.integer, np.floating, np.ndarray)):
        return encode(value.tolist(), where, depth)
    if isinstance(value, int):
        if abs(value) >= 1 << 64:
            raise ArgumentError(f"{where}: expected integers below 2**64, found one of {value.bit_length()} bits.")
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return {"nonfinite": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArgumentError(f"{where}: expected strings as keys, found {key!r}.")
            if key == "nonfinite":
                raise ArgumentError(
                    f"{where}: the key 'nonfinite' is reserved for floats that are not finite; rename it."
                )
        return {str(key): encode(part, f"{where}.{key}", depth + 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(part, f"{where}[{i}]", depth + 1) for i, part in enumerate(value)]
    raise ArgumentError(
        f"{where}: expected strings, numbers, booleans, None, lists, mappings or numpy arrays, found "
        f"{type(value).__name__}. Convert it first."
    )


def dump(value: Any, indent: int | None = None) -> bytes:
    """Return an encoded value as JSON with a final newline; on one line if `indent` is None."""
    return json.dumps(value, allow_nan=False, indent=indent).encode("ascii") + b"\n"


def _restore_nonfinite(found: dict[str, Any]) -> Any:
    if "nonfinite" not in found:
        return found
    name = found["nonfinite"]
    if len(found) > 1 or not isinstance(name, str) or name not in _NONFINITE:
        raise Invalid(f'expected {{"nonfinite": "nan"}}, "inf" or "-inf", found {short(found)}')
    return _NONFINITE[name]


def _refuse_constant(name: str) -> Any:
    raise Invalid(f'expected strict JSON, found {name}; floats that are not finite are written {{"nonfinite": "nan"}}')


def _bounded_int(text: str) -> int:
    # Check the length first: converting a million digits takes quadratic time.
    if len(text) > 20 or abs(int(text)) >= 1 << 64:
        raise Invalid(f"expected integers below 2**64, found one of {len(text)} digits")
    return int(text)


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Invalid(f"expected floats within double precision, found {text[:40]}")
    return number


def decode(content: bytes | str) -> Any:
    """Decode JSON just made by `dump`.

    Args:
        content: The JSON.

    Returns:
        The value, with the floats that are not finite restored.

    Raises:
        Invalid: It holds values that `encode` does not make.
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    return json.loads(
        content,
        object_hook=_restore_nonfinite,
        parse_constant=_refuse_constant,
        parse_int=_bounded_int,
        parse_float=_finite_float,
    )


def parse(content: bytes) -> Any:
    """Decode JSON from an untrusted file.

    Args:
        content: The file's content.

    Returns:
        The value, with the floats that are not finite restored.

    Raises:
        Invalid: It is not JSON as `dump` writes it.
    """
    try:
        return decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Invalid(f"expected UTF-8 text, found the byte {content[error.start]:#04x}") from None
    except RecursionError:
        raise Invalid("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Invalid(f"it is not JSON ({error.msg} at character {error.pos})") from None
