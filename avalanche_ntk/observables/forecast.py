"""What a static kernel would have predicted, beside what happened."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.recorder.labels import NO_CLASSES
from avalanche_ntk.recorder.probes import ProbeSpec


@dataclass
class _Forecast:
    """The frozen kernel of one boundary and the outputs that it drives."""

    learning_rate: float
    labels: Tensor
    new_on_new: Tensor  # (M·C, M·C)
    old_on_new: Tensor  # (N·C, M·C)
    new: Tensor
    old: Tensor
    old_at_boundary: Tensor
    steps: int

    def advance(self, steps: int) -> None:
        """Take full-batch gradient steps on the cross-entropy in function space: `f ← f − η Θ ∂L/∂f`."""
        while self.steps < steps:
            gradient = self.new.softmax(dim=1)
            gradient[torch.arange(len(self.labels), device=self.labels.device), self.labels] -= 1
            gradient /= len(self.labels)
            gradient = gradient.flatten()
            self.old = self.old - self.learning_rate * (self.old_on_new @ gradient).view_as(self.old)
            self.new = self.new - self.learning_rate * (self.new_on_new @ gradient).view_as(self.new)
            self.steps += 1


class StaticKernelForecast(Observable):
    """What the kernel frozen at the boundary predicts for the old task while the new one is learnt.

    At each boundary the full kernel between the probe and a subsample of the new task's training data is frozen, and
    the linearised network is trained on that subsample in function space with the cross-entropy and the optimizer's
    step size (full-batch gradient descent, one step for each training iteration). Columns: `forecast_error`,
    `‖f(X;θ_t) − f̂_t(X)‖ / ‖f(X;θ_t) − f(X;θ_b)‖`: 0 when the static kernel foresees the change of the old task's
    outputs, 1 when it is no better than foreseeing none; `forecast_accuracy` and `network_accuracy_probe` on the
    probe's labels. Source: Chizat et al. 2019; Doan et al. 2021 for the two-task form. Undefined, with the reason, for
    optimizers other than SGD and where the new task has numeric targets; the accuracies where the probe has.

    Args:
        size: Samples of the new task.
        seed: Seed of their choice.
    """

    name = "static_kernel_forecast"

    def __init__(self, size: int = 64, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self._forecasts: dict[str, _Forecast | str] = {}

    def describe(self) -> dict[str, object]:
        """Return its name and arguments."""
        return {"name": self.name, "size": self.size, "seed": self.seed}

    def reset(self) -> None:
        """Forget the frozen kernel."""
        self._forecasts.clear()

    def observe(self, moment: Moment) -> Observation:
        """Freeze the kernel at a boundary; compare the forecast with the network at every later measurement."""
        found = Observation()
        if moment.clock.event == "experience_start":
            first = moment.clock.experience == 0 or moment.dataset is None
            self._forecasts.pop(moment.probe.name, None)
            if not first:
                self._forecasts[moment.probe.name] = self._freeze(moment)
            return found
        forecast = self._forecasts.get(moment.probe.name)
        if forecast is None:
            return found
        if isinstance(forecast, str):
            found.reasons["forecast_error"] = forecast
            return found
        now = moment.kept_outputs(moment.outputs(moment.probe)).double()
        if now.shape != forecast.old.shape:
            found.reasons["forecast_error"] = "the model's outputs came or went since the boundary"
            return found
        forecast.advance(moment.clock.exp_iteration)
        change = (now - forecast.old_at_boundary).norm()
        if change == 0:
            found.reasons["forecast_error"] = "the outputs have not moved since the boundary"
        else:
            found.values["forecast_error"] = float((now - forecast.old).norm() / change)
        if not moment.probe.has_classes:
            found.reasons |= dict.fromkeys(("forecast_accuracy", "network_accuracy_probe"), NO_CLASSES)
            return found
        y = moment.probe.y.to(now.device)
        found.values["forecast_accuracy"] = float((forecast.old.argmax(dim=1) == y).double().mean())
        found.values["network_accuracy_probe"] = float((now.argmax(dim=1) == y).double().mean())
        return found

    def _freeze(self, moment: Moment) -> _Forecast | str:
        rate = _step_size(moment.optimizer)
        if isinstance(rate, str):
            return rate
        size = min(self.size, len(moment.dataset))
        balance = "class" if moment.probe.has_classes else "none"
        spec = ProbeSpec(size=size, balance=balance, seed=self.seed, name="new_task")
        new = spec.choose(moment.dataset, moment.read)
        if not new.has_classes:
            return f"{NO_CLASSES}, and the forecast is one of training with the cross-entropy"
        new = new.to(next(moment.model.parameters()).device)
        kept = moment.options.get("outputs")
        f_new = moment.kept_outputs(moment.outputs(new)).double()
        labels = new.y.to(f_new.device)
        if kept is not None:
            place = {c: i for i, c in enumerate(kept)}
            if any(int(c) not in place for c in labels):
                return (
                    "the new task's classes are not among the outputs that the kernel is made of "
                    "(NTKPlugin(outputs='all') measures them)"
                )
            labels = torch.tensor([place[int(c)] for c in labels], device=f_new.device)
        f_old = moment.kept_outputs(moment.outputs(moment.probe)).double()
        return _Forecast(
            learning_rate=rate,
            labels=labels,
            new_on_new=_as_matrix(moment.ntk(new, reduction="full")),
            old_on_new=_as_matrix(moment.ntk(moment.probe, new, reduction="full")),
            new=f_new,
            old=f_old.clone(),
            old_at_boundary=f_old,
            steps=0,
        )


def _as_matrix(theta: Tensor) -> Tensor:
    """Return a full kernel `(N, M, C, C)` as the matrix `(N·C, M·C)` in float64: a step is one product with it."""
    return theta.double().transpose(1, 2).flatten(2).flatten(0, 1)


def _step_size(optimizer: object) -> float | str:
    """Return the step size that SGD settles to; heavy-ball momentum μ multiplies it by 1/(1 − μ)."""
    if not isinstance(optimizer, torch.optim.SGD):
        return f"the forecast knows the steps of torch.optim.SGD only; the strategy has {type(optimizer).__name__}"
    rates = {(float(g["lr"]), float(g["momentum"])) for g in optimizer.param_groups}
    if len(rates) != 1:
        return "the forecast knows one step size only; the optimizer has groups with different ones"
    ((rate, momentum),) = rates
    return rate / (1 - momentum)
