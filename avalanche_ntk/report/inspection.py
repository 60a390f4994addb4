"""Inspection of a run folder: contents and integrity."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.report.runs import RUN_FILE
from avalanche_ntk.report.text import counted, listed, plain

_LINES = "measurements.jsonl"
_TORN = "measurements.torn"


@dataclass(frozen=True)
class ProbeContents:
    """Contents of a run folder for one probe.

    Attributes:
        name: The probe.
        samples: Number of its samples, if `run.json` says so.
        measurements: Number of recorded measurements, including failed ones.
        failures: Index and reason of each failed measurement.
        kernels: Number of kernels that match their checksums.
        bad_kernels: Faults of other kernels that records name.
    """

    name: str
    samples: int | None = None
    measurements: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    kernels: int = 0
    bad_kernels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inspection:
    """Contents of a run folder.

    Attributes:
        path: The folder.
        created: Time of its creation.
        versions: Versions of the libraries at that time.
        meta: The run's description.
        records: Number of records by kind.
        experiences: Number of experiences begun.
        iterations: Training iterations at the last measurement.
        probes: Contents for each probe.
        bytes: Total size of its files.
        problems: Faults, one sentence each; empty if the folder is intact.
        remarks: Remarks that are not faults.
    """

    path: Path
    created: str
    versions: dict[str, str]
    meta: dict[str, Any]
    records: dict[str, int]
    experiences: int
    iterations: int
    probes: list[ProbeContents]
    bytes: int
    problems: list[str]
    remarks: list[str]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, damaged or failed."""
        return not self.problems


def inspect_run(path: str | PathLike[str]) -> Inspection:
    """Inspect a run folder: check every record, and compare every kernel with its checksum.

    Args:
        path: The folder.

    Returns:
        Its contents and faults.

    Raises:
        RunFolderError: It is not a run folder, or its `run.json` cannot be used.
    """
    folder = RunFolder.open(path)
    problems: list[str] = []
    remarks: list[str] = []
    records: list[dict[str, Any]] = []
    try:
        records = folder.records()
    except RunFolderError as error:
        problems.append(f"{error} The records after that line, and the kernels, were not checked.")
    else:
        _look_at_the_end(folder, len(records), problems, remarks)
    meta = folder.meta
    probes = {p["name"]: ProbeContents(p["name"], _size(p)) for p in meta.get("probes", [])}
    contents: dict[str, ProbeContents] = dict(probes)
    counts: dict[str, list[Any]] = {name: [] for name in probes}
    named: set[str] = set()
    for record in records:
        if record["kind"] == "measurement":
            counts.setdefault(record["probe"], []).append(record)
            if record["kernel"] is not None:
                named.add(record["kernel"])
    for name, mine in counts.items():
        if name not in probes:
            problems.append(f"there are measurements of probe {name!r}, which {RUN_FILE} does not describe.")
        contents[name] = _probe(folder, name, contents[name].samples if name in contents else None, mine)
        problems += _problems_of(contents[name])
    measured = [record["clock"] for record in records if record["kind"] == "measurement"]
    if not measured and not problems:
        remarks.append("nothing was measured yet.")
    ends = [record["experience"] for record in records if record["kind"] in ("state", "reactivation")]
    ended = max(ends, default=-1)
    begun = max((clock["experience"] for clock in measured), default=-1)
    if begun > ended:
        remarks.append(f"experience {begun} was begun and has not ended: training continues, or was stopped.")
    elif meta.get("experiences_done", 0) < meta.get("n_experiences", 0):
        told = f"{meta['experiences_done']} of {meta['n_experiences']} experiences"
        remarks.append(f"{told} were trained: training continues, or was stopped.")
    size, kernels = _files(folder.path)
    unnamed = sorted(kernels - named)
    if unnamed and records:
        remarks.append(
            f"{counted(len(unnamed), 'kernel')} that no record names ({listed(unnamed, 2)}): left by a process that "
            "was stopped before it wrote the record, or set aside by a rewind."
        )
    if os.path.lexists(folder.path / _TORN):
        remarks.append(f"{_TORN} holds an incomplete line of a stopped process; the run continued after it.")
    return Inspection(
        path=folder.path,
        created=folder.created,
        versions=folder.versions,
        meta=meta,
        records=dict(Counter(record["kind"] for record in records)),
        experiences=len({clock["experience"] for clock in measured}),
        iterations=max((clock["iteration"] for clock in measured), default=0),
        probes=list(contents.values()),
        bytes=size,
        problems=problems,
        remarks=remarks,
    )


def _look_at_the_end(folder: RunFolder, records: int, problems: list[str], remarks: list[str]) -> None:
    """Check whether the last line is incomplete: `records()` silently skips it."""
    path = folder.path / _LINES
    if not os.path.lexists(path):
        remarks.append(f"there is no {_LINES}: the run was made and wrote no record.")
        return
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
            last = block[-1:]
    if last != b"\n" or lines > records:
        problems.append(
            f"{_LINES} ends in an incomplete line after {counted(records, 'record')}: it is being written just now, or "
            "its writer was stopped. RunFolder.resume sets the line aside and continues."
        )


def _probe(folder: RunFolder, name: str, samples: int | None, records: list[dict[str, Any]]) -> ProbeContents:
    failures = [(r["index"], r["failure"]) for r in records if r["failure"] is not None]
    good, bad = 0, []
    for record in records:
        if record["kernel"] is None:
            continue
        try:
            kernels = folder.load_kernel(record["kernel"])
        except RunFolderError as error:
            bad.append(str(error).removeprefix(f"run folder {folder.path}: "))
            continue
        shapes = {kernel.shape for kernel in kernels.values()}
        if samples is not None and shapes != {(samples, samples)}:
            bad.append(f"{record['kernel']} has arrays of shape {listed(sorted(map(str, shapes)))}.")
        else:
            good += 1
    return ProbeContents(name, samples, len(records), failures, good, bad)


def _problems_of(probe: ProbeContents) -> list[str]:
    found = []
    if probe.failures:
        reasons = list(dict.fromkeys(plain(reason, 200) for _, reason in probe.failures))
        found.append(
            f"{len(probe.failures)} of {counted(probe.measurements, 'measurement')} of probe {probe.name!r} failed: "
            f"{listed(reasons, 3)}"
        )
    return found + [f"probe {probe.name!r}: {what}" for what in probe.bad_kernels]


def _size(described: dict[str, Any]) -> int | None:
    labels = described.get("labels")
    return len(labels) if isinstance(labels, list) else None


def _files(path: Path) -> tuple[int, set[str]]:
    """Return the total size of all files, and the kernels' paths within the folder."""
    size, kernels = 0, set()
    for where, _, names in os.walk(path):
        for name in names:
            file = Path(where) / name
            size += os.lstat(file).st_size
            if name.endswith(".safetensors"):
                kernels.add(file.relative_to(path).as_posix())
    return size, kernels
