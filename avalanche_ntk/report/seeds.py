"""A table for a paper: each boundary of each setting, mean over the seeds with its interval, as text and as LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from avalanche_ntk.errors import unknown_name
from avalanche_ntk.measures import interval
from avalanche_ntk.numerals import latex, latex_text, markdown_row, written
from avalanche_ntk.report.boundaries import lost
from avalanche_ntk.report.groups import Group, groups_of
from avalanche_ntk.report.runs import Run, Runs, read_runs

HEADINGS = {
    "spike": "spike",
    "ratio": "ratio",
    "z": "z",
    "onset_ratio": "onset ratio",
    "base": "base",
    "peak": "peak",
    "moved": "moved",
    "path": "path",
    "time_to_peak": "time to peak",
    "half_life": "half-life",
    "norm_dip": "λ_max dip",
    "norm_recovery": "λ_max at end",
    "alignment_drop": "alignment drop",
    "accuracy": "accuracy",
    "forgetting": "forgetting",
}
"""Columns that a table can have, and how a paper calls them; the last two are of the probe's own task."""
COLUMNS = ("spike", "ratio", "norm_dip", "alignment_drop", "moved", "forgetting")
NOTE = "mean over the seeds ± half of its 95 % interval (Student's t); ≥: at a seed the pace before is below the noise"


@dataclass(frozen=True)
class Cell:
    """One number over the seeds.

    Attributes:
        mean: Mean over the seeds; NaN where none has a number.
        low: Lower end of the mean's 95 % interval; NaN with one seed.
        high: Its upper end.
        seeds: Seeds that have a number.
        bound: Whether a seed has a lower bound only.
    """

    mean: float
    low: float
    high: float
    seeds: int
    bound: bool = False

    def told(self, write: Callable[[float, float | None], str], at_least: str) -> str:
        """Return it in words."""
        return (at_least if self.bound and self.seeds else "") + write(self.mean, (self.high - self.low) / 2)


@dataclass(frozen=True)
class Row:
    """One boundary of one setting.

    Attributes:
        setting: What varies: a strategy's name where only that does.
        control: Whether it is a control, in which no task changes.
        experience: Number of the experience that begins there.
        runs: Runs that have the boundary behind them, each of a seed of its own.
        cells: The numbers by column.
    """

    setting: str
    control: bool
    experience: int
    runs: int
    cells: dict[str, Cell]


@dataclass(frozen=True)
class SeedTable:
    """A row for each boundary of each setting, controls last.

    Attributes:
        columns: Names of the columns.
        rows: The rows.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def csv(self) -> str:
        """Return every number: of each column its mean, `…_low`, `…_high` and `…_seeds`; undefined ones empty."""
        import pandas as pd

        rows = []
        for row in self.rows:
            flat: dict[str, object] = {"setting": row.setting, "control": row.control, "experience": row.experience}
            flat["runs"] = row.runs
            for name, cell in row.cells.items():
                flat |= {name: cell.mean, f"{name}_low": cell.low, f"{name}_high": cell.high}
                flat[f"{name}_seeds"] = cell.seeds
            rows.append(flat)
        text: str = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
        return text

    def heads(self) -> list[str]:
        """Return the headings."""
        return ["setting", "boundary", "seeds", *(HEADINGS[c] for c in self.columns)]

    def cells(self) -> list[list[str]]:
        """Return the rows as plain text."""
        return [cells for _, cells in self._texts(written, str, "≥ ", "→")]

    def markdown(self) -> str:
        """Return the table as Markdown, with what ± means."""
        lines = [markdown_row(self.heads()), markdown_row(["---", "---", *["---:"] * (len(self.columns) + 1)])]
        lines += map(markdown_row, self.cells())
        return "\n".join([*lines, "", f"{NOTE[0].upper()}{NOTE[1:]}."]) + "\n"

    def latex(self) -> str:
        """Return the table as a LaTeX `tabular` that needs the package booktabs alone."""
        heads = self.heads()
        lines = [f"% {NOTE}. Needs \\usepackage{{booktabs}}.", rf"\begin{{tabular}}{{ll{'r' * (len(heads) - 2)}}}"]
        lines += [r"\toprule", " & ".join(map(latex_text, heads)) + r" \\", r"\midrule"]
        control = False
        for row, cells in self._texts(latex, latex_text, r"$\geq$ ", r"$\to$"):
            if row.control and not control and len(lines) > 5:
                lines.append(r"\midrule")
            control = row.control
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def _texts(
        self, write: Callable[[float, float | None], str], name: Callable[[str], str], at_least: str, arrow: str
    ) -> Iterator[tuple[Row, list[str]]]:
        for row in self.rows:
            called = f"{row.setting} (control)" if row.control and row.setting != "no shift" else row.setting
            numbers = [row.cells[c].told(write, at_least) for c in self.columns]
            yield row, [name(called), f"{row.experience} {arrow} {row.experience + 1}", str(row.runs), *numbers]


def seed_table(runs: Runs, columns: Sequence[str] = COLUMNS, probe: str | None = None) -> SeedTable:
    """Make a table of runs over seeds: a row for each boundary of each setting.

    Args:
        runs: A run folder, a folder that holds some (a sweep's), several of them, or paths by name. Runs that differ in
            the seed alone are one setting.
        columns: What to show, of `HEADINGS`.
        probe: Name of the probe; each folder's first when None.

    Returns:
        The table: `markdown()`, `latex()`, `csv()`.

    Raises:
        ArgumentError: There is no such column.
        RunFolderError: A folder that was named cannot be read, or has no such probe.
    """
    return table_of(groups_of(read_runs(runs)[0]), columns, probe)


def table_of(groups: Sequence[Group], columns: Sequence[str] = COLUMNS, probe: str | None = None) -> SeedTable:
    """Make the table of groups; see `seed_table`."""
    for column in columns:
        if column not in HEADINGS:
            raise unknown_name("column", column, HEADINGS)
    rows = []
    for group in groups:
        for experience in sorted({e for run in group.runs for e in boundaries(run, probe)}):
            members = [run for run in group.runs if experience in boundaries(run, probe)]
            cells = {column: _cell(members, column, experience, probe) for column in columns}
            rows.append(Row(group.name, group.control, experience, len(members), cells))
    return SeedTable(tuple(columns), tuple(rows))


def boundaries(run: Run, probe: str | None) -> list[int]:
    """Return the experiences of a run that have a boundary before them and were measured to their end."""
    return list(run.trajectory(probe).reactivations)[1:]


def number_at(run: Run, column: str, experience: int, probe: str | None = None) -> float:
    """Return a number of a run at a boundary; NaN where it is undefined.

    Args:
        run: The run.
        column: A field of `measures.Reactivation`, "accuracy" or "forgetting".
        experience: Number of the experience that begins there.
        probe: Name of the probe; the folder's first when None.

    Returns:
        The number.
    """
    trajectory = run.trajectory(probe)
    if column in ("accuracy", "forgetting"):
        value = lost(run, trajectory.probe, experience)[column == "forgetting"]
    else:
        value = getattr(trajectory.reactivations[experience], column)
    return math.nan if value is None else float(value)


def _cell(runs: Sequence[Run], column: str, experience: int, probe: str | None) -> Cell:
    values = [number_at(run, column, experience, probe) for run in runs]
    defined = [value for value in values if math.isfinite(value)]
    bound = column == "ratio" and any(run.trajectory(probe).reactivations[experience].at_floor for run in runs)
    return Cell(*interval(defined), seeds=len(defined), bound=bound)
