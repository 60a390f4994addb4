"""The measurements as Avalanche metrics.

The metrics never measure: each reads what its `NTKPlugin` recorded and hands every value on once, whichever hook comes
next, so that their place in the list of plugins does not matter.

Tags follow Avalanche's, with the task and the experience of the *probe*: one curve runs through all tasks, as in
`NTK_Velocity/train_phase/train_stream/Task000/Exp000`. The x of each value is the training iteration.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import default_metric_name_template, generic_get_metric_name

from avalanche_ntk.errors import PluginError
from avalanche_ntk.plugin import NTKPlugin
from avalanche_ntk.probes import Probe
from avalanche_ntk.trajectory import Trajectory


class NTKMetric(PluginMetric[float]):
    """One quantity of every measurement of one plugin.

    Args:
        plugin: The plugin that measures.
        name: First part of the tag.
        column: Column of the trajectory that holds the quantity.
    """

    def __init__(self, plugin: NTKPlugin, name: str, column: str) -> None:
        super().__init__()
        self.plugin = plugin
        self.name = name
        self.column = column
        self._given: dict[str, int] = {}
        self._last: float | None = None

    def __str__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: dict[int, Any]) -> NTKMetric:
        # A copy of the metric alone still reads the plugin that measures; copied with the strategy, it reads the
        # strategy's copy.
        new = copy.copy(self)
        new.plugin = memo.get(id(self.plugin), self.plugin)
        new._given = dict(self._given)
        memo[id(self)] = new
        return new

    def result(self) -> float | None:
        """Return the last value handed on; None before the first."""
        return self._last

    def reset(self) -> None:
        """Forget the last value; what was measured stays in the trajectory."""
        self._last = None

    def before_training(self, strategy: Any) -> list[MetricValue]:
        """Check that the plugin measures in this strategy.

        Returns:
            What was measured since the last hook.

        Raises:
            PluginError: It does not.
        """
        if not any(plugin is self.plugin for plugin in strategy.plugins):
            others = [plugin for plugin in strategy.plugins if isinstance(plugin, NTKPlugin)]
            found = "another NTKPlugin" if others else "no NTKPlugin"
            raise PluginError(
                f"the metric {self.name} reads an NTKPlugin that {type(strategy).__name__} does not have: "
                f"expected that plugin among its plugins, found {found}. Give the same object to both: "
                "plugins=[ntk] for the strategy and ntk_metrics(ntk) for the evaluator."
            )
        return self._new_values()

    def _new_values(self, strategy: Any = None) -> list[MetricValue]:
        values: list[MetricValue] = []
        for name, trajectory in self.plugin.trajectories.items():
            begin = self._given.get(name, 0)
            tag = tag_of(self.name, self.plugin.probes[name])
            for x, value in self._series(trajectory, begin):
                self._last = value
                values.append(MetricValue(self, tag, value, x))
            self._given[name] = self._length(trajectory)
        return values

    def _length(self, trajectory: Trajectory) -> int:
        return len(trajectory)

    def _series(self, trajectory: Trajectory, begin: int) -> Iterator[tuple[int, float]]:
        """Yield iteration and value of what is defined; what is not is absent, never 0."""
        for measurement in trajectory.measurements[begin:]:
            value = measurement.values.get(self.column)
            if value is not None and not math.isnan(value):
                yield measurement.clock.iteration, float(value)

    before_training_exp = _new_values
    before_training_iteration = _new_values
    after_training_iteration = _new_values
    after_training_epoch = _new_values
    after_training_exp = _new_values
    after_training = _new_values
    before_eval = _new_values


class ReactivationMetric(NTKMetric):
    """One quantity of the reactivation at each boundary, handed on at the experience's end."""

    def _length(self, trajectory: Trajectory) -> int:
        return len(trajectory.reactivations)

    def _series(self, trajectory: Trajectory, begin: int) -> Iterator[tuple[int, float]]:
        for reactivation in list(trajectory.reactivations.values())[begin:]:
            value = getattr(reactivation, self.column)
            if value is not None and not math.isnan(value):
                yield int(reactivation.end), float(value)


class EvaluationRecorder(PluginMetric[float]):
    """Writes the evaluator's own numbers (accuracy, forgetting, loss) of each evaluation to the plugin's record.

    It emits nothing, and records nothing from an evaluator made with `collect_all=False`. With it, a run folder holds
    what the network could do beside what its kernel did.

    Args:
        plugin: The plugin that measures.
    """

    def __init__(self, plugin: NTKPlugin) -> None:
        super().__init__()
        self.plugin = plugin
        self._seen: dict[str, int] = {}

    def __str__(self) -> str:
        return "NTK_EvaluationRecorder"

    def __deepcopy__(self, memo: dict[int, Any]) -> EvaluationRecorder:
        new = EvaluationRecorder(memo.get(id(self.plugin), self.plugin))
        new._seen = dict(self._seen)
        memo[id(self)] = new
        return new

    def result(self) -> None:
        """Return None: there is nothing to emit."""

    def reset(self) -> None:
        """Do nothing: there is no state."""

    def after_eval(self, strategy: Any) -> None:
        """Record the numbers of the evaluation that ends now."""
        values = {}
        for tag, (_, series) in strategy.evaluator.get_all_metrics().items():
            # Only what is new: tags of streams that this evaluation left out keep their old values in the evaluator.
            if len(series) > self._seen.get(tag, 0) and "/eval_phase/" in tag and isinstance(series[-1], (int, float)):
                values[tag] = float(series[-1])
            self._seen[tag] = len(series)
        if values:
            self.plugin.record_evaluation(values)


