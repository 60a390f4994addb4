"""Sweeps: many runs of one plan, a grid or a list over any keys of the configuration, each run in its own folder.

Layout of a sweep's folder:

    sweep.json          the resolved plan: the runs, their names, varying settings and controls
    runs/<name>/        the run folders; names end with the beginning of the configuration's hash
    jobs/<name>.json    input of each process
    logs/<name>.log     output of each process
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.experiments.config import SHORTHANDS, RunConfig, ready_path, resolve
from avalanche_ntk.experiments.launch import Handle, Launcher, Workers, launcher
from avalanche_ntk.experiments.schema import ConfigError, Document, as_plain, build, option, read_document
from avalanche_ntk.files import write_whole
from avalanche_ntk.recorder.runfolder import RunFolder

COMPLETE = "complete"  # the same word as in `runner`, which imports torch
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class SweepConfig:
    """A plan: common and varying settings of runs.

    The runs are all combinations of an entry of `runs`, a value of each key of `grid`, and one of `seeds`. With
    `control`, each is repeated with the values of `control`. Runs with equal configurations are merged.
    """

    description: str = option("", help="What the sweep is for.")
    base: dict[str, Any] = option(factory=dict, help="What all runs share: the keys of a run's configuration.")
    grid: dict[str, Any] = option(factory=dict, help="Lists of values by dotted key, such as `model.width: [64, 256]`.")
    runs: list[dict[str, Any]] = option(factory=list, help="Values by dotted key, one mapping for each run.")
    control: dict[str, Any] = option(factory=dict, help="Values by dotted key that make the no-shift control of a run.")
    seeds: list[int] = option(factory=list, help="Seeds; that of `base` when empty.")


@dataclass(frozen=True)
class Planned:
    """One run of a plan.

    Attributes:
        name: Name of its folder.
        label: The settings that distinguish it, without the seed.
        config: Its configuration.
        values: The varying settings, by dotted key.
        control: Whether it is the no-shift control of others.
    """

    name: str
    label: str
    config: RunConfig
    values: Mapping[str, Any]
    control: bool


@dataclass(frozen=True)
class Sweep:
    """A resolved plan.

    Attributes:
        name: Its name.
        description: Its purpose.
        runs: Its runs, without duplicates.
    """

    name: str
    description: str
    runs: tuple[Planned, ...]


@dataclass
class Outcome:
    """The outcome of one run.

    Attributes:
        planned: The run.
        path: Its folder.
        state: "waiting", "running", "done", "skipped" (it was complete) or "failed".
        progress: Numbers of finished and of all experiences.
        error: Why it failed.
        log: Path of its output.
    """

    planned: Planned
    path: Path
    state: str = "waiting"
    progress: tuple[int, int] = (0, 0)
    error: str | None = None
    log: Path | None = None


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep.

    Attributes:
        out: Its folder.
        outcomes: Outcomes of the runs, in the plan's order.
    """

    out: Path
    outcomes: tuple[Outcome, ...] = field(default_factory=tuple)

    @property
    def failures(self) -> list[Outcome]:
        """The runs that failed."""
        return [o for o in self.outcomes if o.state == "failed"]


