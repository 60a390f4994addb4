"""The measurements as Avalanche metrics.

The metrics never measure. Each reads the records of its `NTKPlugin` and emits every value once, at the first hook at
which Avalanche's clock has reached the value's iteration. So their order among plugins and metrics does not matter:
values are emitted in order of iteration, and a logger that refuses earlier steps (W&B) drops nothing.

Tags follow Avalanche's, with the task and the experience of the *probe*: one curve runs through all tasks, as in
`NTK_Velocity/train_phase/train_stream/Task000/Exp000`. The x of each value is the training iteration.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue, TensorImage
from avalanche.evaluation.metric_utils import default_metric_name_template, generic_get_metric_name
from avalanche.logging import CSVLogger, TensorboardLogger, TextLogger
from matplotlib.figure import Figure

from avalanche_ntk.adapters.loggers import WandBLogger
from avalanche_ntk.adapters.plugin import NTKPlugin
from avalanche_ntk.adapters.text_logs import PRINTED, Printed, Unprinted
from avalanche_ntk.errors import PluginError, unknown_name
from avalanche_ntk.observables import families
from avalanche_ntk.observables.declaration import Family, Metric
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.recorder.trajectory import Measurement, Trajectory


class _NotCalled:
    """Hides a hook of the base class."""

    def __get__(self, metric: Any, owner: type) -> Any:
        raise AttributeError


class _FewHooks(PluginMetric[float]):
    """A metric without the hooks inside an iteration.

    An evaluator calls every hook of every metric. With tens of metrics and nine hooks per iteration, this takes a tenth
    of the training time of a small network.
    """

    before_training_iteration = _NotCalled()
    before_forward = _NotCalled()
    after_forward = _NotCalled()
    before_backward = _NotCalled()
    after_backward = _NotCalled()
    before_update = _NotCalled()
    after_update = _NotCalled()
    before_eval_iteration = _NotCalled()
    before_eval_forward = _NotCalled()
    after_eval_forward = _NotCalled()
    after_eval_iteration = _NotCalled()


class NTKMetric(_FewHooks):
    """One quantity of a plugin's measurements.

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
        self._read = -1
        self._last: float | None = None
        self.printed = True
        self._plain = True
        self._shown: dict[str, tuple[int, float]] = {}

    def __str__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: dict[int, Any]) -> NTKMetric:
        # A copy of the metric alone still reads the original plugin; copied with the strategy, it reads the strategy's
        # copy.
        new = copy.copy(self)
        new.plugin = memo.get(id(self.plugin), self.plugin)
        new._given = dict(self._given)
        new._shown = dict(self._shown)
        memo[id(self)] = new
        return new

    def result(self) -> float | None:
        """Return the last emitted value; None before the first."""
        return self._last

    def reset(self) -> None:
        """Forget the last value; the trajectory keeps all measurements."""
        self._last = None

    def before_training(self, strategy: Any) -> list[MetricValue]:
        """Check that the plugin is attached to this strategy.

        Returns:
            The values measured since the last hook.

        Raises:
            PluginError: It is not.
        """
        if not any(plugin is self.plugin for plugin in strategy.plugins):
            others = [plugin for plugin in strategy.plugins if isinstance(plugin, NTKPlugin)]
            found = "another NTKPlugin" if others else "no NTKPlugin"
            raise PluginError(
                f"the metric {self.name} reads an NTKPlugin that {type(strategy).__name__} does not have: "
                f"expected that plugin among its plugins, found {found}. Give the same object to both: "
                "plugins=[ntk] for the strategy and ntk_metrics(ntk) for the evaluator."
            )
        return self._new_values(strategy)

    def _new_values(self, strategy: Any) -> list[MetricValue]:
        # Called for every metric at every iteration; nearly all calls return here.
        recorded = self.plugin.recorded
        if recorded == self._read:
            return []
        self._look_at(getattr(getattr(strategy, "evaluator", None), "loggers", ()))
        reached = self.plugin.reached(strategy)
        values: list[MetricValue] = []
        waiting = False
        for name, trajectory in self.plugin.trajectories.items():
            entries = self._entries(trajectory)
            begin = end = self._given.get(name, self._restored(trajectory))
            while end < len(entries) and self._iteration(entries[end]) <= reached:
                end += 1
            waiting = waiting or end < len(entries)
            if begin == end:
                continue
            tag = tag_of(self.name, self.plugin.probes[name])
            for full_tag, x, value in self._values_of(trajectory, entries[begin:end], tag):
                values.append(MetricValue(self, full_tag, self._as_shown(full_tag, x, value), x))
            self._given[name] = end
        self._read = -1 if waiting else recorded
        return values

    def _look_at(self, loggers: Collection[Any]) -> None:
        """Find out which values the evaluator's loggers accept."""
        # W&B stores a subclass of float as text.
        self._plain = not all(isinstance(logger, (*_MAY_GO_BACK, WandBLogger)) for logger in loggers)

    def _as_shown(self, tag: str, x: int, value: Any) -> Any:
        """Return a value for the loggers; text loggers print it once if it is measured several times at one step."""
        if not isinstance(value, float):
            return value
        self._last = value
        if self._plain:
            return value
        again = self._shown.get(tag) == (x, value)
        self._shown[tag] = (x, value)
        return Printed(value) if self.printed and not again else Unprinted(value)

    def _entries(self, trajectory: Trajectory) -> list[Any]:
        """Return the entries to emit, in order."""
        return trajectory.measurements

    def _iteration(self, entry: Any) -> int:
        """Return the iteration of an entry's point."""
        return int(entry.clock.iteration)

    def _restored(self, trajectory: Trajectory) -> int:
        # Measurements read from a run folder were emitted by the process that took them.
        return trajectory.restored

    def _values_of(self, trajectory: Trajectory, entries: list[Any], tag: str) -> Iterator[tuple[str, int, Any]]:
        """Yield tag, iteration and value of every defined number; undefined numbers are absent, never 0."""
        for measurement in entries:
            value = measurement.values.get(self.column)
            if self.column in _SINCE_PREVIOUS and "velocity_per_iteration" not in measurement.values:
                continue  # no step between the two measurements: neither a change nor a velocity is defined
            if value is not None and not math.isnan(value):
                yield tag, measurement.clock.iteration, float(value)

    before_training_exp = _new_values
    after_training_iteration = _new_values
    after_training_epoch = _new_values
    after_training_exp = _new_values
    after_training = _new_values
    before_eval = _new_values


