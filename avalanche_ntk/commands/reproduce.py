"""`avalanche-ntk reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avalanche_ntk.commands.shared import complete_from, error_console, out_console

if TYPE_CHECKING:
    from avalanche_ntk.reproduce.runner import Outcome


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Reproduce a published result, with a verdict on each of its statements.",
        epilog="Example: avalanche-ntk reproduce reactivation --scale small --jobs 2",
    )(reproduce)


def _names() -> list[str]:
    from avalanche_ntk.reproduce.registry import STUDIES

    return list(STUDIES)


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Name of the result (--list).", autocompletion=complete_from(_names)),
    ] = None,
    scale: Annotated[
        str, typer.Option("--scale", help="tiny (seconds), small (minutes on two cores) or paper (for a GPU).")
    ] = "small",
    data: Annotated[
        str, typer.Option("--data", help="digits, a name of torchvision.datasets such as CIFAR10, a folder, a zip.")
    ] = "digits",
    data_root: Annotated[str | None, typer.Option("--data-root", help="Folder of torchvision's datasets.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; reproduced/NAME-SCALE when left out. What is there is kept.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at the same time, each on one core.")] = 1,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Number of seeds; 5, and 2 at the scale tiny, when left out.")
    ] = None,
    first_seed: Annotated[int, typer.Option("--first-seed", min=0, help="The least seed; the others follow it.")] = 0,
    budget: Annotated[
        int | None,
        typer.Option("--budget", min=1, help="Most seeds: --seeds more at a time while a statement is undecided."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Device, such as cpu or cuda.")] = "cpu",
    list_: Annotated[bool, typer.Option("--list", help="Print the results that can be reproduced, and exit.")] = False,
) -> None:
    """Reproduce a published result: claims, findings and figures. Call again to resume."""
    from avalanche_ntk.experiments.schema import ConfigError, unknown_choice
    from avalanche_ntk.reproduce.registry import STUDIES, Scale

    if list_:
        _print_studies()
        return
    if name is None:
        raise ConfigError("reproduce needs the name of a result, found none. See reproduce --list.")
    for what, found, known in (("result", name, list(STUDIES)), ("scale", scale, [s.value for s in Scale])):
        if found not in known:
            raise ConfigError(unknown_choice(what, found, known))
    from avalanche_ntk.reproduce.runner import reproduce as make

    console = error_console()
    told: dict[str, int] = {}
    with console.status("reading existing results") as status:

        def on_progress(what: str, done: int, total: int) -> None:
            status.update(f"{name}: {what}: {done} of {total}")
            if not console.is_terminal and done and told.get(what) != done and (done % 10 == 0 or done == total):
                told[what] = done
                console.print(f"{what}: {done} of {total}", markup=False)

        outcome = make(
            name,
            out,
            scale=scale,
            data=data,
            data_root=data_root,
            seeds=seeds,
            first_seed=first_seed,
            budget=budget,
            jobs=jobs,
            device=device,
            on_progress=on_progress,
        )
    _print_claims(outcome)


def _print_claims(outcome: Outcome) -> None:
    from rich.table import Table

    table = Table("statement", "verdict", title_justify="left")
    for claim in outcome.claims:
        table.add_row(claim.text, claim.told)
    out_console().print(table)
    print(f"Results: {outcome.out / 'results.md'}")
    print(f"Figures: {outcome.out / 'figures'}")


def _print_studies() -> None:
    from rich.table import Table

    from avalanche_ntk.reproduce.registry import STUDIES

    table = Table("name", "what", "source")
    for name, entry in STUDIES.items():
        table.add_row(name, entry.title, entry.source)
    out_console().print(table)
