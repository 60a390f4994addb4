"""`avalanche-ntk compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from avalanche_ntk.commands.shared import out_console
from avalanche_ntk.errors import ended


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Compare runs in a table, with intervals.",
        epilog="Example: avalanche-ntk compare sweeps/width --by model.width --csv width.csv",
    )(compare)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some, such as a sweep's.")],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="KEY", help="Group by this key of the configuration, such as model.width."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="A row for each run, not for each group of seeds.")] = False,
    probe: Annotated[
        str | None, typer.Option("--probe", help="Name of the probe; each run's first by default.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the table as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option("--latex", help="Write the table as LaTeX (booktabs).")] = None,
) -> None:
    """Compare runs: accuracy, forgetting, kernel measures, and their rank correlations."""
    from avalanche_ntk.experiments import tables
    from avalanche_ntk.experiments.comparison import compare as compare_runs

    found = compare_runs(runs, by=by or [], probe=probe)
    for refusal in found.refusals:
        print(f"avalanche-ntk: {ended(refusal)}", file=sys.stderr)
    console = out_console()
    for table in tables.to_rich(found, each=each, width=console.width):
        console.print(table)
    for path, text in (
        (csv, lambda: tables.to_csv(found, each=each)),
        (markdown, lambda: tables.to_markdown(found, each=each)),
        (latex, lambda: tables.to_latex(found, each=each)),
    ):
        if path is not None:
            tables.write(path, text())
            print(f"Written: {path}")
