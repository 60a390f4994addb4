"""The `Host` of a recorder for Avalanche strategies."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from avalanche.distributed import DistributedHelper
from avalanche.models.utils import is_multi_task_module

from avalanche_ntk.adapters.reading import (
    check_each_task,
    dataset_of,
    has_outputs_for,
    iterations_per_epoch,
    model_of,
    position_of,
    reader_of,
    spec_at,
    task_label_of,
)
from avalanche_ntk.adapters.tasks import is_first_piece, is_piece, origin_of
from avalanche_ntk.adapters.trained import trained_function
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.recorder.host import Host
from avalanche_ntk.recorder.probes import Probe, ProbeSpec
from avalanche_ntk.recorder.samples import Reader


@dataclass
class StrategyHost(Host):
    """A read-only view of a strategy at one moment.

    Attributes:
        strategy: The strategy.
        benchmark: The benchmark that has the streams, if the training stream does not know it.
    """

    strategy: Any = None
    benchmark: Any = None

    @classmethod
    def of(cls, strategy: Any, benchmark: Any = None) -> StrategyHost:
        """Return the view of a strategy now; its experience is included only while it trains."""
        model = model_of(strategy)
        experience = getattr(strategy, "experience", None)
        found = cls(
            model,
            getattr(strategy, "optimizer", None),
            name=type(strategy).__name__,
            multi_task=is_multi_task_module(model),
            strategy=strategy,
            benchmark=benchmark,
        )
        if experience is None:
            return found
        origin, piece = origin_of(experience), is_piece(experience)
        return replace(
            found,
            dataset=getattr(origin, "dataset", None),
            # A pass over a piece of a task is not an epoch.
            iterations_per_epoch=None if piece else iterations_per_epoch(getattr(strategy, "dataloader", None)),
            epochs=None if piece else _epochs_of(strategy),
            task_label=task_label_of(origin),
            position=position_of(origin),
            online=piece,
        )

    @property
    def device(self) -> torch.device:
        """The strategy's device."""
        return torch.device(self.strategy.device)

    @property
    def measures(self) -> bool:
        """Whether this is Avalanche's main process."""
        return bool(DistributedHelper.is_main_process)

    @property
    def read(self) -> Reader:
        """The function that reads samples as the strategy's own evaluation does."""
        return reader_of(self.strategy)

    def trained_function(self) -> AbstractContextManager[None]:
        """Make Avalanche's own models in eval mode compute their training function."""
        return trained_function(self.model)

    def has_outputs_for(self, probe: Probe) -> bool:
        """Return whether the head of a probe's task exists."""
        return has_outputs_for(self.model, probe)

    def check(self, spec: ProbeSpec | Probe) -> None:
        """Check that the streams have the experiences of a spec."""
        check_each_task(self.strategy, spec, self.benchmark)

    def specs_now(self, specs: list[ProbeSpec | Probe], number: int, *, earlier: bool) -> list[ProbeSpec | Probe]:
        """Return the specs to choose from now; a continued run needs the probes of its earlier tasks too."""
        experience = self.strategy.experience
        now = [spec_at(spec, experience) for spec in specs]
        if not earlier:
            return now
        before = [
            replace(spec, from_experience=number)
            for number in range(origin_of(experience).current_experience)
            for spec in specs
            if isinstance(spec, ProbeSpec) and spec.from_experience is None
        ]
        return [*before, *now]

    def choose(self, spec: ProbeSpec, number: int) -> Probe | None:
        """Choose a probe from the stream; None if its experience does not exist yet."""
        dataset = dataset_of(self.strategy, spec, self.benchmark)
        return None if dataset is None else spec.choose(dataset, self.read)

    def check_resumable(self, run_folder: str | PathLike[str]) -> None:
        """Check that the present piece of an online stream is the first one of a task.

        Raises:
            RunFolderError: It is not.
        """
        experience = self.strategy.experience
        if is_piece(experience) and not is_first_piece(experience):
            raise RunFolderError(
                f"the run in {run_folder} can only be continued where a task begins: expected the first piece of a "
                "task of the online stream, found a later one. Train from a piece whose `is_first_subexp` is True, or "
                "save the whole strategy with avalanche_ntk.adapters.checkpoints, which can continue anywhere."
            )


def _epochs_of(strategy: Any) -> int | None:
    """Return the epochs that a strategy trains each experience for; None if it does not say."""
    found = getattr(strategy, "train_epochs", None)
    return found if isinstance(found, int) and found > 0 else None
