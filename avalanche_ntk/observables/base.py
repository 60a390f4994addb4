"""The interface of observables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_ntk.kernels import empirical_ntk, penultimate_features
from avalanche_ntk.kernels.support import Batch, measuring, unwrap
from avalanche_ntk.measures import KernelView
from avalanche_ntk.observables.declaration import Family, Image, Metric
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.recorder.samples import Reader, read_samples


@dataclass(frozen=True)
class Moment:
    """The state just after a kernel was measured.

    Attributes:
        model: The model, in the state in which the kernel was measured.
        probe: The probe, on the model's device.
        probes: Every probe chosen so far, on the model's device, by name.
        kernel: The kernel, shape `(N, N)`.
        clock: Training time.
        options: Arguments with which kernels are computed (`outputs`, `output_selector`, `dtype`, `memory_budget`,
            `params`).
        reduction: The reduction of the kernel.
        multi_task: Whether the model takes task labels.
        optimizer: The strategy's optimizer, read-only.
        outputs_were_given: Whether the user chose the outputs by their indices.
        dataset: The strategy's present training data, read-only; None if unknown.
        read: Function that reads its samples as the strategy's evaluation does, for `ProbeSpec.choose`.
        groups: Kernels of the observables' groups of parameters (see `Observable.groups`), from the same pass as the
            kernel, by the names of observable and group.
    """

    model: nn.Module
    probe: Probe
    probes: Mapping[str, Probe]
    kernel: np.ndarray
    clock: TrainingClock
    options: Mapping[str, Any]
    reduction: str
    multi_task: bool = False
    optimizer: Any = None
    dataset: Any = None
    read: Reader = read_samples
    outputs_were_given: bool = False
    groups: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    def ntk(
        self, x1: Probe, x2: Probe | None = None, *, reduction: str | None = None, every_output: bool = False
    ) -> Tensor:
        """Return the kernel of given samples, computed like the probe's own.

        Args:
            x1: N samples.
            x2: M samples for a cross kernel.
            reduction: Reduction, if other than the probe's own.
            every_output: Whether to use all outputs instead of those fixed at this probe's first measurement; outputs
                that the user chose by their indices are kept.

        Returns:
            The kernel, `(N, M)` or `(N, M, C, C)`.
        """
        arguments: dict[str, Any] = dict(self.options)
        if every_output and not self.outputs_were_given:
            arguments["outputs"] = None
        first, tasks1 = x1.read_only()
        second, tasks2 = (None, None) if x2 is None else x2.read_only()
        if self.multi_task:
            arguments |= {"task_labels": tasks1, "task_labels2": tasks2}
        kernel: Tensor = empirical_ntk(self.model, first, second, reduction=reduction or self.reduction, **arguments)
        return kernel

    @property
    def inputs(self) -> Any:
        """The probe's inputs, not copied, read-only."""
        return self.probe.read_only()[0]

    # Computed once and shared by observables: features, outputs, and the kernel's decomposition.

    @cached_property
    def view(self) -> KernelView:
        """The kernel as a `KernelView`."""
        return KernelView(self.kernel)

    def features(self) -> Tensor:
        """Return a copy of the probe's features, the input of the last linear layer, `(N, D)`.

        Raises:
            ModelError: The model has no such layer, see `kernels.penultimate_features`.
        """
        return self._features.clone()

    @cached_property
    def _features(self) -> Tensor:
        options = {name: self.options.get(name) for name in ("output_selector", "dtype")}
        labels = self.probe.read_only()[1] if self.multi_task else None
        return penultimate_features(self.model, self.inputs, task_labels=labels, **options).detach()

    def outputs(self, probe: Probe) -> Tensor:
        """Return a copy of all of the model's outputs `f(X)` on a probe in eval mode, `(N, C)`, without a gradient."""
        return self._own_outputs.clone() if probe is self.probe else self._outputs(probe)

    @cached_property
    def _own_outputs(self) -> Tensor:
        return self._outputs(self.probe)

    def _outputs(self, probe: Probe) -> Tensor:
        x, tasks = probe.read_only()
        batch = Batch.of(x, tasks if self.multi_task else None)
        args, kwargs = batch.arguments(unwrap(self.model))
        with measuring(self.model, batch), torch.no_grad():
            raw = self.model(*args, **kwargs)
        selector = self.options.get("output_selector")
        found: Tensor = selector(raw) if selector is not None else raw
        return found.detach()

    def kept_outputs(self, outputs: Tensor) -> Tensor:
        """Return the outputs used in the kernel."""
        kept = self.options.get("outputs")
        return outputs if kept is None else outputs[:, list(kept)]


@dataclass
class Observation:
    """The results of an observable.

    Attributes:
        values: Numbers by column name.
        kernels: Further kernels of the same probe, `(N, N)`, by name; the trajectory follows each like the whole
            kernel.
        reasons: Why a number is undefined, by column name.
        records: Further lines for the run folder, each with a `kind`.
    """

    values: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, np.ndarray] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)


class Observable(ABC):
    """Something measured beside the kernel.

    A subclass declares its metrics; `observables.register` adds its flag to `ntk_metrics`.

    Attributes:
        name: Name in `run.json`.
        flag: Its flag in `ntk_metrics(ntk, FLAG=True)`; empty if it has none.
        metrics: The numbers that loggers show.
        images: The figures that loggers show at each boundary.
        at_boundaries_only: Whether it is measured at the boundaries only.
        when: When it has numbers, for the table of metrics, if not at each measurement.
    """

    name: str
    flag: ClassVar[str] = ""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    images: ClassVar[tuple[Image, ...]] = ()
    at_boundaries_only: bool = False
    when: ClassVar[str] = ""

    @classmethod
    def family(cls) -> Family:
        """Return the metrics that its flag switches on."""
        when = cls.when or ("boundaries" if cls.at_boundaries_only else "each measurement")
        return Family(cls.flag, tuple(cls.metrics), tuple(cls.images), when=when, observable=cls)

    def groups(self, model: nn.Module, params: str | Sequence[str] | None) -> Mapping[str, Sequence[str]]:
        """Return groups of parameters whose kernels to compute; they cost little more than the whole kernel alone.

        Args:
            model: The model that is about to be measured.
            params: Names of the parameters that are measured (shell wildcards allowed); None for every trainable one.

        Returns:
            Names of parameters by name of group; `observe` finds the kernels in `moment.groups[self.name]`.
        """
        return {}

    @abstractmethod
    def observe(self, moment: Moment) -> Observation:
        """Measure.

        Args:
            moment: The present state.

        Returns:
            The results.
        """

    def reset(self) -> None:  # noqa: B027  (most remember nothing)
        """Forget the state of a reinitialised model."""

    def resumed(self, values: Mapping[str, Sequence[Mapping[str, float]]]) -> None:  # noqa: B027  (most need nothing)
        """Restore the state for a continued run, as far as the run folder has it.

        Args:
            values: The numbers of each measurement since the model was initialised, by probe name.
        """

    def describe(self) -> dict[str, Any]:
        """Return its entry in `run.json`."""
        return {"name": self.name}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Observable) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.name)
