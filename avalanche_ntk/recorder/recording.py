"""A recording: the actions at each moment of training, independent of what drives it.

`NTKRecorder` is driven by the user's own loop, `NTKPlugin` by Avalanche's hooks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import Any, TypedDict

import torch
from torch import Tensor

from avalanche_ntk.errors import (
    ArgumentError,
    MeasurementCostWarning,
    ModelError,
    ProbeError,
    ProcessError,
    RunFolderError,
)
from avalanche_ntk.kernels.support import synchronise
from avalanche_ntk.observables import Observable
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.cost import CostWatch, Reduction
from avalanche_ntk.recorder.extras import Extras
from avalanche_ntk.recorder.failures import Failures
from avalanche_ntk.recorder.host import Host
from avalanche_ntk.recorder.measurer import Measurer, check_precision
from avalanche_ntk.recorder.parameters import Parameters
from avalanche_ntk.recorder.probes import Probe, ProbeSpec
from avalanche_ntk.recorder.processes import sharing_group
from avalanche_ntk.recorder.readout import Readout
from avalanche_ntk.recorder.resume import State
from avalanche_ntk.recorder.schedule import Schedule
from avalanche_ntk.recorder.session import Session
from avalanche_ntk.recorder.stepclock import StepClock, since
from avalanche_ntk.recorder.steps import described
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.recorder.weights import Snapshots


class RecorderOptions(TypedDict, total=False):
    """Keyword arguments of `NTKRecorder`, for type checkers."""

    run_folder: str | PathLike[str] | None
    overwrite: bool
    resume: bool | int
    reduction: str
    n_projections: int | None
    outputs: str | Sequence[int]
    params: Sequence[str] | None
    output_selector: Callable[[Any], Tensor] | None
    dtype: torch.dtype | None
    memory_budget: int | None
    checks: Any
    hooks: str | None
    observe: Sequence[Observable]
    spot_check_every: int
    keep_kernels: bool
    on_error: str
    seed: int | None
    snapshots: bool
    share: bool


class Recording(Readout):
    """Measures at the moments given by a driver; its arguments are those of `NTKRecorder`."""

    def __init__(
        self,
        probe: ProbeSpec | Probe | Sequence[ProbeSpec | Probe] = ProbeSpec(),  # noqa: B008  (frozen)
        schedule: Schedule | str | None = None,
        *,
        run_folder: str | PathLike[str] | None = None,
        overwrite: bool = False,
        resume: bool | int = False,
        reduction: str = "trace",
        n_projections: int | None = None,
        outputs: str | Sequence[int] = "first",
        params: Sequence[str] | None = None,
        output_selector: Callable[[Any], Tensor] | None = None,
        dtype: torch.dtype | None = None,
        memory_budget: int | None = None,
        checks: Any = "auto",
        hooks: str | None = None,
        observe: Sequence[Observable] = (),
        spot_check_every: int = 50,
        keep_kernels: bool = True,
        on_error: str = "warn",
        seed: int | None = None,
        snapshots: bool = False,
        share: bool = True,
    ) -> None:
        self.specs = _specs(probe)
        self._session = Session(run_folder, overwrite=overwrite, resume=resume, keep_kernels=keep_kernels)
        self._measurer = Measurer(
            reduction=reduction,
            n_projections=n_projections,
            outputs=outputs,
            params=params,
            output_selector=output_selector,
            dtype=dtype,
            memory_budget=memory_budget,
            checks=checks,
            hooks=hooks,
            spot_check_every=spot_check_every,
        )
        for observable in observe:
            self.request(observable)
        self._failures = Failures(on_error)
        self._cost = CostWatch()
        if snapshots and run_folder is None:
            raise ArgumentError("snapshots are stored in the run folder; found run_folder=None. Give run_folder= too.")
        self._snapshots = Snapshots(run_folder) if snapshots and run_folder is not None else None
        if schedule is None:
            schedule = Schedule.around_boundaries()
        elif not isinstance(schedule, Schedule):
            schedule = Schedule.from_name(schedule)
        self.schedule = schedule
        self.keep_kernels = keep_kernels
        self.seed = seed
        self.trajectories: dict[str, Trajectory] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.clock = StepClock()
        self.recorded = 0
        self._probes: dict[str, Probe] = {}
        self._known: Parameters | None = None
        self._notes: list[str] = []
        self.share = share
        self._assisted: dict[str, int] = {}  # iteration of the last measurement that this process shared, by probe

    # ------------------------------------------------------------------ the moments of training

    def _before_experience(self, host: Host, *, begins: bool = True, piece: str = "experience") -> None:
        """Choose a new task's probes and measure exactly at the boundary; further pieces of a task have no boundary."""
        if begins:
            self._choose_probes(host)
            self.clock.begin_experience(host.task_label)
            self.schedule.expect(host.epochs)
        self.clock.steps.follow(host.optimizer)
        self._tick()
        # A model that has only grown was adapted to the new experience; the measurement itself notes that.
        self._look_for_changes(host, f"since the last {piece}", growth=False)
        self._known = Parameters.of(host.model)
        if begins:
            self._note(*self.clock.steps.note)
            self._measure_if_due(lambda: host, "experience_start")

    def _before_iteration(self, host: Host) -> None:
        """Measure again if the model was changed between the boundary and the first step."""
        at_boundary = not self.clock.exp_iteration
        where = "the boundary" if at_boundary else "a piece's start"
        if self._look_for_changes(host, f"after {where} and before the first step") and at_boundary:
            self._tick()
            self._measure_if_due(lambda: host, "experience_start")

    def _after_iteration(self, host: Callable[[], Host]) -> None:
        """Count the iteration and measure if one is due."""
        self.clock.count_iteration()
        self._tick()
        self._measure_if_due(host, "iteration")

    def _after_epoch(self, host: Host) -> None:
        """Count the epoch and measure if one is due."""
        self._tick()
        self.clock.count_epoch()
        self._measure_if_due(lambda: host, "epoch_end")

    def _after_experience(self, host: Host, *, ends: bool = True) -> None:
        """Measure at the task's end and compute its reactivation."""
        self._tick()
        if ends:
            self._measure_if_due(lambda: host, "experience_end")
        self.clock.steps.leave()
        self._known = Parameters.of(host.model)
        if ends:
            self._end_task(host)
        self.clock.pause()

    def _tick(self) -> None:
        """Count the time since the last moment as training, and pass it to the schedule."""
        self.schedule.note(self.clock.tick(), 0.0)

    def _end_task(self, host: Host) -> None:
        """Compute the reactivation of the ended task, and record the state of the run."""
        experience = self.clock.experience
        for name, trajectory in self.trajectories.items():
            self._guarded(f"reactivation of {name}", partial(trajectory._close_experience, experience))
        self.recorded += 1
        folder = self._session.folder
        if folder is not None:
            state = self._state(host).as_record(experience)
            self._guarded("record of the state at an experience's end", lambda: folder.append(state))
            self._guarded("measurements.csv", folder.export_csv)

    def _look_for_changes(self, host: Host, when: str, *, growth: bool = True) -> bool:
        """Compare the parameters with those at the last pause of training, and note a change.

        If none is left, a new segment begins.

        Args:
            host: What trains.
            when: When the change was made, for the note.
            growth: Whether added, removed or resized parameters count as a change.

        Returns:
            Whether they have changed.
        """
        known, self._known = self._known, None
        change = None if known is None else known.change_to(host.model)
        if change is None or not (change if growth else change.changed or change.is_another_model):
            return False
        if change.is_another_model:  # nothing is compared with earlier measurements
            self._measurer.reset()
            for trajectory in self.trajectories.values():
                trajectory.new_segment()
        self._note(change.describe(when))
        return True

    def _note(self, *notes: str) -> None:
        """Keep notes for the next measurement, without repetitions."""
        self._notes = list(dict.fromkeys([*self._notes, *notes]))

    # ------------------------------------------------------------------ set-up

    def _choose_probes(self, host: Host) -> None:
        """Choose every probe whose experience has been reached; open the run folder with the first ones."""
        number = self.clock.experience + 1
        if not self._probes:
            for spec in self.specs:
                host.check(spec)
        specs = host.specs_now(self.specs, number, earlier=self._session.may_resume)
        new: dict[str, Probe] = {}
        for spec in specs:
            name = name_of(spec)
            probe = spec if isinstance(spec, Probe) else None if name in self._probes else host.choose(spec, number)
            if probe is not None and name not in self._probes:
                new[name] = probe
        if not new:
            return
        names = [name_of(spec) for spec in specs]
        known, resumed = self._session.open(host, self._meta(host, new), names, self)
        if resumed is not None:
            self._take_up(*resumed, names)
        self.recorded += 1
        self._probes.update(new)
        for name, probe in new.items():
            self.trajectories[name] = self._known_series(name) if name in known else self._new_series(name, probe)

    def _new_series(self, name: str, probe: Probe) -> Trajectory:
        return Trajectory(
            name,
            probe.y.numpy(),
            folder=self._session.folder,
            keep_kernels=self.keep_kernels,
            cadence=self.schedule.cadence,
        )

    def _known_series(self, name: str) -> Trajectory:
        """Return the series of a continued run."""
        assert self._session.folder is not None
        trajectory = Trajectory.load(self._session.folder, name)
        values = [m.values for m in trajectory if m.segment == trajectory.segment and m.failure is None]
        for observable in self.observables if values else []:
            observable.resumed({name: values})
        return trajectory

    def _take_up(self, experience: int, state: State | None, names: Sequence[str]) -> None:
        """Restore the state of a run on disk."""
        self.clock.experience = experience - 1
        if state is None:
            return
        self.clock.iteration, self.clock.epoch = state.counts["iteration"], state.counts["epoch"]
        self.clock.steps.count = state.counts["optimizer_step"]
        self._measurer.outputs_seen = dict(state.outputs)
        shapes = {name: state.parameters[name][0] for name in state.trainable}
        self._measurer.parameters_seen = dict.fromkeys(names, shapes)
        self._known = Parameters(state.parameters)
        self.clock.training_seconds, self.clock.measuring_seconds = state.training_seconds, state.measuring_seconds
        assert self._session.folder is not None
        self.evaluations = [record for record in self._session.folder.records() if record["kind"] == "evaluation"]

    def _state(self, host: Host) -> State:
        assert self._known is not None
        parameters = dict(self._known.digests)
        trainable = (name for name, p in host.model.named_parameters() if p.requires_grad)
        return State(
            counts=self.clock.counts,
            outputs=self._measurer.outputs_seen,
            parameters=parameters,
            trainable=tuple(name for name in trainable if name in parameters),
            training_seconds=self.training_seconds,
            measuring_seconds=self.measuring_seconds,
        )

    def _meta(self, host: Host, new: dict[str, Probe]) -> dict[str, Any]:
        return {
            "probes": [probe.describe() for probe in {**self._probes, **new}.values()],
            "seed": torch.initial_seed() if self.seed is None else self.seed,
            "strategy": host.name,
            "optimizer": described(host.optimizer),
            "online": host.online,
            "model": {
                "name": type(host.model).__name__,
                "parameters": {name: list(p.shape) for name, p in host.model.named_parameters() if p.requires_grad},
            },
            "device": str(host.device),
            "schedule": self.schedule.describe(),
            "cadence": self.schedule.cadence,
            **self._measurer.describe(),
        }

    # ------------------------------------------------------------------ measuring

    def _measure_if_due(self, host: Callable[[], Host], event: str) -> None:
        clock = self.clock.now(event)
        if not self.schedule.due(clock):
            return
        here = host()
        # One process records for all; every process has the same model.
        group = sharing_group(self.schedule, resumed=self._session.resume is not False) if self.share else None
        if not here.measures and group is None:
            return
        series = {name: t for name, t in self.trajectories.items() if self._is_due(here, name, clock)}
        if not here.measures:
            self._assist(here, list(series), clock, group)
            return
        snapshots = self._snapshots
        if series and snapshots is not None:
            self._guarded("a snapshot", lambda: snapshots.store(here.model, clock, here.iterations_per_epoch))
        notes, self._notes = self._notes, []
        before = self.clock.measuring_seconds
        for name, trajectory in series.items():
            self._measure(here, self._probes[name], trajectory, clock, notes, group)
        if series:
            self._tell_cost(here, clock, self.clock.measuring_seconds - before)

    def _assist(self, host: Host, names: Sequence[str], clock: TrainingClock, group: Any) -> None:
        """Do this process's share of a measurement that another process records; that one reports failures."""
        begin, self._notes = time.perf_counter(), []
        self._probes = {name: one.to(host.device) for name, one in self._probes.items()}
        for name in names:
            self._assisted[name] = clock.iteration
            try:
                self._measurer.assist(host, self._probes[name], clock, group=group)
            except ProcessError:  # reported by the recording process
                continue
            except Exception:
                if self._failures.on_error == "raise":
                    raise
        self.schedule.note(0.0, self.clock.measured(begin))

    def _is_due(self, host: Host, name: str, clock: TrainingClock) -> bool:
        """Return whether a probe is measured now: not twice at one iteration, and not before its head exists."""
        measured = self.trajectories[name].measurements
        last = measured[-1].clock.iteration if measured else self._assisted.get(name)
        twice = clock.event == "epoch_end" and last == clock.iteration
        return not twice and host.has_outputs_for(self._probes[name])

    def _measure(
        self,
        host: Host,
        probe: Probe,
        trajectory: Trajectory,
        clock: TrainingClock,
        notes: Sequence[str],
        group: Any,
    ) -> None:
        synchronise(host.device)  # pending device work counts as training time
        self._tick()
        begin = time.perf_counter()
        try:
            extras = self._measured(host, probe, trajectory, clock, notes, begin, group)
        except RunFolderError as error:
            self._report(error, "writing a measurement")  # the trajectory has the measurement; only writing it failed
        except Exception as error:  # noqa: BLE001  (whatever fails in here must not end the training run)
            if isinstance(error, (ArgumentError, ProbeError)) and not len(trajectory):
                raise  # a wrong argument: raise it while nothing has been trained yet
            if isinstance(error, ModelError) and not len(trajectory):
                check_precision(host.model, probe, error)
            try:
                trajectory._add_failure(clock, f"{type(error).__name__}: {error}")
            except RunFolderError as second:
                self._report(second, "writing a measurement")
            self._report(error)
        else:
            for what, failure in extras.errors:
                self._report(failure, what)
        finally:
            self.recorded += 1
            self.schedule.note(0.0, self.clock.measured(begin))

    def _measured(
        self,
        host: Host,
        probe: Probe,
        trajectory: Trajectory,
        clock: TrainingClock,
        notes: Sequence[str],
        begin: float,
        group: Any,
    ) -> Extras:
        """Measure and record; return the results beside the kernel."""
        # They stay on the device: every measurement uses the same tensors.
        self._probes = {name: one.to(host.device) for name, one in self._probes.items()}
        found = self._measurer.measure(
            host, self._probes[probe.name], self._probes, clock, index=len(trajectory), group=group
        )
        extras = found.extras
        measurement = found.add_to(
            trajectory,
            clock,
            iterations_per_epoch=host.iterations_per_epoch,
            notes=notes,
            cost={"measurement_seconds": since(begin), "measuring_share": self.clock.share(begin)},
        )
        self._failures.tell_undefined(measurement, probe.name)
        for record in extras.records:
            extras.attempt("a further record", partial(trajectory.note, record))
        return extras

    def _tell_cost(self, host: Host, clock: TrainingClock, seconds: float) -> None:
        """Warn once if measuring will take much of the run's time."""
        begin = time.perf_counter()
        told: list[str | None] = []

        def look() -> None:
            m = self._measurer
            outputs = m.outputs_seen.values() if isinstance(m.outputs, str) else [list(m.outputs)]
            n_outputs = max(map(len, outputs), default=0)
            reduction = Reduction(m.reduction, n_outputs, m.n_projections) if n_outputs else None
            length = host.epochs, host.iterations_per_epoch
            told.append(self._cost.look(clock, self.training_seconds, seconds, self.schedule, reduction, *length))

        self._guarded("the prediction of the cost", look)
        self.clock.measured(begin)
        # Unguarded: a user may turn warnings into errors, and that is not a failed measurement.
        for message in filter(None, told):
            warnings.warn(message, MeasurementCostWarning, stacklevel=5)

    # ------------------------------------------------------------------ failures

    def _guarded(self, what: str, action: Callable[[], Any]) -> None:
        self._failures.guarded(what, self.clock.iteration, action)

    def _report(self, error: Exception, what: str = "a measurement") -> None:
        self._failures.report(error, self.clock.iteration, what)


def name_of(spec: ProbeSpec | Probe) -> str:
    """Return the name that a probe has or will have."""
    return spec.name if isinstance(spec, Probe) else spec.label


def _specs(probe: Any) -> list[ProbeSpec | Probe]:
    specs = list(probe) if isinstance(probe, Sequence) and not isinstance(probe, str) else [probe]
    if not specs or not all(isinstance(p, (Probe, ProbeSpec)) for p in specs):
        raise ArgumentError(
            f"probe must be a ProbeSpec, a Probe, or a sequence of them; found {probe!r}. "
            "Give probe=ProbeSpec(size=64, from_experience=0), for example."
        )
    names = [name_of(p) for p in specs]
    if len(set(names)) < len(names):
        raise ArgumentError(f"probes need different names; found {names}. Give name= to ProbeSpec or Probe.")
    return specs