_SINCE_PREVIOUS = ("distance_previous", "distance_previous_uncentred")
_MAY_GO_BACK = (TensorboardLogger, TextLogger, CSVLogger)


class ReactivationMetric(NTKMetric):
    """One quantity of the reactivation at each boundary, emitted at the experience's end.

    Its iteration is that of the boundary if every logger accepts values of earlier steps, as Avalanche's TensorBoard,
    text and CSV loggers do. With W&B, which drops such values, or an unknown logger, it is that of the experience's
    end.
    """

    def _look_at(self, loggers: Collection[Any]) -> None:
        super()._look_at(loggers)
        self._at_boundary = all(isinstance(logger, _MAY_GO_BACK) for logger in loggers)

    def _entries(self, trajectory: Trajectory) -> list[Any]:
        return list(trajectory.reactivations.values())

    def _iteration(self, entry: Any) -> int:
        return int(entry.end)

    def _restored(self, trajectory: Trajectory) -> int:
        return trajectory.restored_reactivations

    def _values_of(self, trajectory: Trajectory, entries: list[Any], tag: str) -> Iterator[tuple[str, int, Any]]:
        for reactivation in entries:
            if self.column == "onset" and reactivation.peak is not None:
                continue  # the row repeats it for its ratio; it belongs to the first experience
            value = getattr(reactivation, self.column)
            if value is not None and not math.isnan(value):
                yield tag, int(reactivation.boundary if self._at_boundary else reactivation.end), float(value)


class PatternMetric(NTKMetric):
    """All columns of one kind, such as a number for every layer; the varying part ends the tag.

    Args:
        plugin: The plugin that measures.
        name: First part of the tag.
        pattern: Regular expression of the columns; its group `part` is the varying part.
    """

    def __init__(self, plugin: NTKPlugin, name: str, pattern: str) -> None:
        super().__init__(plugin, name, pattern)
        self._pattern = re.compile(pattern)

    def _values_of(self, trajectory: Trajectory, entries: list[Any], tag: str) -> Iterator[tuple[str, int, Any]]:
        for measurement in entries:
            for column, value in measurement.values.items():
                match = self._pattern.fullmatch(column)
                if match is not None and not math.isnan(value):
                    yield f"{tag}/{match['part']}", measurement.clock.iteration, float(value)


