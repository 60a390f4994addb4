"""`avalanche-ntk demo`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        short_help="Train Naive and Replay on digits and show what happened.",
        epilog="Example: avalanche-ntk demo --out ntk-demo",
    )(demo)


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
    console.print("Split-Digits: 5 tasks of 2 classes; the kernel of 64 training images of task 1 is measured.")
    with Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        console=console,
        disable=not console.is_terminal,  # a progress bar is useless in a pipe
    ) as progress:
        bar = progress.add_task("loading torch and Avalanche", total=None)
        import torch

        from avalanche_ntk.demo import EXPERIENCES, STRATEGIES, draw_demo, run_demo

        torch.set_num_threads(1)  # more threads do not help with matrices this small, and slow down a busy machine

        progress.update(bar, total=EXPERIENCES * len(STRATEGIES), description="training")

        def on_progress(strategy: str, experiences: int) -> None:
            progress.update(bar, advance=1, description=f"{strategy}, task {experiences} of {EXPERIENCES}")

        folders = run_demo(out, overwrite=overwrite, seed=seed, epochs=epochs, on_progress=on_progress)
        progress.update(bar, description="drawing")
        from avalanche_ntk.report import boundary_table

        table = boundary_table(folders.runs)
        table.to_csv(folders.table, index=False)
        draw_demo(folders).savefig(folders.figure, dpi=150)
        progress.update(bar, description="done")
    _print_boundaries(table)
    print(f"Figure: {folders.figure}")
    print(f"Table:  {folders.table}")
    print(f"Curves: tensorboard --logdir {shlex.quote(str(folders.tensorboard))}")


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
