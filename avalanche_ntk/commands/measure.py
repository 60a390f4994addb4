"""`avalanche-ntk measure`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from avalanche_ntk.commands.shared import (
    DataRoot,
    Device,
    Download,
    Executor,
    ModelArguments,
    NClasses,
    Parameters,
    complete_from,
    error_console,
    names_of,
    parse_settings,
)


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Measure saved checkpoints, and write a run folder as during training.",
        epilog="Example: avalanche-ntk measure 'saved/*.pt' --model mymodels:make_net --data digits --boundaries 500 "
        "--out runs/saved",
    )(measure)


def measure(
    checkpoints: Annotated[
        list[str], typer.Argument(help="State dicts (.safetensors, or torch.save), snapshots of a run, or patterns.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="module:factory, or a model by name, such as mlp.",
            autocompletion=complete_from(names_of("models")),
        ),
    ],
    data: Annotated[
        str,
        typer.Option("--data", help="digits, markov, a name of torchvision.datasets, or a folder or zip of images."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder; an existing run is continued.")],
    probe_size: Annotated[int, typer.Option("--probe-size", min=1, help="Number of samples N of the probe.")] = 64,
    boundaries: Annotated[
        str, typer.Option("--boundaries", help="Iterations at which a new task begins, such as 500,1000.")
    ] = "",
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern", help="Regular expression for file names, with groups iteration and, optionally, task."
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", help="CSV file with the columns file, iteration and, optionally, task.")
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Prefix of keys that the model's keys lack, such as module.")
    ] = "",
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "train",
    reduction: Annotated[str, typer.Option("--reduction", help="trace, sum_logits or projected.")] = "trace",
    n_projections: Annotated[
        int | None, typer.Option("--n-projections", min=1, help="Number of sign vectors, for projected.")
    ] = None,
    n_classes: NClasses = None,
    set_: ModelArguments = None,
    data_root: DataRoot = None,
    download: Download = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32 or float64; the model's own if none.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the choice of samples.")] = 0,
    device: Device = "cpu",
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Checkpoints measured at a time; 1 here, no limit on a cluster.")
    ] = None,
    executor: Executor = "processes",
    parameter: Parameters = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in OUT.")] = False,
) -> None:
    """Measure the kernel at saved checkpoints."""
    from avalanche_ntk.errors import ArgumentError
    from avalanche_ntk.experiments.launch import EXECUTORS, JobPool, submitit_executor

    arguments = parse_settings(set_ or [])
    cluster = submitit_executor(executor, Path(f"{out}-submitit"), parse_settings(parameter or [], "--parameter"))
    try:
        begun = [int(part) for part in boundaries.split(",") if part.strip()]
    except ValueError:
        raise ArgumentError(f"--boundaries takes iterations, such as 500,1000; found {boundaries!r}.") from None
    with _bar() as progress:
        from avalanche_ntk.experiments.quiet import without_avalanches_own_warnings

        with without_avalanches_own_warnings():
            from avalanche_ntk.experiments.single import checkpoints_to_run

            further = {} if pattern is None else {"pattern": pattern}
            trajectory = checkpoints_to_run(
                checkpoints, model, data, out, size=probe_size, split=split, n_classes=n_classes, arguments=arguments,
                data_root=data_root, download=download, dtype=dtype, seed=seed, boundaries=begun, table=table,
                prefix=prefix, reduction=reduction, n_projections=n_projections, device=device,
                jobs=jobs or EXECUTORS[executor], pool=None if cluster is None else JobPool(cluster),
                overwrite=overwrite, **further,
                progress=progress,
            )  # fmt: skip
    print(f"{out}: {len(trajectory)} measurements, {len(trajectory.reactivations)} tasks")


@contextmanager
def _bar() -> Generator[Callable[[int, int], None], None, None]:
    """Show a progress bar; yield a function that takes the number of measured and of all checkpoints."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console()) as bar:
        task = bar.add_task("loading torch", total=None)
        yield lambda done, total: bar.update(task, description="measured", completed=done, total=total)
