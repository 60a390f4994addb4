"""Comparison of runs: one row per run or group of seeds, and rank correlations of kernel measures with forgetting.

Imports no torch.

Columns of a row (`E` experiences, `a[i, j]` the accuracy on experience j after training on i):

| column | meaning |
|---|---|
| `accuracy` | `mean_j a[E−1, j]` |
| `forgetting` | `mean_{j<E−1} (max_{j≤i<E−1} a[i, j] − a[E−1, j])` (Chaudhry et al. 2018) |
| `backward_transfer` | `mean_{j<E−1} (a[E−1, j] − a[j, j])` (Lopez-Paz & Ranzato 2017) |
| `moved`, `spike`, `ratio`, `norm_dip`, `norm_recovery`, `alignment_drop` | mean over the boundaries of `measures.Reactivation` |
| `effective_rank` | at the last measurement, undefined if that failed |
| `linearisation_error` | mean over the ends of the experiences from the second on, against the last boundary |
| `measuring_share` | seconds of measuring over all seconds |

The kernel's numbers are those of one probe, by default the first.
"""  # noqa: E501  (a table)

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.experiments.config import content_hash
from avalanche_ntk.experiments.schema import unknown_choice
from avalanche_ntk.measures.intervals import interval, rank_correlation
from avalanche_ntk.recorder.frames import COUNT, COUNT_OR_NONE, NUMBER, TEXT, TRUTH_OR_NONE, make_frame
from avalanche_ntk.recorder.resume import RUN_SETTINGS
from avalanche_ntk.recorder.runfolder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

LEARNING = ("accuracy", "forgetting", "backward_transfer")
KERNEL = (
    "moved",
    "spike",
    "ratio",
    "norm_dip",
    "norm_recovery",
    "alignment_drop",
    "effective_rank",
    "linearisation_error",
)
COLUMNS = (*LEARNING, *KERNEL, "measuring_share")
_AT_BOUNDARIES = ("moved", "spike", "ratio", "norm_dip", "norm_recovery", "alignment_drop")
_ACCURACY = re.compile(r"Top1_Acc_Exp/eval_phase/test_stream/(?:Task\d+/)?Exp(?P<experience>\d+)")


