"""The command line: `avalanche-ntk …`. Everything heavy is imported inside its command, so that `--help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avalanche_ntk.commands import compare, doctor, inspect, kernel, report, run, sweep
from avalanche_ntk.errors import NTKError

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="Watch the empirical neural tangent kernel while an Avalanche strategy trains.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


run.register(app)
sweep.register(app)
compare.register(app)
report.register(app)
inspect.register(app)
kernel.register(app)
doctor.register(app)


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    context.obj = {"debug": debug}


@app.command()
def version() -> None:
    """Print the version."""
    from avalanche_ntk import __version__

    print(__version__)


@app.command(epilog="Example: avalanche-ntk demo --out ntk-demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("ntk-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demonstration in OUT.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of data split, models and training.")] = 0,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs for each experience.")] = 10,
) -> None:
    """Train Naive and Replay on Split-Digits and show what the first task's kernel does at the boundaries."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    console.print("Split-Digits: 5 tasks of 2 classes; the kernel of 64 training images of task 1 is watched.")
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        bar = progress.add_task("loading torch and Avalanche", total=None)
        import torch

        from avalanche_ntk.demo import EXPERIENCES, STRATEGIES, run_demo

        torch.set_num_threads(1)  # matrices this small gain nothing from more, and lose on a busy machine

        progress.update(bar, total=EXPERIENCES * len(STRATEGIES), description="training")

        def on_progress(strategy: str, experiences: int) -> None:
            progress.update(bar, advance=1, description=f"{strategy}, task {experiences} of {EXPERIENCES}")

        with _without_avalanches_own_warnings():
            folders = run_demo(out, overwrite=overwrite, seed=seed, epochs=epochs, on_progress=on_progress)
        progress.update(bar, description="drawing")
        from avalanche_ntk.report import boundary_table, four_panels

        table = boundary_table(folders.runs)
        table.to_csv(folders.table, index=False)
        title = "Kernel of task 1 while Split-Digits is learnt, task by task"
        four_panels(folders.runs, title=title).savefig(folders.figure, dpi=150)
        progress.update(bar, description="done")
    _print_boundaries(table)
    print(f"Figure: {folders.figure}")
    print(f"Table:  {folders.table}")
    print(f"Curves: tensorboard --logdir {_quoted(folders.tensorboard)}")


@contextmanager
def _without_avalanches_own_warnings() -> Generator[None]:
    """Leave out what Avalanche says of its own deprecated calls, which a user of the demonstration cannot change.

    Avalanche sets the filter itself before each of these warnings, so that only the display can be chosen.
    """
    import warnings

    with warnings.catch_warnings():
        show = warnings.showwarning

        def only_others(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
            if not (issubclass(category, DeprecationWarning) and "avalanche" in Path(filename).parts):
                show(message, category, filename, *rest)

        warnings.showwarning = only_others  # type: ignore[assignment]
        yield


def _print_boundaries(frame: pd.DataFrame) -> None:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    def number(value: object, text: str) -> str:
        return "–" if pd.isna(value) else text.format(value)

    table = Table(title="What happened when the task changed (all measured on task 1)", title_justify="left")
    for heading in (
        "run",
        "boundary",
        "accuracy",
        "forgetting",
        "distance\nmoved",
        "spike",
        "ratio",
        "λ_max\ndip",
        "alignment\ndrop",
    ):
        table.add_column(heading, justify="left" if heading in ("run", "boundary") else "right")
    for row in frame.to_dict("records"):
        first = row["experience"] == 0
        ratio = number(row["ratio"], "{:.1f}")
        table.add_row(
            str(row["run"]),
            "start → task 1" if first else f"task {row['experience']} → {row['experience'] + 1}",
            number(row["accuracy_first_task"], "{:.3f}"),
            number(row["forgetting_first_task"], "{:.3f}"),
            number(row["moved"], "{:.2e}"),
            number(row["spike"], "{:.1e}"),
            f"≥ {ratio}" if row["ratio_at_floor"] is True else ratio,
            number(row["norm_dip"], "{:.3f}"),
            number(row["alignment_drop"], "{:.3f}"),
            end_section=bool(row["experience"] == frame["experience"].max()),
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def main() -> None:
    """Run the command line; errors go to stderr without a traceback, unless `--debug` stands anywhere in the line.

    Exit codes: 0 when all was done, 1 when something failed, 2 when the command line or a configuration is wrong.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, standalone_mode=True)
    except Exception as error:
        if len(arguments) < len(sys.argv) - 1:
            raise
        what = str(error) if isinstance(error, NTKError) else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"avalanche-ntk: {what}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