class Picture(TensorImage):
    """An image for every logger of Avalanche.

    TensorBoard reads `image`, with channels first; W&B reads the array, with channels last. Text loggers skip this
    type.
    """

    @classmethod
    def of(cls, figure: Figure) -> Picture:
        """Return the picture of a figure; the figure must have its own canvas."""
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        return cls(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.image.permute(1, 2, 0).numpy()


class FigureMetric(NTKMetric):
    """A figure at each boundary, for loggers that show images; others skip it.

    Args:
        plugin: The plugin that measures.
        name: First part of the tag.
        draw: Makes the figure of a measurement of a trajectory; None if there is nothing to draw.
    """

    def __init__(self, plugin: NTKPlugin, name: str, draw: Callable[[Trajectory, Measurement], Figure | None]) -> None:
        super().__init__(plugin, name, "")
        self.draw = draw

    def _values_of(self, trajectory: Trajectory, entries: list[Any], tag: str) -> Iterator[tuple[str, int, Any]]:
        for measurement in entries:
            if measurement.clock.is_boundary and measurement.failure is None:
                figure = self.draw(trajectory, measurement)
                if figure is not None:
                    yield tag, measurement.clock.iteration, Picture.of(figure)


class EvaluationRecorder(_FewHooks):
    """Writes the evaluator's own numbers (accuracy, forgetting, loss) of each evaluation to the plugin's record.

    It emits nothing, and records nothing from an evaluator made with `collect_all=False`. With it, a run folder holds
    the network's accuracy beside its kernel's series.

    Args:
        plugin: The plugin that measures.
    """

    records_evaluations = True
    """The plugin moves these metrics behind all others, since an evaluator computes its metrics in order."""

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
        """Return None: it emits nothing."""

    def reset(self) -> None:
        """Do nothing: it has no state."""

    def after_eval(self, strategy: Any) -> None:
        """Record the numbers of the evaluation that has just ended."""
        values = {}
        for tag, (_, series) in strategy.evaluator.get_all_metrics().items():
            # Record new values only: the evaluator keeps old values of streams that this evaluation left out.
            if len(series) > self._seen.get(tag, 0) and "/eval_phase/" in tag and isinstance(series[-1], (int, float)):
                values[tag] = float(series[-1])
            self._seen[tag] = len(series)
        if values:
            self.plugin.record_evaluation(values)


def ntk_metrics(plugin: NTKPlugin, *, text: Collection[str] | None = PRINTED, **flags: bool) -> list[PluginMetric[Any]]:
    """Return the metrics that show a plugin's measurements in an evaluator's loggers.

    The plugin then also measures the observables that the metrics need (`avalanche_ntk.observables` lists columns and
    costs). `docs/metrics.md` lists every tag.

    Args:
        plugin: The plugin that measures; the strategy must have the same object.
        text: Names of the metrics that text loggers (`TextLogger`, `InteractiveLogger`) print, each value once; None
            for all, an empty tuple for none. Every other logger gets all of them.
        **flags: What to show. On unless switched off: `norms`, `distance`, `velocity`, `alignment`, `reactivation`,
            `cost`. Off unless switched on: `spectrum`, `kernel_image`, and the flag of every observable
            (`linearisation`, `forecast`, `per_layer`, `features`, `class_blocks`, `task_overlap`, `regression`,
            `neurons`, `buffer_share`, and those registered by `avalanche_ntk.observables.register`).

    Returns:
        A list of metrics for `EvaluationPlugin`. Its last element emits nothing: it writes the values of the
        evaluator's other metrics (accuracy, forgetting) to the run folder after each evaluation.

    Raises:
        PluginError: `plugin` is not an `NTKPlugin`.
        ArgumentError: A flag is unknown, or a name in `text` is not one of the requested metrics.
    """  # noqa: DOC501  (made by unknown_name)
    if not isinstance(plugin, NTKPlugin):
        raise PluginError(
            f"ntk_metrics needs the NTKPlugin that measures; found {type(plugin).__name__}. "
            "Make it first: ntk = NTKPlugin(...), then ntk_metrics(ntk)."
        )
    known = families()
    for flag in flags.keys() - known.keys():
        raise unknown_name("metric", flag, list(known))
    metrics: list[PluginMetric[Any]] = []
    for flag, family in known.items():
        if not flags.get(flag, family.on):
            continue
        observable = family.observable
        if observable is not None and not any(isinstance(o, observable) for o in plugin.observables):
            plugin.request(observable())
        metrics += [_metric(plugin, declared, family) for declared in family.metrics]
        metrics += [FigureMetric(plugin, image.tag, image.draw) for image in family.images]
    names = [metric.name for metric in metrics if isinstance(metric, NTKMetric)]
    for name in () if text is None or text is PRINTED else text:
        if name not in names:
            raise unknown_name("metric", name, names)
    for metric in metrics:
        if isinstance(metric, NTKMetric):
            metric.printed = text is None or metric.name in text
    metrics.append(EvaluationRecorder(plugin))
    return metrics


def _metric(plugin: NTKPlugin, declared: Metric, family: Family) -> NTKMetric:
    if family.of_boundaries:
        return ReactivationMetric(plugin, declared.tag, declared.column)
    if declared.varies:
        return PatternMetric(plugin, declared.tag, declared.pattern.pattern)
    return NTKMetric(plugin, declared.tag, declared.column)


def tag_of(name: str, probe: Probe) -> str:
    """Return the metric tag of a quantity on a probe.

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
