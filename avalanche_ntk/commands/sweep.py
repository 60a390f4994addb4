"""`avalanche-ntk sweep`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avalanche_ntk.commands.shared import (
    Executor,
    Parameters,
    complete_from,
    error_console,
    names_of,
    out_console,
    parse_settings,
)

if TYPE_CHECKING:
    from avalanche_ntk.experiments.sweep import Outcome, Sweep


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Make all incomplete runs of a plan.",
        epilog="Example: avalanche-ntk sweep sweep-width --jobs 2 --out sweeps/width",
    )(sweep)


def sweep(
    plan: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP",
            help="YAML file, or the name of a sweep that ships (--list).",
            autocompletion=complete_from(names_of("ready_sweeps")),
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; sweeps/NAME when left out.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at the same time; 1 here, no limit on a cluster.")
    ] = None,
    executor: Executor = "processes",
    parameter: Parameters = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of all runs, such as epochs=1.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Repeat complete runs.")] = False,
    show_plan: Annotated[bool, typer.Option("--plan", help="Print the runs, and exit.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Print the sweeps that ship, and exit.")] = False,
) -> None:
    """Make all incomplete runs of a plan; failures are reported at the end."""
    from avalanche_ntk.experiments.schema import ConfigError
    from avalanche_ntk.experiments.sweep import load_sweep, run_sweep

    if list_:
        _print_ready()
        return
    if plan is None:
        raise ConfigError("sweep needs a plan: expected a YAML file or a name, found none. See sweep --list.")
    made = load_sweep(plan, parse_settings(set_ or []))
    if show_plan:
        _print_plan(made)
        return
    # If the sweep is terminated, end the runs too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with _Progress(len(made.runs)) as progress:
        result = run_sweep(
            made,
            out or Path("sweeps") / made.name,
            jobs=jobs,
            executor=executor,
            parameters=parse_settings(parameter or [], "--parameter"),
            overwrite=overwrite,
            on_change=progress.show,
        )
    counted = {state: sum(o.state == state for o in result.outcomes) for state in ("done", "skipped", "failed")}
    print(", ".join(f"{n} {state}" for state, n in counted.items() if n or state == "done"))
    print(f"Compare: avalanche-ntk compare {result.out}")
    if result.failures:
        print(f"avalanche-ntk: {len(result.failures)} of {len(made.runs)} runs failed:", file=sys.stderr)
        for outcome in result.failures:
            print(f"  {outcome.planned.name}: {outcome.error}", file=sys.stderr)
            if outcome.log is not None:
                print(f"    its output: {outcome.log}", file=sys.stderr)
        raise typer.Exit(1)


class _Progress:
    """On a terminal, a progress bar for the sweep and for each run; otherwise a line per run."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.console = error_console()
        self.live = self.console.is_terminal
        self.told: dict[str, str] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=self.console, disable=not self.live)
        self.bar = self.progress.add_task("runs", total=total)
        self.bars: dict[str, Any] = {}

    def __enter__(self) -> _Progress:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def show(self, outcomes: Sequence[Outcome]) -> None:
        """Show the progress of the runs."""
        ended = [o for o in outcomes if o.state in ("done", "skipped", "failed")]
        self.progress.update(self.bar, completed=len(ended))
        for outcome in outcomes:
            name = outcome.planned.name
            if outcome.state == "running" and name not in self.bars:
                self.bars[name] = self.progress.add_task(f"  {name}", total=None)
            if outcome.state == "running" and outcome.progress[1]:
                self.progress.update(self.bars[name], completed=outcome.progress[0], total=outcome.progress[1])
            elif name in self.bars and outcome.state != "running":
                self.progress.remove_task(self.bars.pop(name))
            if self.told.get(name, "waiting") != outcome.state:
                self.told[name] = outcome.state
                if not self.live or outcome.state in ("done", "failed"):
                    self.console.print(f"{outcome.state:8}{name}", markup=False)


def _print_plan(made: Sweep) -> None:
    from rich.table import Table

    table = Table("run", "what varies", "seed", "control", title=made.description or made.name, title_justify="left")
    for planned in made.runs:
        table.add_row(planned.name, planned.label, str(planned.config.seed), "yes" if planned.control else "")
    out_console().print(table)


def _print_ready() -> None:
    from rich.table import Table

    from avalanche_ntk.experiments.config import ready
    from avalanche_ntk.experiments.sweep import load_sweep

    table = Table("sweep", "runs", "what for")
    for name, path in ready().items():
        if name.startswith("sweep-"):
            made = load_sweep(path)
            table.add_row(name, str(len(made.runs)), made.description)
    out_console().print(table)