def load_sweep(
    source: str | Path | Mapping[str, Any], values: Mapping[str, Any] | None = None, name: str | None = None
) -> Sweep:
    """Read and resolve a plan; every configuration is checked before any run begins.

    Args:
        source: A YAML file, the name of a ready one, or its keys as a mapping.
        values: Values by dotted key that replace those of `base`.
        name: The sweep's name; None for the file's.

    Returns:
        The sweep.

    Raises:
        ConfigError: The plan, or one of its runs, cannot be used.
    """
    if isinstance(source, Mapping):
        document, called = Document(as_plain(source), "the sweep"), name or "sweep"
    else:
        path = ready_path(source)
        document, called = read_document(path), name or path.stem
    plan = build(SweepConfig, document)
    for key, options in plan.grid.items():
        if not isinstance(options, list) or not options:
            raise document.error(
                ("grid", key), f"grid.{key} must be a list of values, found {options!r}. Write [a, b]."
            )
    base = document.below(("base",)) if "base" in (document.data or {}) else Document({}, document.source)
    if values:
        base = base.with_values(values, lambda key: f"the value of {key}", SHORTHANDS)
    runs: dict[str, Planned] = {}
    varied = _varied(plan)
    for index, chosen in enumerate(plan.runs or [{}]):
        for combination in itertools.product(*[range(len(v)) for v in plan.grid.values()]):
            on_grid = {key: plan.grid[key][i] for key, i in zip(plan.grid, combination, strict=True)}
            seeds: list[int | None] = [*plan.seeds] or [None]
            for seed, control in itertools.product(seeds, [False, True] if plan.control else [False]):
                config = _with(base, document, chosen, ("runs", index))
                for key, i in zip(plan.grid, combination, strict=True):
                    config = _with(config, document, {key: plan.grid[key][i]}, ("grid", key, i), whole=True)
                if seed is not None:
                    config = config.with_values({"seed": seed}, document.place(("seeds",)))
                if control:
                    config = _with(config, document, plan.control, ("control",))
                made = resolve(config)
                told = {k: v for k, v in {**chosen, **on_grid}.items() if k in varied}
                if control:
                    told = {k: v for k, v in told.items() if not any(_covers(c, k) for c in plan.control)}
                if made.hash not in runs:
                    runs[made.hash] = _planned(made, told, control)
    return Sweep(called, plan.description, tuple(runs.values()))


def _with(
    config: Document, document: Document, values: Mapping[str, Any], keys: tuple[str | int, ...], whole: bool = False
) -> Document:
    for key, value in values.items():
        config = config.with_values({key: value}, document.place(keys if whole else (*keys, key)), SHORTHANDS)
    return config


def _varied(plan: SweepConfig) -> set[str]:
    """Keys that have more than one value."""
    listed = {key for values in plan.runs for key in values}
    several = {key for key in listed if len({json.dumps(values.get(key), sort_keys=True) for values in plan.runs}) > 1}
    return several | {key for key, values in plan.grid.items() if len(values) > 1}


def _covers(control: str, key: str) -> bool:
    return key == control or key.startswith(f"{control}.")


def _planned(config: RunConfig, told: Mapping[str, Any], control: bool) -> Planned:
    parts = [f"{_short(key, told)}={_brief(value)}" for key, value in told.items()]
    label = ", ".join((["control"] if control else []) + parts) or config.strategy.name
    named = re.sub(r"(?<=\de)\+", "", "_".join([*label.split(", "), f"seed={config.seed}"]))  # 1e+06 is not 1e-06
    slug = re.sub(r"[^A-Za-z0-9.=_-]+", "-", named).strip("-.=")
    return Planned(f"{slug[:80]}-{config.hash[:8]}", label, config, dict(told), control)


