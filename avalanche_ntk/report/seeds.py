"""A table for a paper: mean over the seeds with interval, per boundary and setting, as text and LaTeX."""

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
"""Columns of the table and their headings; the last two are for the probe's own task."""
COLUMNS = ("spike", "ratio", "norm_dip", "alignment_drop", "moved", "forgetting")
NOTE = "mean over the seeds ± half of its 95 % interval (Student's t); ≥: velocity before below the noise at a seed"


@dataclass(frozen=True)
class Cell:
    """One number over the seeds.

    Attributes:
        mean: Mean over the seeds; NaN if none has a number.
        low: Lower end of the mean's 95 % interval; NaN with one seed.
        high: Its upper end.
        seeds: Number of seeds with a number.
        bound: Whether a seed only has a lower bound.
    """

    mean: float
    low: float
    high: float
    seeds: int
    bound: bool = False

    def told(self, write: Callable[[float, float | None], str], at_least: str) -> str:
        """Return it as text."""
        return (at_least if self.bound and self.seeds else "") + write(self.mean, (self.high - self.low) / 2)


@dataclass(frozen=True)
class Row:
    """One boundary of one setting.

    Attributes:
        setting: The varying settings; the strategy's name if only that varies.
        control: Whether it is a control, in which no task changes.
        experience: Number of the experience that begins there.
        runs: Runs that completed the boundary, with different seeds.
        cells: The numbers by column.
    """

    setting: str
    control: bool
    experience: int
    runs: int
    cells: dict[str, Cell]


@dataclass(frozen=True)
class SeedTable:
    """One row per boundary and setting, controls last.

    Attributes:
        columns: Names of the columns.
        rows: The rows.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def csv(self) -> str:
        """Return every number: per column its mean, `…_low`, `…_high` and `…_seeds`; undefined ones are empty."""
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
        """Return the table as Markdown, with a note on ±."""
        lines = [markdown_row(self.heads()), markdown_row(["---", "---", *["---:"] * (len(self.columns) + 1)])]
        lines += map(markdown_row, self.cells())
        return "\n".join([*lines, "", f"{NOTE[0].upper()}{NOTE[1:]}."]) + "\n"

    def latex(self) -> str:
        """Return the table as a LaTeX `tabular`, which needs only the package booktabs."""
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
    """Make a table of runs over seeds, one row per boundary and setting.

    Args:
        runs: A run folder, a folder of run folders (a sweep's), several of them, or paths by name. Runs that differ
            only in the seed are one setting.
        columns: Columns of `HEADINGS`.
        probe: Name of the probe; None for each folder's first.

    Returns:
        The table: `markdown()`, `latex()`, `csv()`.

    Raises:
        ArgumentError: A column is unknown.
        RunFolderError: A named folder cannot be read, or has no such probe.
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
    """Return the experiences of a run after the first that were measured to their end."""
    return list(run.trajectory(probe).reactivations)[1:]


def number_at(run: Run, column: str, experience: int, probe: str | None = None) -> float:
    """Return a number of a run at a boundary; NaN if undefined.

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
