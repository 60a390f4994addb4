"""The recorder: kernels of fixed probes, measured while a model trains in a loop of one's own.

Nothing that training depends on is changed: a run that is recorded is bit-identical to the same run without.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from avalanche_ntk.errors import PluginError
from avalanche_ntk.recorder.host import Host
from avalanche_ntk.recorder.probes import Probe, ProbeSpec
from avalanche_ntk.recorder.recording import RecorderOptions, Recording
from avalanche_ntk.recorder.schedule import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NTKRecorder(Recording):
    """Measures the empirical NTK of fixed probe sets while a model trains.

    It measures exactly at each experience's start, before any step of the new task, at its end, and in between when the
    schedule asks for it. In a loop of one's own:

        recorder = NTKRecorder(Probe.from_tensors(x, y), run_folder="runs/plain")
        for loader in loaders:
            with recorder.experience(model, optimizer):
                for xb, yb in loader:
                    ...  # a step of training
                    recorder.after_iteration()

    Args:
        probe: What to watch: a `ProbeSpec` (chosen when training reaches its experience), a `Probe`, or several of
            them.
        schedule: When to measure; `Schedule.around_boundaries()` when None, or its name as text.
        run_folder: Folder to write `run.json`, `measurements.jsonl` and the kernels to; None keeps everything in
            memory.
        overwrite: Whether a run that is already in that folder may be replaced.
        resume: Whether to go on with the run that is in that folder, when the model and the optimizer were restored
            from a checkpoint of your own. True goes on with the experience that is trained next; a number says how many
            experiences were trained before. What the folder holds beyond that is set aside. Without a run in the folder
            a new one begins.
        reduction: "trace" (`K[n,m] = Σ_c Θ[n,m,c,c]`), "sum_logits" (the kernel of the summed outputs, one backward
            pass) or "projected" (the mean over `n_projections` signed sums of outputs, for many outputs).
        n_projections: Number of sign vectors, for "projected"; the same ones in the whole run.
        outputs: "first" keeps the outputs that the model had at the first measurement, so that the series stays
            comparable when a head grows; "all" takes what there is; or the indices of the outputs.
        params: Names of the parameters whose kernel is measured; every parameter that requires a gradient when None.
        output_selector: Picks the `(N, C)` tensor from what the model returns; needed for models that return a tuple or
            dict.
        dtype: Precision of the kernel's computation; the model's own when None.
        memory_budget: Bytes that a measurement may use beyond one forward pass.
        checks: How often it is asked whether the model's samples are independent, see `empirical_ntk`.
        hooks: Which forward hooks of the model are called in a measurement, see `empirical_ntk`.
        observe: What else to measure, see `avalanche_ntk.observables`.
        spot_check_every: Measurements between two comparisons of a random entry of the kernel with the slow oracle in
            float64 (the first is compared); 0 for none.
        keep_kernels: Whether the kernels are kept, not only their numbers.
        on_error: "warn" records a measurement that failed with its reason, warns once per kind and trains on; "raise"
            stops.
        seed: Seed of the training run, recorded in `run.json`; torch's initial seed when None.
        snapshots: Whether the model's weights and buffers are stored at every moment that is measured, in the run
            folder's `snapshots`, so that `measure_checkpoints` can measure something else there later.
        share: Whether the processes of a `torch.distributed` run share the work of each measurement; False lets the
            first one measure while the others wait. One records in both cases.

    Attributes:
        trajectories: The time series by probe name.
        evaluations: What each evaluation found (`record_evaluation`).
        clock: The counts of the run.
        recorded: Revision counter, incremented whenever a trajectory changes.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
    """

    def __init__(
        self,
        probe: ProbeSpec | Probe | Sequence[ProbeSpec | Probe] = ProbeSpec(),  # noqa: B008  (frozen)
        schedule: Schedule | str | None = None,
        **options: Unpack[RecorderOptions],
    ) -> None:
        super().__init__(probe, schedule, **options)
        self._host: Host | None = None

    # ------------------------------------------------------------------ a loop of one's own

    @contextmanager
    def experience(
        self,
        model: torch.nn.Module,
        optimizer: Any = None,
        *,
        dataset: Any = None,
        iterations_per_epoch: int | None = None,
        epochs: int | None = None,
        task_label: int | None = None,
    ) -> Generator[NTKRecorder]:
        """Record the training of one task: measured exactly at its start, and at its end.

        An exception inside ends the experience without a measurement; what was measured stays.

        Args:
            model: The model that is trained inside.
            optimizer: What makes its steps; they are counted by its own hooks.
            dataset: What is trained on, where a `ProbeSpec` is to choose its samples from it.
            iterations_per_epoch: Iterations of an epoch, for velocities per epoch.
            epochs: Epochs that the task will have, so that long ones can be measured more sparsely.
            task_label: The task's label, for the records.

        Yields:
            The recorder.

        Raises:
            PluginError: An experience is being recorded already.
        """
        if self._host is not None:
            raise PluginError(
                "an experience is being recorded already: expected the `with recorder.experience(...)` before this one "
                "to have ended. Leave it first."
            )
        host = Host(model, optimizer, dataset, iterations_per_epoch, epochs, task_label)
        self._session.rewind(self)
        self._session.look(host)
        self._host = host
        try:
            self._before_experience(host)
            self._known = None  # no hook comes before the first step, at which a change could be seen
            yield self
            self._after_experience(host)
        finally:
            self._host = None
            self.clock.steps.leave()
            self.clock.pause()

    def after_iteration(self) -> None:
        """Count an iteration, which has just been trained, and measure when the schedule asks for it.

        Raises:
            PluginError: No experience is being recorded.
        """
        host = self._inside("after_iteration")
        self._after_iteration(lambda: host)

    def after_epoch(self) -> None:
        """Count an epoch, which has just been trained, and measure when the schedule asks for it.

        Raises:
            PluginError: No experience is being recorded.
        """
        self._after_epoch(self._inside("after_epoch"))

    def _inside(self, method: str) -> Host:
        if self._host is None:
            raise PluginError(f"{method} counts within an experience; found none. {self._BEGIN}")
        return self._host

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_host": None}