@dataclass(frozen=True)
class RunRow:
    """The data of one run folder.

    Attributes:
        name: Name of the folder.
        path: The folder.
        label: The run's name; its sweep's label if it has one.
        seed: Seed.
        config: Its configuration, or None if it was made without one.
        probe: Name, size and hash of the probe.
        cadence: Spacing of the measurements.
        complete: Whether all experiences were trained.
        failures: Number of failed measurements of the probe, and the reason of the first; empty if none failed.
        values: The columns; NaN if undefined.
        settings: Model, optimizer and measurements of a run without a configuration.
        control: Whether it is a sweep's control, in which no task changes.
    """

    name: str
    path: Path
    label: str
    seed: int | None
    config: Mapping[str, Any] | None
    probe: Mapping[str, Any]
    cadence: str
    complete: bool
    values: Mapping[str, float]
    failures: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: bool = False

    @property
    def group(self) -> str:
        """The common label of runs that differ only in the seed."""
        if self.config is None:
            return f"{self.label} {content_hash(self.settings)}"
        return content_hash(self.config, without=("seed",))


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs.

    Attributes:
        runs: One row per run: `run`, `group`, `seed`, `control`, and the columns.
        groups: One row per group: `group`, `runs`, `seeds`, and for each column its mean over the seeds, `…_std` (of
            the sample) and the bounds of its 95 % interval (Student's t), `…_low` and `…_high`; NaN with one seed.
        correlations: One row per kernel measure, as `correlations` returns them.
        refusals: Omissions, with reasons.
    """

    runs: pd.DataFrame
    groups: pd.DataFrame
    correlations: pd.DataFrame
    refusals: tuple[str, ...]


def compare(
    runs: Sequence[str | Path],
    *,
    by: Sequence[str] = (),
    probe: str | None = None,
) -> Comparison:
    """Compare runs.

    Args:
        runs: Run folders, or folders of run folders (a sweep's).
        by: Dotted keys of the configuration whose values define the groups, such as `model.width`; if empty, runs that
            differ only in the seed are a group.
        probe: Name of the probe; None for each run's first.

    Returns:
        The tables.

    Raises:
        RunFolderError: A folder cannot be read, or holds no run.
        ArgumentError: No configuration has a key of `by`.
    """
    folders = [RunFolder.open(path) for path in find_runs(runs)]
    begun = [folder for folder in folders if folder.meta.get("probes")] or folders
    rows = [_row(folder, probe) for folder in begun]
    values = {row.path: dict(row.values) for row in rows}
    refusals = [f"{folder.path.name} holds no probe yet and is left out" for folder in folders if folder not in begun]
    unlike = list(_refusals(rows))
    refusals += unlike
    if unlike:
        for kept in values.values():
            kept["ratio"] = math.nan
    for row in rows:
        if not row.complete:
            refusals.append(f"{row.name} is not complete: its numbers are those of the experiences it has")
        if row.failures:
            refusals.append(f"{row.name}: {row.failures}")
    labels = _labels(rows, by)
    table = make_frame(
        [
            {"run": row.name, "group": labels[row.path], "seed": row.seed, "control": row.control} | values[row.path]
            for row in rows
        ],
        {"run": TEXT, "group": TEXT, "seed": COUNT_OR_NONE, "control": TRUTH_OR_NONE, **dict.fromkeys(COLUMNS, NUMBER)},
    )
    return Comparison(table, _grouped(table), correlations(table), tuple(refusals))


# --- reading ---------------------------------------------------------------------------------------------------


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the run folders at or below some paths.

    Args:
        paths: Run folders, or folders of run folders.

    Returns:
        Each run folder once.

    Raises:
        RunFolderError: A path is neither of them.
    """
    found: dict[Path, None] = {}
    for given in map(Path, paths):
        if (given / "run.json").exists():
            found[given] = None
            continue
        below = [p.parent for pattern in ("*/run.json", "*/*/run.json") for p in given.glob(pattern)]
        below.sort(key=lambda p: _natural(str(p)))
        if not below:
            what = "nothing exists at that path" if not given.exists() else "found no run.json in it or below"
            raise RunFolderError(
                f"{given} holds no run: expected a run folder, or a folder of run folders, {what}. Check the path."
            )
        found |= dict.fromkeys(below)
    return list(found)


def _natural(text: str) -> list[tuple[bool, float, str]]:
    """Return a sort key that orders numbers in texts numerically."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(False, float(p), "") if i % 2 else (True, 0.0, p) for i, p in enumerate(parts)]


def read_run(path: str | Path, probe: str | None = None) -> RunRow:
    """Read a run folder.

    Args:
        path: The folder.
        probe: Name of the probe; None for the first.

    Returns:
        The row.

    Raises:
        RunFolderError: The folder cannot be read, or has no such probe.
    """
    return _row(RunFolder.open(path), probe)


def _row(folder: RunFolder, probe: str | None) -> RunRow:
    meta, records = folder.meta, folder.records()
    probes = {p["name"]: p for p in meta.get("probes", [])}
    name = probe or next(iter(probes), None)
    if name is None or name not in probes:
        there = ", ".join(map(repr, probes)) or "none yet"
        raise RunFolderError(f"{folder.path} holds no probe {probe!r}; it has {there}. Give one of these names.")
    accuracy = _accuracies(records)
    of_probe = [r for r in records if r.get("probe") == name]
    values = {**_learning(accuracy), **_kernel(of_probe)}
    states = [r for r in records if r["kind"] == "state"]
    if states:
        measuring, training = (float(states[-1][f"{what}_seconds"]) for what in ("measuring", "training"))
        values["measuring_share"] = measuring / (measuring + training) if measuring + training else math.nan
    tags = meta.get("tags") or {}
    config = meta.get("config")
    return RunRow(
        name=folder.path.name,
        path=folder.path,
        label=str(tags.get("label") or meta.get("strategy") or folder.path.name),
        seed=meta.get("seed"),
        config=config if isinstance(config, Mapping) else None,
        probe={k: probes[name].get(k) for k in ("name", "size", "hash", "experience")},
        cadence=str(meta.get("cadence", "")),
        complete="status" not in meta or meta["status"] == "complete",
        values={c: float(values.get(c, math.nan)) for c in COLUMNS},
        failures=_failures([r for r in of_probe if r["kind"] == "measurement"]),
        settings={key: meta[key] for key in RUN_SETTINGS if key in meta},
        control=tags.get("control") is True,
    )


def _failures(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Describe failed measurements; empty if there are none."""
    failed = [r["failure"] for r in measurements if r["failure"] is not None]
    if not failed:
        return ""
    return f"{len(failed)} of {len(measurements)} measurements failed, the first for this reason: {failed[0]}"


def _accuracies(records: Sequence[Mapping[str, Any]]) -> dict[int, dict[int, float]]:
    """Return accuracies by the experience trained last and the experience tested."""
    found: dict[int, dict[int, float]] = {}
    for record in records:
        if record["kind"] != "evaluation" or record["experience"] < 0:
            continue
        for tag, value in record["values"].items():
            match = _ACCURACY.fullmatch(tag)
            if match and isinstance(value, (int, float)):
                found.setdefault(record["experience"], {})[int(match["experience"])] = float(value)
    return found


def _learning(a: Mapping[int, Mapping[int, float]]) -> dict[str, float]:
    if not a:
        return {}
    last = max(a)
    found = {"accuracy": float(np.mean(list(a[last].values())))}
    earlier = [j for j in a[last] if j < last]
    best = [max(a[i][j] for i in a if j <= i < last and j in a[i]) - a[last][j] for j in earlier if j in a.get(j, {})]
    back = [a[last][j] - a[j][j] for j in earlier if j in a.get(j, {})]
    if best:
        found |= {"forgetting": float(np.mean(best)), "backward_transfer": float(np.mean(back))}
    return found


def _kernel(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    boundaries = {r["experience"]: r["reactivation"] for r in records if r["kind"] == "reactivation"}
    shifted = [boundaries[e] for e in sorted(boundaries)[1:]]
    for name in _AT_BOUNDARIES:
        _mean(found, name, [r.get(name) for r in shifted])
    tried = [r for r in records if r["kind"] == "measurement"]
    measured = [r for r in tried if r["failure"] is None]
    if measured and tried[-1] is measured[-1]:
        _mean(found, "effective_rank", [measured[-1]["values"].get("effective_rank")])
    first = min(boundaries, default=0)
    ends = [r for r in measured if r["clock"]["event"] == "experience_end" and r["clock"]["experience"] > first]
    _mean(found, "linearisation_error", [r["values"].get("linearisation_error_boundary") for r in ends])
    return found


def _mean(found: dict[str, float], name: str, values: Sequence[Any]) -> None:
    defined = [float(v) for v in values if v is not None and not math.isnan(v)]
    if defined:
        found[name] = float(np.mean(defined))


# --- comparing -------------------------------------------------------------------------------------------------


def _refusals(rows: Sequence[RunRow]) -> Iterable[str]:
    """Yield reasons why ratios cannot be compared."""
    cadences: dict[str, str] = {}
    for row in rows:
        cadences.setdefault(row.cadence, row.name)
    if len(cadences) > 1:
        told = ", ".join(f"{cadence} ({name})" for cadence, name in list(cadences.items())[:3])
        yield (
            f"ratio is left out: a ratio of velocities depends on the time between measurements, and the runs were "
            f"measured at different cadences: {told}. Compare runs of one schedule"
        )
    sizes: dict[Any, str] = {}
    for row in rows:
        sizes.setdefault((row.probe["size"], row.probe["experience"]), row.name)
    if len(sizes) > 1:
        told = ", ".join(
            f"{size} samples of {'given tensors' if e is None else f'experience {e}'} ({name})"
            for (size, e), name in list(sizes.items())[:3]
        )
        yield f"ratio is left out: the runs have different probes: {told}. Compare runs of one probe"
        return
    # Seeds draw different data and so have different probes; within a seed the probe must be the same.
    hashes: dict[Any, tuple[str, str]] = {}
    for row in rows:
        digest, name = hashes.setdefault(row.seed, (row.probe["hash"], row.name))
        if digest != row.probe["hash"]:
            yield (
                f"ratio is left out: the runs have different probes: {row.name} and {name} have the same seed and "
                "different samples. Compare runs of one probe"
            )
            return


def _labels(rows: Sequence[RunRow], by: Sequence[str]) -> dict[Path, str]:
    if by:
        told = {row.path: [f"{key}={_at(row, key, rows)}" for key in by] for row in rows}
        return {row.path: ", ".join((["control"] if row.control else []) + told[row.path]) for row in rows}
    groups: dict[str, str] = {}
    taken: set[str] = set()
    for row in rows:
        if row.group in groups:
            continue
        # Groups with the same label (two sweeps, two folders) are distinguished by the folder's name.
        label = row.label if row.label not in taken else row.name
        groups[row.group] = label
        taken.add(label)
    return {row.path: groups[row.group] for row in rows}


def _at(row: RunRow, key: str, rows: Sequence[RunRow]) -> Any:
    here: Any = row.config
    for part in key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            known = sorted({k for r in rows if r.config is not None for k in _flat(r.config)})
            if not known:
                raise ArgumentError(
                    f"--by {key}: none of the runs has a configuration, since they were made by a script, not by "
                    "avalanche-ntk run. Leave --by out: runs of the same settings are a group."
                )
            if key in known:
                return None
            raise ArgumentError(f"--by: {row.name}: {unknown_choice('key', key, known)}")
        here = here[part]
    return here


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else [f"{prefix}{key}"]
    return found


def _grouped(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for group, members in table.groupby("group", sort=False):
        # Runs of one seed are not independent: they are averaged before computing the interval.
        by_seed = members.assign(seed=_seeds(members)).groupby("seed", sort=False)[list(COLUMNS)].mean()
        row: dict[str, Any] = {"group": group, "runs": len(members), "seeds": len(by_seed)}
        for column in COLUMNS:
            values = by_seed[column].dropna().to_numpy(dtype=float)
            mean, low, high = interval(values)
            row |= {
                column: mean,
                f"{column}_std": values.std(ddof=1) if len(values) > 1 else math.nan,
                f"{column}_low": low,
                f"{column}_high": high,
            }
        rows.append(row)
    statistics = [f"{column}{what}" for column in COLUMNS for what in ("", "_std", "_low", "_high")]
    return make_frame(rows, {"group": TEXT, "runs": COUNT, "seeds": COUNT, **dict.fromkeys(statistics, NUMBER)})


def _seeds(members: pd.DataFrame) -> list[str]:
    """Return the columns that identify independent draws: the seed, or the run if it has no seed."""
    import pandas as pd

    return [
        f"run {run}" if pd.isna(seed) else f"seed {seed}"
        for run, seed in zip(members["run"], members["seed"].astype(object), strict=True)
    ]


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's rank correlation of forgetting with each kernel measure: within each seed, then over seeds.

    Runs with the same seed share their data, and the settings recur at every seed, so pooled runs would not be
    independent. Controls, which forget for another reason, are left out.

    Args:
        table: One row per run, with `seed` and `control`.

    Returns:
        Columns `measure`; `rho`, the mean over the seeds; `rho_low` and `rho_high`, its 95 % interval (Student's t,
        clipped to ±1), NaN with one seed; `seeds`, the number of seeds for which it is defined; and `runs`, the number
        of their runs. A seed counts if at least three of its runs have both numbers and neither number is constant.
    """
    rows = []
    for measure in KERNEL:
        found: list[float] = []
        runs = 0
        shifted = table[~table["control"].astype(bool)]
        for _, members in shifted.groupby("seed", sort=False, dropna=False):
            both = members[["forgetting", measure]].dropna().to_numpy(dtype=float)
            rho = rank_correlation(both[:, 0].tolist(), both[:, 1].tolist()) if len(both) > 2 else math.nan
            if not math.isnan(rho):
                found.append(rho)
                runs += len(both)
        rho, low, high = interval(found)
        bounds = {"rho_low": max(low, -1.0), "rho_high": min(high, 1.0)} if len(found) > 1 else {}
        rows.append({"measure": measure, "rho": rho, **bounds, "seeds": len(found), "runs": runs})
    types = {"measure": TEXT, **dict.fromkeys(("rho", "rho_low", "rho_high"), NUMBER), "seeds": COUNT, "runs": COUNT}
    return make_frame(rows, types)
