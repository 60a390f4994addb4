"""`avalanche-ntk run`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from avalanche_ntk.commands.shared import complete_from, error_console, names_of, out_console, parse_settings
from avalanche_ntk.errors import ended

# The most common keys of the configuration as flags: the flag, and the key that it sets.
FLAGS = {
    "strategy": "strategy.name",
    "benchmark": "benchmark.name",
    "data": "benchmark.data",
    "data_root": "benchmark.data_root",
    "model": "model.name",
    "width": "model.width",
    "depth": "model.depth",
    "regime": "regime.name",
    "lr": "optimizer.lr",
    "epochs": "epochs",
    "schedule": "schedule",
    "seed": "seed",
    "device": "device",
}


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Train and measure one configuration in a run folder.",
        epilog="Example: avalanche-ntk run --strategy Replay --width 256 --set probe.size=32 --out runs/replay",
    )(run)


def run(
    config: Annotated[
        str | None,
        typer.Argument(
            help="YAML file, or the name of a configuration that ships; the defaults when left out.",
            autocompletion=complete_from(names_of("ready")),
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder; runs/STRATEGY-BENCHMARK-HASH when left out.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key, such as model.width=128.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="strategy.name.", autocompletion=complete_from(names_of("strategies")))
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="benchmark.name.", autocompletion=complete_from(names_of("benchmarks")))
    ] = None,
    data: Annotated[str | None, typer.Option(help="benchmark.data.")] = None,
    data_root: Annotated[str | None, typer.Option(help="benchmark.data_root.")] = None,
    model: Annotated[
        str | None, typer.Option(help="model.name.", autocompletion=complete_from(names_of("models")))
    ] = None,
    width: Annotated[int | None, typer.Option(help="model.width.")] = None,
    depth: Annotated[int | None, typer.Option(help="model.depth.")] = None,
    regime: Annotated[
        str | None, typer.Option(help="regime.name.", autocompletion=complete_from(names_of("regimes")))
    ] = None,
    lr: Annotated[float | None, typer.Option(help="optimizer.lr.")] = None,
    epochs: Annotated[int | None, typer.Option(help="epochs.")] = None,
    schedule: Annotated[str | None, typer.Option(help="schedule, such as every_iterations:10.")] = None,
    seed: Annotated[int | None, typer.Option(help="seed.")] = None,
    device: Annotated[str | None, typer.Option(help="device, such as cuda.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in OUT.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Print every key of a configuration, and exit.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Print the resolved configuration, and exit.")] = False,
) -> None:
    """Train and measure one configuration in one run folder; an interrupted run is continued."""
    if keys:
        _print_keys()
        return
    from avalanche_ntk.experiments.config import load_config

    given = dict(
        strategy=strategy, benchmark=benchmark, data=data, data_root=data_root, model=model, width=width, depth=depth,
        regime=regime, lr=lr, epochs=epochs, schedule=schedule, seed=seed, device=device,
    )  # fmt: skip
    flags = {key: f"--{name.replace('_', '-')}" for name, key in FLAGS.items()}
    values: dict[str, Any] = {FLAGS[name]: value for name, value in given.items() if value is not None}
    settings = parse_settings(set_ or [])
    resolved = load_config(
        config, {**values, **settings}, called=lambda key: f"--set {key}" if key in settings else flags[key]
    )
    if check:
        import yaml

        # The output may be piped into a file, which must hold the same configuration: use escapes, not question marks.
        unicode = sys.stdout.encoding.lower().startswith("utf")
        print(yaml.safe_dump(resolved.as_dict(), sort_keys=False, allow_unicode=unicode), end="")
        return
    from avalanche_ntk.experiments.config import default_folder
    from avalanche_ntk.experiments.sweep import is_complete

    path = default_folder(resolved) if out is None else out
    if not overwrite and is_complete(path, resolved):
        print("This run is complete: nothing was trained. --overwrite repeats it.")
    else:
        _train(resolved, path, overwrite)
    _show(path)


def _train(resolved: Any, out: Path, overwrite: bool) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = error_console()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("loading torch and Avalanche", total=None)
        from avalanche_ntk.experiments.quiet import without_avalanches_own_warnings

        with without_avalanches_own_warnings():
            from avalanche_ntk.experiments.runner import run as run_one

            def on_progress(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total, description=f"{resolved.strategy.name}: tasks")

            run_one(resolved, out, overwrite=overwrite, on_progress=on_progress)


def _show(path: Path) -> None:
    from math import isnan

    from avalanche_ntk.experiments.comparison import read_run
    from avalanche_ntk.experiments.tables import HEADINGS
    from avalanche_ntk.numerals import written

    row = read_run(path)
    told = [f"{HEADINGS[name]} {written(value)}" for name, value in row.values.items() if not isnan(value)]
    print(", ".join(told))
    if row.failures:
        print(f"avalanche-ntk: {ended(row.failures)}", file=sys.stderr)
    print(f"Run folder: {path}")


def _print_keys() -> None:
    from rich.table import Table

    from avalanche_ntk.experiments.config import RunConfig
    from avalanche_ntk.experiments.schema import describe

    table = Table("key", "type", "default", "meaning")
    for row in describe(RunConfig):
        table.add_row(*row)
    out_console().print(table)
