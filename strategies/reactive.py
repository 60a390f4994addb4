"""Strategies that act on the measured motion of the kernel: a step size that restarts, replay that is switched on.

Both read an `NTKPlugin`. A strategy whose training depends on a measurement is by its nature not the same as one
without; a second `NTKPlugin` that it does not read changes nothing, as ever.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import avalanche_forward
from avalanche.training.templates import SupervisedTemplate
from avalanche_ntk.strategies.memory import at_least, remember
from torch import nn

from avalanche_ntk.adapters.plugin import NTKPlugin
from avalanche_ntk.adapters.reading import model_of
from avalanche_ntk.errors import ArgumentError, PluginError, checked_seed
from avalanche_ntk.recorder.probes import Probe, ProbeSpec
from avalanche_ntk.recorder.schedule import Schedule

WINDOW = 10  # velocities before a boundary that its settled level is the median of, as for a reactivation's base
LEAST = 2


class ReactivationPlugin(SupervisedPlugin):
    """Compares the kernel's present velocity with the level to which it had settled before the boundary.

    The kernel distance S is quadratic in a small displacement, so a velocity S/Δt depends on the step size and on the
    interval. These plugins change what training does, and must not see their own doing as a change of the kernel. What
    they compare is therefore the kernel's amplitude for each unit of step size,

        u_i = √S(Θ_{i−1}, Θ_i) / Σ η      (the sum runs over the iterations between the two measurements),

    which along a straight path depends on neither. The settled level is `s = median(u of the last 10 measurements
    before the boundary)`, at least 2; where a level is 0 or there are too few, and in the first experience, there is
    none. The kernel is *reactivated* while `u > threshold · s`. In units of velocity the threshold is its square.

    A redraw of samples of the same classes makes a kernel faster too (`docs/definitions.md`): the threshold is a
    choice, not a test.

    Args:
        ntk: The plugin that is read; it must stand before this one among the strategy's plugins. One whose schedule
            goes by time spent (`Schedule.share_of_training`) would make training depend on the machine and is refused.
        probe: Name of the probe that is read; the first one when None.
        threshold: Multiple of the settled level above which the kernel counts as reactivated.

    Attributes:
        reactivated: Whether it is now; None while it cannot be told.
        settled: The settled level s before the present experience; None where there is none.
        history: A record for each velocity: `experience`, `iteration`, `speed` (u), `settled`, `reactivated`.

    Raises:
        ArgumentError: The threshold is not positive, or the schedule depends on time.
    """

    def __init__(self, ntk: NTKPlugin, probe: str | None = None, threshold: float = 2.0) -> None:
        super().__init__()
        if not 0 < threshold < math.inf:
            raise ArgumentError(f"threshold must be a positive number; found {threshold}. Give threshold=2.0.")
        if "share_of_training" in ntk.schedule.describe():
            raise ArgumentError(
                f"the NTKPlugin that training depends on must measure at given iterations; found the schedule "
                f"{ntk.schedule.describe()!r}, which depends on the time spent. Give Schedule.every_iterations(5)."
            )
        self.ntk = ntk
        self.probe = probe
        self.threshold = threshold
        self.reactivated: bool | None = None
        self.settled: float | None = None
        self.history: list[dict[str, Any]] = []
        self._speeds: list[float] = []
        self._path = 0.0
        self._seen = 0
        self._iteration = 0
        self._experience = -1

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check that the plugin that is read measures in this strategy, before this one is called."""
        plugins = list(strategy.plugins)
        at = next((i for i, p in enumerate(plugins) if p is self.ntk), None)
        if at is None or at > plugins.index(self):
            found = "not among its plugins" if at is None else "after it"
            raise PluginError(
                f"{type(self).__name__} reads an NTKPlugin that must stand before it in the plugins of "
                f"{type(strategy).__name__}; found it {found}. Give plugins=[ntk, {type(self).__name__}(ntk)]."
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take the level to which the last experience's velocity had settled."""
        self._experience += 1
        last = self._speeds[-WINDOW:]
        level = statistics.median(last) if len(last) >= LEAST else 0.0
        self.settled = level if level > 0 else None
        self._speeds = []
        self.reactivated = None
        self._path = 0.0
        self._skip()

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Add the step size to the path."""
        self._path += strategy.optimizer.param_groups[0]["lr"]

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Read what was measured at this iteration, and act on it."""
        self._iteration += 1
        trajectory = self._trajectory()
        if trajectory is None or len(trajectory) == self._seen:
            return
        new, self._seen = trajectory[len(trajectory) - 1], len(trajectory)
        distance = new.values.get("distance_previous")
        if distance is None or self._path <= 0:
            return
        speed = math.sqrt(max(distance, 0.0)) / self._path
        self._path = 0.0
        self._speeds.append(speed)
        if self.settled is not None:
            self.reactivated = speed > self.threshold * self.settled
        self.history.append(
            {
                "experience": self._experience,
                "iteration": self._iteration,
                "speed": speed,
                "settled": self.settled,
                "reactivated": self.reactivated,
            }
        )
        self.act(strategy)

    def act(self, strategy: Any) -> None:
        """Act on a new velocity.

        Args:
            strategy: The strategy.
        """

    def _trajectory(self) -> Any:
        trajectories = self.ntk.trajectories
        if not trajectories:
            return None
        if self.probe is None:
            return next(iter(trajectories.values()))
        return trajectories.get(self.probe)

    def _skip(self) -> None:
        """Pass over what was measured at the boundary: no time passes there."""
        trajectory = self._trajectory()
        self._seen = 0 if trajectory is None else len(trajectory)


class ReactivationAwareLRPlugin(ReactivationPlugin):
    """Warm restart of the step size while the kernel is reactivated; else it is annealed.

    With η_0 the step size of each parameter group and n the number of measurements in a row at which the kernel was not
    reactivated,

        η = η_0 · restart                       while u > threshold · s,
        η = η_0 · max(floor, restart · decay^n)  otherwise,

    from the second experience on; in the first, and while there is no settled level, η = η_0. A new experience begins
    with the step size that the last one ended with, until its first velocity is measured.

    Args:
        ntk: See `ReactivationPlugin`.
        probe: See `ReactivationPlugin`.
        threshold: See `ReactivationPlugin`.
        restart: Factor of the step size while the kernel is reactivated.
        decay: Factor for each measurement at which it is not, above 0 and at most 1.
        floor: Least factor.

    Attributes:
        factor: The factor now.

    Raises:
        ArgumentError: A value is out of range.

    Source: the restarts of Loshchilov & Hutter 2017 (SGDR), triggered by the measured kernel instead of a period; the
    velocity of the Reactivation paper (arXiv 2507.16039).
    """

    def __init__(
        self,
        ntk: NTKPlugin,
        probe: str | None = None,
        threshold: float = 2.0,
        restart: float = 1.0,
        decay: float = 0.8,
        floor: float = 0.1,
    ) -> None:
        super().__init__(ntk, probe, threshold)
        for name, value in (("restart", restart), ("decay", decay), ("floor", floor)):
            if not 0 < value < math.inf or (name == "decay" and value > 1):
                limit = "above 0 and at most 1" if name == "decay" else "a positive number"
                raise ArgumentError(f"{name} must be {limit}; found {value}. Give {name}=0.8, for example.")
        self.restart = restart
        self.decay = decay
        self.floor = floor
        self.factor = 1.0
        self._base: list[float] = []
        self._quiet = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the step sizes that the strategy was given, and count anew."""
        super().before_training_exp(strategy, **kwargs)
        groups = strategy.optimizer.param_groups
        # A group that is new (a head) has the step size of the optimizer's defaults.
        self._base += [group["lr"] for group in groups[len(self._base) :]]
        self._quiet = 0
        self._apply(strategy)

    def act(self, strategy: Any) -> None:
        """Set the step size of every parameter group.

        Args:
            strategy: The strategy.
        """
        if self.reactivated is None:
            return
        self._quiet = 0 if self.reactivated else self._quiet + 1
        self.factor = max(self.floor, self.restart * self.decay**self._quiet) if self._quiet else self.restart
        self._apply(strategy)

    def _apply(self, strategy: Any) -> None:
        for group, base in zip(strategy.optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * self.factor


class ReactivationReplayPlugin(ReactivationPlugin):
    """Replay that is on only while the kernel is reactivated.

    At each experience's end up to `mem_size` samples in all, the same number for each task, are remembered. From the
    second experience on, while `u > threshold · s`, the loss of a minibatch of n samples becomes that of the minibatch
    joined with m remembered ones, `(n·L_new + m·L_memory)/(n + m)`, which is what Avalanche's `ReplayPlugin` minimises
    at all times. It is off until the first velocity of the experience is measured, and stays off in an experience
    without a settled level.

    Args:
        ntk: See `ReactivationPlugin`.
        probe: See `ReactivationPlugin`.
        threshold: See `ReactivationPlugin`.
        mem_size: Samples remembered in all.
        batch_size_mem: Samples m of a minibatch; as many as the strategy's minibatch when None.
        patience: Measurements in a row, not reactivated, after which replay is switched off again.
        seed: Seed of memory and minibatches; training's generators are untouched.

    Attributes:
        memory: The samples of each task.
        on: Whether replay is on now.
        replayed: Iterations with replay, of each experience.

    Raises:
        ArgumentError: A value is out of range.

    Source: experience replay (Chaudhry et al. 2019), triggered by the velocity of the Reactivation paper
    (arXiv 2507.16039).
    """

    def __init__(
        self,
        ntk: NTKPlugin,
        probe: str | None = None,
        threshold: float = 2.0,
        mem_size: int = 200,
        batch_size_mem: int | None = None,
        patience: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(ntk, probe, threshold)
        at_least("mem_size", mem_size, 1, 200)
        at_least("batch_size_mem", 1 if batch_size_mem is None else batch_size_mem, 1, 32)
        at_least("patience", patience, 1, 2)
        self.mem_size = mem_size
        self.batch_size_mem = batch_size_mem
        self.patience = patience
        self.seed = checked_seed(seed)
        self.memory: list[Probe] = []
        self.on = False
        self.replayed: list[int] = []
        self._quiet = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin with replay switched off."""
        super().before_training_exp(strategy, **kwargs)
        self.on, self._quiet = False, 0
        self.replayed.append(0)

    def act(self, strategy: Any) -> None:
        """Switch replay on or off.

        Args:
            strategy: The strategy.
        """
        if self.reactivated is None:
            return
        self._quiet = 0 if self.reactivated else self._quiet + 1
        if self.reactivated:
            self.on = True
        elif self._quiet >= self.patience:
            self.on = False

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Join the loss with that of remembered samples while replay is on."""
        if not self.on or not self.memory:
            return
        self.replayed[-1] += 1
        x, y, tasks = self._batch(strategy)
        out = avalanche_forward(model_of(strategy), x, tasks)
        n, m = len(strategy.mb_y), len(y)
        strategy.loss = (n * strategy.loss + m * strategy._criterion(out, y)) / (n + m)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Remember samples of the task that has just been trained, and forget some of the others."""
        tasks = len(self.memory) + 1
        shares = [self.mem_size // tasks + (i < self.mem_size % tasks) for i in range(tasks)]
        self.memory = [_some(old, share, self.seed) for old, share in zip(self.memory, shares, strict=False)]
        if shares[-1]:
            self.memory.append(remember(strategy, shares[-1], self.seed + tasks))

    def _batch(self, strategy: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = torch.cat([samples.read_only()[0] for samples in self.memory])
        y = _like(strategy.mb_y, torch.cat([samples.y.to(strategy.device) for samples in self.memory]))
        tasks = torch.cat([samples.read_only()[1] for samples in self.memory])
        wanted = min(len(y), self.batch_size_mem or strategy.train_mb_size)
        # Made anew from seed and iteration: nothing but numbers goes into a checkpoint.
        chosen = _order(len(y), self.seed + 1_000_003 * self._iteration)[:wanted].to(x.device)
        return x[chosen], y[chosen], tasks[chosen]


def _like(trained: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return remembered labels in the form of those that are trained on."""
    if trained[0].numel() != y[0].numel():
        raise ArgumentError(
            f"replay needs the labels as they are trained on, of shape {tuple(trained.shape)}; one-hot rows are "
            f"remembered as the classes that they stand for, found {tuple(y.shape)}. Train on class numbers."
        )
    return y.to(trained.dtype).reshape(len(y), *trained.shape[1:])


def _order(n: int, seed: int) -> torch.Tensor:
    """Return the numbers from 0 to n − 1 in an order drawn by a generator of its own, on the CPU."""
    return torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def _some(samples: Probe, size: int, seed: int) -> Probe:
    """Return a share of the samples, drawn by a generator of its own, in their order."""
    if size >= samples.size:
        return samples
    order = _order(samples.size, seed)[:size].sort().values
    x, tasks = samples.read_only()
    return Probe(x[order.to(x.device)], samples.y[order], tasks[order.to(x.device)], samples.name)


def default_ntk() -> NTKPlugin:
    """Return the plugin that these strategies read when they are given none: 16 samples of the first task.

    It measures every fifth iteration and keeps numbers only.
    """
    return NTKPlugin(ProbeSpec(size=16), Schedule.every_iterations(5), keep_kernels=False, spot_check_every=0)


def _with_ntk(ntk: NTKPlugin | None, plugins: Any) -> tuple[NTKPlugin, list[Any]]:
    """Return the plugin to read and the plugins with it."""
    given = list(plugins or ())
    read = default_ntk() if ntk is None else ntk
    return read, given if any(p is read for p in given) else [*given, read]


class ReactivationAwareLR(SupervisedTemplate):
    """A step size that restarts with the kernel, as a strategy; see `ReactivationAwareLRPlugin`.

    Args:
        model: The model.
        optimizer: The optimizer.
        ntk: The `NTKPlugin` that is read; one of its own (16 samples of the first task, every fifth iteration) when
            None.
        probe: See `ReactivationPlugin`.
        threshold: See `ReactivationPlugin`.
        restart: See `ReactivationAwareLRPlugin`.
        decay: See `ReactivationAwareLRPlugin`.
        floor: See `ReactivationAwareLRPlugin`.
        plugins: Your plugins.
        **usual: The other arguments of `avalanche.training.templates.SupervisedTemplate`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ntk: NTKPlugin | None = None,
        probe: str | None = None,
        threshold: float = 2.0,
        restart: float = 1.0,
        decay: float = 0.8,
        floor: float = 0.1,
        plugins: Any = None,
        **usual: Any,
    ) -> None:
        read, given = _with_ntk(ntk, plugins)
        own = ReactivationAwareLRPlugin(read, probe, threshold, restart, decay, floor)
        super().__init__(model=model, optimizer=optimizer, plugins=[*given, own], **usual)


class ReactivationReplay(SupervisedTemplate):
    """Replay switched on by measured reactivation, as a strategy; see `ReactivationReplayPlugin`.

    Args:
        model: The model.
        optimizer: The optimizer.
        ntk: The `NTKPlugin` that is read; one of its own (16 samples of the first task, every fifth iteration) when
            None.
        probe: See `ReactivationPlugin`.
        threshold: See `ReactivationPlugin`.
        mem_size: See `ReactivationReplayPlugin`.
        batch_size_mem: See `ReactivationReplayPlugin`.
        patience: See `ReactivationReplayPlugin`.
        seed: See `ReactivationReplayPlugin`.
        plugins: Your plugins.
        **usual: The other arguments of `avalanche.training.templates.SupervisedTemplate`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ntk: NTKPlugin | None = None,
        probe: str | None = None,
        threshold: float = 2.0,
        mem_size: int = 200,
        batch_size_mem: int | None = None,
        patience: int = 2,
        seed: int = 0,
        plugins: Any = None,
        **usual: Any,
    ) -> None:
        read, given = _with_ntk(ntk, plugins)
        own = ReactivationReplayPlugin(read, probe, threshold, mem_size, batch_size_mem, patience, seed)
        super().__init__(model=model, optimizer=optimizer, plugins=[*given, own], **usual)
