"""`avalanche-ntk report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from avalanche_ntk.commands.shared import error_console


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Write an HTML report on runs, with figures and tables.",
        epilog="Example: avalanche-ntk report runs/naive runs/replay --out report",
    )(report)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some, such as a sweep's.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for report.html, figures/ and tables/; an earlier report is replaced.")
    ],
    probe: Annotated[
        str | None, typer.Option("--probe", help="Name of the probe; each run's first by default.")
    ] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option("--control", help="Run in which no task changed, for the verdicts; may be given several times."),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Title of the page.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="Column of the table over seeds, such as spike; may be given several times."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="File type of the figures: pdf, svg or png; all three by default."),
    ] = None,
) -> None:
    """Write an HTML report on runs, with figures for a paper and tables."""
    from avalanche_ntk.report import write_report
    from avalanche_ntk.report.seeds import COLUMNS
    from avalanche_ntk.report.writing import FORMATS

    with error_console().status("reading the runs") as status:
        written = write_report(
            runs,
            out,
            probe=probe,
            control=control or None,
            title=title,
            formats=formats or FORMATS,
            columns=column or COLUMNS,
            on_progress=status.update,
        )
    for sentence in written.unreadable:
        print(f"avalanche-ntk: left out: {sentence}", file=sys.stderr)
    print(f"Page:    {written.page}")
    if written.figures:
        print(f"Figures: {written.figures[0].parent} ({len(written.figures)} files)")
    print(f"Tables:  {written.tables[0].parent}")
