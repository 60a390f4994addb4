"""Run folders read for tables and figures, with notes on missing data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.recorder.labels import from_json
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Measurement, Trajectory
from avalanche_ntk.report.text import plain

StrPath: TypeAlias = "str | PathLike[str]"
Runs: TypeAlias = "StrPath | Sequence[StrPath] | Mapping[str, StrPath]"

RUN_FILE = "run.json"
_DEPTH = 5
# Some report accuracy in per cent.
_HIGHEST_ACCURACY = 100.0


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one evaluation.

    Attributes:
        experience: Number of the experience that was trained last; -1 before the first.
        iteration: Training iterations made.
        values: Numbers by Avalanche's tag.
    """

    experience: int
    iteration: int
    values: dict[str, float]


@dataclass(frozen=True)
class Overlap:
    """The overlap of every pair of probes at one boundary.

    Attributes:
        event: "experience_start" or "experience_end".
        experience: Number of the experience.
        iteration: Training iterations made.
        probes: The probes' names.
        matrix: Overlaps, shape `(T, T)`.
    """

    event: str
    experience: int
    iteration: int
    probes: tuple[str, ...]
    matrix: np.ndarray


@dataclass(frozen=True)
class Run:
    """One run folder, read.

    Attributes:
        name: Its name in the report.
        folder: The folder, opened for reading.
        trajectories: The time series by probe; empty for a probe never measured.
        evaluations: The evaluations, in the order of training.
        overlaps: Task overlaps, in the order of training.
        problems: Unusable data, one sentence each.
    """

    name: str
    folder: RunFolder
    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def trajectory(self, probe: str | None = None) -> Trajectory:
        """Return the time series of a probe.

        Args:
            probe: Its name; None for the folder's first.

        Returns:
            The time series.

        Raises:
            RunFolderError: The folder has no such probe.
        """
        name = probe if probe is not None else next(iter(self.trajectories), None)
        if name is None or name not in self.trajectories:
            raise RunFolderError(
                f"{self.folder.path} holds no probe {probe!r}; it has "
                f"{', '.join(map(repr, self.trajectories)) or 'none yet'}. Give one of these names."
            )
        return self.trajectories[name]

    @property
    def tags(self) -> Mapping[str, Any]:
        """The sweep's entries about the run: `label`, `values` and `control`; empty without a sweep."""
        found = self.folder.meta.get("tags")
        return found if isinstance(found, Mapping) else {}

    @property
    def is_control(self) -> bool:
        """Whether the run is a sweep's control, in which no task changes."""
        return self.tags.get("control") is True

    def is_control_of(self, other: Run) -> bool:
        """Return whether this is the control of another run of the same sweep, with equal settings otherwise."""
        mine, theirs = self.tags.get("values"), other.tags.get("values")
        return (
            self.is_control
            and not other.is_control
            and self.tags.get("sweep") == other.tags.get("sweep")
            and isinstance(mine, Mapping)
            and isinstance(theirs, Mapping)
            and all(key in theirs and theirs[key] == value for key, value in mine.items())
        )

    def described(self, probe: str) -> dict[str, Any]:
        """Return a probe's entry in `run.json`."""
        return next((p for p in self.folder.meta.get("probes", []) if p["name"] == probe), {})

    def experience_of(self, probe: str) -> int:
        """Return the experience that a probe was chosen from; 0 if it was given as tensors."""
        found = self.described(probe).get("experience")
        return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else 0

    def accuracies(self, experience: int) -> list[tuple[int, int, float]]:
        """Return `(experience trained last, iteration, accuracy)` of one experience's test set, in order.

        Avalanche omits the task from a tag if there is none; a test stream is preferred to others.
        """
        pattern = re.compile(rf"Top1_Acc_Exp/eval_phase/(?P<stream>[^/]+)_stream(/Task\d+)?/Exp{experience:03d}")
        return self._series(pattern)

    def stream_accuracies(self) -> list[tuple[int, int, float]]:
        """Return `(experience trained last, iteration, accuracy)` of the whole test stream, in order."""
        return self._series(re.compile(r"Top1_Acc_Stream/eval_phase/(?P<stream>[^/]+)_stream(/Task\d+)?"))

    def _series(self, pattern: re.Pattern[str]) -> list[tuple[int, int, float]]:
        points = []
        for evaluation in self.evaluations:
            found: dict[str, list[float]] = {}
            for tag, value in evaluation.values.items():
                if (match := pattern.fullmatch(tag)) and abs(value) <= _HIGHEST_ACCURACY:
                    found.setdefault(match["stream"], []).append(value)
            values = found.get("test") or next(iter(found.values()), None)
            if values:
                points.append((evaluation.experience, evaluation.iteration, sum(values) / len(values)))
        return points


