"""Measures of single units of the penultimate layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register
from avalanche_ntk.observables.undefined import value_or_reason, values_or_reason

_SWEEPS = 'probes that are sweeps: `Neurons(sweeps=["angle"])`'


@register
class Neurons(Observable):
    """Similarity of the units that the last linear layer reads, and their change since the last boundary.

    Columns: `neuron_similarity` and `neuron_similarity_max` (|cos| over pairs of units), the same with `_centred`
    (correlations), `neuron_tuning` (mean cosine of a unit now and at the last boundary, where it is 1) with
    `neuron_tuning_centred`, and `neurons_silent`, the share of units that are 0 on the whole probe. For a probe named
    in `sweeps`, `neuron_period` (median over units, in samples) and `neurons_periodic` (share of units). Costs one
    forward pass; keeps the activations at the boundary.

    Args:
        sweeps: Names of the probes whose samples are a sequence in equal steps, such as an angle.

    Raises:
        ArgumentError: `sweeps` is a string.
    """

    name = "neurons"
    flag = "neurons"
    metrics = (
        Metric("NTK_NeuronSimilarity", "neuron_similarity"),
        Metric("NTK_NeuronSimilarityCentred", "neuron_similarity_centred"),
        Metric("NTK_NeuronSimilarityMax", "neuron_similarity_max"),
        Metric("NTK_NeuronSimilarityMaxCentred", "neuron_similarity_max_centred"),
        Metric("NTK_NeuronTuning", "neuron_tuning"),
        Metric("NTK_NeuronTuningCentred", "neuron_tuning_centred"),
        Metric("NTK_NeuronsSilent", "neurons_silent", note="share of units"),
        Metric("NTK_NeuronPeriod", "neuron_period", "samples", when=_SWEEPS),
        Metric("NTK_NeuronsPeriodic", "neurons_periodic", note="share of units", when=_SWEEPS),
    )

    def __init__(self, sweeps: Sequence[str] = ()) -> None:
        if isinstance(sweeps, str):
            raise ArgumentError(
                f"sweeps must be a list of names of probes, found the text {sweeps!r}. Give [{sweeps!r}]."
            )
        self.sweeps = tuple(sweeps)
        self._anchors: dict[str, np.ndarray] = {}
        self._resumed = False

    def reset(self) -> None:
        """Forget the activations at the boundary."""
        self._anchors.clear()
        self._resumed = False

    def resumed(self, values: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Note that the activations at the boundary are lost: a run folder does not hold them."""
        self._resumed = True

    def describe(self) -> dict[str, Any]:
        """Return the name and the sweeps."""
        return {"name": self.name, "sweeps": list(self.sweeps)}

    def observe(self, moment: Moment) -> Observation:
        """Measure the units on the probe."""
        units = moment.features().cpu().numpy()
        if moment.clock.event == "experience_start":
            self._anchors[moment.probe.name] = units
        found = Observation(values={"neurons_silent": float(np.mean(~units.any(axis=0)))})
        for suffix, centred in (("", False), ("_centred", True)):
            columns = [f"neuron_similarity{suffix}", f"neuron_similarity_max{suffix}"]
            values_or_reason(found, columns, self._similarity, units, centred)
            value_or_reason(found, f"neuron_tuning{suffix}", self._tuning, moment.probe.name, units, centred)
        if moment.probe.name in self.sweeps:
            values_or_reason(found, ["neuron_period", "neurons_periodic"], self._periodicity, units)
        return found

    @staticmethod
    def _similarity(units: np.ndarray, centred: bool) -> tuple[float, float]:
        found = measures.neuron_similarity(units, centred=centred)
        return found.mean, found.max

    def _tuning(self, probe: str, units: np.ndarray, centred: bool) -> float | str:
        before = self._anchors.get(probe)
        if before is None:
            return (
                "the run was resumed: the activations at the last boundary are not stored"
                if self._resumed
                else "there was no measurement at the last boundary"
            )
        if before.shape != units.shape:
            return "the number of units has changed since"
        return measures.tuning_similarity(units, before, centred=centred)

    @staticmethod
    def _periodicity(units: np.ndarray) -> tuple[float, float]:
        found = measures.neuron_periodicity(units)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
            return float(np.nanmedian(found.period)), found.fraction
