"""Run folders as one tidy table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_ntk.errors import unknown_name
from avalanche_ntk.report.boundaries import boundary_rows, evaluation_rows, measurement_rows
from avalanche_ntk.report.runs import Runs, read_runs

if TYPE_CHECKING:
    import pandas as pd

_TABLES = {"measurements": measurement_rows, "boundaries": boundary_rows, "evaluations": evaluation_rows}


def load(runs: Runs, table: str = "measurements") -> pd.DataFrame:
    """Read run folders into one table.

    Args:
        runs: A run folder, a folder of run folders (a sweep's), several of them, or paths by the names to show.
        table: "measurements" (a row per measurement and probe: clock, numbers, kernel's path, notes and failures),
            "boundaries" (a row per experience and probe: accuracy and forgetting of the probe's task, and the numbers
            of its `measures.Reactivation`) or "evaluations" (a row per number of an evaluation).

    Returns:
        The table; its first column is `run`. Undefined numbers are missing (`pandas.NA`).

    Raises:
        ArgumentError: The table is unknown.
        RunFolderError: A named folder cannot be read. Unreadable runs found inside a folder are left out, unless none
            can be read.
    """  # noqa: DOC501  (`unknown_name` makes the ArgumentError)
    if table not in _TABLES:
        raise unknown_name("table", table, _TABLES)
    return _TABLES[table](read_runs(runs)[0])
