"""Running counts of a training run: iterations, epochs, optimizer steps and seconds."""

from __future__ import annotations

import time
from typing import Any

from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.steps import StepCounter


class StepClock:
    """Keeps its own counts, independent of any library's clock.

    Attributes:
        iteration: Iterations of the whole run.
        experience: Number of the present experience, −1 before the first.
        exp_iteration: Iterations of the present experience.
        epoch: Epochs of the whole run.
        exp_epoch: Epochs of the present experience.
        steps: Counter of the optimizer's steps.
        training_seconds: Seconds spent in training, without the measurements.
        measuring_seconds: Seconds spent in measurements.
    """

    def __init__(self) -> None:
        self.iteration = 0
        self.experience = -1
        self.exp_iteration = 0
        self.epoch = 0
        self.exp_epoch = 0
        self.task_label: int | None = None
        self.steps = StepCounter()
        self.training_seconds = 0.0
        self.measuring_seconds = 0.0
        self._last_tick: float | None = None

    def begin_experience(self, task_label: int | None) -> None:
        """Begin an experience."""
        self.experience += 1
        self.exp_iteration = self.exp_epoch = 0
        self.task_label = task_label

    def count_iteration(self) -> None:
        """Count a completed iteration."""
        self.iteration += 1
        self.exp_iteration += 1
        self.steps.iteration()

    def count_epoch(self) -> None:
        """Count a completed epoch."""
        self.epoch += 1
        self.exp_epoch += 1

    def now(self, event: str) -> TrainingClock:
        """Return the present moment."""
        return TrainingClock(
            event,
            self.iteration,
            self.experience,
            self.exp_iteration,
            self.epoch,
            self.exp_epoch,
            self.steps.count,
            self.task_label,
        )

    @property
    def counts(self) -> dict[str, int]:
        """Iterations, epochs and steps of the whole run, for its state record."""
        return {"iteration": self.iteration, "epoch": self.epoch, "optimizer_step": self.steps.count}

    def tick(self) -> float:
        """Count the time since the last call as training; return it in seconds."""
        now = time.perf_counter()
        spent = 0.0 if self._last_tick is None else max(0.0, now - self._last_tick)
        self.training_seconds += spent
        self._last_tick = now
        return spent

    def measured(self, begin: float) -> float:
        """Count the time since `begin` as measuring; return it in seconds."""
        spent = since(begin)
        self.measuring_seconds += spent
        self._last_tick = time.perf_counter()
        return spent

    def share(self, begin: float) -> float:
        """Return measuring's share of the time so far, including the measurement begun at `begin`."""
        measuring = self.measuring_seconds + since(begin)
        return measuring / (measuring + self.training_seconds)

    def pause(self) -> None:
        """Exclude the time until the next tick from training."""
        self._last_tick = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_tick": None}


def since(begin: float) -> float:
    """Return the seconds since `begin`; 0 if the clock was set back."""
    return max(0.0, time.perf_counter() - begin)
