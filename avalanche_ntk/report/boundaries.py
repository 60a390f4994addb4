"""The table of boundaries: forgetting and reactivation, one row per boundary and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from avalanche_ntk.recorder.boundaries import reactivation_row, reactivation_types
from avalanche_ntk.recorder.frames import CLOCK, COUNT, COUNT_OR_NONE, TEXT, TRUTH_OR_NONE, make_frame
from avalanche_ntk.recorder.frames import NUMBER_OR_NA as NUMBER
from avalanche_ntk.recorder.trajectory import NUMBERS
from avalanche_ntk.report.runs import Run, read_runs, seed_of, strategy_of, varied

if TYPE_CHECKING:
    import pandas as pd

_WHAT = {"run": TEXT, "strategy": TEXT, "seed": COUNT_OR_NONE, "control": TRUTH_OR_NONE}
_ALWAYS = {"probe": TEXT, "experience": COUNT, "accuracy": NUMBER, "forgetting": NUMBER}
_SHORT = {
    "run": TEXT,
    "experience": COUNT,
    **dict.fromkeys(("accuracy_first_task", "forgetting_first_task", "moved", "spike", "ratio"), NUMBER),
    "ratio_at_floor": TRUTH_OR_NONE,
    **dict.fromkeys(("norm_dip", "alignment_drop", "onset_velocity"), NUMBER),
}


def boundary_table(runs: Mapping[str, str | PathLike[str]], probe: str | None = None) -> pd.DataFrame:
    """Return a table with one row per experience and run.

    Args:
        runs: Run folders by the names that the table shows.
        probe: Name of the probe; None for each folder's first.

    Returns:
        Columns `run`, `experience`, `accuracy_first_task` and `forgetting_first_task` (both from the evaluation that
        followed the experience; missing when there was none), `moved`, `spike`, `ratio`, `ratio_at_floor`, `norm_dip`,
        `alignment_drop`, `onset_velocity`. Undefined numbers are missing (`pandas.NA`).

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
    return make_frame(rows, _SHORT)


def lost(run: Run, probe: str, experience: int) -> tuple[float | None, float | None]:
    """Return the accuracy on a probe's task after an experience, and the forgetting since it was first learnt.

    Args:
        run: The run.
        probe: Name of the probe.
        experience: Number of the experience.

    Returns:
        Accuracy and forgetting; None without an evaluation.
    """
    after = accuracies_since_learnt(run, probe)
    accuracy = after.get(experience)
    learnt = next(iter(after.values()), None)
    return accuracy, None if accuracy is None or learnt is None else learnt - accuracy


def accuracies_since_learnt(run: Run, probe: str) -> dict[int, float]:
    """Return the last accuracy on a probe's task by experience, from the experience in which it was first measured.

    Earlier evaluations do not count for forgetting: the task had not been learnt yet.
    """
    first = next((m.clock.experience for m in run.trajectory(probe)), 0)
    return {e: y for e, _, y in run.accuracies(run.experience_of(probe)) if e >= first}


def measurement_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a table with one row per measurement, probe and run."""
    series = [(run, trajectory) for run in runs for trajectory in run.trajectories.values()]
    rows = [
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
        for run, trajectory in series
        for m in trajectory
    ]
    columns = dict.fromkeys([*NUMBERS, *(name for _, trajectory in series for m in trajectory for name in m.values)])
    types = {"run": TEXT, "probe": TEXT, "measurement": COUNT, **CLOCK, "segment": COUNT}
    return make_frame(
        rows, {**types, **dict.fromkeys(columns, NUMBER), **dict.fromkeys(("kernel", "notes", "failure"), TEXT)}
    )


def boundary_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a table with one row per experience, probe and run: settings, accuracy and reactivation.

    Each key that varies in a sweep has a column of its name: numbers if all values are numbers, otherwise text.
    """
    rows = []
    taken = {*_WHAT, *_ALWAYS, *reactivation_types(NUMBER)}
    values = [{f"sweep.{k}" if k in taken else k: v for k, v in varied(run).items()} for run in runs]
    keys = dict.fromkeys(key for one in values for key in one)
    numeric = {key: all(_is_number(one[key]) for one in values if key in one) for key in keys}
    for run, one in zip(runs, values, strict=True):
        for trajectory in run.trajectories.values():
            for experience, r in trajectory.reactivations.items():
                accuracy, forgetting = lost(run, trajectory.probe, experience)
                rows.append(
                    {
                        "run": run.name,
                        "strategy": strategy_of(run),
                        "seed": seed_of(run),
                        "control": run.is_control,
                        **one,
                        "probe": trajectory.probe,
                        "experience": experience,
                        "accuracy": accuracy,
                        "forgetting": forgetting,
                        **reactivation_row(r),
                    }
                )
    told = {key: NUMBER if numeric[key] else TEXT for key in keys}
    return make_frame(rows, {**_WHAT, **told, **_ALWAYS, **reactivation_types(NUMBER)})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def evaluation_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a table with one row per number, evaluation and run."""
    rows = [
        {"run": run.name, "experience": e.experience, "iteration": e.iteration, "tag": tag, "value": value}
        for run in runs
        for e in run.evaluations
        for tag, value in e.values.items()
    ]
    return make_frame(rows, {"run": TEXT, "experience": COUNT, "iteration": COUNT, "tag": TEXT, "value": NUMBER})
