"""A row for each boundary of each run: what the network lost, and what its kernel did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import pandas as pd

from avalanche_ntk.report.runs import Run, read_runs


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
        RunFolderError: A folder cannot be read, or has no such probe.
    """
    rows = []
    for run in read_runs(runs)[0]:
        trajectory = run.trajectory(probe)
        for experience, r in trajectory.reactivations.items():
            accuracy, forgetting = lost(run, trajectory.probe, experience)
            rows.append(
                {
                    "run": run.name,
                    "experience": experience,
                    "accuracy_first_task": accuracy,
                    "forgetting_first_task": forgetting,
                    "moved": r.moved,
                    "spike": r.spike,
                    "ratio": r.ratio,
                    "ratio_at_floor": r.at_floor,
                    "norm_dip": r.norm_dip,
                    "alignment_drop": r.alignment_drop,
                    "onset_velocity": r.onset,
                }
            )
    return _frame(rows)


def lost(run: Run, probe: str, experience: int) -> tuple[float | None, float | None]:
    """Return the accuracy on a probe's task after an experience, and what was forgotten of it since it was first known.

    Args:
        run: The run.
        probe: Name of the probe.
        experience: Number of the experience.

    Returns:
        Accuracy and forgetting; None where nothing was evaluated.
    """
    after = accuracies_since_learnt(run, probe)
    accuracy = after.get(experience)
    learnt = next(iter(after.values()), None)
    return accuracy, None if accuracy is None or learnt is None else learnt - accuracy


def accuracies_since_learnt(run: Run, probe: str) -> dict[int, float]:
    """Return the last accuracy on a probe's task by experience, from the one on in which the probe was first measured.

    What was evaluated before says nothing of forgetting: the task had not been learnt yet.
    """
    first = next((m.clock.experience for m in run.trajectory(probe)), 0)
    return {e: y for e, _, y in run.accuracies(run.experience_of(probe)) if e >= first}


def measurement_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each measurement of each probe of each run."""
    return _frame(
        {
            "run": run.name,
            "probe": trajectory.probe,
            "measurement": m.index,
            **m.clock.as_dict(),
            "segment": m.segment,
            **m.values,
            "kernel": m.kernel,
            "notes": "; ".join(m.notes),
            "failure": m.failure,
        }
        for run in runs
        for trajectory in run.trajectories.values()
        for m in trajectory
    )


def boundary_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each experience of each probe of each run: the whole reactivation, and the accuracy."""
    rows = []
    for run in runs:
        for trajectory in run.trajectories.values():
            for experience, r in trajectory.reactivations.items():
                values = r.as_dict()
                reasons = values.pop("reasons")
                before, after = values.pop("cadence") or (None, None)
                accuracy, forgetting = lost(run, trajectory.probe, experience)
                rows.append(
                    {
                        "run": run.name,
                        "probe": trajectory.probe,
                        "experience": experience,
                        "accuracy": accuracy,
                        "forgetting": forgetting,
                        **values,
                        "cadence_before": before,
                        "cadence_after": after,
                        "reasons": "; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
                    }
                )
    return _frame(rows)


def evaluation_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each number of each evaluation of each run."""
    return _frame(
        {"run": run.name, "experience": e.experience, "iteration": e.iteration, "tag": tag, "value": value}
        for run in runs
        for e in run.evaluations
        for tag, value in e.values.items()
    )


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows)).convert_dtypes()
