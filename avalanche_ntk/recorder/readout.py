"""The public interface of a running recording."""

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
    """The series of every probe, and the state of the recording.

    Attributes:
        trajectories: The time series by probe name.
        evaluations: The numbers of each evaluation (`record_evaluation`).
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
        """The probes chosen so far, by name; on the model's device once measured."""
        return dict(self._probes)

    @property
    def observables(self) -> list[Observable]:
        """The observables measured beside the kernel; `request` adds one."""
        return self._measurer.observables

    @property
    def run_folder(self) -> str | PathLike[str] | None:
        """Folder of the run; None keeps it in memory."""
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
        """Return a table of reactivations, one row per probe and boundary.

        Returns:
            Columns `probe`, `experience`, and those of `measures.Reactivation`; no rows before the first task has
            ended. `reasons` explains empty numbers.

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
        """Reasons for undefined numbers of `summary()`, by probe, experience and column."""
        return {name: trajectory.reasons for name, trajectory in self.trajectories.items()}

    def _require_begun(self) -> None:
        if not self.trajectories:
            raise PluginError(
                f"the {self._WHAT} has no trajectory yet: expected training to have begun, found no measurement. "
                f"{self._BEGIN}"
            )

    def request(self, observable: Observable) -> None:
        """Measure one more observable from now on; an equal one is not added twice.

        Args:
            observable: The observable.

        Raises:
            ArgumentError: It is not an observable, or one of the same name with different arguments is already
                measured.
        """
        self._measurer.request(observable)

    def record_evaluation(self, values: dict[str, float]) -> None:
        """Record the numbers of an evaluation with its training time.

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
        """Change the run's description in `run.json`; no effect without a run folder.

        Args:
            changes: The new values by key; other keys are kept.

        Raises:
            RunFolderError: The folder cannot be written.
            ArgumentError: A value cannot be stored.
        """
        self._session.update_meta(changes, self)

    def close(self) -> None:
        """Release the run folder, so that another process can write it, and the optimizer.

        This happens automatically when the recorder is garbage-collected and when the process ends. Call it after
        interrupted training if another recorder of the same process is to write the folder. Continued training acquires
        both again.
        """
        self.clock.steps.leave()
        self._session.close()
