"""`avalanche-ntk inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from avalanche_ntk.report import Inspection


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The command line.
    """
    app.command(
        short_help="Show the contents of run folders and check that they are intact.",
        epilog="Example: avalanche-ntk inspect runs/naive",
    )(inspect)


def inspect(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some, such as a sweep's.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the contents of run folders and check that they are intact; exit with 1 if one is not."""
    from avalanche_ntk.errors import RunFolderError
    from avalanche_ntk.report import inspect_run
    from avalanche_ntk.report.runs import find_runs

    named, inside = find_runs(runs)
    found = [inspect_run(path) for path in named.values()]
    unreadable = []
    for path in inside.values():
        try:
            found.append(inspect_run(path))
        except RunFolderError as error:
            unreadable.append(str(error))
    if as_json:
        plain = [{**asdict(one), "path": str(one.path), "whole": one.whole} for one in found]
        print(json.dumps({"runs": plain, "unreadable": unreadable}, indent=1))
    else:
        for one in found:
            print("\n".join(_lines(one)), end="\n\n" if len(found) > 1 else "\n")
        for sentence in unreadable:
            print(f"Problem:     {sentence}")
        if len(found) + len(unreadable) > 1:
            print(f"{sum(one.whole for one in found)} of {len(found) + len(unreadable)} runs are intact.")
    if unreadable or not all(one.whole for one in found):
        raise typer.Exit(1)


def _lines(found: Inspection) -> list[str]:
    from avalanche_ntk.report.text import counted, plain

    lines = [
        f"Run:         {plain(found.path, 400)}",
        f"Made:        {plain(found.created)} by avalanche-ntk {plain(found.versions.get('avalanche-ntk', '?'))}, "
        f"torch {plain(found.versions.get('torch', '?'))}",
        f"What:        {_what(found.meta)}",
        f"Holds:       {counted(found.experiences, 'experience')}, {counted(found.iterations, 'iteration')}, "
        f"{_size(found.bytes)}",
        f"Records:     {', '.join(f'{plain(kind)} × {count:,}' for kind, count in found.records.items()) or 'none'}",
    ]
    for probe in found.probes:
        samples = "?" if probe.samples is None else f"{probe.samples:,}"
        failed = f", {len(probe.failures):,} failed" if probe.failures else ""
        bad = f", {len(probe.bad_kernels):,} not usable" if probe.bad_kernels else ""
        lines.append(
            f"Probe:       {probe.name}: {samples} samples, {counted(probe.measurements, 'measurement')}{failed}, "
            f"{counted(probe.kernels, 'kernel')} intact{bad}"
        )
    lines += [f"Remark:      {plain(remark, 400)}" for remark in found.remarks]
    lines += [f"Problem:     {plain(problem, 600)}" for problem in found.problems]
    lines.append(f"Whole:       {'yes' if found.whole else 'no'}")
    return lines


def _what(meta: Mapping[str, Any]) -> str:
    from avalanche_ntk.report.text import plain

    model = meta.get("model")
    parts = [
        f"strategy {plain(meta['strategy'])}" if "strategy" in meta else "",
        f"model {plain(model['name'])}" if isinstance(model, Mapping) and "name" in model else "",
        f"seed {plain(meta['seed'])}" if meta.get("seed") is not None else "",
        f"schedule {plain(meta['cadence'])}" if meta.get("cadence") else "",
        f"status {plain(meta['status'])}" if "status" in meta else "",
    ]
    return ", ".join(part for part in parts if part) or "nothing is stored about it"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
