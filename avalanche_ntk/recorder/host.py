"""What a recorder sees of whatever trains: a loop of one's own, or another library behind an adapter."""

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
    """A training loop of one's own; adapters to other libraries override what they know better.

    Attributes:
        model: The model that is trained.
        optimizer: What makes its steps, to be read only; None when nothing is known of it.
        dataset: What is trained on in this experience, from which a `ProbeSpec` is chosen; None for probes that are
            given as tensors.
        iterations_per_epoch: Iterations of an epoch, for velocities per epoch and schedules; None when not known.
        epochs: Epochs of the experience; None when not known.
        task_label: The experience's task label; None when it has none.
        position: The experience's place in the stream; None goes on behind what a run folder holds.
        name: What trains, for `run.json`.
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
        """Where probes are measured: the device of the first parameter."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def measures(self) -> bool:
        """Whether this process measures and writes; of several that train one model, the first one does."""
        parallel = torch.distributed
        return not (parallel.is_available() and parallel.is_initialized()) or parallel.get_rank() == 0

    @property
    def read(self) -> Reader:
        """The function that reads samples of a dataset."""
        return read_samples

    def trained_function(self) -> AbstractContextManager[None]:
        """Return a context in which the model in eval mode computes the function that is trained."""
        return nullcontext()

    def has_outputs_for(self, probe: Probe) -> bool:
        """Tell whether the model has outputs for a probe's tasks."""
        return True

    def check(self, spec: ProbeSpec | Probe) -> None:
        """Check, before anything is trained, that a probe can be chosen when its time comes."""

    def specs_now(self, specs: list[ProbeSpec | Probe], number: int, *, earlier: bool) -> list[ProbeSpec | Probe]:
        """Return the specs, those of each task as those of this one.

        Args:
            specs: What is to be watched.
            number: Number of the experience.
            earlier: Whether those of the tasks before are wanted too, as for a run that goes on.
        """
        return [
            replace(spec, from_experience=number)
            if isinstance(spec, ProbeSpec) and spec.from_experience is None
            else spec
            for spec in specs
        ]

    def choose(self, spec: ProbeSpec, number: int) -> Probe | None:
        """Choose a probe, if its time has come.

        Args:
            spec: Names one experience.
            number: Number of the present one.

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
        """Check that a run can go on with the present experience."""
