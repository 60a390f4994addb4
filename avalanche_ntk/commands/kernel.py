"""`avalanche-ntk kernel`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avalanche_ntk.commands.shared import (
    DataRoot,
    Device,
    Download,
    ModelArguments,
    NClasses,
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
        short_help="Compute the kernel of a model on data.",
        epilog="Example: avalanche-ntk kernel mymodels:make_net --data digits --size 32 --out kernel.safetensors",
    )(kernel)


def kernel(
    model: Annotated[
        str,
        typer.Argument(
            help="module:factory, or a model by name, such as mlp.", autocompletion=complete_from(names_of("models"))
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="digits, markov (generated tokens), a name of torchvision.datasets, a folder or zip, or inputs .npy.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="File ending in .safetensors or .npy.")] = Path(
        "kernel.safetensors"
    ),
    size: Annotated[int, typer.Option("--size", min=1, help="Number of samples N, equally many of each class.")] = 64,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "train",
    reduction: Annotated[str, typer.Option("--reduction", help="trace, sum_logits, projected or full.")] = "trace",
    n_projections: Annotated[
        int | None, typer.Option("--n-projections", min=1, help="Number of sign vectors, for projected.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="State dict: .safetensors, or what torch.save wrote.")
    ] = None,
    n_classes: NClasses = None,
    set_: ModelArguments = None,
    data_root: DataRoot = None,
    download: Download = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 or float64; the model's own by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of weights and choice of samples.")] = 0,
    device: Device = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Compute the kernel of a model on data, and store it."""
    arguments = parse_settings(set_ or [])
    with error_console().status("loading torch"):
        from avalanche_ntk.experiments.quiet import without_avalanches_own_warnings

        with without_avalanches_own_warnings():
            from avalanche_ntk.experiments.single import kernel_to_file

            told = kernel_to_file(
                model, data, out, size=size, split=split, reduction=reduction, n_projections=n_projections,
                weights=weights, n_classes=n_classes, arguments=arguments, data_root=data_root, download=download,
                dtype=dtype, seed=seed, device=device, overwrite=overwrite,
            )  # fmt: skip
    for name, value in told.items():
        print(f"{name}: {value}")
