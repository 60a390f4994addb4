"""Prediction by a static kernel, compared with the network."""

from __future__ import annotations

from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register
from avalanche_ntk.observables.static import StaticKernel, frozen_kernel
from avalanche_ntk.recorder.labels import NO_CLASSES


@register
class StaticKernelForecast(Observable):
    """Prediction for the old task, while the new one is learnt, by the kernel frozen at the boundary.

    At each boundary the full kernel between the probe and a subsample of the new task's training data is frozen, and
    the linearised network is trained on that subsample in function space with the cross-entropy and the optimizer's
    step size (full-batch gradient descent, one step for each training iteration). Columns: `forecast_error`, `‖f(X;θ_t)
    − f̂_t(X)‖ / ‖f(X;θ_t) − f(X;θ_b)‖`: 0 if the static kernel predicts the change of the old task's outputs, 1 if it
    is no better than predicting none; `forecast_accuracy` and `network_accuracy_probe` on the probe's labels. Source:
    Chizat et al. 2019; Doan et al. 2021 for the two-task form. Undefined, with the reason, for optimizers other than
    SGD and for numeric targets of the new task; the accuracies also for numeric targets of the probe.

    Args:
        size: Samples of the new task.
        seed: Seed for choosing them.
    """

    name = "static_kernel_forecast"
    flag = "forecast"
    metrics = (
        Metric("NTK_ForecastError", "forecast_error", missed=True),
        Metric("NTK_ForecastAccuracy", "forecast_accuracy"),
    )
    when = "each measurement after the first boundary"

    def __init__(self, size: int = 64, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self._forecasts: dict[str, StaticKernel | str] = {}

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
                self._forecasts[moment.probe.name] = frozen_kernel(moment, self.size, self.seed)
            return found
        forecast = self._forecasts.get(moment.probe.name)
        if forecast is None:
            return found
        if isinstance(forecast, str):
            found.reasons["forecast_error"] = forecast
            return found
        now = moment.kept_outputs(moment.outputs(moment.probe)).double()
        if now.shape != forecast.old.shape:
            found.reasons["forecast_error"] = "the model's outputs were added or removed since the boundary"
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
