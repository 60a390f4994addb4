"""The settings of a run, as names and texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from avalanche_ntk.report.runs import Run
from avalanche_ntk.report.text import MISSING, plain

_LONGEST_SETTING = 300


def flattened(run: Run) -> dict[str, str]:
    """Return the settings of a run by their dotted names."""
    found = {"created": plain(run.folder.created), "folder": str(run.folder.path)}
    _flatten(run.folder.meta, "", found)
    _flatten(run.folder.versions, "versions.", found)
    return {plain(name, 120): value for name, value in found.items()}


def _flatten(value: Any, name: str, found: dict[str, str]) -> None:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            _flatten(part, f"{name}{key}.", found)
        return
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        for position, part in enumerate(value):
            label = part["name"] if isinstance(part.get("name"), str) else position
            _flatten(part, f"{name.removesuffix('.')}[{label}].", found)
        return
    found[name.removesuffix(".")] = setting(value)


def setting(value: Any) -> str:
    """Return a setting as readable text."""
    if value is None:
        return MISSING
    return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), _LONGEST_SETTING)
