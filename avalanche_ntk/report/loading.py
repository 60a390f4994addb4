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
        runs: A run folder, a folder that holds some (a sweep's), several of them, or paths by the names to show.
        table: "measurements" (a row for each measurement of each probe: the clock, every number, the kernel's path,
            notes and failures), "boundaries" (a row for each experience and probe: accuracy and forgetting of the
            probe's task, and every number of its `measures.Reactivation`) or "evaluations" (a row for each number that
            an evaluation found).

    Returns:
        The table; its first column is `run`. What is undefined is missing (`pandas.NA`).

    Raises:
        ArgumentError: There is no such table.
        RunFolderError: A folder that was named cannot be read. Of the runs found inside a folder, those that cannot be
            read are left out, unless none can.
    """  # noqa: DOC501  (`unknown_name` makes the ArgumentError)
    if table not in _TABLES:
        raise unknown_name("table", table, _TABLES)
    return _TABLES[table](read_runs(runs)[0])
