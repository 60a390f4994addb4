"""`avalanche-ntk doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from avalanche_ntk.commands.shared import out_console


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Say what is installed and whether it works.", epilog="Example: avalanche-ntk doctor --device cuda"
    )(doctor)


def doctor(
    device: Annotated[str, typer.Option("--device", help="Device on which a kernel is computed as a check.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, whether it works, and what to do about what does not."""
    from avalanche_ntk.experiments.doctor import diagnose

    findings = diagnose(device)
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    else:
        console = out_console()
        styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
        for finding in findings:
            console.print(f"{finding.state:8}", style=styles[finding.state], end="")
            console.print(f"{finding.name}: {finding.found}", markup=False)
            if finding.remedy:
                console.print(f"        {finding.remedy}", markup=False)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)
