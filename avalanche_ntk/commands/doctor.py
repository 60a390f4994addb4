"""`avalanche-ntk doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avalanche_ntk.commands.shared import (
    DataRoot,
    Download,
    ModelArguments,
    NClasses,
    complete_from,
    error_console,
    names_of,
    out_console,
    parse_settings,
)

if TYPE_CHECKING:
    from avalanche_ntk.experiments.costs import Costs


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Check the installation, and predict the cost of measuring a model.",
        epilog="Example: avalanche-ntk doctor --model resnet18 --data digits --epochs 5",
    )(doctor)


def doctor(
    device: Annotated[str, typer.Option("--device", help="Device on which a kernel is computed as a check.")] = "cpu",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Time this model: module:factory, or a name, such as mlp.",
            autocompletion=complete_from(names_of("models")),
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="digits, markov, a name of torchvision.datasets, or a folder or zip of images."),
    ] = None,
    probe_size: Annotated[int, typer.Option("--probe-size", min=1, help="Number of samples N of the probe.")] = 64,
    mb_size: Annotated[int, typer.Option("--mb-size", min=1, help="Size of the training minibatch.")] = 64,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of a task.")] = 10,
    iterations: Annotated[
        int | None,
        typer.Option("--iterations", min=1, help="Iterations of a task's epoch; those of all data when left out."),
    ] = None,
    n_projections: Annotated[
        int, typer.Option("--n-projections", min=1, help="Number of sign vectors, for projected.")
    ] = 8,
    n_classes: NClasses = None,
    set_: ModelArguments = None,
    data_root: DataRoot = None,
    download: Download = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the installation, suggest remedies, and predict the cost of measuring a model."""
    from avalanche_ntk.errors import ArgumentError
    from avalanche_ntk.experiments.doctor import diagnose

    if (model is None) != (data is None):
        raise ArgumentError(
            "the cost of measuring needs a model and data: found only one of them. Give --model and --data."
        )
    arguments = parse_settings(set_ or [])
    findings = diagnose(device)
    costs = None
    if model is not None and data is not None:
        with error_console().status("timing the model"):
            from avalanche_ntk.experiments.costs import costs_of

            costs = costs_of(
                model, data, size=probe_size, mb_size=mb_size, epochs=epochs, iterations_per_epoch=iterations,
                n_projections=n_projections, n_classes=n_classes, arguments=arguments, data_root=data_root,
                download=download, device=device,
            )  # fmt: skip
    if as_json:
        found = [asdict(f) for f in findings]
        print(json.dumps(found if costs is None else {"findings": found, "costs": _plain(costs)}, indent=1))
    else:
        console = out_console()
        styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
        for finding in findings:
            console.print(f"{finding.state:8}", style=styles[finding.state], end="")
            console.print(f"{finding.name}: {finding.found}", markup=False)
            if finding.remedy:
                console.print(f"        {finding.remedy}", markup=False)
        if costs is not None:
            _print_costs(costs)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _plain(costs: Costs) -> dict[str, Any]:
    plain = asdict(costs)
    for row, told in zip(costs.measuring, plain["measuring"], strict=True):
        for name, cost in row.costs.items():
            told["costs"][name]["share"] = cost.share
    return plain


def _print_costs(costs: Costs) -> None:
    from rich.table import Table

    from avalanche_ntk.numerals import written
    from avalanche_ntk.recorder.cost import percent

    title = (
        f"Measuring's share of a run's time, and measurements of a task: {costs.epochs} epochs of "
        f"{costs.iterations_per_epoch} iterations of {written(costs.iteration_seconds)} s"
    )
    table = Table("reduction", "a measurement", *costs.measuring[0].costs, title=title, title_justify="left")
    for row in costs.measuring:
        name = row.reduction if row.n_projections is None else f"{row.reduction}, {row.n_projections} sign vectors"
        shares = [f"{percent(cost.share)}, {cost.measurements} times" for cost in row.costs.values()]
        table.add_row(name, f"{written(row.seconds)} s", *shares)
    out_console().print(table)
