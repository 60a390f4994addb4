"""What users read of a recording, and change of it, while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from avalanche_ntk.errors import PluginError
from avalanche_ntk.observables import Observable
from avalanche_ntk.recorder.boundaries import reactivation_row, reactivation_types
from avalanche_ntk.recorder.failures import Failures
from avalanche_ntk.recorder.frames import COUNT, NUMBER, TEXT, make_frame
from avalanche_ntk.recorder.measurer import Measurer
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.recorder.session import Session
from avalanche_ntk.recorder.stepclock import StepClock
from avalanche_ntk.recorder.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas as pd


class Readout:
    """The series of every probe, and what is around them.

    Attributes:
        trajectories: The time series by probe name.
        evaluations: What each evaluation found (`record_evaluation`).
        clock: The counts of the run.
        recorded: Revision counter, incremented whenever a trajectory changes.
    """

    _WHAT = "recorder"
    _BEGIN = "Measure inside `with recorder.experience(model, optimizer):`."

    trajectories: dict[str, Trajectory]
    evaluations: list[dict[str, Any]]
    clock: StepClock
    recorded: int
    _probes: dict[str, Probe]
    _measurer: Measurer
    _session: Session
    _failures: Failures

    @property
    def trajectory(self) -> Trajectory:
        """The time series of the first probe.

        Raises:
            PluginError: Training has not begun.
        """
        self._require_begun()
        return next(iter(self.trajectories.values()))

    @property
    def probes(self) -> dict[str, Probe]:
        """The probes chosen so far, by name; on the model's device once they have been measured."""
        return dict(self._probes)

    @property
    def observables(self) -> list[Observable]:
        """What is measured beside the kernel; `request` adds to it."""
        return self._measurer.observables

    @property
    def run_folder(self) -> str | PathLike[str] | None:
        """Where the run is written; None keeps it in memory."""
        return self._session.run_folder

    @property
    def reduction(self) -> str:
        """The reduction of the kernel."""
        return self._measurer.reduction

    @property
    def training_seconds(self) -> float:
        """Seconds spent in training, without the measurements."""
        return self.clock.training_seconds

    @property
    def measuring_seconds(self) -> float:
        """Seconds spent in measurements."""
        return self.clock.measuring_seconds

    def summary(self) -> pd.DataFrame:
        """Return a row a probe and boundary: what happened when the task changed.

        Returns:
            Columns `probe`, `experience`, and those of `measures.Reactivation`; no rows before the first task has
            ended. `reasons` says why some numbers are empty.

        Raises:
            PluginError: Training has not begun.
        """
        self._require_begun()
        rows = [
            {"probe": name, "experience": experience, **reactivation_row(found)}
            for name, trajectory in self.trajectories.items()
            for experience, found in trajectory.reactivations.items()
        ]
        types = {"probe": TEXT, "experience": COUNT, **reactivation_types(NUMBER)}
        return make_frame(rows, types).drop(columns="reasons")

    @property
    def reasons(self) -> dict[str, dict[int, dict[str, str]]]:
        """Why numbers of `summary()` are undefined, by probe, experience and column."""
        return {name: trajectory.reasons for name, trajectory in self.trajectories.items()}

    def _require_begun(self) -> None:
        if not self.trajectories:
            raise PluginError(
                f"the {self._WHAT} has no trajectory yet: expected training to have begun, found no measurement. "
                f"{self._BEGIN}"
            )

    def request(self, observable: Observable) -> None:
        """Measure something more from now on; what is measured already is not measured twice.

        Args:
            observable: What to measure.

        Raises:
            ArgumentError: It is no observable, or another one of the same name, with other arguments, is measured
                already.
        """
        self._measurer.request(observable)

    def record_evaluation(self, values: dict[str, float]) -> None:
        """Record what an evaluation found, with the training time at which it was made.

        Args:
            values: Numbers by name; the report reads those that Avalanche's tags name, such as
                `Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000`.
        """
        record = {
            "kind": "evaluation",
            "experience": self.clock.experience,
            "iteration": self.clock.iteration,
            "values": values,
        }
        self.evaluations.append(record)
        self._failures.guarded(
            "record of an evaluation", self.clock.iteration, lambda: self._session.append(record, self)
        )

    def update_meta(self, changes: Mapping[str, Any]) -> None:
        """Change what the run folder's `run.json` says of the run; nothing without a folder.

        Args:
            changes: The new values by key; other keys stay.

        Raises:
            RunFolderError: The folder cannot be written.
            ArgumentError: A value cannot be stored.
        """
        self._session.update_meta(changes, self)

    def close(self) -> None:
        """Let go of the run folder, so that another process can write it, and of the optimizer.

        Happens by itself when the recorder is no longer used and at the process's end. To be called when training was
        interrupted and another recorder of the same process is to write the folder. Going on training takes both again.
        """
        self.clock.steps.leave()
        self._session.close()
