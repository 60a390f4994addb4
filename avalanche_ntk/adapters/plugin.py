"""The Avalanche plugin: the hooks at which the kernel of the probes is measured.

Only this module measures; the metrics read what it recorded. Nothing that training depends on is changed: a run with
the plugin is bit-identical to the same run without it.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.distributed import DistributedHelper
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from avalanche_ntk import measures
from avalanche_ntk.adapters.reading import (
    check_each_task,
    check_precision,
    dataset_of,
    has_outputs_for,
    iterations_counted,
    iterations_per_epoch,
    model_of,
    position_of,
    reader_of,
    spec_at,
    task_label_of,
)
from avalanche_ntk.adapters.tasks import Tasks, is_first_piece, is_piece, origin_of
from avalanche_ntk.adapters.trained import trained_function
from avalanche_ntk.errors import (
    ArgumentError,
    MeasurementFailedWarning,
    ModelError,
    NTKError,
    PluginError,
    ProbeError,
    RunFolderError,
    UndefinedMeasureWarning,
    ended,
    positive,
    unknown_name,
)
from avalanche_ntk.kernels import KernelInfo, empirical_ntk, empirical_ntk_by_group, jvp_prediction
from avalanche_ntk.kernels.support import checked_precision, spot_check_in_double
from avalanche_ntk.observables import Moment, Observable
from avalanche_ntk.randomness import preserved_rng_state
from avalanche_ntk.recorder.boundaries import reactivation_row, reactivation_types
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.extras import Extras
from avalanche_ntk.recorder.frames import COUNT, NUMBER, TEXT, make_frame
from avalanche_ntk.recorder.parameters import Parameters
from avalanche_ntk.recorder.probes import Probe, ProbeSpec
from avalanche_ntk.recorder.resume import State, check_probes, is_run, reopen
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.schedule import Schedule
from avalanche_ntk.recorder.steps import StepCounter, described
from avalanche_ntk.recorder.trajectory import Measurement, Trajectory

if TYPE_CHECKING:
    import pandas as pd

# Undefined numbers that are worth a warning, and the reasons that belong to the ordinary course of a run.
_MISSED = (
    "alignment",
    "distance",
    "spectral_norm",
    "kernel_",
    "effective_rank",
    "forecast_error",
    "forgetting_forecast",
    "task_overlap",
)
_ORDINARY = frozenset({"the outputs have not moved since the boundary"})

REDUCTIONS = ("trace", "sum_logits")
ON_ERROR = ("warn", "raise")


class NTKPlugin(SupervisedPlugin, supports_distributed=True):
    """Measures the empirical NTK of fixed probe sets while a strategy trains.

    Give it to the strategy (`plugins=[ntk]`) and its metrics to the evaluator (`ntk_metrics(ntk)`). It measures exactly
    at each experience's start, before any step of the new task, at its end, and in between when the schedule asks for
    it.

    Args:
        probe: What to watch: a `ProbeSpec` (chosen when training reaches its experience), a `Probe`, or several of
            them.
        schedule: When to measure; `Schedule.around_boundaries()` when None, or its name as text.
        run_folder: Folder to write `run.json`, `measurements.jsonl` and the kernels to; None keeps everything in
            memory.
        overwrite: Whether a run that is already in that folder may be replaced.
        resume: Whether to go on with the run that is in that folder, when the model and the optimizer were restored
            from a checkpoint of your own. True goes on with the experience that is trained next, by its place in the
            stream; a number says how many experiences were trained before. What the folder holds beyond that is set
            aside. Without a run in the folder a new one begins.
        reduction: "trace" (`K[n,m] = Σ_c Θ[n,m,c,c]`) or "sum_logits" (the kernel of the summed outputs, one backward
            pass).
        outputs: "first" keeps the outputs that the model had at the first measurement, so that the series stays
            comparable when a head grows; "all" takes what there is; or the indices of the outputs.
        params: Names of the parameters whose kernel is measured; every parameter that requires a gradient when None.
        output_selector: Picks the `(N, C)` tensor from what the model returns; needed for models that return a tuple or
            dict.
        dtype: Precision of the kernel's computation; the model's own when None.
        memory_budget: Bytes that a measurement may use beyond one forward pass.
        observe: What else to measure, see `avalanche_ntk.observables`; `ntk_metrics` adds what its metrics need.
        spot_check_every: Measurements between two comparisons of a random entry of the kernel with the slow oracle in
            float64 (the first is compared); 0 for none.
        keep_kernels: Whether the kernels are kept, not only their numbers.
        on_error: "warn" records a measurement that failed with its reason, warns once per kind and trains on; "raise"
            stops.
        seed: Seed of the training run, recorded in `run.json`; torch's initial seed when None.
        benchmark: Where probes of other experiences than the trained one and of the test stream are found; needed where
            the stream that is trained on does not know its benchmark. It goes into no checkpoint.

    Attributes:
        trajectories: The time series by probe name.
        evaluations: What each evaluation found, when the evaluator has `ntk_metrics(...)` as its last metrics.
        training_seconds: Seconds spent in training, without the measurements.
        measuring_seconds: Seconds spent in measurements.
        recorded: Another number whenever a trajectory has something new; as long as it stays, there is nothing to read.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
    """

    def __init__(
        self,
        probe: ProbeSpec | Probe | Sequence[ProbeSpec | Probe] = ProbeSpec(),  # noqa: B008  (frozen)
        schedule: Schedule | str | None = None,
        *,
        run_folder: str | PathLike[str] | None = None,
        overwrite: bool = False,
        resume: bool | int = False,
        reduction: str = "trace",
        outputs: str | Sequence[int] = "first",
        params: Sequence[str] | None = None,
        output_selector: Callable[[Any], Tensor] | None = None,
        dtype: torch.dtype | None = None,
        memory_budget: int | None = None,
        observe: Sequence[Observable] = (),
        spot_check_every: int = 50,
        keep_kernels: bool = True,
        on_error: str = "warn",
        seed: int | None = None,
        benchmark: Any = None,
    ) -> None:
        super().__init__()
        if spot_check_every < 0:
            raise ArgumentError(
                f"spot_check_every counts measurements, 0 for no check; found {spot_check_every}. Give 50, for example."
            )
        self.specs: list[ProbeSpec | Probe] = (
            list(probe) if isinstance(probe, Sequence) and not isinstance(probe, str) else [probe]
        )
        if not self.specs or not all(isinstance(p, (Probe, ProbeSpec)) for p in self.specs):
            raise ArgumentError(
                f"probe must be a ProbeSpec, a Probe, or a sequence of them; found {probe!r}. "
                "Give probe=ProbeSpec(size=64, from_experience=0), for example."
            )
        names = [_name(p) for p in self.specs]
        if len(set(names)) < len(names):
            raise ArgumentError(f"each probe needs a name of its own; found {names}. Give name= to ProbeSpec or Probe.")
        _check_resume(resume, run_folder, overwrite, keep_kernels)
        if reduction not in REDUCTIONS:
            raise unknown_name("reduction", reduction, REDUCTIONS)
        if on_error not in ON_ERROR:
            raise unknown_name("on_error", on_error, ON_ERROR)
        if isinstance(outputs, str) and outputs not in ("first", "all"):
            raise unknown_name("outputs", outputs, ("first", "all"))
        if schedule is None:
            schedule = Schedule.around_boundaries()
        elif not isinstance(schedule, Schedule):
            schedule = Schedule.from_name(schedule)
        self.schedule = schedule
        self.run_folder = run_folder
        self.overwrite = overwrite
        self.resume = resume
        self.reduction = reduction
        self.outputs = outputs
        self.params = None if params is None else list(params)
        self.output_selector = output_selector
        self.dtype = checked_precision(dtype)
        self.memory_budget = positive("memory_budget", memory_budget, "bytes")
        self.observables: list[Observable] = []
        for observable in observe:
            self.request(observable)
        self.spot_check_every = spot_check_every
        self.keep_kernels = keep_kernels
        self.on_error = on_error
        self.seed = seed
        if benchmark is not None and not hasattr(benchmark, "streams"):
            raise ArgumentError(
                f"benchmark must be an Avalanche benchmark, which has streams; found {type(benchmark).__name__}. Give "
                "the one whose train_stream is trained on."
            )
        self.benchmark = benchmark

        self.trajectories: dict[str, Trajectory] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.training_seconds = 0.0
        self.measuring_seconds = 0.0
        self.recorded = 0
        self._probes: dict[str, Probe] = {}
        self._folder: RunFolder | None = None
        self._counts = {
            "iteration": 0,
            "experience": -1,
            "exp_iteration": 0,
            "epoch": 0,
            "exp_epoch": 0,
        }
        self._steps = StepCounter()
        self._tasks = Tasks()
        self._task_label: int | None = None
        self._outputs_seen: dict[str, list[int]] = {}
        self._parameters_seen: dict[str, dict[str, tuple[int, ...]]] = {}
        self._ahead = 0
        self._known: Parameters | None = None
        self._notes: list[str] = []
        self._warned: set[str] = set()
        self._last_tick: float | None = None
        self._owner: int | None = None
        self._shapes_before: dict[str, tuple[int, ...]] = {}
        self._must_rewind = False

    # ------------------------------------------------------------------ what users read

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
        """The probes chosen so far, by name; on the strategy's device once they have been measured."""
        return dict(self._probes)

    def summary(self) -> pd.DataFrame:
        """Return a row a probe and boundary: what happened when the task changed.

        Returns:
            Columns `probe`, `experience`, and those of `measures.Reactivation`; no rows before the first task has
            ended.

        Raises:
            PluginError: Training has not begun.
        """
        self._require_begun()
        rows = [
            {"probe": name, "experience": experience, **reactivation_row(found)}
            for name, trajectory in self.trajectories.items()
            for experience, found in trajectory.reactivations.items()
        ]
        return make_frame(rows, {"probe": TEXT, "experience": COUNT, **reactivation_types(NUMBER)})

    def _require_begun(self) -> None:
        if not self.trajectories:
            raise PluginError(
                "the plugin has no trajectory yet: expected training to have begun, found no measurement. "
                "Call strategy.train(experience) with this plugin in the strategy's `plugins`."
            )

    def request(self, observable: Observable) -> None:
        """Measure something more from now on; what is measured already is not measured twice.

        Args:
            observable: What to measure.

        Raises:
            ArgumentError: It is no observable, or another one of the same name, with other arguments, is measured
                already.
        """
        if not isinstance(observable, Observable):
            raise ArgumentError(
                f"observe takes objects of avalanche_ntk.observables, such as PerLayer(); found {observable!r}."
            )
        for known in self.observables:
            if known.name == observable.name and known != observable:
                raise ArgumentError(
                    f"{observable.name} is measured already as {known.describe()}; found a second one, "
                    f"{observable.describe()}. Give one of them."
                )
        if observable not in self.observables:
            self.observables.append(observable)

    @classmethod
    def of(cls, strategy: Any) -> NTKPlugin:
        """Return the plugin that measures in `strategy`; after loading a checkpoint this is the one that goes on.

        Args:
            strategy: An Avalanche strategy.

        Returns:
            Its first `NTKPlugin`.

        Raises:
            PluginError: It has none, or is no strategy.
        """
        plugins = getattr(strategy, "plugins", None)
        if not isinstance(plugins, (list, tuple)):
            raise PluginError(
                f"NTKPlugin.of takes a strategy of Avalanche, which has a list of plugins; found "
                f"{type(strategy).__name__}. Give the strategy that trains."
            )
        for plugin in plugins:
            if isinstance(plugin, cls):
                return plugin
        raise PluginError(
            f"{type(strategy).__name__} has no NTKPlugin among its {len(plugins)} plugins. "
            "Give it one: plugins=[NTKPlugin(...)]."
        )

    def record_evaluation(self, values: dict[str, float]) -> None:
        """Record what an evaluation found, with the training time at which it was made.

        Args:
            values: Numbers by Avalanche's tags.
        """
        record = {
            "kind": "evaluation",
            "experience": self._counts["experience"],
            "iteration": self._counts["iteration"],
            "values": values,
        }
        self.evaluations.append(record)
        if self._folder is not None:
            folder = self._folder

            def write() -> None:
                self._rewind()
                folder.append(record)

            self._guarded("record of an evaluation", write)

    def reached(self, strategy: Any) -> float:
        """Return how far Avalanche's clock has come, in this plugin's count of iterations.

        Within an iteration that clock is one behind: it is the last of a strategy's plugins. In a run that was resumed
        it begins at 0 again, and this count does not.

        Args:
            strategy: The strategy.

        Returns:
            Iterations of the run that are over for every plugin; infinity for a strategy without such a clock.
        """
        counted = iterations_counted(strategy)
        return float("inf") if counted is None else counted + self._ahead

    def update_meta(self, changes: Mapping[str, Any]) -> None:
        """Change what the run folder's `run.json` says of the run; nothing without a folder.

        Args:
            changes: The new values by key; other keys stay.

        Raises:
            RunFolderError: The folder cannot be written.
            ArgumentError: A value cannot be stored.
        """
        if self._folder is not None:
            self._rewind()
            self._folder.update_meta(changes)

    def close(self) -> None:
        """Let go of the run folder, so that another process can write it, and of the optimizer.

        Happens by itself when the plugin is no longer used and at the process's end. To be called when training was
        interrupted and another plugin of the same process is to write the folder. Going on training takes both again.
        """
        self._steps.leave()
        if self._folder is not None:
            self._folder.close()

    # ------------------------------------------------------------------ hooks

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check that the plugin stands once in one strategy."""
        count = sum(plugin is self for plugin in strategy.plugins)
        if count > 1:
            raise PluginError(
                f"the same NTKPlugin stands {count} times in the plugins of {type(strategy).__name__}; expected once. "
                "Remove the others."
            )
        if self._owner not in (None, id(strategy)):
            raise PluginError(
                f"this NTKPlugin already measures another strategy and cannot follow {type(strategy).__name__} too: "
                "its time series would mix two models. Make one NTKPlugin for each strategy."
            )
        self._owner = id(strategy)
        _recorders_last(strategy)
        self._rewind()
        if self._folder is None and self.resume is not False:
            # The last moment before the model is adapted to the new experience.
            self._shapes_before = {name: tuple(p.shape) for name, p in model_of(strategy).named_parameters()}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Choose the probes that this task brings and measure exactly at the boundary; pieces of a task have none."""
        unfinished = self._tasks.unfinished
        begins = self._tasks.begins(strategy.experience)
        if begins:
            if unfinished:  # nothing was trained since its last piece ended
                self._end_task(strategy)
            self._choose_probes(strategy)
            self._counts["experience"] += 1
            self._counts["exp_iteration"] = self._counts["exp_epoch"] = 0
            self._task_label = task_label_of(origin_of(strategy.experience))
        # Both counts stand still between experiences.
        self._ahead = self._counts["iteration"] - (iterations_counted(strategy) or 0)
        self._steps.follow(getattr(strategy, "optimizer", None))
        self._tick()
        # A model that has only grown was adapted to what comes, which a measurement notes by itself.
        self._look_for_changes(strategy, f"since the last {'experience' if begins else 'piece'}", growth=False)
        self._known = Parameters.of(model_of(strategy))
        if begins:
            self._note(*self._steps.note)
            self._measure_if_due(strategy, "experience_start")

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Measure again when another plugin has changed the model between the boundary and the first step."""
        # Some strategies make another optimizer after the boundary.
        self._steps.follow(getattr(strategy, "optimizer", None))
        if self._known is None:  # seen at the experience's first iteration
            return
        at_boundary = not self._counts["exp_iteration"]
        where = "the boundary" if at_boundary else "a piece's start"
        if self._look_for_changes(strategy, f"after {where} and before the first step") and at_boundary:
            self._tick()
            self._measure_if_due(strategy, "experience_start")

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count the iteration and measure when the schedule asks for it."""
        # Counted here: Avalanche's own clock stands behind this plugin and has not seen this iteration yet.
        self._counts["iteration"] += 1
        self._counts["exp_iteration"] += 1
        self._steps.iteration()
        self._tick()
        self._measure_if_due(strategy, "iteration")

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Count the epoch and measure when the schedule asks for it; a pass over a piece of a task is none."""
        self._tick()
        if is_piece(strategy.experience):
            return
        self._counts["epoch"] += 1
        self._counts["exp_epoch"] += 1
        self._measure_if_due(strategy, "epoch_end")

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Measure at the task's end and compute its reactivation."""
        self._tick()
        ends = self._tasks.ends(strategy.experience)
        if ends:
            self._measure_if_due(strategy, "experience_end")
        self._steps.leave()
        self._known = Parameters.of(model_of(strategy))
        if ends:
            self._end_task(strategy)
        self._last_tick = None

    # ------------------------------------------------------------------ tasks and their parameters

    def _end_task(self, strategy: Any) -> None:
        """Compute what happened in the task that has ended, and write down where the run stands."""
        experience = self._counts["experience"]
        for name, trajectory in self.trajectories.items():
            self._guarded(f"reactivation of {name}", partial(trajectory.close_experience, experience))
        self.recorded += 1
        if self._folder is not None:
            folder, state = self._folder, self._state(strategy).as_record(experience)
            self._guarded("record of the state at an experience's end", lambda: folder.append(state))
            self._guarded("measurements.csv", folder.export_csv)

    def _look_for_changes(self, strategy: Any, when: str, *, growth: bool = True) -> bool:
        """Compare the parameters with what they were when training last stood still, and note a change.

        Where nothing is left of them, a new segment begins.

        Args:
            strategy: The strategy.
            when: When the change was made, for the note.
            growth: Whether parameters that came, went or were resized count.

        Returns:
            Whether there is a change.
        """
        known, self._known = self._known, None
        change = None if known is None else known.change_to(model_of(strategy))
        if change is None or not (change if growth else change.changed or change.is_another_model):
            return False
        if change.is_another_model:
            self._new_segment()
        self._note(change.describe(when))
        return True

    def _note(self, *notes: str) -> None:
        """Keep notes for the next measurement; of pieces that are all changed alike one is enough."""
        self._notes = list(dict.fromkeys([*self._notes, *notes]))

    # ------------------------------------------------------------------ set-up

    def _new_segment(self) -> None:
        """Begin anew: nothing is compared with what was measured before, and the outputs are fixed again."""
        self._outputs_seen.clear()
        for observable in self.observables:
            observable.reset()
        for trajectory in self.trajectories.values():
            trajectory.new_segment()

    def _choose_probes(self, strategy: Any) -> None:
        """Choose every probe whose experience has been reached, and open the run folder with the first ones."""
        new: dict[str, Probe] = {}
        if not self._probes:
            for spec in self.specs:
                check_each_task(strategy, spec, self.benchmark)
        for spec in self._specs_now(strategy):
            name = _name(spec)
            if name in self._probes:
                continue
            if isinstance(spec, Probe):
                probe = spec
            else:
                dataset = dataset_of(strategy, spec, self.benchmark)
                if dataset is None:
                    continue
                probe = spec.choose(dataset, reader_of(strategy))
            new[name] = probe
        if not new:
            return
        known = self._open_folder(strategy, new)
        self.recorded += 1
        self._probes.update(new)
        for name, probe in new.items():
            if name in known and self._folder is not None:
                trajectory = self.trajectories[name] = Trajectory.load(self._folder, name)
                since = [m.values for m in trajectory if m.segment == trajectory.segment and m.failure is None]
                for observable in self.observables if since else []:
                    observable.resumed({name: since})
                continue
            self.trajectories[name] = Trajectory(
                name,
                probe.y.numpy(),
                folder=self._folder,
                keep_kernels=self.keep_kernels,
                cadence=self.schedule.cadence,
            )

    def _specs_now(self, strategy: Any) -> list[ProbeSpec | Probe]:
        """Return what to choose now; a run that is continued needs the probes of its earlier tasks too."""
        specs = [spec_at(spec, strategy.experience) for spec in self.specs]
        if self.resume is False or self._folder is not None:
            return specs
        earlier = [
            replace(spec, from_experience=number)
            for number in range(origin_of(strategy.experience).current_experience)
            for spec in self.specs
            if isinstance(spec, ProbeSpec) and spec.from_experience is None
        ]
        return [*earlier, *specs]

    def _open_folder(self, strategy: Any, new: dict[str, Probe]) -> set[str]:
        """Make, continue or extend the run folder; return the names of the probes that it already had.

        One process of a distributed run writes; the others keep no folder.
        """  # noqa: DOC201
        if self.run_folder is None or not DistributedHelper.is_main_process:
            return set()
        meta = self._meta(strategy, new)
        if self._folder is None and not (self.resume is not False and self._continue_run(strategy, meta)):
            self._folder = RunFolder.create(self.run_folder, meta, overwrite=self.overwrite)
            _close_at_exit(self, self._folder)
            return set()
        assert self._folder is not None
        known = check_probes(self._folder, meta["probes"])
        if added := [probe.describe() for name, probe in new.items() if name not in known]:
            self._folder.update_meta({"probes": [*self._folder.meta["probes"], *added]})
        return known

    def _continue_run(self, strategy: Any, meta: dict[str, Any]) -> bool:
        """Take up the run in the folder; return whether there is one."""
        assert self.run_folder is not None
        experience = strategy.experience
        number = position_of(origin_of(experience)) if self.resume is True else int(self.resume)
        if not is_run(self.run_folder):
            if number:
                raise RunFolderError(
                    f"there is no run in {self.run_folder} to go on with: training goes on with experience {number}, "
                    "and what went before should be there. Give the folder of that run, or resume=False to begin a "
                    "new one."
                )
            return False
        if is_piece(experience) and not is_first_piece(experience):
            raise RunFolderError(
                f"the run in {self.run_folder} can go on where a task begins: expected the first piece of a task of "
                "the online stream, found a later one. Train from the first piece on (of one whose `is_first_subexp` "
                "is True), or save the whole strategy with avalanche_ntk.adapters.checkpoints, which goes on anywhere."
            )
        names = [_name(spec) for spec in self._specs_now(strategy)]
        folder, number, state = reopen(self.run_folder, number, meta, names, self._shapes_before)
        self._folder = folder
        _close_at_exit(self, folder)
        self._counts["experience"] = number - 1
        if state is None:
            folder.update_meta({**meta, "probes": folder.meta["probes"]})
            return True
        self._counts.update(iteration=state.counts["iteration"], epoch=state.counts["epoch"])
        self._steps.count = state.counts["optimizer_step"]
        self._outputs_seen = dict(state.outputs)
        shapes = {name: state.parameters[name][0] for name in state.trainable}
        self._parameters_seen = dict.fromkeys(names, shapes)
        self._known = Parameters(state.parameters)
        self.training_seconds, self.measuring_seconds = state.training_seconds, state.measuring_seconds
        self.evaluations = [record for record in folder.records() if record["kind"] == "evaluation"]
        return True

    def _rewind(self) -> None:
        """Set aside what the folder holds beyond the checkpoint that this plugin was loaded from."""
        if self._must_rewind and self._folder is not None:
            self._folder.rewind()
            _close_at_exit(self, self._folder)
        self._must_rewind = False

    def _state(self, strategy: Any) -> State:
        assert self._known is not None
        parameters = dict(self._known.digests)
        trainable = (name for name, p in model_of(strategy).named_parameters() if p.requires_grad)
        return State(
            counts={
                "iteration": self._counts["iteration"],
                "epoch": self._counts["epoch"],
                "optimizer_step": self._steps.count,
            },
            outputs=self._outputs_seen,
            parameters=parameters,
            trainable=tuple(name for name in trainable if name in parameters),
            training_seconds=self.training_seconds,
            measuring_seconds=self.measuring_seconds,
        )

    def _meta(self, strategy: Any, new: dict[str, Probe]) -> dict[str, Any]:
        model = model_of(strategy)
        return {
            "probes": [probe.describe() for probe in {**self._probes, **new}.values()],
            "seed": torch.initial_seed() if self.seed is None else self.seed,
            "strategy": type(strategy).__name__,
            "optimizer": described(getattr(strategy, "optimizer", None)),
            "online": is_piece(strategy.experience),
            "model": {
                "name": type(model).__name__,
                "parameters": {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad},
            },
            "device": str(strategy.device),
            "schedule": self.schedule.describe(),
            "cadence": self.schedule.cadence,
            "reduction": self.reduction,
            "outputs": self.outputs if isinstance(self.outputs, str) else list(self.outputs),
            "params": self.params,
            "observables": [observable.describe() for observable in self.observables],
            "dtype": None if self.dtype is None else str(self.dtype),
        }

    # ------------------------------------------------------------------ measuring

    def _clock(self, event: str) -> TrainingClock:
        return TrainingClock(event=event, task_label=self._task_label, optimizer_step=self._steps.count, **self._counts)

    def _measure_if_due(self, strategy: Any, event: str) -> None:
        # One process measures for all; the copies of the model are the same in each.
        if not DistributedHelper.is_main_process:
            return
        clock = self._clock(event)
        if not self.schedule.due(clock):
            return
        notes, self._notes = self._notes, []
        for name, trajectory in self.trajectories.items():
            last = trajectory.measurements[-1].clock if trajectory.measurements else None
            if event == "epoch_end" and last is not None and last.iteration == clock.iteration:
                continue  # measured at this very iteration already
            if not has_outputs_for(model_of(strategy), self._probes[name]):
                continue
            self._measure(strategy, self._probes[name], trajectory, clock, notes)

    def _measure(
        self, strategy: Any, probe: Probe, trajectory: Trajectory, clock: TrainingClock, notes: Sequence[str]
    ) -> None:
        begin = time.perf_counter()
        try:
            extras = self._measured(strategy, probe, trajectory, clock, notes, begin)
        except RunFolderError as error:
            self._report(error, "writing a measurement")  # the trajectory has it; only the disk has not
        except Exception as error:  # noqa: BLE001  (whatever fails in here must not end the training run)
            if isinstance(error, (ArgumentError, ProbeError)) and not len(trajectory):
                raise  # wrong from the start, and nothing has been trained yet
            if isinstance(error, ModelError) and not len(trajectory):
                check_precision(model_of(strategy), probe, error)
            try:
                trajectory.add_failure(clock, f"{type(error).__name__}: {error}")
            except RunFolderError as second:
                self._report(second, "writing a measurement")
            self._report(error)
        else:
            for what, failure in extras.errors:
                self._report(failure, what)
        finally:
            self.recorded += 1
            spent = _since(begin)
            self.measuring_seconds += spent
            self.schedule.note(0.0, spent)
            self._last_tick = time.perf_counter()

    def _measured(
        self,
        strategy: Any,
        probe: Probe,
        trajectory: Trajectory,
        clock: TrainingClock,
        notes: Sequence[str],
        begin: float,
    ) -> Extras:
        """Measure and record; return what was found beside the kernel, and what was not."""
        # They stay there: the same tensors are measured each time.
        self._probes = {name: one.to(strategy.device) for name, one in self._probes.items()}
        probe = self._probes[probe.name]
        extras = Extras()
        with preserved_rng_state(), trained_function(model_of(strategy)):
            wanted, failed = self._groups(model_of(strategy), clock)
            kernel, groups, trust, seen = self._kernel(strategy, probe, wanted, failed)
            extras.notes += seen
            moment = self._moment(strategy, probe, clock, kernel.numpy(), groups)
            self._fix_outputs(moment, extras)
            moment = replace(moment, options=self._options(probe))
            if self.spot_check_every and len(trajectory) % self.spot_check_every == 0:
                self._spot_check(moment, kernel, extras)
            with measures.few_threads(probe.size):
                self._observe(moment, failed, extras)
        if (length := self._epoch_length(strategy)) is None:
            extras.reasons["velocity_per_epoch"] = "the number of iterations in an epoch is not known"
        trust["seconds"] = _since(begin)
        measurement = trajectory.add(
            clock,
            kernel.numpy(),
            iterations_per_epoch=length,
            notes=[*notes, *extras.notes],
            trust={**trust, **extras.trust},
            extra={
                **extras.values,
                "measurement_seconds": trust["seconds"],
                "measuring_share": self._share(begin),
            },
            extra_reasons=extras.reasons,
            extra_kernels=extras.kernels,
        )
        self._warn_of_undefined(measurement, probe.name)
        for record in extras.records:
            extras.attempt("a further record", partial(trajectory.note, record))
        return extras

    @staticmethod
    def _epoch_length(strategy: Any) -> int | None:
        """Return the iterations of an epoch, if they are known; a pass over a piece of a task is no epoch."""
        return None if is_piece(strategy.experience) else iterations_per_epoch(strategy.dataloader)

    def _options(self, probe: Probe) -> dict[str, Any]:
        """Return the arguments with which every kernel of a probe is computed."""
        return {
            "params": self.params,
            "outputs": self._outputs_seen.get(
                probe.name, None if isinstance(self.outputs, str) else list(self.outputs)
            ),
            "output_selector": self.output_selector,
            "memory_budget": self.memory_budget,
            "dtype": self.dtype,
        }

    def _due(self, clock: TrainingClock) -> list[Observable]:
        """Return the observables that are measured now."""
        return [o for o in self.observables if clock.is_boundary or not o.at_boundaries_only]

    def _groups(
        self, model: nn.Module, clock: TrainingClock
    ) -> tuple[dict[tuple[str, str], Sequence[str]], dict[str, Exception]]:
        """Return the groups of parameters that observables want, by their names; and what failed in asking."""
        wanted: dict[tuple[str, str], Sequence[str]] = {}
        failed: dict[str, Exception] = {}
        for observable in self._due(clock):
            try:
                wanted |= {(observable.name, g): names for g, names in observable.groups(model, self.params).items()}
            except Exception as error:  # noqa: BLE001  (reported where the observable is measured)
                failed[observable.name] = error
        return wanted, failed

    def _kernel(
        self,
        strategy: Any,
        probe: Probe,
        wanted: Mapping[tuple[str, str], Sequence[str]],
        failed: dict[str, Exception],
    ) -> tuple[Tensor, dict[str, dict[str, np.ndarray]], dict[str, Any], list[str]]:
        """Return the kernel, those of groups of parameters, the trust line and notes; note groups that cannot be."""
        model = model_of(strategy)
        x, tasks = probe.read_only()
        notes = self._parameter_changes(model, probe.name)
        task_labels = tasks if is_multi_task_module(model) else None
        options = self._options(probe) | {"task_labels": task_labels, "reduction": self.reduction, "return_info": True}
        groups: dict[str, dict[str, np.ndarray]] = {}
        kernel: Tensor | None = None
        if wanted:
            names = {f"{observable}[{group}]": parameters for (observable, group), parameters in wanted.items()}
            try:
                kernels, info = empirical_ntk_by_group(model, x, names, whole=True, **options)
            except Exception as error:  # noqa: BLE001  (the kernel alone may do without the groups)
                failed |= dict.fromkeys((observable for observable, _ in wanted), error)
            else:
                kernel = kernels.pop("")
                for (observable, group), part in zip(wanted, kernels.values(), strict=True):
                    groups.setdefault(observable, {})[group] = part.detach().cpu().numpy()
        if kernel is None:
            kernel, info = empirical_ntk(model, x, **options)
        return kernel.detach().cpu(), groups, _trust(info), notes

    def _fix_outputs(self, moment: Moment, extras: Extras) -> None:
        """Keep the outputs of the first measurement from now on; all of them where it is not known which are live."""
        probe = moment.probe
        if self.outputs != "first" or probe.name in self._outputs_seen:
            return
        x, tasks = probe.read_only()
        labels = tasks if moment.multi_task else None
        found = extras.attempt("live_outputs", lambda: self._live_outputs(moment.model, x, labels))
        if found is None:
            found = extras.attempt("outputs", lambda: list(range(moment.outputs(probe).shape[1])))
            extras.notes.append("it is not known which outputs depend on a parameter: all of them are kept")
        if found is not None:
            self._outputs_seen[probe.name] = found

    def _spot_check(self, moment: Moment, kernel: Tensor, extras: Extras) -> None:
        """Compare an entry with the slow oracle."""
        options = {k: v for k, v in moment.options.items() if k in ("params", "outputs", "output_selector")}
        x, tasks = moment.probe.read_only()
        found = extras.attempt(
            "spot_check_max_relative_error",
            lambda: spot_check_in_double(
                moment.model,
                x,
                kernel.to(tasks.device),
                n_entries=1,  # the oracle takes two samples and every output, one at a time
                seed=moment.clock.iteration,
                reduction=self.reduction,
                task_labels=tasks if moment.multi_task else None,
                **options,
            ),
        )
        if found is not None:
            extras.trust["spot_check_max_relative_error"], extras.trust["spot_check_precision"] = found

    def _moment(
        self,
        strategy: Any,
        probe: Probe,
        clock: TrainingClock,
        kernel: np.ndarray,
        groups: Mapping[str, Mapping[str, np.ndarray]],
    ) -> Moment:
        model = model_of(strategy)
        return Moment(
            model=model,
            probe=probe,
            probes={n: p for n, p in self._probes.items() if has_outputs_for(model, p)},
            kernel=kernel,
            clock=clock,
            options=self._options(probe),
            reduction=self.reduction,
            multi_task=is_multi_task_module(model),
            optimizer=getattr(strategy, "optimizer", None),
            dataset=getattr(origin_of(strategy.experience), "dataset", None),
            read=reader_of(strategy),
            outputs_were_given=not isinstance(self.outputs, str),
            groups=groups,
        )

    def _observe(self, moment: Moment, failed: Mapping[str, Exception], extras: Extras) -> None:
        """Measure what else was asked for; one that fails takes neither the others nor the kernel with it."""

        def look(observable: Observable) -> None:
            if observable.name in failed:
                raise failed[observable.name]
            extras.take(observable.observe(moment), len(moment.kernel))

        for observable in self._due(moment.clock):
            before = len(extras.errors)
            extras.attempt(observable.name, partial(look, observable))
            for _, error in extras.errors[before:]:
                if isinstance(error, (ArgumentError, ProbeError)) and not len(self.trajectories[moment.probe.name]):
                    raise error  # wrong from the start, and nothing has been trained yet

    def _share(self, begin: float) -> float:
        """Share of the time since training began that went into measuring, with the measurement begun at `begin`."""
        measuring = self.measuring_seconds + _since(begin)
        return measuring / (measuring + self.training_seconds)

    def _live_outputs(self, model: nn.Module, x: Any, task_labels: Tensor | None) -> list[int]:
        """Find the outputs that depend on a parameter: a head that grows masks those of classes it has not met yet."""
        # The derivative along one random direction: exactly zero for an output that depends on no parameter.
        generator = torch.Generator("cpu").manual_seed(0)
        parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        direction = {
            name: torch.randn(p.shape, generator=generator, device="cpu").to(p.device, p.dtype)
            for name, p in parameters.items()
        }
        moved = jvp_prediction(
            model, x, parameters, direction, task_labels=task_labels, output_selector=self.output_selector
        )
        live: list[int] = (moved != 0).any(0).nonzero().flatten().tolist()
        return live or list(range(moved.shape[1]))

    def _parameter_changes(self, model: nn.Module, probe: str) -> list[str]:
        """Say which trainable parameters came, went or changed shape since the last measurement."""
        now = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        before = self._parameters_seen.get(probe)
        self._parameters_seen[probe] = now
        if before is None or before == now:
            return []
        changes = {
            "new": sorted(now.keys() - before.keys()),
            "gone": sorted(before.keys() - now.keys()),
            "resized": sorted(
                f"{name} {list(before[name])} to {list(now[name])}"
                for name in now.keys() & before.keys()
                if now[name] != before[name]
            ),
        }
        return [f"trainable parameters {kind}: {', '.join(names)}" for kind, names in changes.items() if names]

    # ------------------------------------------------------------------ failures

    def _guarded(self, what: str, action: Callable[[], Any]) -> None:
        """Run an action of our own that must not end training."""
        try:
            action()
        except Exception as error:
            self._report(error, what)

    def _warn_of_undefined(self, measurement: Measurement, probe: str) -> None:
        """Warn, once for each reason, of numbers that a reader of the curves would miss."""
        missed: dict[str, list[str]] = {}
        for column, reason in measurement.reasons.items():
            if column.startswith(_MISSED) and reason not in _ORDINARY:
                missed.setdefault(reason, []).append(column)
        for reason, columns in missed.items():
            kind = f"undefined: {columns[0]}: {reason}"
            if kind in self._warned:
                continue
            self._warned.add(kind)
            more = f" and {len(columns) - 1} more" if len(columns) > 1 else ""
            warnings.warn(
                f"{columns[0]}{more} of probe {probe!r} undefined (NaN) at iteration {measurement.clock.iteration}: "
                f"{ended(reason)} (Warned once; every measurement's reasons are in the trajectory.)",
                UndefinedMeasureWarning,
                stacklevel=6,
            )

    def _report(self, error: Exception, what: str = "a measurement") -> None:
        """Raise or warn, once for each kind of error."""
        if self.on_error == "raise":
            raise error
        kind = f"{what}: {type(error).__name__}"
        if kind in self._warned:
            return
        self._warned.add(kind)
        cause = str(error) if isinstance(error, NTKError) else f"{type(error).__name__}: {error}"
        warnings.warn(
            f"{what} of the NTK failed at iteration {self._counts['iteration']} and training goes on: {cause} "
            "(Warned once; each failure is in the trajectory. NTKPlugin(on_error='raise') stops instead.)",
            MeasurementFailedWarning,
            stacklevel=4,
        )

    # ------------------------------------------------------------------ time

    def _tick(self) -> None:
        """Count the time since the last hook as training, and tell the schedule."""
        now = time.perf_counter()
        if self._last_tick is not None:
            spent = max(0.0, now - self._last_tick)
            self.training_seconds += spent
            self.schedule.note(spent, 0.0)
        self._last_tick = now

    # ------------------------------------------------------------------ checkpoints

    def __getstate__(self) -> dict[str, Any]:
        # The owner belongs to this process, and is found again by the next hook. The benchmark is data, not state.
        return {**self.__dict__, **dict.fromkeys(("_owner", "_last_tick", "benchmark"))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The folder may have grown since; it is rewound when this copy first writes, which most copies never do.
        self._must_rewind = self._folder is not None


def _recorders_last(strategy: Any) -> None:
    """Let what records an evaluation stand behind the metrics whose values it records, wherever the user put it."""
    for plugin in strategy.plugins:
        metrics = getattr(plugin, "metrics", None)
        if isinstance(metrics, list):
            # A stable sort: the others keep their order.
            metrics.sort(key=lambda metric: getattr(metric, "records_evaluations", False))


def _check_resume(resume: bool | int, run_folder: Any, overwrite: bool, keep_kernels: bool) -> None:
    if not isinstance(resume, int) or resume < 0:
        raise ArgumentError(
            "resume is True, False, or the number of experiences that were trained before, at least 0; found "
            f"{resume!r}. Give resume=True."
        )
    if resume is False:
        return
    if run_folder is None:
        raise ArgumentError("resume goes on with a run on disk; found run_folder=None. Give run_folder= too.")
    if overwrite:
        raise ArgumentError(
            "resume goes on with a run and overwrite replaces it; found both. Give one of them: resume=True begins a "
            "new run where there is none."
        )
    if not keep_kernels:
        raise ArgumentError(
            "resume needs the stored kernels, with which the next measurement is compared; found keep_kernels=False. "
            "Give keep_kernels=True."
        )


def _close_at_exit(plugin: NTKPlugin, folder: RunFolder) -> None:
    # Earlier than the interpreter would: what closing needs is still there.
    weakref.finalize(plugin, folder.close)


def _since(begin: float) -> float:
    """Return the seconds since `begin`; none when the clock was set back."""
    return max(0.0, time.perf_counter() - begin)


def _name(spec: ProbeSpec | Probe) -> str:
    return spec.name if isinstance(spec, Probe) else spec.label


def _trust(info: KernelInfo) -> dict[str, Any]:
    """Return how a kernel was computed, in a form that a record can hold; methods are counted, not listed."""
    counted: dict[str, int] = {}
    for method in info.methods.values():
        counted[str(method)] = counted.get(str(method), 0) + 1
    return {
        "methods": counted,
        "reasons": info.reasons,
        "flops": info.flops,
        "peak_bytes": info.peak_bytes,
        "asymmetry": info.asymmetry,
        "min_eigenvalue": info.min_eigenvalue,
        "max_eigenvalue": info.max_eigenvalue,
    }
