"""The report on disk: the page, figures for a paper, tables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from avalanche_ntk import __version__
from avalanche_ntk.errors import RunFolderError, unknown_name
from avalanche_ntk.owned import refuse_strangers, write_owned
from avalanche_ntk.report.boundaries import boundary_rows, measurement_rows
from avalanche_ntk.report.page import Page, paragraph
from avalanche_ntk.report.runs import RUN_FILE, Runs, StrPath, read_runs
from avalanche_ntk.report.sections import Report
from avalanche_ntk.report.seeds import COLUMNS, HEADINGS
from avalanche_ntk.report.style import to_bytes
from avalanche_ntk.report.text import counted, listed

PAGE = "report.html"
FORMATS = ("pdf", "svg", "png")


@dataclass(frozen=True)
class Written:
    """The files of a written report.

    Attributes:
        page: The HTML file.
        figures: The figures' files.
        tables: The tables' files.
        unreadable: A sentence for each unreadable run.
    """

    page: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]
    unreadable: tuple[str, ...]


def write_report(
    runs: Runs,
    out: StrPath,
    *,
    probe: str | None = None,
    control: Runs | None = None,
    title: str | None = None,
    formats: Sequence[str] = FORMATS,
    columns: Sequence[str] = COLUMNS,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Written:
    """Write a report on runs: one HTML file, figures for a paper, tables.

    Args:
        runs: A run folder, a folder of run folders (a sweep's), several of them, or paths by the names to show.
        out: Folder to write `report.html`, `figures/` and `tables/` to. An earlier report in it is replaced, but no
            file that was written by others or changed since (`written.json` lists the report's files).
        probe: Name of the probe to report on; each folder's first when None.
        control: Runs in which no task changed, for the verdicts.
        title: The page's title.
        formats: File formats of the figures.
        columns: Columns of the table over seeds, of `report.seeds.HEADINGS`.
        on_progress: Called with a description of the next step.

    Returns:
        The files.

    Raises:
        ArgumentError: A format is unknown.
        RunFolderError: A run cannot be read or has no such probe, `out` cannot be written, or a file there that is not
            a report's would be replaced.
    """  # noqa: DOC501  (`unknown_name` makes the ArgumentError)
    for kind in formats:
        if kind not in FORMATS:
            raise unknown_name("figure format", kind, FORMATS)
    for column in columns:
        if column not in HEADINGS:
            raise unknown_name("column", column, HEADINGS)
    target = Path(os.path.abspath(out))
    _check_target(target)
    on_progress("reading the runs")
    found, unreadable = read_runs(runs)
    measured = [run for run in found if run.trajectories] if probe is None else found
    lacking = [f"{run.folder.path} holds no probe yet, so there is nothing to report." for run in found]
    unreadable += [why for run, why in zip(found, lacking, strict=True) if run not in measured]
    if not measured:
        raise RunFolderError(
            f"there is nothing to report: {listed([str(run.folder.path) for run in found], 3)} "
            f"{'holds' if len(found) == 1 else 'hold'} no probe yet. A probe exists once training has begun."
        )
    controls = [] if control is None else read_runs(control)[0]
    report = Report(measured, probe, controls, unreadable, columns)
    on_progress("drawing")
    sections = report.sections()
    page = Page(
        title=title or _title([run.name for run in report.runs]),
        lead=paragraph(_lead(report)),
        sections=sections,
        foot=f"Made by avalanche-ntk {__version__} on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC.",
    )
    on_progress("writing")
    files: dict[str, str | bytes] = {}
    names = _file_names(report.figures)
    for name, drawn in report.figures.items():
        files |= {f"figures/{names[name]}.{kind}": to_bytes(drawn, kind) for kind in formats}
    seeds = report.seeds()
    tables = {
        "boundaries.csv": boundary_rows(measured).to_csv(index=False),
        "measurements.csv": measurement_rows(measured).to_csv(index=False),
        "seeds.csv": seeds.csv(),
        "seeds.md": seeds.markdown(),
        "seeds.tex": seeds.latex(),
    }
    files |= {f"tables/{name}": text for name, text in tables.items()}
    with _writing(target):
        written = write_owned(target, {**files, PAGE: page.html()})
    figures = [path for path in written if path.parent.name == "figures"]
    return Written(target / PAGE, tuple(figures), tuple(target / "tables" / name for name in tables), tuple(unreadable))


def _title(names: Sequence[str]) -> str:
    return f"NTK report: {listed(names, 3)}" if len(names) < 5 else f"NTK report on {len(names)} runs"


def _lead(report: Report) -> str:
    samples = sorted({len(run.trajectory(report.probe).labels) for run in report.runs})
    tasks = sorted({report.task_of(run) + 1 for run in report.runs})
    beside = len({id(control) for some in report.controls.values() for control in some})
    controls = f", beside {counted(beside, 'control')} in which no task changes" if beside else ""
    return (
        f"{counted(len(report.runs), 'run')}{controls}. The empirical neural tangent kernel of "
        f"{listed([f'{n:,}' for n in samples])} samples of task {listed([str(t) for t in tasks])} was measured while "
        "the tasks were learnt one after the other."
    )


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """Return a unique file name for each figure's name."""
    found: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:80] or "figure"
        taken, number = set(found.values()), 2
        unique = stem
        while unique.lower() in {t.lower() for t in taken}:
            unique, number = f"{stem}-{number}", number + 1
        found[name] = unique
    return found


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise RunFolderError(f"{target} exists and is not a folder: choose another --out for the report.")
    if os.path.lexists(target / RUN_FILE):
        raise RunFolderError(
            f"{target} is a run folder; reports are not written into run folders: choose another --out, such as "
            f"{target.parent / 'report'}."
        )
    refuse_strangers(target, [PAGE])  # before drawing, which takes minutes; other files are checked before writing


@contextmanager
def _writing(target: Path) -> Generator[None]:
    """Convert OS errors into this package's."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"the report could not be written to {target}: {error.strerror or error}. Make room or allow writing "
            "there, or choose another --out."
        ) from error
