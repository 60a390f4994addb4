"""Groups of runs that differ only in the seed, and matching controls."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avalanche_ntk import measures
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.recorder.resume import RUN_SETTINGS
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report.runs import Run, seed_of, strategy_of, varied
from avalanche_ntk.report.text import counted, listed, plain

_CHANGES_NO_NUMBER = ("seed", "checkpoint", "tensorboard")


@dataclass(frozen=True)
class Group:
    """Runs of one setting.

    Attributes:
        name: The varying settings in words; the strategy's name if only that varies.
        runs: The runs, with different seeds.
        control: Whether they are controls, in which no task changes.
    """

    name: str
    runs: tuple[Run, ...]
    control: bool = False


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ only in the seed, in their order; controls come last.

    Args:
        runs: The runs.

    Returns:
        The groups. A run with an unknown or repeated seed is a group of its own.
    """
    by_setting: dict[str, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(_setting(run), []).append(run)
    found: list[tuple[list[Run], bool]] = []
    for members in by_setting.values():
        seeds = [seed_of(run) for run in members]
        alone = None in seeds or len(set(seeds)) < len(seeds)
        found += [([run], run.is_control) for run in members] if alone else [(members, members[0].is_control)]
    found.sort(key=lambda one: one[1])
    names = [described(members[0]) if len(members) > 1 or members[0].tags else members[0].name for members, _ in found]
    # Settings with the same name (from two sweeps) take the names of their first runs.
    called = Counter((name, control) for name, (_, control) in zip(names, found, strict=True))
    names = [
        name if called[name, control] == 1 else f"{name} ({members[0].name})"
        for name, (members, control) in zip(names, found, strict=True)
    ]
    return [Group(name, tuple(members), control) for name, (members, control) in zip(names, found, strict=True)]


def _setting(run: Run) -> str:
    meta = run.folder.meta
    config = meta.get("config")
    kept = (
        {k: v for k, v in config.items() if k not in _CHANGES_NO_NUMBER}
        if isinstance(config, Mapping)
        else {key: meta[key] for key in RUN_SETTINGS if key in meta}
    )
    return json.dumps([run.is_control, kept], sort_keys=True, default=str)


def described(run: Run) -> str:
    """Return the settings that distinguish a run within its sweep; without a sweep, its strategy."""
    words = [
        plain(value) if last == "name" and isinstance(value, str) else f"{last}={_brief(value)}"
        for last, value in ((key.rpartition(".")[2], value) for key, value in varied(run).items())
    ]
    return ", ".join(words) or ("no shift" if run.is_control else strategy_of(run) or run.name)


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return plain(value.get("name", "-".join(f"{k}={v}" for k, v in value.items())))
    return f"{value:g}" if isinstance(value, float) else plain(value)


def matching(trajectory: Trajectory, controls: Iterable[Run]) -> tuple[list[Trajectory], list[str]]:
    """Return the controls comparable with a trajectory, and the reasons against the others.

    A control has the same probe, of the same classes, and was measured at the same cadence. In a sweep each seed may
    draw different classes: then only the control of the run's own seed matches.

    Args:
        trajectory: The series of a run.
        controls: Runs in which no task changes.

    Returns:
        Their series of the same probe, and a reason for each other control.
    """
    found, reasons = [], []
    for control in controls:
        series = control.trajectories.get(trajectory.probe)
        if series is None:
            reasons.append(f"{control.name} has no probe {trajectory.probe!r}")
            continue
        try:
            trajectory.verdicts(series)
        except ArgumentError as error:
            reasons.append(f"{control.name}: {str(error).rstrip('.')}")
        else:
            found.append(series)
    return found, reasons


def verdicts(trajectory: Trajectory, controls: Sequence[Run]) -> dict[int, measures.Verdict] | str:
    """Return the verdicts from matching controls by experience, or the reason if there are none."""
    beside, reasons = matching(trajectory, controls)
    if beside:
        return trajectory.verdicts(beside)
    told = listed([f"{reason}" for reason in reasons], 1)
    return f"none of {counted(len(controls), 'control')} matches: {told}."


def verdicts_over_seeds(
    group: Group, controls: Mapping[str, Sequence[Run]], probe: str | None
) -> dict[int, measures.SeedVerdict]:
    """Return the verdicts on a group by experience, pairing each run with the control of its seed.

    Args:
        group: The runs.
        controls: The controls of each run, by its name.
        probe: Name of the probe; None for each folder's first.

    Returns:
        The verdict at each boundary completed by a run.
    """
    pairs: dict[int, list[tuple[measures.Reactivation, measures.Reactivation]]] = {}
    for run in group.runs:
        trajectory = run.trajectory(probe)
        own = [control for control in controls.get(run.name, ()) if seed_of(control) == seed_of(run)]
        for series in matching(trajectory, own)[0][:1]:
            for experience, found in list(trajectory.reactivations.items())[1:]:
                if experience in series.reactivations:
                    pairs.setdefault(experience, []).append((found, series.reactivations[experience]))
    return {experience: measures.verdict_over_seeds(both) for experience, both in sorted(pairs.items())}
