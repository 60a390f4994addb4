"""Access to a study's runs and measurements, for its judgement and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from avalanche_ntk.experiments.comparison import RunRow, read_run
from avalanche_ntk.experiments.sweep import Planned, Sweep
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report.runs import Run
from avalanche_ntk.report.runs import read_run as read_for_report
from avalanche_ntk.reproduce.study import Context, Place


@dataclass(frozen=True)
class DoneRun:
    """One run of a plan.

    Attributes:
        planned: Its plan: `values` (varying settings by dotted key), `config`, `control`.
        path: Its run folder.
    """

    planned: Planned
    path: Path

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.planned.config.seed

    @property
    def control(self) -> bool:
        """Whether no task changes in it."""
        return self.planned.control

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its configuration as plain values."""
        return self.planned.config.as_dict()

    def value(self, key: str) -> Any:
        """Return its configuration's value at a dotted key, such as `model.width`."""
        found: Any = self.config
        for part in key.split("."):
            found = found[part] if isinstance(found, Mapping) else None
        return found

    @cached_property
    def run(self) -> Run:
        """The run folder, read."""
        return read_for_report(self.path)

    @cached_property
    def row(self) -> RunRow:
        """The columns of `avalanche-ntk compare`."""
        return read_run(self.path)

    def trajectory(self, probe: str | None = None) -> Trajectory:
        """Return the series of a probe; None for the first."""
        return self.run.trajectory(probe)

    def reactivation(self, name: str, boundary: int = 1, probe: str | None = None) -> float:
        """Return a number of `measures.Reactivation` at the start of an experience; NaN if undefined."""
        found = self.trajectory(probe).reactivations.get(boundary)
        value = None if found is None else getattr(found, name)
        return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Results:
    """The results of a study.

    Attributes:
        context: Its setting.
        place: Location of its files.
        sweeps: The resolved plans.
    """

    context: Context
    place: Place
    sweeps: Mapping[str, Sweep] = field(default_factory=dict)

    def runs(self, plan: str, at: Mapping[str, Any] | None = None, *, control: bool | None = None) -> list[DoneRun]:
        """Return the runs of a plan, seeds in order.

        Args:
            plan: Its name.
            at: Required values by dotted key of the configuration; None for any.
            control: Whether to return controls or the others; None for both.

        Returns:
            The runs.
        """
        if plan not in self._cache:
            made = [DoneRun(planned, self._folders[planned.config.hash]) for planned in self.sweeps[plan].runs]
            self._cache[plan] = sorted(made, key=lambda run: run.seed)
        return [
            run
            for run in self._cache[plan]
            if (control is None or run.control == control)
            and all(run.value(key) == value for key, value in (at or {}).items())
        ]

    def seconds(self, parts: Iterable[str]) -> float:
        """Return the total seconds of all runs and measurements on one core."""
        made = {run.path: run for plan in self.sweeps for run in self.runs(plan)}
        runs = [run.run.folder.meta.get("wall_seconds", 0.0) for run in made.values()]
        measured = [read_measured(self.place.measured(part, seed)) for part in parts for seed in self.context.seeds]
        return float(sum(runs) + sum(one["seconds"] for one in measured))

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """Folders of the runs by the hash of their configuration."""
        return {
            planned.config.hash: self.place.sweep(plan) / "runs" / planned.name
            for plan, sweep in without_repeats(self.sweeps).items()
            for planned in sweep.runs
        }

    @cached_property
    def _cache(self) -> dict[str, list[DoneRun]]:
        return {}

    def measured(self, part: str) -> list[dict[str, Any]]:
        """Return the results of `measure` for a part, seeds in order."""
        return [read_measured(self.place.measured(part, seed))["values"] for seed in self.context.seeds]


def without_repeats(sweeps: Mapping[str, Sweep]) -> dict[str, Sweep]:
    """Return the plans without the runs that an earlier plan has: plans of a study share their usual setting.

    Args:
        sweeps: The resolved plans.

    Returns:
        The plans with what is to be made of each.
    """
    seen: set[str] = set()
    rest = {}
    for plan, sweep in sweeps.items():
        rest[plan] = replace(sweep, runs=tuple(p for p in sweep.runs if p.config.hash not in seen))
        seen |= {p.config.hash for p in sweep.runs}
    return rest


def per_seed(runs: Iterable[DoneRun], number: Callable[[DoneRun], float], seeds: Sequence[int]) -> list[float]:
    """Return one number per seed: the mean over the seed's runs, NaN if it has none.

    Args:
        runs: The runs.
        number: The number of a run.
        seeds: The seeds in order.

    Returns:
        The numbers.
    """
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(number(run))
    return [sum(found) / len(found) if (found := by_seed.get(seed)) else math.nan for seed in seeds]


def read_measured(path: Path) -> dict[str, Any]:
    """Read a part's result file: `arguments`, `values`, `seconds`."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
