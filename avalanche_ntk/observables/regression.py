"""Kernel regression with the present and with the first kernel, compared with the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from avalanche_ntk import measures
from avalanche_ntk.errors import ProbeError
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register
from avalanche_ntk.recorder.labels import NO_CLASSES


@register
class KernelRegression(Observable):
    """Ridge regression with `Θ_t` and `Θ_0`, trained on the probe and tested on a held-out probe, at the boundaries.

    Columns: `regression_accuracy`, `regression_loss` (with the present kernel), `regression_accuracy_init`,
    `regression_loss_init` (with the first), `network_accuracy_held_out` and `network_accuracy_probe` (the network
    itself). The ridge is chosen on a split of the probe. Numeric targets have a loss but no accuracy; the record gives
    the reason. Source: Fort et al. 2020.

    Each probe is paired with the held-out probe of the same experience, which the plugin must have: with
    `NTKPlugin([ProbeSpec(size=64), ProbeSpec(size=64, split="test")])` the probe `Exp000` is paired with `Exp000_test`.
    A probe without its pair has no such numbers; the record gives the reason.

    Args:
        held_out: Name of one held-out probe to use for every probe, instead of the pairs.
    """

    name = "kernel_regression"
    flag = "regression"
    metrics = (
        Metric("NTK_RegressionAccuracy", "regression_accuracy"),
        Metric("NTK_RegressionAccuracyInit", "regression_accuracy_init"),
        Metric("NTK_NetworkAccuracyHeldOut", "network_accuracy_held_out"),
    )
    at_boundaries_only = True

    def __init__(self, held_out: str | None = None) -> None:
        self.held_out = held_out
        self._first: dict[str, tuple[float, float]] = {}

    def describe(self) -> dict[str, str | None]:
        """Return its name and that of the held-out probe."""
        return {"name": self.name, "held_out": self.held_out}

    def reset(self) -> None:
        """Forget the first kernel."""
        self._first.clear()

    def resumed(self, values: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Restore the first kernel's predictions from the run's first measurement."""
        for probe, measured in values.items():
            for found in measured[:1]:
                names = ("regression_accuracy_init", "regression_loss_init")
                self._first[probe] = (found.get(names[0], math.nan), found.get(names[1], math.nan))

    def observe(self, moment: Moment) -> Observation:
        """Compute the regression.

        Raises:
            ProbeError: The plugin has no such held-out probe.
        """  # noqa: DOC201
        if moment.probe.name == self.held_out or (self.held_out is None and moment.probe.name.endswith("_test")):
            return Observation()
        pair = self.held_out or f"{moment.probe.name}_test"
        if pair not in moment.probes:
            if self.held_out is None and any(name.endswith("_test") for name in moment.probes):
                return Observation(reasons={"regression_accuracy": f"there is no held-out probe {pair!r}"})
            raise ProbeError(
                f"kernel regression needs the held-out probe {pair!r}; the plugin has "
                f"{', '.join(map(repr, moment.probes))}. Give the plugin that probe too: "
                "NTKPlugin([ProbeSpec(size=64), ProbeSpec(size=64, split='test')])."
            )
        held_out = moment.probes[pair]
        labels, labels_held_out = moment.probe.y.numpy(), held_out.y.numpy()
        cross = moment.ntk(held_out, moment.probe).cpu().numpy()
        now = measures.kernel_regression(moment.kernel, labels, cross, labels_held_out)
        first_accuracy, first_loss = self._first.setdefault(moment.probe.name, (now.accuracy, now.loss))
        values = {
            "regression_accuracy": now.accuracy,
            "regression_loss": now.loss,
            "regression_accuracy_init": first_accuracy,
            "regression_loss_init": first_loss,
        }
        reasons: dict[str, str] = {}
        if moment.probe.has_classes and held_out.has_classes:
            values["network_accuracy_held_out"] = _accuracy(moment.outputs(held_out), labels_held_out)
            values["network_accuracy_probe"] = _accuracy(moment.outputs(moment.probe), labels)
        else:
            reasons = dict.fromkeys(_ACCURACIES, NO_CLASSES)
        return Observation({name: value for name, value in values.items() if not math.isnan(value)}, reasons=reasons)


_ACCURACIES = (
    "regression_accuracy",
    "regression_accuracy_init",
    "network_accuracy_held_out",
    "network_accuracy_probe",
)


def _accuracy(outputs: torch.Tensor, labels: np.ndarray) -> float:
    return float(np.mean(outputs.argmax(dim=1).cpu().numpy() == labels))
