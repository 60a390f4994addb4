"""Shared parts of commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160

# Options of commands that make a model and read data.
NClasses = Annotated[
    int | None, typer.Option("--n-classes", min=1, help="Number of outputs C; that of the data when left out.")
]
ModelArguments = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Argument of the model, such as width=128.")
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder of torchvision's datasets.")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download the data.")]
# Options of commands that can run on a cluster.
Executor = Annotated[str, typer.Option("--executor", help="processes (this machine), or submitit's slurm or local.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameter", metavar="NAME=VALUE", help="Of submitit, such as slurm_partition=gpu."),
]
Device = Annotated[str, typer.Option("--device", help="Device, such as cuda.")]


def parse_settings(given: Iterable[str], flag: str = "--set") -> dict[str, Any]:
    """Parse `KEY=VALUE` texts, with values as YAML.

    Args:
        given: The texts.
        flag: Their flag.

    Returns:
        Values by key.

    Raises:
        ConfigError: One has no `=`.
    """
    from avalanche_ntk.experiments.schema import ConfigError, parse_value

    values: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"{flag} takes KEY=VALUE, found {text!r}. Write {flag} model.width=128, for example.")
        values[key] = parse_value(value, f"{flag} {key}")
    return values


def out_console() -> Console:
    """Return the console for results: wide and without colour if piped."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def error_console() -> Console:
    """Return the console for progress and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def complete_from(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a shell completion function.

    Args:
        names: Gives the possible values.

    Returns:
        A function for typer.
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


def names_of(kind: str) -> Callable[[], Iterable[str]]:
    """Return a function that gives the names of a kind without heavy imports.

    Args:
        kind: Name of a function of `avalanche_ntk.experiments.names`, or "ready".

    Returns:
        The function.
    """

    def names() -> Iterable[str]:
        if kind in ("ready", "ready_sweeps"):
            from avalanche_ntk.experiments.config import ready

            return [n for n in ready() if n.startswith("sweep-") == (kind == "ready_sweeps")]
        from avalanche_ntk.experiments import names as known

        found: Iterable[str] = getattr(known, kind)()
        return found

    return names
