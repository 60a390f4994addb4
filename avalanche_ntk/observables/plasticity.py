"""Plasticity: ranks, dormant units, churn, gradients, and a fresh task learnt by a copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_ntk import measures
from avalanche_ntk.errors import ArgumentError, ModelError
from avalanche_ntk.kernels.support import Batch, measuring, unwrap
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register
from avalanche_ntk.observables.static import places
from avalanche_ntk.observables.undefined import value_or_reason, values_or_reason
from avalanche_ntk.observables.units import look_at_units
from avalanche_ntk.recorder.clock import BOUNDARY_EVENTS
from avalanche_ntk.recorder.labels import NO_CLASSES

LARGEST_FULL = 4096  # largest number of rows of a full kernel (samples times outputs) for gradient cosines
OPTIMIZERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}
KERNEL_RANKS = ("numerical", "approximate", "participation", "effective")
FEATURE_RANKS = ("numerical", "approximate", "srank", "participation", "effective")


@register
class Plasticity(Observable):
    """Ranks of kernel and features, dormant units, gradients, churn, and how fast a copy learns a fresh task.

    Columns, at each measurement: `kernel_rank_*` (numerical, approximate, participation, effective) and
    `feature_rank_*` (the same and srank) of the penultimate layer, each also `_centred`; `dormant_share` over all units
    and `dormant_share[LAYER]`, where LAYER reads the units; `zero_gradient_share` and `zero_gradient_share[LAYER]`,
    where LAYER outputs them; `churn`, the change of the probe's outputs since the last measurement (on samples in no
    minibatch if the probe belongs to another task or is held out); `relative_kernel_change` since initialisation;
    `weight_norm`, `gradient_norm` (of the mean cross-entropy on the probe). At boundaries: `gradient_cosine`, the mean
    cosine of two samples' loss gradients, and trainability: a copy of the model learns the probe's inputs with fresh
    random labels, by full batches for a fixed number of steps; `trainability_loss` is the loss reached,
    `trainability_area` the mean over the steps. The fresh task is the same at each boundary. The model and the run's
    random numbers are unaffected.

    Sources: Yang et al. 2020, Kumar et al. 2021, Roy & Vetterli 2007 (ranks); Sokar et al. 2023 (dormant units); Tang
    et al. 2025 (churn); Lyle et al. 2023 (gradients, random labels as fresh tasks); Geiger et al. 2020 (change).

    Args:
        tau: Threshold of a dormant unit.
        delta: Share of the energy that approximate rank and srank leave out.
        steps: Budget of the fresh task; 0 for none.
        optimizer: "Adam" or "SGD", without momentum, for the fresh task.
        learning_rate: Its step size.
        seed: Seed of the fresh labels.

    Raises:
        ArgumentError: The optimizer is unknown, or the number of steps is negative.
    """

    name = "plasticity"
    flag = "plasticity"
    metrics = (
        Metric("NTK_KernelRank", "kernel_rank_{RANK}"),
        Metric("NTK_FeatureRank", "feature_rank_{RANK}"),
        Metric("NTK_DormantShare", "dormant_share"),
        Metric("NTK_LayerDormantShare", "dormant_share[{LAYER}]"),
        Metric("NTK_ZeroGradientShare", "zero_gradient_share"),
        Metric("NTK_LayerZeroGradientShare", "zero_gradient_share[{LAYER}]"),
        Metric("NTK_Churn", "churn"),
        Metric("NTK_RelativeKernelChange", "relative_kernel_change"),
        Metric("NTK_WeightNorm", "weight_norm"),
        Metric("NTK_GradientNorm", "gradient_norm"),
        Metric("NTK_GradientCosine", "gradient_cosine", when="boundaries"),
        Metric("NTK_TrainabilityLoss", "trainability_loss", when="boundaries"),
        Metric("NTK_TrainabilityArea", "trainability_area", when="boundaries"),
    )

    def __init__(
        self,
        tau: float = 0.1,
        delta: float = 0.01,
        steps: int = 50,
        optimizer: str = "Adam",
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ArgumentError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, found {optimizer!r}.")
        if steps < 0:
            raise ArgumentError(f"steps must be 0 or more, found {steps!r}.")
        self.tau = tau
        self.delta = delta
        self.steps = steps
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.seed = seed
        self._first: dict[str, measures.KernelView] = {}
        self._outputs: dict[str, np.ndarray] = {}
        self._resumed = False

    def describe(self) -> dict[str, Any]:
        """Return its name and arguments."""
        names = ("name", "tau", "delta", "steps", "optimizer", "learning_rate", "seed")
        return {name: getattr(self, name) for name in names}

    def reset(self) -> None:
        """Forget the first kernel and the last outputs."""
        self._first.clear()
        self._outputs.clear()
        self._resumed = False

    def resumed(self, values: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Note that the first kernel and the last outputs are lost."""
        self._resumed = True

    def observe(self, moment: Moment) -> Observation:
        """Measure; a failed number does not affect the others."""
        found = Observation()
        outputs = moment.kept_outputs(moment.outputs(moment.probe)).double().cpu().numpy()
        self._ranks(moment, found)
        self._since(moment, outputs, found)
        labels = _labels(moment)
        self._units(moment, labels, found)
        if moment.clock.event in BOUNDARY_EVENTS:
            value_or_reason(found, "gradient_cosine", self._cosine, moment, outputs, labels)
            if self.steps:
                columns = ["trainability_loss", "trainability_area"]
                values_or_reason(found, columns, self._trainability, moment, outputs.shape[1])
        return found

    def _ranks(self, moment: Moment, found: Observation) -> None:
        features: np.ndarray | str
        try:
            features = moment.features().cpu().numpy()
        except ModelError as error:
            features = str(error)
        for suffix, centred in (("", False), ("_centred", True)):
            options = {"centred": centred, "delta": self.delta}
            names = [f"kernel_rank_{name}{suffix}" for name in KERNEL_RANKS]
            values_or_reason(found, names, _as_tuple, measures.kernel_ranks, moment.view, options)
            names = [f"feature_rank_{name}{suffix}" for name in FEATURE_RANKS]
            values_or_reason(found, names, _as_tuple, measures.feature_ranks, features, options)

    def _since(self, moment: Moment, outputs: np.ndarray, found: Observation) -> None:
        name = moment.probe.name
        before = self._outputs.get(name)
        self._outputs[name] = outputs
        if before is not None:
            same = before.shape == outputs.shape
            value_or_reason(
                found,
                "churn",
                measures.churn if same else lambda *_: "the model's outputs were added or removed",
                outputs,
                before,
            )
        if self._resumed and name not in self._first:
            found.reasons["relative_kernel_change"] = "the run was resumed: the first kernel is not kept"
            return
        first = self._first.setdefault(name, moment.view)
        value_or_reason(found, "relative_kernel_change", measures.relative_kernel_change, moment.view, first)

    def _units(self, moment: Moment, labels: Tensor | str, found: Observation) -> None:
        loss: Callable[[Any], Tensor] | None = None
        if isinstance(labels, str):
            found.reasons |= dict.fromkeys(("zero_gradient_share", "gradient_norm"), labels)
        else:
            wanted = labels

            def loss(raw: Any) -> Tensor:
                return nn.functional.cross_entropy(_selected(moment, raw), wanted, reduction="sum")

        model, batch = _copy(moment)
        seen = look_at_units(model, batch, loss)
        found.values["weight_norm"] = seen.weight_norm
        if loss is not None:
            found.values["gradient_norm"] = seen.gradient_norm
        for column, layers, measure in (
            ("dormant_share", seen.activity, lambda units: measures.dormant_share(units, tau=self.tau)),
            ("zero_gradient_share", seen.gradients, measures.zero_gradient_share),
        ):
            for name, units in layers.items():
                value_or_reason(found, f"{column}[{name}]", measure, units)
            shares = [found.values.get(f"{column}[{name}]", math.nan) for name in layers]
            sizes = [units.shape[1] for units in layers.values()]
            if layers and all(map(math.isfinite, shares)):
                found.values[column] = float(np.average(shares, weights=sizes))
            else:
                found.reasons.setdefault(column, "the model has no hidden layer whose units could be measured")

    def _cosine(self, moment: Moment, outputs: np.ndarray, labels: Tensor | str) -> float | str:
        if isinstance(labels, str):
            return labels
        if outputs.size > LARGEST_FULL:
            return (
                f"{len(outputs)} samples of {outputs.shape[1]} outputs make a full kernel of more than {LARGEST_FULL}"
            )
        theta = moment.ntk(moment.probe, reduction="full").cpu().numpy()
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        errors = shifted / shifted.sum(axis=1, keepdims=True)
        errors[np.arange(len(errors)), labels.cpu().numpy()] -= 1
        return measures.gradient_cosine(measures.loss_gradient_products(theta, errors))

    def _trainability(self, moment: Moment, classes: int) -> tuple[float, float]:
        model, batch = _copy(moment)
        generator = torch.Generator("cpu").manual_seed(self.seed)
        labels = torch.randint(classes, (len(batch),), generator=generator).to(next(model.parameters()).device)
        losses = []
        with measuring(model, batch):
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = OPTIMIZERS[self.optimizer](trained, lr=self.learning_rate)
            args, kwargs = batch.arguments(model)
            for step in range(self.steps + 1):
                loss = nn.functional.cross_entropy(_selected(moment, model(*args, **kwargs)), labels)
                losses.append(float(loss.detach()))
                if step < self.steps:
                    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
                    for parameter, gradient in zip(trained, gradients, strict=True):
                        parameter.grad = gradient
                    optimizer.step()
        return losses[-1], float(np.mean(losses))


def _copy(moment: Moment) -> tuple[nn.Module, Batch]:
    """A copy of the model, isolated from the original, and the probe as its input."""
    x, tasks = moment.probe.read_only()
    return copy.deepcopy(unwrap(moment.model)), Batch.of(x, tasks if moment.multi_task else None)


def _selected(moment: Moment, raw: Any) -> Tensor:
    selector = moment.options.get("output_selector")
    return moment.kept_outputs(raw if selector is None else selector(raw))


def _labels(moment: Moment) -> Tensor | str:
    if not moment.probe.has_classes:
        return NO_CLASSES
    labels = places(moment.probe.y.to(next(moment.model.parameters()).device), moment)
    return "the probe's classes are not among the kernel's outputs" if labels is None else labels


def _as_tuple(measure: Callable[..., Any], of: Any, options: Mapping[str, Any]) -> Sequence[float] | str:
    return of if isinstance(of, str) else list(asdict(measure(of, **options)).values())