def seed_of(run: Run) -> int | None:
    """Return the seed of a run; None if unknown."""
    seed = run.folder.meta.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def strategy_of(run: Run) -> str:
    """Return the name of a run's strategy; empty if unknown."""
    config = run.folder.meta.get("config")
    named = config.get("strategy") if isinstance(config, Mapping) else None
    name = named.get("name") if isinstance(named, Mapping) else named
    return plain(name if isinstance(name, str) else run.folder.meta.get("strategy", ""))


def varied(run: Run) -> dict[str, Any]:
    """Return the varying settings of a run's sweep, by dotted key; empty without a sweep."""
    values = run.tags.get("values")
    return dict(values) if isinstance(values, Mapping) else {}


def find_runs(runs: Runs) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find run folders: the named ones, and those inside other folders.

    Args:
        runs: Paths, or paths by name in the report.

    Returns:
        Named run folders, and those found inside other folders, both by name. The default name is the folder's, with as
        many parent folders as needed to make it unique.

    Raises:
        RunFolderError: A path does not exist or holds no run.
    """
    if isinstance(runs, Mapping):
        return {name: Path(path) for name, path in runs.items()}, {}
    paths = [runs] if isinstance(runs, (str, PathLike)) else list(runs)
    if not paths:
        raise RunFolderError("expected at least one run folder, found none. Name the folders of the runs.")
    named: list[Path] = []
    inside: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir() and not os.path.lexists(path / RUN_FILE):
            found = list(_below(path))
            if not found:
                raise RunFolderError(
                    f"{path} holds no run: expected {RUN_FILE} in it or in a folder up to {_DEPTH} levels below, "
                    "found none. Give a run folder, or a folder that holds some."
                )
            inside += found
        else:
            named.append(path)
    unique = list(dict.fromkeys(Path(os.path.abspath(path)) for path in [*named, *inside]))
    names = _names(unique)
    first = {Path(os.path.abspath(path)) for path in named}
    return (
        {name: path for name, path in names.items() if path in first},
        {name: path for name, path in names.items() if path not in first},
    )


def read_runs(runs: Runs) -> tuple[list[Run], list[str]]:
    """Read run folders.

    Args:
        runs: Paths of run folders or of folders of run folders, or paths by name.

    Returns:
        The runs, and a sentence for each unreadable run found inside a folder. A run found inside a folder is named by
        its sweep's label, with its seed if the label is not unique.

    Raises:
        RunFolderError: A named folder cannot be read, or none of the found ones can.
    """
    named, inside = find_runs(runs)
    found = [read_run(path, name) for name, path in named.items()]
    unreadable = []
    for name, path in inside.items():
        try:
            found.append(read_run(path, name))
        except RunFolderError as error:
            unreadable.append(str(error))
            if not found and len(unreadable) == len(inside):
                raise
    return [*found[: len(named)], *_labelled(found[len(named) :], set(named))], unreadable


def read_run(path: StrPath, name: str | None = None) -> Run:
    """Read one run folder.

    Args:
        path: The folder.
        name: Its name; None for the folder's name.

    Returns:
        The run.

    Raises:
        RunFolderError: It cannot be read.
    """
    folder = RunFolder.open(path)
    run = Run(name if name is not None else folder.path.name, folder)
    cadence = folder.meta.get("cadence", "")
    for described in folder.meta.get("probes", []):
        labels = from_json(described.get("labels"))
        if labels is None:
            run.problems.append(f"{RUN_FILE} has no usable labels of probe {described['name']!r}, which is left out.")
            continue
        probe = Trajectory(
            described["name"], labels, folder=folder, cadence=cadence if isinstance(cadence, str) else ""
        )
        run.trajectories[described["name"]] = probe
    strangers: set[str] = set()
    for record in folder.records():
        kind = record["kind"]
        read = {"measurement": _measurement, "reactivation": _reactivation, "evaluation": _evaluation}.get(kind)
        read = _overlap if kind == "task_overlap" else read
        if read is None:
            continue
        try:
            read(run, record)
        except _Unknown as unknown:
            strangers.add(str(unknown))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ArgumentError) as error:
            run.problems.append(f"a record of kind {kind} cannot be used ({type(error).__name__}: {error}).")
    status = folder.meta.get("status")
    if isinstance(status, str) and status != "complete":
        run.problems.append(f"the run is not complete (status {plain(status)!r}); the data so far are shown.")
    for stranger in sorted(strangers):
        run.problems.append(f"measurements of probe {stranger!r}, which {RUN_FILE} does not describe, are left out.")
    return run


class _Unknown(Exception):
    """A record of an unknown probe."""


def _measurement(run: Run, record: Mapping[str, Any]) -> None:
    _probe(run, record).measurements.append(Measurement.from_record(record))


def _reactivation(run: Run, record: Mapping[str, Any]) -> None:
    found = measures.Reactivation.from_dict(record["reactivation"])
    for one in fields(found):
        value = getattr(found, one.name)
        if one.name not in ("cadence", "reasons") and value is not None and not isinstance(value, (int, float)):
            raise ValueError(f"expected {one.name} to be a number, found {value!r:.40}")
    _probe(run, record).reactivations[_natural(record["experience"])] = found


def _evaluation(run: Run, record: Mapping[str, Any]) -> None:
    values = {str(tag): float(value) for tag, value in record["values"].items()}
    if not isinstance(record["experience"], int):
        raise ValueError(f"expected experience to be an integer, found {record['experience']!r:.40}")
    run.evaluations.append(Evaluation(record["experience"], _natural(record["iteration"]), values))


def _overlap(run: Run, record: Mapping[str, Any]) -> None:
    clock, names = record["clock"], tuple(map(str, record["probes"]))
    matrix = np.array(record["matrix"], dtype=np.float64)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"expected a matrix of shape {(len(names),) * 2}, found {matrix.shape}")
    run.overlaps.append(
        Overlap(str(clock["event"]), _natural(clock["experience"]), _natural(clock["iteration"]), names, matrix)
    )


def _probe(run: Run, record: Mapping[str, Any]) -> Trajectory:
    if record["probe"] not in run.trajectories:
        raise _Unknown(record["probe"])
    return run.trajectories[record["probe"]]


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected an integer of at least 0, found {value!r:.40}")
    return value


def _labelled(runs: Sequence[Run], taken: set[str]) -> list[Run]:
    """Name runs by their sweep's labels, or by their folders' names if the labels are not unique."""
    labels = [plain(run.tags["label"]) if isinstance(run.tags.get("label"), str) else "" for run in runs]
    labels = [
        f"{label}, seed {run.folder.meta.get('seed')}" if label and labels.count(label) > 1 else label
        for run, label in zip(runs, labels, strict=True)
    ]
    return [
        replace(run, name=label) if label and labels.count(label) == 1 and label not in taken else run
        for run, label in zip(runs, labels, strict=True)
    ]


def _below(path: Path) -> Iterable[Path]:
    """Yield the run folders below a folder, in the order of their names; links are not followed."""
    root = len(path.parts)
    for where, folders, files in os.walk(path):
        folders.sort()
        if RUN_FILE in files:
            folders.clear()
            yield Path(where)
        elif len(Path(where).parts) - root >= _DEPTH:
            folders.clear()


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Name each path by its shortest unique ending."""
    names = {}
    for path in paths:
        others = [other.parts for other in paths if other != path]
        length = 1
        while length < len(path.parts) and any(other[-length:] == path.parts[-length:] for other in others):
            length += 1
        names["/".join(path.parts[-length:])] = path
    return names
