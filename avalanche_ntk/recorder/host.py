"""A recorder's view of what trains: your own loop, or another library through an adapter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import nn

from avalanche_ntk.errors import ProbeError
from avalanche_ntk.recorder.probes import Probe, ProbeSpec
from avalanche_ntk.recorder.samples import Reader, read_samples


@dataclass
class Host:
    """A user's own training loop; adapters to other libraries override its methods.

    Attributes:
        model: The model that is trained.
        optimizer: The optimizer, read-only; None if unknown.
        dataset: Training data of this experience, from which a `ProbeSpec` is chosen; None for probes given as tensors.
        iterations_per_epoch: Iterations of an epoch, for velocities per epoch and schedules; None if unknown.
        epochs: Epochs of the experience; None if unknown.
        task_label: The experience's task label; None if it has none.
        position: The experience's position in the stream; None for the next one after those in the run folder.
        name: Name of the training method, for `run.json`.
        online: Whether experiences are pieces of tasks.
        multi_task: Whether the model takes task labels.
    """

    model: nn.Module
    optimizer: Any = None
    dataset: Any = None
    iterations_per_epoch: int | None = None
    epochs: int | None = None
    task_label: int | None = None
    position: int | None = None
    name: str = "plain loop"
    online: bool = False
    multi_task: bool = False

    @property
    def device(self) -> torch.device:
        """The device for measurements: that of the first parameter."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def measures(self) -> bool:
        """Whether this process measures and writes; in distributed training the first process does."""
        parallel = torch.distributed
        return not (parallel.is_available() and parallel.is_initialized()) or parallel.get_rank() == 0

    @property
    def read(self) -> Reader:
        """The function that reads samples of a dataset."""
        return read_samples

    def trained_function(self) -> AbstractContextManager[None]:
        """Return a context in which the model in eval mode computes the trained function."""
        return nullcontext()

    def has_outputs_for(self, probe: Probe) -> bool:
        """Return whether the model has outputs for a probe's tasks."""
        return True

    def check(self, spec: ProbeSpec | Probe) -> None:
        """Check before training that a probe can be chosen later."""

    def specs_now(self, specs: list[ProbeSpec | Probe], number: int, *, earlier: bool) -> list[ProbeSpec | Probe]:
        """Return the specs, with a spec of each task replaced by that of this task.

        Args:
            specs: The specs or probes to measure.
            number: Number of the experience.
            earlier: Whether to include those of earlier tasks, as for a continued run.
        """
        return [
            replace(spec, from_experience=number)
            if isinstance(spec, ProbeSpec) and spec.from_experience is None
            else spec
            for spec in specs
        ]

    def choose(self, spec: ProbeSpec, number: int) -> Probe | None:
        """Choose a probe, if its experience has been reached.

        Args:
            spec: Names one experience.
            number: Number of the present experience.

        Returns:
            The probe; None before its experience.

        Raises:
            ProbeError: There is no dataset to choose from.
        """
        if spec.from_experience != number:
            return None
        if self.dataset is None:
            raise ProbeError(
                f"the probe {spec.label!r} is chosen from the dataset of experience {number}; found none. Give it: "
                "recorder.experience(model, optimizer, dataset=dataset), or give the recorder a probe of tensors, "
                "Probe.from_tensors(x, y)."
            )
        return spec.choose(self.dataset, self.read)

    def check_resumable(self, run_folder: str | PathLike[str]) -> None:
        """Check that a run can be continued with the present experience."""
