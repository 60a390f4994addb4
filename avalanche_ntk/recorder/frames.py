"""Tables with fixed column types, so that those of many runs can be read together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from avalanche_ntk.recorder.clock import TrainingClock

if TYPE_CHECKING:
    import pandas as pd

# Types of columns, as pandas calls them.
TEXT = "string"
COUNT = "int64"  # never missing
COUNT_OR_NONE = "Int64"
TRUTH_OR_NONE = "boolean"
NUMBER = "float64"  # NaN where it is undefined
NUMBER_OR_NA = "Float64"  # `pandas.NA` where it is undefined

_OF_CLOCK: dict[Any, str] = {str: TEXT, int: COUNT}
CLOCK = {f.name: _OF_CLOCK.get(f.type, COUNT_OR_NONE) for f in fields(TrainingClock)}
"""Columns of `TrainingClock.as_dict()`."""


def make_frame(rows: Iterable[Mapping[str, Any]], types: Mapping[str, str]) -> pd.DataFrame:
    """Make a table of rows.

    Args:
        rows: The rows: values by column; an absent or None value is missing.
        types: All columns in order, with their types.

    Returns:
        The table; it has these columns and types even if it has no rows or a column has no values.
    """
    import pandas as pd

    known = list(rows)
    columns = {}
    for name, kind in types.items():
        values = [row.get(name) for row in known]
        columns[name] = pd.Series([None if v is None else _CONVERT[kind](v) for v in values], dtype=kind)
    return pd.DataFrame(columns)


def _text(value: object) -> str:
    # A file name may not be valid text, which neither Parquet nor Arrow's strings accept.
    return str(value).encode("utf-8", "backslashreplace").decode()


_CONVERT: dict[str, Callable[[Any], Any]] = {
    TEXT: _text, COUNT: int, COUNT_OR_NONE: int, TRUTH_OR_NONE: bool, NUMBER: float, NUMBER_OR_NA: float,
}  # fmt: skip
