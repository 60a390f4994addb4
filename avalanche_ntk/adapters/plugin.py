"""The Avalanche plugin: the hooks at which a recorder measures.

Only the recorder measures; the metrics read its records. The plugin does not affect training: a run with it is
bit-identical to the same run without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from avalanche.core import SupervisedPlugin

from avalanche_ntk.adapters.reading import iterations_counted
from avalanche_ntk.adapters.strategy_host import StrategyHost
from avalanche_ntk.adapters.tasks import Tasks, is_piece
from avalanche_ntk.errors import ArgumentError, PluginError
from avalanche_ntk.recorder.probes import Probe, ProbeSpec
from avalanche_ntk.recorder.recording import RecorderOptions, Recording
from avalanche_ntk.recorder.schedule import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NTKPlugin(Recording, SupervisedPlugin, supports_distributed=True):
    """Records the kernel while an Avalanche strategy trains, driven by the strategy's hooks.

    Give it to the strategy (`plugins=[ntk]`) and its metrics to the evaluator (`ntk_metrics(ntk)`). It measures exactly
    at each experience's start, before any step of the new task, at its end, and in between according to the schedule.

    Args:
        probe: The probe or probes: a `ProbeSpec` (samples are chosen when training reaches its experience), a `Probe`,
            or several of them.
        schedule: When to measure: a `Schedule` or its name as text; None for `Schedule.around_boundaries()`.
        benchmark: Source of probes from other experiences and from the test stream; needed if the training stream does
            not know its benchmark. Checkpoints do not hold it.
        **options: All other arguments of `NTKRecorder`, such as `run_folder`, `reduction`, `observe` or `resume`.
            `resume=True` continues with the experience trained next, by its position in the stream.

    Attributes:
        trajectories: The time series by probe name.
        evaluations: The numbers of each evaluation, if the evaluator has `ntk_metrics(...)` as its last metrics.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
    """

    _WHAT = "plugin"
    _BEGIN = "Call strategy.train(experience) with this plugin in the strategy's `plugins`."

    def __init__(
        self,
        probe: ProbeSpec | Probe | Sequence[ProbeSpec | Probe] = ProbeSpec(),  # noqa: B008  (frozen)
        schedule: Schedule | str | None = None,
        *,
        benchmark: Any = None,
        **options: Unpack[RecorderOptions],
    ) -> None:
        SupervisedPlugin.__init__(self)
        Recording.__init__(self, probe, schedule, **options)
        if benchmark is not None and not hasattr(benchmark, "streams"):
            raise ArgumentError(
                f"benchmark must be an Avalanche benchmark, which has streams; found {type(benchmark).__name__}. Give "
                "the one whose train_stream is trained on."
            )
        self.benchmark = benchmark
        self._tasks = Tasks()
        self._ahead = 0
        self._owner: int | None = None

    @classmethod
    def of(cls, strategy: Any) -> NTKPlugin:
        """Return the plugin attached to `strategy`; after loading a checkpoint, this is the one that continues.

        Args:
            strategy: An Avalanche strategy.

        Returns:
            Its first `NTKPlugin`.

        Raises:
            PluginError: It has none, or is not a strategy.
        """
        plugins = getattr(strategy, "plugins", None)
        if not isinstance(plugins, (list, tuple)):
            raise PluginError(
                f"NTKPlugin.of takes a strategy of Avalanche, which has a list of plugins; found "
                f"{type(strategy).__name__}. Give the strategy that trains."
            )
        for plugin in plugins:
            if isinstance(plugin, cls):
                return plugin
        raise PluginError(
            f"{type(strategy).__name__} has no NTKPlugin among its {len(plugins)} plugins. "
            "Give it one: plugins=[NTKPlugin(...)]."
        )

    def reached(self, strategy: Any) -> float:
        """Return the position of Avalanche's clock in this plugin's count of iterations.

        Within an iteration that clock is one behind, since it is the last of a strategy's plugins. In a resumed run it
        restarts at 0, and this count does not.

        Args:
            strategy: The strategy.

        Returns:
            Iterations completed for every plugin; infinity for a strategy without such a clock.
        """
        counted = iterations_counted(strategy)
        return float("inf") if counted is None else counted + self._ahead

    # ------------------------------------------------------------------ hooks

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check that the plugin appears once, in one strategy."""
        count = sum(plugin is self for plugin in strategy.plugins)
        if count > 1:
            raise PluginError(
                f"the same NTKPlugin stands {count} times in the plugins of {type(strategy).__name__}; expected once. "
                "Remove the others."
            )
        if self._owner not in (None, id(strategy)):
            raise PluginError(
                f"this NTKPlugin already measures another strategy and cannot follow {type(strategy).__name__} too: "
                "its time series would mix two models. Make one NTKPlugin for each strategy."
            )
        self._owner = id(strategy)
        _recorders_last(strategy)
        self._session.rewind(self)
        if self._session.may_resume:  # last moment before the model is adapted to the new experience
            self._session.look(StrategyHost.of(strategy))

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Choose a new task's probes and measure exactly at the boundary; further pieces of a task have no boundary."""
        host = StrategyHost.of(strategy, self.benchmark)
        unfinished = self._tasks.unfinished
        begins = self._tasks.begins(strategy.experience)
        if begins and unfinished:  # no training since its last piece ended
            self._end_task(host)
        self._before_experience(host, begins=begins, piece="experience" if begins else "piece")
        # Between experiences neither count changes.
        self._ahead = self.clock.iteration - (iterations_counted(strategy) or 0)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Measure again if another plugin has changed the model between the boundary and the first step."""
        # Some strategies make another optimizer after the boundary.
        self.clock.steps.follow(getattr(strategy, "optimizer", None))
        if self._known is not None:  # the first iteration since training paused
            self._before_iteration(StrategyHost.of(strategy, self.benchmark))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count the iteration and measure if one is due."""
        # Counted here: Avalanche's own clock comes after this plugin and has not counted this iteration yet.
        self._after_iteration(lambda: StrategyHost.of(strategy, self.benchmark))

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Count the epoch and measure if one is due; a pass over a piece of a task is not an epoch."""
        if is_piece(strategy.experience):
            self._tick()
        else:
            self._after_epoch(StrategyHost.of(strategy, self.benchmark))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Measure at the task's end and compute its reactivation."""
        host = StrategyHost.of(strategy, self.benchmark)
        self._after_experience(host, ends=self._tasks.ends(strategy.experience))

    # ------------------------------------------------------------------ checkpoints

    def __getstate__(self) -> dict[str, Any]:
        # The owner belongs to this process; the next hook sets it again. The benchmark is data, not state.
        return {**self.__dict__, "_owner": None, "benchmark": None}


def _recorders_last(strategy: Any) -> None:
    """Move evaluation recorders behind the metrics whose values they record."""
    for plugin in strategy.plugins:
        metrics = getattr(plugin, "metrics", None)
        if isinstance(metrics, list):
            # A stable sort: all others keep their order.
            metrics.sort(key=lambda metric: getattr(metric, "records_evaluations", False))
