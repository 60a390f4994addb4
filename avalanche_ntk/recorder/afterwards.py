"""Trajectories measured after training, from saved checkpoints."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from glob import glob
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from avalanche_ntk.children import pool_of
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.observables import Observable
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.host import Host
from avalanche_ntk.recorder.measurer import Measured, Measurer
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.recorder.resume import SETTINGS, check_probes, is_run
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.recorder.weights import load_state, moment_of, read_state

_KEPT = "outputs_of_probe"


@dataclass(frozen=True)
class Moment:
    """A checkpoint and its moment of training.

    Attributes:
        path: The file.
        clock: When it was saved.
        iterations_per_epoch: Iterations of an epoch; None if unknown.
    """

    path: Path
    clock: TrainingClock
    iterations_per_epoch: int | None = None


class Pool(Protocol):
    """An executor of `concurrent.futures` or of submitit."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """Start a call; return a future with `result()`, which waits, and `cancel()`."""


def measure_checkpoints(
    checkpoints: Iterable[str | PathLike[str]],
    make_model: Callable[[], nn.Module],
    probe: Probe,
    out: str | PathLike[str],
    *,
    boundaries: Sequence[int] = (),
    pattern: str = r"(?P<iteration>\d+)(?!.*\d)",
    table: str | PathLike[str] | None = None,
    iterations_per_epoch: int | None = None,
    prefix: str = "",
    device: str = "cpu",
    observe: Sequence[Observable] = (),
    jobs: int | None = None,
    pool: Pool | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Trajectory:
    """Measure the kernel of a probe at each checkpoint, and write a run folder as during training.

    The moment of a file is taken from, in this order, the clock in it (files of `NTKPlugin(snapshots=True)`), its line
    in `table`, or its name. Within a task, the first checkpoint is the start and the last is the end. A task begins
    where the previous one ended: without a checkpoint at that iteration, its start is measured with the previous task's
    last checkpoint.

    A run that already exists in `out` is continued where it stopped, also after a kill.

    Args:
        checkpoints: Files, or patterns of a shell, in any order.
        make_model: Constructs the model for the weights. With several jobs it must be a module-level function.
        probe: The probe.
        out: The run folder.
        boundaries: Iterations at which a new task begins, each of which needs a checkpoint.
        pattern: Regular expression searched in a file's name, with a group `iteration` and optionally `task`; by
            default the last number of the name.
        table: CSV file with the columns `file`, `iteration` and optionally `task`, instead of the pattern.
        iterations_per_epoch: Iterations of an epoch, for velocities per epoch.
        prefix: Prefix of the file's keys that the model's keys lack, see `read_state`.
        device: Device.
        observe: Observables to measure; only those that need nothing beyond a checkpoint (such as the optimizer).
        jobs: Checkpoints measured in parallel; None for one on this machine and for all of them in a pool. Observables
            need the checkpoints in order, so one job.
        pool: Executor that runs the measurements, of submitit (for a cluster) or `concurrent.futures`. This process
            only writes the run folder and needs no such device; `make_model` must be a module-level function.
        overwrite: Whether to replace a run in `out`.
        progress: Called after each checkpoint with the number measured and the total.
        **options: Options of the kernel: `reduction`, `n_projections`, `outputs`, `params`, `output_selector`, `dtype`,
            `memory_budget`, `checks`, `hooks`, `spot_check_every`, see `NTKRecorder`.

    Returns:
        The trajectory.

    Raises:
        ArgumentError: A file has no moment, two have the same, or arguments contradict each other.
        ModelError: A checkpoint does not fit the model; the message names the keys that differ.
        RunFolderError: The run folder cannot be used.
    """
    moments = moments_of(
        checkpoints, boundaries=boundaries, pattern=pattern, table=table, iterations_per_epoch=iterations_per_epoch
    )
    jobs = jobs or (1 if pool is None else len(moments))
    if observe and (pool is not None or jobs > 1):
        found = "a pool" if pool is not None else f"jobs={jobs}"
        raise ArgumentError(
            f"observables compare with the last boundary and need the checkpoints in order: expected jobs=1, found "
            f"{found}. Leave one of the two out."
        )
    measurer = Measurer(**options)
    for observable in observe:
        measurer.request(observable)
    probe = probe.to(device) if pool is None else probe  # a login node of a cluster has no such device
    if pool is None and jobs == 1:  # one model, planned once, loads all weights in turn
        make_model = cache(make_model)
    measure = partial(_measure, make_model, probe, measurer, prefix, device)
    trajectory = _open(out, probe, measurer, moments, overwrite, make_model, device)
    done = len(trajectory)
    if done:
        kept = trajectory.folder.meta.get(_KEPT) if trajectory.folder else None
        measurer.outputs_seen = {} if kept is None else {probe.name: [int(i) for i in kept]}
    _close_tasks(trajectory, moments[:done])
    for index, (moment, measured) in enumerate(_all(measure, moments, done, jobs, pool, measurer), start=done):
        _add(trajectory, moment, measured)
        if not index and trajectory.folder is not None:
            trajectory.folder.update_meta({_KEPT: measurer.outputs_seen.get(probe.name)})
        _close_tasks(trajectory, moments[: index + 1])
        if progress is not None:
            progress(index + 1, len(moments))
    if trajectory.folder is not None:
        trajectory.folder.export_csv()
        trajectory.folder.close()
    return trajectory


def _measure(
    make_model: Callable[[], nn.Module],
    probe: Probe,
    measurer: Measurer,
    prefix: str,
    device: str,
    numbered: tuple[int, Moment],
) -> tuple[Measured, dict[str, list[int]]]:
    index, moment = numbered
    model = make_model().to(device).eval()
    load_state(model, read_state(moment.path, prefix), str(moment.path))
    probe = probe.to(device)
    measured = measurer.measure(Host(model, name="checkpoints"), probe, {probe.name: probe}, moment.clock, index=index)
    return measured, measurer.outputs_seen


def _all(
    measure: Callable[[tuple[int, Moment]], tuple[Measured, dict[str, list[int]]]],
    moments: Sequence[Moment],
    done: int,
    jobs: int,
    pool: Pool | None,
    measurer: Measurer,
) -> Iterator[tuple[Moment, Measured]]:
    """Measure the remaining checkpoints in order; the first one alone, since it fixes the outputs of the kernel."""
    left = list(enumerate(moments))[done:]
    alone = len(left) if pool is None and jobs == 1 else 0 if done else 1
    for numbered in left[:alone]:
        found = measure(numbered) if pool is None else pool.submit(measure, numbered).result()
        measured, measurer.outputs_seen = found
        yield numbered[1], measured
    rest = left[alone:]
    if not rest:
        return
    if pool is None:  # submit no more calls at a time than there are processes
        with pool_of(min(jobs, len(rest))) as own:
            yield from _in_order(own, measure, rest, len(rest))
    else:
        yield from _in_order(pool, measure, rest, jobs)


def _in_order(
    pool: Pool,
    measure: Callable[[tuple[int, Moment]], tuple[Measured, dict[str, list[int]]]],
    left: Sequence[tuple[int, Moment]],
    jobs: int,
) -> Iterator[tuple[Moment, Measured]]:
    """Measure in a pool, a limited number at a time; calls that are no longer needed are cancelled."""
    waiting: deque[tuple[Moment, Any]] = deque()
    try:
        for numbered in left:
            waiting.append((numbered[1], pool.submit(measure, numbered)))
            if len(waiting) == jobs:
                yield _oldest(waiting)
        while waiting:
            yield _oldest(waiting)
    finally:
        for _, call in waiting:
            call.cancel()


def _oldest(waiting: deque[tuple[Moment, Any]]) -> tuple[Moment, Measured]:
    moment, call = waiting[0]  # stays in the list, to be cancelled after an error, until its result has arrived
    measured, _ = call.result()
    waiting.popleft()
    return moment, measured


def _add(trajectory: Trajectory, moment: Moment, measured: Measured) -> None:
    told = [f"measured afterwards from {moment.path.name}"]
    measured.add_to(trajectory, moment.clock, iterations_per_epoch=moment.iterations_per_epoch, notes=told)
    for record in measured.extras.records:
        trajectory.note(record)


def _close_tasks(trajectory: Trajectory, measured: Sequence[Moment]) -> None:
    """Compute the reactivation of every ended task that has none yet."""
    for moment in measured:
        experience = moment.clock.experience
        if moment.clock.event == "experience_end" and experience not in trajectory.reactivations:
            trajectory._close_experience(experience)


def _open(
    out: str | PathLike[str],
    probe: Probe,
    measurer: Measurer,
    moments: Sequence[Moment],
    overwrite: bool,
    make_model: Callable[[], nn.Module],
    device: str,
) -> Trajectory:
    model = make_model()
    meta = {
        "probes": [probe.describe()],
        "seed": None,
        "strategy": "checkpoints",
        "optimizer": None,
        "online": False,
        "model": {
            "name": type(model).__name__,
            "parameters": {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad},
        },
        "checkpoints": [[moment.path.name, moment.clock.event, moment.clock.iteration] for moment in moments],
        "schedule": "checkpoints",
        "cadence": "checkpoints",
        "device": device,
        **measurer.describe(),
    }
    if overwrite or not is_run(out):
        folder = RunFolder.create(out, meta, overwrite=overwrite)
        return Trajectory(probe.name, probe.y.numpy(), folder=folder, cadence="checkpoints")
    folder = RunFolder.resume(out)
    try:
        check_probes(folder, meta["probes"])
        for key in ("checkpoints", *SETTINGS):
            if folder.meta.get(key) != meta.get(key):
                raise ArgumentError(
                    f"the run in {out} cannot be continued: {key} differ from those with which it began. Give the "
                    "same ones, or overwrite=True (--overwrite) to start again."
                )
        return Trajectory.load(folder, probe.name)
    except BaseException:
        folder.close()
        raise


# ---------------------------------------------------------------------- which file stands for which moment


def moments_of(
    checkpoints: Iterable[str | PathLike[str]],
    *,
    boundaries: Sequence[int] = (),
    pattern: str = r"(?P<iteration>\d+)(?!.*\d)",
    table: str | PathLike[str] | None = None,
    iterations_per_epoch: int | None = None,
) -> list[Moment]:
    """Return the moments of checkpoints in the order of training; arguments as for `measure_checkpoints`.

    Returns:
        A moment for each measurement.

    Raises:
        ArgumentError: A file has no moment, or two have the same.
    """
    paths = [p for given in checkpoints for p in (sorted(map(Path, glob(str(given)))) or [Path(given)])]
    if not paths or (missing := [p for p in paths if not p.is_file()]):
        raise ArgumentError(f"there is no checkpoint {missing[0] if paths else ''}: expected files. Check the paths.")
    stored = {path: moment_of(path) for path in paths}
    if all(stored.values()):
        known = [Moment(path, *told) for path, told in stored.items() if told is not None]
        return sorted(known, key=lambda m: m.path.name)
    given = _from_table(table, paths) if table is not None else _from_names(pattern, paths)
    return _in_tasks(_numbered(given, boundaries), boundaries, iterations_per_epoch)


def _from_names(pattern: str, paths: Sequence[Path]) -> dict[Path, tuple[int, int | None]]:
    found = {}
    for path in paths:
        match = re.search(pattern, path.stem)
        groups: Mapping[str, str] = {} if match is None else match.groupdict()
        if not (groups.get("iteration") or "").isdigit():
            raise ArgumentError(
                f"{path.name} does not say at which iteration it was saved: expected a number where the pattern "
                f"{pattern!r} has its group 'iteration'. Give a pattern that fits, or a CSV table: file,iteration,task."
            )
        task = groups.get("task")
        found[path] = (int(groups["iteration"]), int(task) if task else None)
    return found


def _from_table(table: str | PathLike[str], paths: Sequence[Path]) -> dict[Path, tuple[int, int | None]]:
    with Path(table).open(encoding="utf-8", newline="") as file:
        lines = {line.get("file", ""): line for line in csv.DictReader(file)}
    found = {}
    for path in paths:
        line = lines.get(path.name) or lines.get(str(path)) or {}
        try:
            task = line.get("task")
            found[path] = (int(line["iteration"]), int(task) if task else None)
        except (KeyError, ValueError):
            raise ArgumentError(
                f"{table} has no usable line for {path.name}: expected the columns file, iteration and perhaps task, "
                f"found {line or 'none'}. Add it."
            ) from None
    return found


def _numbered(given: Mapping[Path, tuple[int, int | None]], boundaries: Sequence[int]) -> list[tuple[int, int, Path]]:
    """Return task, iteration and file, in the order of training."""
    found = []
    for path, (iteration, task) in given.items():
        number = sum(iteration > b for b in boundaries) if task is None else task
        found.append((number, iteration, path))
    found.sort()
    for (task, iteration, path), (other_task, other, second) in pairwise(found):
        if (task, iteration) == (other_task, other) or other < iteration:
            raise ArgumentError(
                f"{path.name} (task {task}, iteration {iteration}) and {second.name} (task {other_task}, iteration "
                f"{other}) cannot follow each other: expected iterations of the whole run, one file each. Give a "
                "pattern or a table that says so."
            )
    if missing := sorted(set(boundaries) - {iteration for _, iteration, _ in found}):
        raise ArgumentError(
            f"there is no checkpoint at the boundary {missing[0]}: expected one at each of {list(boundaries)}, so that "
            "no interval mixes two tasks. Give boundaries at which the model was saved."
        )
    return found


def _in_tasks(
    found: Sequence[tuple[int, int, Path]], boundaries: Sequence[int], iterations_per_epoch: int | None
) -> list[Moment]:
    """Assign each task a start and an end."""
    moments: list[Moment] = []
    begin = 0
    for number, task in enumerate(sorted({task for task, _, _ in found})):
        files = [(iteration, path) for t, iteration, path in found if t == task]
        if moments and files[0][0] != moments[-1].clock.iteration:  # it began with the previous task's weights
            files.insert(0, (moments[-1].clock.iteration, moments[-1].path))
        begin = files[0][0] if number else 0
        for at, (iteration, path) in enumerate(files):
            event = "experience_start" if not at else "experience_end" if at == len(files) - 1 else "iteration"
            clock = TrainingClock(event, iteration, number, iteration - begin, 0, 0, iteration)
            moments.append(Moment(path, clock, iterations_per_epoch))
        if len(files) == 1:  # a task with one checkpoint begins and ends there
            moments.append(replace(moments[-1], clock=replace(moments[-1].clock, event="experience_end")))
    return moments
