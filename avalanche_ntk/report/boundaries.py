"""A row for each boundary of each run: what the network lost, and what its kernel did."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import pandas as pd

from avalanche_ntk.runfolder import RunFolder
from avalanche_ntk.trajectory import Trajectory


def boundary_table(runs: Mapping[str, str | PathLike[str]], probe: str | None = None) -> pd.DataFrame:
    """Return a row for each experience of each run.

    Args:
        runs: Run folders by the names that the table shows.
        probe: Name of the probe; each folder's first when None.

    Returns:
        Columns `run`, `experience`, `accuracy_first_task` and `forgetting_first_task` (both from the evaluation that
        followed the experience; NaN when there was none), `moved`, `spike`, `ratio`, `ratio_at_floor`, `norm_dip`,
        `alignment_drop`, `onset_velocity`. Undefined values are NaN.

    Raises:
        RunFolderError: A folder cannot be read.
    """
    rows = []
    for name, path in runs.items():
        folder = RunFolder.open(path)
        trajectory = Trajectory.load(folder, probe)
        evaluations: dict[int, dict[str, float]] = {}
        for record in folder.records():
            if record["kind"] == "evaluation":  # the latest value of each tag while this was the newest experience
                evaluations.setdefault(record["experience"], {}).update(record["values"])
        first = _first_experience(folder, trajectory.probe)
        learnt: float | None = None
        for experience, r in trajectory.reactivations.items():
            accuracy = _find(evaluations.get(experience, {}), f"Top1_Acc_Exp/eval_phase/test_stream/*/Exp{first:03d}")
            learnt = accuracy if learnt is None else learnt
            rows.append(
                {
                    "run": name,
                    "experience": experience,
                    "accuracy_first_task": accuracy,
                    "forgetting_first_task": None if accuracy is None or learnt is None else learnt - accuracy,
                    "moved": r.moved,
                    "spike": r.spike,
                    "ratio": r.ratio,
                    "ratio_at_floor": r.at_floor,
                    "norm_dip": r.norm_dip,
                    "alignment_drop": r.alignment_drop,
                    "onset_velocity": r.onset,
                }
            )
    return pd.DataFrame(rows).convert_dtypes()


def _first_experience(folder: RunFolder, probe: str) -> int:
    for described in folder.meta["probes"]:
        if described["name"] == probe and described["experience"] is not None:
            return int(described["experience"])
    return 0


def _find(values: Mapping[str, float], pattern: str) -> float | None:
    """Return the value whose tag matches; Avalanche leaves the task out of a tag when there is none."""
    before, after = pattern.split("*/")
    return next((v for tag, v in values.items() if tag.startswith(before) and tag.endswith(after)), None)
