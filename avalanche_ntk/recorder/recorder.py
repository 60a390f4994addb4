"""The recorder: measures kernels of fixed probes while a model trains in your own loop.

Recording does not affect training: a recorded run is bit-identical to the same run without a recorder.
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

    It measures exactly at each experience's start, before any step of the new task, at its end, and in between
    according to the schedule. In your own loop:

        recorder = NTKRecorder(Probe.from_tensors(x, y), run_folder="runs/plain")
        for loader in loaders:
            with recorder.experience(model, optimizer):
                for xb, yb in loader:
                    ...  # a step of training
                    recorder.after_iteration()

    Args:
        probe: The probe or probes: a `ProbeSpec` (samples are chosen when training reaches its experience), a `Probe`,
            or several of them.
        schedule: When to measure: a `Schedule` or its name as text; None for `Schedule.around_boundaries()`.
        run_folder: Folder to write `run.json`, `measurements.jsonl` and the kernels to; None keeps everything in
            memory.
        overwrite: Whether to replace a run that already exists in that folder.
        resume: Whether to continue the run in that folder, after you have restored model and optimizer from your own
            checkpoint. True continues with the experience trained next; a number is the number of experiences trained
            before. Later records in the folder are set aside. If the folder holds no run, a new one begins.
        reduction: "trace" (`K[n,m] = Σ_c Θ[n,m,c,c]`), "sum_logits" (the kernel of the summed outputs, one backward
            pass) or "projected" (the mean over `n_projections` signed sums of outputs, for many outputs).
        n_projections: Number of sign vectors, for "projected"; the same ones in the whole run.
        outputs: "first" keeps the outputs that the model had at the first measurement, so that the series stays
            comparable when a head grows; "all" takes all present ones; or the indices of the outputs.
        params: Names of the parameters whose kernel is measured; None for every parameter that requires a gradient.
        output_selector: Picks the `(N, C)` tensor from what the model returns; needed for models that return a tuple or
            dict.
        dtype: Precision of the kernel's computation; the model's own when None.
        memory_budget: Bytes that a measurement may use beyond one forward pass.
        checks: How often to check that the model's samples are independent, see `empirical_ntk`.
        hooks: Which forward hooks of the model are called in a measurement, see `empirical_ntk`.
        observe: Observables to measure, see `avalanche_ntk.observables`.
        spot_check_every: Measurements between two comparisons of a random kernel entry with the reference
            implementation in float64 (the first one is compared); 0 for none.
        keep_kernels: Whether to store the kernels, not only their numbers.
        on_error: "warn" records the reason of a failed measurement, warns once per kind and continues training; "raise"
            raises the error.
        seed: Seed of the training run, recorded in `run.json`; torch's initial seed when None.
        snapshots: Whether to store the model's weights and buffers at every measurement, in the run folder's
            `snapshots`, so that `measure_checkpoints` can measure other quantities later.
        share: Whether the processes of a `torch.distributed` run share the work of each measurement; if False, the
            first one measures while the others wait. Either way only the first one records.

    Attributes:
        trajectories: The time series by probe name.
        evaluations: The numbers of each evaluation (`record_evaluation`).
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

    # ------------------------------------------------------------------ your own loop

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
        """Record the training of one task, with measurements exactly at its start and end.

        An exception inside ends the experience without a measurement; earlier measurements are kept.

        Args:
            model: The model that is trained inside.
            optimizer: The optimizer; its steps are counted by its hooks.
            dataset: The training data, if a `ProbeSpec` is to choose samples from it.
            iterations_per_epoch: Iterations of an epoch, for velocities per epoch.
            epochs: Epochs of the task, so that long tasks can be measured more sparsely.
            task_label: The task's label, for the records.

        Yields:
            The recorder.

        Raises:
            PluginError: An experience is already being recorded.
        """
        if self._host is not None:
            raise PluginError(
                "an experience is already being recorded: expected the previous `with recorder.experience(...)` to "
                "have ended. Leave it first."
            )
        host = Host(model, optimizer, dataset, iterations_per_epoch, epochs, task_label)
        self._session.rewind(self)
        self._session.look(host)
        self._host = host
        try:
            self._before_experience(host)
            self._known = None  # there is no hook before the first step at which a change could be detected
            yield self
            self._after_experience(host)
        finally:
            self._host = None
            self.clock.steps.leave()
            self.clock.pause()

    def after_iteration(self) -> None:
        """Count a completed iteration, and measure if one is due.

        Raises:
            PluginError: No experience is being recorded.
        """
        host = self._inside("after_iteration")
        self._after_iteration(lambda: host)

    def after_epoch(self) -> None:
        """Count a completed epoch, and measure if one is due.

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