def _short(key: str, told: Mapping[str, Any]) -> str:
    last = key.rpartition(".")[2]
    same = [other for other in told if other.rpartition(".")[2] == last]
    # `strategy.name` is called strategy, `model.width` width.
    if last == "name":
        return key.rpartition(".")[0]
    return last if len(same) == 1 else key


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name", "-".join(f"{k}={v}" for k, v in value.items())))
    if isinstance(value, list):
        return "-".join(map(_brief, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def run_sweep(
    sweep: Sweep | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    jobs: int | None = None,
    executor: str = "processes",
    parameters: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_change: Callable[[Sequence[Outcome]], None] = lambda outcomes: None,
    workers: Workers | None = None,
) -> SweepResult:
    """Make all incomplete runs of a sweep; a failed run does not stop the others.

    Args:
        sweep: The sweep, or a source for `load_sweep`.
        out: The sweep's folder.
        jobs: Number of parallel runs; None for 1 on this machine and no limit on a cluster.
        executor: "processes" on this machine; or an executor of submitit: "slurm" for a cluster, "local".
        parameters: Parameters of submitit's executor, such as `timeout_min` and `slurm_partition`.
        overwrite: Whether to repeat complete runs.
        on_change: Called repeatedly with the outcomes so far.
        workers: Worker processes, kept between sweeps; None for new ones.

    Returns:
        The outcome of each run.

    Raises:
        ConfigError: The plan cannot be used, or the executor is unknown.
    """
    if not isinstance(sweep, Sweep):
        sweep = load_sweep(sweep)
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be at least 1, found {jobs}. Give 1 for sequential runs.")
    folder = Path(out).absolute()
    launch = launcher(executor, folder, dict(parameters or {}), workers)
    outcomes = [Outcome(p, folder / "runs" / p.name) for p in sweep.runs]
    _write_plan(sweep, folder)
    for outcome in outcomes:
        if not overwrite and is_complete(outcome.path, outcome.planned.config):
            outcome.state = "skipped"
    waiting = [o for o in outcomes if o.state == "waiting"]
    _work(sweep, folder, launch, waiting, jobs or launch.default_jobs, overwrite, lambda: on_change(outcomes))
    return SweepResult(folder, tuple(outcomes))


def is_complete(path: Path, config: RunConfig) -> bool:
    """Return whether the folder holds a complete run of this configuration.

    Args:
        path: The folder.
        config: The configuration.

    Returns:
        True if it does; False also for an unreadable folder.
    """
    try:
        meta = RunFolder.open(path).meta
    except RunFolderError:
        return False
    return meta.get("status") == COMPLETE and meta.get("config_hash") == config.hash


def _work(
    sweep: Sweep,
    folder: Path,
    launch: Launcher,
    waiting: list[Outcome],
    jobs: int,
    overwrite: bool,
    changed: Callable[[], None],
) -> None:
    running: list[tuple[Outcome, Handle]] = []
    changed()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                outcome = waiting.pop(0)
                outcome.state = "running"
                handle = launch.start(outcome.planned.name, _job(sweep, outcome, overwrite))
                outcome.log = handle.log
                running.append((outcome, handle))
            for outcome, handle in list(running):
                outcome.progress = handle.progress() or outcome.progress
                if not handle.is_done():
                    continue
                running.remove((outcome, handle))
                outcome.error = handle.failure()
                if outcome.error is None and not is_complete(outcome.path, outcome.planned.config):
                    outcome.error = "it ended without a complete run folder"
                outcome.state = "done" if outcome.error is None else "failed"
            changed()
            if running:
                time.sleep(POLL_SECONDS)
    except BaseException:
        for _, handle in running:
            handle.stop()
        raise
    finally:
        launch.close()


def _job(sweep: Sweep, outcome: Outcome, overwrite: bool) -> dict[str, Any]:
    planned = outcome.planned
    return {
        "config": planned.config.as_dict(),
        "out": str(outcome.path),
        "overwrite": overwrite,
        "tags": {
            "sweep": sweep.name,
            "label": planned.label,
            "control": planned.control,
            "values": as_plain(planned.values),
        },
    }


def _write_plan(sweep: Sweep, folder: Path) -> None:
    _refuse_a_strangers_plan(folder / "sweep.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plan = {
            "sweep": sweep.name,
            "description": sweep.description,
            "runs": [
                {
                    "name": p.name,
                    "label": p.label,
                    "control": p.control,
                    "values": as_plain(p.values),
                    "seed": p.config.seed,
                    "config_hash": p.config.hash,
                }
                for p in sweep.runs
            ],
        }
        write_whole(folder / "sweep.json", json.dumps(plan, indent=1) + "\n")
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot hold a sweep ({error.strerror or error}): expected a folder that can be written. "
            "Give another --out."
        ) from None


def _refuse_a_strangers_plan(path: Path) -> None:
    """Refuse to replace a `sweep.json` that was not written by a sweep."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not {"sweep", "runs"} <= found.keys():
        raise RunFolderError(
            f"{path} exists and was not written by a sweep: it is not replaced. Choose another --out, or move the file "
            "away."
        )
