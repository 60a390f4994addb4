"""Forecast of forgetting, made before the new task's first step and compared with the outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from avalanche_ntk import measures
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures import KernelView
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register
from avalanche_ntk.observables.static import StaticKernel, as_matrix, frozen_kernel, places
from avalanche_ntk.observables.undefined import value_or_reason
from avalanche_ntk.recorder.labels import NO_CLASSES

LOSSES = ("cross_entropy", "mse")


@dataclass
class _Said:
    """The forecast made at a boundary."""

    kernel: StaticKernel
    own: KernelView  # Θ(X_old, X_old), (N·C, N·C)
    labels: np.ndarray | None  # of the old probe, as indices of outputs; None if it has no classes
    limit: np.ndarray  # (N, C): the predicted change at convergence


_END = "end of each experience from the second on"


@register
class ForgettingForecast(Observable):
    """Forecast by the boundary's kernel of what the old task loses, before any step of the new task, and the outcome.

    At each boundary, from `Θ(X_old, X_new)`, `Θ(X_new, X_new)` and the new task's residual, on the probe and a
    subsample of the new task's training data: `forgetting_forecast_change`, the predicted change of the old outputs
    when the new task is learnt to convergence with the squared loss (root of the mean over samples of `‖Δf(x_n)‖²`);
    `forgetting_forecast_drop`, the resulting drop of accuracy on the probe's labels; both with `_error`, their standard
    deviation over random halves of the new samples; and `forgetting_forecast_share_K`, the share of the predicted
    change in the K leading eigenvectors of `Θ(X_old, X_old)`.

    At the end of the experience, the outcome: `forgetting_change`, `forgetting_drop`, `forgetting_share_K`; and the
    accuracy of the forecasts. `forgetting_limit_error` and `forgetting_limit_rank` (relative error, and rank
    correlation over samples of `‖Δf(x_n)‖`) are for the forecast at convergence. `forgetting_steps_error`,
    `forgetting_steps_rank` and `forgetting_steps_drop` are for the forecast after the actual number of steps, as
    full-batch steps with the strategy's own loss and step size.

    Exact if the model is linear in the trained parameters and each step uses the whole task, without weight decay.
    Undefined, with the reason, for optimizers other than SGD (Adam has a different kernel), if the new task's outputs
    are not among the kernel's (a head that grew), for models with a head for each task (the new task's labels do not
    determine the old head's outputs), and for numeric targets.

    Source: Hidekel & Raviv 2026 (arXiv 2606.18024); Doan et al. 2021; Karakida & Akaho 2022.

    Args:
        size: Samples of the new task.
        loss: The strategy's loss: "cross_entropy", or "mse" for `torch.nn.MSELoss` on one-hot targets.
        modes: Numbers of leading eigenvectors.
        halves: Random halves of the new samples for the forecast's own error; 0 for none.
        seed: Seed for choosing the samples.

    Raises:
        ArgumentError: The loss is unknown.
    """

    name = "forgetting_forecast"
    flag = "forgetting_forecast"
    metrics = (
        Metric("NTK_ForgettingForecastDrop", "forgetting_forecast_drop", missed=True),
        Metric("NTK_ForgettingForecastDropError", "forgetting_forecast_drop_error", missed=True),
        Metric("NTK_ForgettingForecastChange", "forgetting_forecast_change", missed=True),
        Metric("NTK_ForgettingForecastChangeError", "forgetting_forecast_change_error", missed=True),
        Metric("NTK_ForgettingForecastShare", "forgetting_forecast_share_{K}", missed=True),
        Metric("NTK_ForgettingDrop", "forgetting_drop", when=_END),
        Metric("NTK_ForgettingChange", "forgetting_change", when=_END),
        Metric("NTK_ForgettingShare", "forgetting_share_{K}", when=_END),
        Metric("NTK_ForgettingLimitError", "forgetting_limit_error", when=_END),
        Metric("NTK_ForgettingLimitRank", "forgetting_limit_rank", when=_END),
        Metric("NTK_ForgettingStepsError", "forgetting_steps_error", when=_END),
        Metric("NTK_ForgettingStepsRank", "forgetting_steps_rank", when=_END),
        Metric("NTK_ForgettingStepsDrop", "forgetting_steps_drop", when=_END),
    )
    when = "start of each experience from the second on, before any step"
    at_boundaries_only = True

    def __init__(
        self,
        size: int = 64,
        loss: str = "cross_entropy",
        modes: Sequence[int] = (1, 5, 20),
        halves: int = 8,
        seed: int = 0,
    ) -> None:
        if loss not in LOSSES:
            raise ArgumentError(f"loss must be one of {', '.join(LOSSES)}, found {loss!r}.")
        self.size = size
        self.loss = loss
        self.modes = tuple(modes)
        self.halves = halves
        self.seed = seed
        self._said: dict[str, _Said | str] = {}

    def describe(self) -> dict[str, object]:
        """Return its name and arguments."""
        return {
            "name": self.name,
            "size": self.size,
            "loss": self.loss,
            "modes": list(self.modes),
            "halves": self.halves,
            "seed": self.seed,
        }

    def reset(self) -> None:
        """Forget the forecast."""
        self._said.clear()

    def observe(self, moment: Moment) -> Observation:
        """Forecast at the start of an experience; compare at its end."""
        found = Observation()
        if moment.clock.event == "experience_start":
            self._said.pop(moment.probe.name, None)
            if moment.clock.experience > 0 and moment.dataset is not None:
                self._forecast(moment, found)
            return found
        said = self._said.get(moment.probe.name)
        if isinstance(said, str):
            found.reasons["forgetting_limit_error"] = said
        elif said is not None:
            self._compare(moment, said, found)
        return found

    def _forecast(self, moment: Moment, found: Observation) -> None:
        kernel: StaticKernel | str
        if moment.multi_task:
            kernel = "the model has a head for each task: labels of the new one do not determine the old head's outputs"
        else:
            kernel = frozen_kernel(moment, self.size, self.seed)
        if isinstance(kernel, str):
            self._said[moment.probe.name] = kernel
            found.reasons["forgetting_forecast_change"] = kernel
            return
        cross, own = kernel.old_on_new.cpu().numpy(), kernel.new_on_new.cpu().numpy()
        epsilon = kernel.epsilon
        residual = (_one_hot(kernel) - kernel.new).cpu().numpy()
        old = kernel.old_at_boundary.cpu().numpy()
        y = places(moment.probe.y, moment) if moment.probe.has_classes else None
        labels = None if y is None else y.cpu().numpy()
        limit = measures.forgetting_forecast(cross, KernelView(own, epsilon=epsilon), residual.ravel()).reshape(
            old.shape
        )
        own_old = KernelView(as_matrix(moment.ntk(moment.probe, reduction="full")).cpu().numpy())
        said = self._said[moment.probe.name] = _Said(kernel, own_old, labels, limit)
        numbers = [self._numbers(limit, old, labels)]
        for half in self._choices(len(residual)):
            index = (half[:, None] * residual.shape[1] + np.arange(residual.shape[1])).ravel()
            among = KernelView(own[np.ix_(index, index)], epsilon=epsilon)
            part = measures.forgetting_forecast(cross[:, index], among, residual[half].ravel())
            numbers.append(self._numbers(part.reshape(old.shape), old, labels))
        for column, values in zip(("change", "drop"), np.array(numbers).T, strict=True):
            if column == "drop" and labels is None:
                found.reasons["forgetting_forecast_drop"] = NO_CLASSES
                continue
            found.values[f"forgetting_forecast_{column}"] = float(values[0])
            if len(values) > 2:
                found.values[f"forgetting_forecast_{column}_error"] = float(np.std(values[1:], ddof=1))
        self._shares(found, "forgetting_forecast_share", said.own, limit)

    def _choices(self, size: int) -> list[np.ndarray]:
        generator = np.random.default_rng(self.seed)
        return [generator.permutation(size)[: size // 2] for _ in range(self.halves)] if size > 3 else []

    @staticmethod
    def _numbers(change: np.ndarray, old: np.ndarray, labels: np.ndarray | None) -> tuple[float, float]:
        size = float(np.sqrt(np.square(change).sum(axis=1).mean()))
        return size, math.nan if labels is None else _accuracy(old, labels) - _accuracy(old + change, labels)

    def _shares(self, found: Observation, column: str, own: KernelView, change: np.ndarray) -> None:
        for rank in self.modes:
            value_or_reason(found, f"{column}_{rank}", measures.mode_share, own, change.ravel(), rank)

    def _compare(self, moment: Moment, said: _Said, found: Observation) -> None:
        now = moment.kept_outputs(moment.outputs(moment.probe)).double().cpu().numpy()
        old = said.kernel.old_at_boundary.cpu().numpy()
        if now.shape != old.shape:
            found.reasons["forgetting_limit_error"] = "the model's outputs were added or removed since the boundary"
            return
        change = now - old
        after_steps = self._after(said.kernel, moment.clock.exp_iteration)
        size, drop = self._numbers(change, old, said.labels)
        found.values["forgetting_change"] = size
        if said.labels is not None:
            found.values["forgetting_drop"] = drop
            found.values["forgetting_steps_drop"] = self._numbers(after_steps, old, said.labels)[1]
        for name, forecast in (("limit", said.limit), ("steps", after_steps)):
            value_or_reason(found, f"forgetting_{name}_error", measures.forecast_error, forecast, change)
            each = [np.linalg.norm(one, axis=1) for one in (forecast, change)]
            value_or_reason(found, f"forgetting_{name}_rank", measures.rank_correlation, *each)
        self._shares(found, "forgetting_share", said.own, change)

    def _after(self, kernel: StaticKernel, steps: int) -> np.ndarray:
        """Return the predicted change of the old outputs, `(N, C)`, after full-batch steps of the strategy's loss."""
        old = kernel.old_at_boundary
        if self.loss == "cross_entropy":
            kernel.advance(steps)
            return np.asarray((kernel.old - old).cpu().numpy())
        change = measures.forgetting_forecast(
            kernel.old_on_new.cpu().numpy(),
            KernelView(kernel.new_on_new.cpu().numpy(), epsilon=kernel.epsilon),
            (_one_hot(kernel) - kernel.new).flatten().cpu().numpy(),
            steps=steps,
            step_size=kernel.learning_rate,
            samples=kernel.new.numel() / 2,  # the mean over all targets, without a half
        )
        return change.reshape(tuple(old.shape))


def _one_hot(kernel: StaticKernel) -> torch.Tensor:
    return torch.nn.functional.one_hot(kernel.labels, kernel.new.shape[1]).to(kernel.new)


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(outputs.argmax(axis=1) == labels))