def ntk_metrics(
    plugin: NTKPlugin,
    *,
    norms: bool = True,
    distance: bool = True,
    velocity: bool = True,
    alignment: bool = True,
    spectrum: bool = False,
    reactivation: bool = True,
) -> list[PluginMetric[float]]:
    """Return the metrics that show a plugin's measurements in an evaluator's loggers.

    Args:
        plugin: The plugin that measures; the strategy must have the same object.
        norms: `NTK_SpectralNorm` (λ_max), `NTK_KernelNorm` (Frobenius), `NTK_KernelTrace`.
        distance: `NTK_DistancePrevious`, `NTK_DistanceExperienceStart`, `NTK_DistanceInit`: `1 − CKA`, centred, each
            also as `…Uncentred`.
        velocity: `NTK_Velocity` (distance per training iteration), `NTK_VelocityPerStep`, `NTK_VelocityPerEpoch`.
        alignment: `NTK_Alignment`, `CKA(Θ, YYᵀ)`.
        spectrum: `NTK_EffectiveRank`.
        reactivation: `NTK_Spike`, `NTK_Ratio`, `NTK_NormDip`, `NTK_AlignmentDrop`, `NTK_Moved` at the end of each
            experience from the second on, and `NTK_OnsetVelocity` at the end of the first.

    Returns:
        A list of metrics for `EvaluationPlugin`. Put it after `accuracy_metrics(...)` and the like: its last element
        writes their values to the run folder after each evaluation, and an evaluator computes its metrics in their
        order.

    Raises:
        PluginError: `plugin` is not an `NTKPlugin`.
    """
    if not isinstance(plugin, NTKPlugin):
        raise PluginError(
            f"ntk_metrics needs the NTKPlugin that measures; found {type(plugin).__name__}. "
            "Make it first: ntk = NTKPlugin(...), then ntk_metrics(ntk)."
        )
    chosen: dict[str, str] = {}
    if norms:
        chosen |= {
            "NTK_SpectralNorm": "spectral_norm",
            "NTK_KernelNorm": "kernel_norm",
            "NTK_KernelTrace": "kernel_trace",
        }
    if distance:
        for name, column in (("Previous", "previous"), ("ExperienceStart", "experience_start"), ("Init", "init")):
            chosen[f"NTK_Distance{name}"] = f"distance_{column}"
            chosen[f"NTK_Distance{name}Uncentred"] = f"distance_{column}_uncentred"
    if velocity:
        chosen |= {
            "NTK_Velocity": "velocity_per_iteration",
            "NTK_VelocityUncentred": "velocity_per_iteration_uncentred",
            "NTK_VelocityPerStep": "velocity_per_step",
            "NTK_VelocityPerEpoch": "velocity_per_epoch",
        }
    if alignment:
        chosen["NTK_Alignment"] = "alignment"
    if spectrum:
        chosen["NTK_EffectiveRank"] = "effective_rank"
    metrics: list[PluginMetric[float]] = [NTKMetric(plugin, name, column) for name, column in chosen.items()]
    if reactivation:
        at_boundaries = {
            "NTK_Spike": "spike",
            "NTK_Ratio": "ratio",
            "NTK_NormDip": "norm_dip",
            "NTK_AlignmentDrop": "alignment_drop",
            "NTK_Moved": "moved",
            "NTK_OnsetVelocity": "onset",
        }
        metrics += [ReactivationMetric(plugin, name, column) for name, column in at_boundaries.items()]
    metrics.append(EvaluationRecorder(plugin))
    return metrics


def tag_of(name: str, probe: Probe) -> str:
    """Return the tag of a quantity measured on a probe.

    Args:
        name: The quantity, such as `NTK_Velocity`.
        probe: The probe.

    Returns:
        `NAME/train_phase/STREAM/TaskTTT/ExpEEE` for a probe chosen from an experience under its default name, and
        `NAME/train_phase/STREAM/TaskTTT/PROBE` otherwise. The task is left out when the probe has several.
    """
    tasks = probe.task_labels.unique().tolist()
    tag: str = generic_get_metric_name(
        default_metric_name_template,
        {
            "metric_name": name,
            "phase_name": "train",
            "stream_name": "test" if probe.name.endswith("_test") else "train",
            "task_label": tasks[0] if len(tasks) == 1 else None,
            "experience_id": None,
        },
    )
    return f"{tag}/{probe.name.removesuffix('_test')}"
