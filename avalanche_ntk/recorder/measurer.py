"""One measurement: the present kernel of a probe, and the observables beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from avalanche_ntk import measures
from avalanche_ntk.errors import ArgumentError, ProbeError, ProcessError, positive, unknown_name
from avalanche_ntk.kernels import KernelInfo, empirical_ntk, empirical_ntk_by_group
from avalanche_ntk.kernels.support import (
    Batch,
    check_exact_or_projected,
    checked_precision,
    hooks_as,
    live_outputs,
    measuring,
    spot_check_in_double,
)
from avalanche_ntk.observables import Moment, Observable
from avalanche_ntk.randomness import preserved_rng_state
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.extras import Extras
from avalanche_ntk.recorder.host import Host
from avalanche_ntk.recorder.measurement import Measurement
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.recorder.processes import said_by_the_first
from avalanche_ntk.recorder.trajectory import Trajectory

REDUCTIONS = ("trace", "sum_logits", "projected")


@dataclass(frozen=True)
class Measured:
    """The results of one measurement.

    Attributes:
        kernel: The kernel, `(N, N)`.
        view: Its view, as the measures take it.
        trust: How it was computed.
        extras: Results beside it, and failures.
    """

    kernel: np.ndarray
    view: measures.KernelView
    trust: dict[str, Any]
    extras: Extras

    def add_to(
        self,
        trajectory: Trajectory,
        clock: TrainingClock,
        *,
        iterations_per_epoch: float | None,
        notes: Sequence[str],
        cost: Mapping[str, float] = {},
    ) -> Measurement:
        """Add the results to a series.

        Args:
            trajectory: The series.
            clock: When this was.
            iterations_per_epoch: Iterations in an epoch of the present task; None if unknown.
            notes: What else happened.
            cost: Durations of the measurement.

        Returns:
            The measurement.
        """
        extras = self.extras
        if iterations_per_epoch is None:
            extras.reasons["velocity_per_epoch"] = "the number of iterations in an epoch is not known"
        seconds = {"seconds": cost["measurement_seconds"]} if cost else {}
        return trajectory.add(
            clock,
            self.kernel,
            view=self.view,
            iterations_per_epoch=iterations_per_epoch,
            notes=[*notes, *extras.notes],
            trust={**self.trust, **seconds, **extras.trust},
            extra={**extras.values, **cost},
            extra_reasons=extras.reasons,
            extra_kernels=extras.kernels,
        )


class Measurer:
    """Measures the kernel of a probe and the observables at one moment.

    Args:
        reduction: "trace", "sum_logits" or "projected", see `empirical_ntk`.
        n_projections: Number of sign vectors, for "projected".
        outputs: "first" keeps the outputs of the first measurement, "all" takes all present ones; or their indices.
        params: Names of the parameters; None for every trainable one.
        output_selector: Picks the `(N, C)` tensor from what the model returns.
        dtype: Precision of the computation; the model's own when None.
        memory_budget: Bytes beyond one forward pass.
        checks: How often to check that samples are independent, see `empirical_ntk`.
        hooks: Which hooks of the model are called, see `empirical_ntk`.
        spot_check_every: Measurements between two comparisons with the reference implementation; 0 for none.

    Attributes:
        observables: The observables to measure.
        outputs_seen: The outputs used in each probe's kernel, by probe name.
        parameters_seen: Shapes of the trainable parameters at each probe's last measurement.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
    """

    def __init__(
        self,
        *,
        reduction: str = "trace",
        n_projections: int | None = None,
        outputs: str | Sequence[int] = "first",
        params: Sequence[str] | None = None,
        output_selector: Callable[[Any], Tensor] | None = None,
        dtype: torch.dtype | None = None,
        memory_budget: int | None = None,
        checks: Any = "auto",
        hooks: str | None = None,
        spot_check_every: int = 50,
    ) -> None:
        if spot_check_every < 0:
            raise ArgumentError(
                f"spot_check_every counts measurements, 0 for no check; found {spot_check_every}. Give 50, for example."
            )
        if reduction not in REDUCTIONS:
            raise unknown_name("reduction", reduction, REDUCTIONS)
        check_exact_or_projected(reduction, n_projections)
        if isinstance(outputs, str) and outputs not in ("first", "all"):
            raise unknown_name("outputs", outputs, ("first", "all"))
        self.reduction = reduction
        self.n_projections = n_projections
        self.outputs = outputs
        self.params = None if params is None else list(params)
        self.output_selector = output_selector
        self.dtype = checked_precision(dtype)
        self.memory_budget = positive("memory_budget", memory_budget, "bytes")
        self.checks = checks
        self.hooks = hooks
        self.spot_check_every = spot_check_every
        self.observables: list[Observable] = []
        self.outputs_seen: dict[str, list[int]] = {}
        self.parameters_seen: dict[str, dict[str, tuple[int, ...]]] = {}

    def describe(self) -> dict[str, Any]:
        """Return the settings of the measurements, for a run's description."""
        found = {
            "reduction": self.reduction,
            "outputs": self.outputs if isinstance(self.outputs, str) else list(self.outputs),
            "params": self.params,
            "observables": [observable.describe() for observable in self.observables],
            "columns": [
                {"tag": metric.tag, "column": metric.column, "unit": metric.unit}
                for observable in self.observables
                for metric in observable.metrics
            ],
            "dtype": None if self.dtype is None else str(self.dtype),
        }
        return found if self.n_projections is None else found | {"n_projections": self.n_projections}

    def request(self, observable: Observable) -> None:
        """Measure one more observable from now on; an equal one is not added twice.

        Args:
            observable: The observable.

        Raises:
            ArgumentError: It is not an observable, or one of the same name with different arguments is already
                measured.
        """
        if not isinstance(observable, Observable):
            raise ArgumentError(
                f"observe takes objects of avalanche_ntk.observables, such as PerLayer(); found {observable!r}."
            )
        for known in self.observables:
            if known.name == observable.name and known != observable:
                raise ArgumentError(
                    f"{observable.name} is already measured as {known.describe()}; found a second one, "
                    f"{observable.describe()}. Give one of them."
                )
        if observable not in self.observables:
            self.observables.append(observable)

    def reset(self) -> None:
        """Forget a reinitialised model; the next measurement fixes the outputs again."""
        self.outputs_seen.clear()
        for observable in self.observables:
            observable.reset()

    def assist(self, host: Host, probe: Probe, clock: TrainingClock, *, group: Any) -> None:
        """Do this process's share of a measurement that another process records.

        Args:
            host: What trains.
            probe: The probe.
            clock: Training time.
            group: The processes that share the measurement.
        """
        with preserved_rng_state(), host.trained_function():
            wanted, failed = self._groups(host.model, clock)
            self._kernel(host, probe, wanted, failed, group)
            if self._fixes_outputs(probe):
                self.outputs_seen |= said_by_the_first(group, None)

    def measure(
        self,
        host: Host,
        probe: Probe,
        probes: Mapping[str, Probe],
        clock: TrainingClock,
        *,
        index: int,
        group: Any = None,
    ) -> Measured:
        """Measure.

        Args:
            host: What trains.
            probe: The probe, on the model's device.
            probes: All probes chosen so far, on the model's device.
            clock: When this is.
            index: Number of this measurement in its series.
            group: Processes that share the kernel; None if this one computes it alone.

        Returns:
            The results.

        Raises:
            ArgumentError: An observable cannot be measured, and nothing has been measured yet.
            ProbeError: The same.
        """
        extras = Extras()
        with preserved_rng_state(), host.trained_function(), self._one_state(host, probe):
            wanted, failed = self._groups(host.model, clock)
            try:
                kernel, groups, trust = self._kernel(host, probe, wanted, failed, group)
            except ProcessError as error:  # for example, the others have a different model and fail too
                group = None
                extras.notes.append(f"this process measured alone: {error}")
                kernel, groups, trust = self._kernel(host, probe, wanted, failed, group)
            fixes = self._fixes_outputs(probe)
            try:
                extras.notes += self._parameter_changes(host.model, probe.name)
                moment = self._moment(host, probe, probes, clock, kernel.numpy(), groups)
                if fixes:
                    self._fix_outputs(moment, extras)
            finally:  # the other processes wait for it, so call it after errors too
                if fixes and group is not None:
                    seen = self.outputs_seen
                    said_by_the_first(group, {name: seen[name] for name in [probe.name] if name in seen})
            moment = replace(moment, options=self._options(probe))
            if self.spot_check_every and index % self.spot_check_every == 0:
                self._spot_check(moment, kernel, extras)
            with measures.few_threads(probe.size):
                self._observe(moment, failed, extras, first=not index)
                # The series records why a spectrum is undefined.
                with contextlib.suppress(np.linalg.LinAlgError):
                    values = moment.view.eigenvalues
                    trust |= {"min_eigenvalue": float(values[-1]), "max_eigenvalue": float(values[0])}
        return Measured(kernel.numpy(), moment.view, trust, extras)

    @contextlib.contextmanager
    def _one_state(self, host: Host, probe: Probe) -> Generator[None, None, None]:
        """Put the model into the state of a measurement once, for the kernel and for all that is looked at beside it.

        Among several processes each of them is a matter of its own: models spread over processes are gathered for it.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            yield
            return
        x, tasks = probe.read_only()
        with hooks_as(self.hooks), measuring(host.model, Batch.of(x, tasks if host.multi_task else None)):
            yield

    # ------------------------------------------------------------------ the kernel

    def _options(self, probe: Probe) -> dict[str, Any]:
        """Return the arguments common to all kernels of a probe."""
        found: dict[str, Any] = {
            "params": self.params,
            "outputs": self.outputs_seen.get(probe.name, None if isinstance(self.outputs, str) else list(self.outputs)),
            "output_selector": self.output_selector,
            "memory_budget": self.memory_budget,
            "dtype": self.dtype,
        }
        if self.checks != "auto":
            found["checks"] = self.checks
        if self.hooks is not None:
            found["hooks"] = self.hooks
        return found if self.n_projections is None else found | {"n_projections": self.n_projections}

    def _due(self, clock: TrainingClock) -> list[Observable]:
        """Return the observables due now."""
        return [o for o in self.observables if clock.is_boundary or not o.at_boundaries_only]

    def _groups(
        self, model: nn.Module, clock: TrainingClock
    ) -> tuple[dict[tuple[str, str], Sequence[str]], dict[str, Exception]]:
        """Return the observables' groups of parameters by name, and the errors of observables that failed."""
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
        host: Host,
        probe: Probe,
        wanted: Mapping[tuple[str, str], Sequence[str]],
        failed: dict[str, Exception],
        group: Any,
    ) -> tuple[Tensor, dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        """Return the kernel, the kernels of groups of parameters, and the trust record; note groups that fail."""
        x, tasks = probe.read_only()
        task_labels = tasks if host.multi_task else None
        options = self._options(probe) | {"task_labels": task_labels, "reduction": self.reduction, "return_info": True}
        options |= {} if group is None else {"process_group": group}
        groups: dict[str, dict[str, np.ndarray]] = {}
        kernel: Tensor | None = None
        if wanted:
            names = {f"{observable}[{group}]": parameters for (observable, group), parameters in wanted.items()}
            try:
                kernels, info = empirical_ntk_by_group(host.model, x, names, whole=True, **options)
            except ProcessError:
                raise
            except Exception as error:  # noqa: BLE001  (the kernel alone may do without the groups)
                failed |= dict.fromkeys((observable for observable, _ in wanted), error)
            else:
                kernel = kernels.pop("")
                for (observable, group), part in zip(wanted, kernels.values(), strict=True):
                    groups.setdefault(observable, {})[group] = part.detach().cpu().numpy()
        if kernel is None:
            kernel, info = empirical_ntk(host.model, x, **options)
        return kernel.detach().cpu(), groups, _trust(info)

    def _parameter_changes(self, model: nn.Module, probe: str) -> list[str]:
        """Return notes on trainable parameters added, removed or resized since the last measurement."""
        now = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        before = self.parameters_seen.get(probe)
        self.parameters_seen[probe] = now
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

    # ------------------------------------------------------------------ beside the kernel

    def _moment(
        self,
        host: Host,
        probe: Probe,
        probes: Mapping[str, Probe],
        clock: TrainingClock,
        kernel: np.ndarray,
        groups: Mapping[str, Mapping[str, np.ndarray]],
    ) -> Moment:
        return Moment(
            model=host.model,
            probe=probe,
            probes={n: p for n, p in probes.items() if host.has_outputs_for(p)},
            kernel=kernel,
            clock=clock,
            options=self._options(probe),
            reduction=self.reduction,
            multi_task=host.multi_task,
            optimizer=host.optimizer,
            dataset=host.dataset,
            read=host.read,
            outputs_were_given=not isinstance(self.outputs, str),
            groups=groups,
        )

    def _fixes_outputs(self, probe: Probe) -> bool:
        """Return whether this measurement fixes the outputs of the probe's kernel."""
        return self.outputs == "first" and probe.name not in self.outputs_seen

    def _fix_outputs(self, moment: Moment, extras: Extras) -> None:
        """Keep the outputs of the first measurement from now on; all of them if the live ones cannot be found."""
        probe = moment.probe
        x, tasks = probe.read_only()
        labels = tasks if moment.multi_task else None
        found = extras.attempt("live_outputs", lambda: self._live_outputs(moment.model, x, labels))
        if found is None:
            found = extras.attempt("outputs", lambda: list(range(moment.outputs(probe).shape[1])))
            extras.notes.append("it is not known which outputs depend on a parameter: all of them are kept")
        if found is not None:
            self.outputs_seen[probe.name] = found

    def _live_outputs(self, model: nn.Module, x: Any, task_labels: Tensor | None) -> list[int]:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return live_outputs(model, x, trained, task_labels=task_labels, output_selector=self.output_selector)

    def _spot_check(self, moment: Moment, kernel: Tensor, extras: Extras) -> None:
        """Compare an entry with the reference implementation."""
        if self.reduction == "projected":
            return  # the reference covers the exact reductions; the projected one has its own error estimate
        options = {k: v for k, v in moment.options.items() if k in ("params", "outputs", "output_selector")}
        x, tasks = moment.probe.read_only()
        found = extras.attempt(
            "spot_check_max_relative_error",
            lambda: spot_check_in_double(
                moment.model,
                x,
                kernel.to(tasks.device),
                n_entries=1,  # the reference is slow: two samples and every output, one at a time
                seed=moment.clock.iteration,
                reduction=self.reduction,
                task_labels=tasks if moment.multi_task else None,
                **options,
            ),
        )
        if found is not None:
            extras.trust["spot_check_max_relative_error"], extras.trust["spot_check_precision"] = found

    def _observe(self, moment: Moment, failed: Mapping[str, Exception], extras: Extras, *, first: bool) -> None:
        """Measure the observables; a failure affects neither the others nor the kernel."""

        def look(observable: Observable) -> None:
            if observable.name in failed:
                raise failed[observable.name]
            extras.take(observable.observe(moment), len(moment.kernel))

        for observable in self._due(moment.clock):
            before = len(extras.errors)
            extras.attempt(observable.name, partial(look, observable))
            for _, error in extras.errors[before:]:
                if isinstance(error, (ArgumentError, ProbeError)) and first:
                    raise error  # a wrong argument: raise it while nothing has been trained yet


def check_precision(model: nn.Module, probe: Probe, error: Exception) -> None:
    """Explain a failed forward pass if the probe's inputs have a different precision from the parameters.

    A model may convert its inputs, so this is checked only after a failure.

    Raises:
        ProbeError: The precisions differ.
    """
    inputs = {t.dtype for t in tree_flatten(probe.read_only()[0])[0] if isinstance(t, Tensor) and t.is_floating_point()}
    parameters = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if inputs and parameters and not inputs & parameters:
        found, expected = (", ".join(sorted(str(kind) for kind in kinds)) for kinds in (inputs, parameters))
        raise ProbeError(
            f"the inputs of probe {probe.name!r} are {found}, the model's parameters {expected}, and its forward pass "
            f"does not convert them. Convert the data: x.to({expected}), or a transform that does; training on such "
            "inputs fails too."
        ) from error


def _trust(info: KernelInfo) -> dict[str, Any]:
    """Return how a kernel was computed, as a record; methods are counted, not listed."""
    counted: dict[str, int] = {}
    for method in info.methods.values():
        counted[str(method)] = counted.get(str(method), 0) + 1
    several = {"processes": info.processes} if info.processes > 1 else {}
    return several | {
        "methods": counted,
        "reasons": info.reasons,
        "flops": info.flops,
        "peak_bytes": info.peak_bytes,
        "asymmetry": info.asymmetry,
    }
