"""Prediction of the share of a run's time that measuring takes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from statistics import median

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.numerals import written
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.schedule import Schedule

SPARSER = ("around_boundaries:2,5", "boundaries_only", "share_of_training:0.05")
"""Schedules to suggest when measuring takes too much time."""

PROJECTIONS = 8
"""Sign vectors of the `projected` kernel that is suggested."""

# A share alone is not enough: a network of a few thousand weights has steps of a millisecond, and a large share of that
# is still little time. So the seconds spent on a task must also exceed a threshold.
_SHARE, _SECONDS = 0.20, 10.0
_MEASUREMENTS, _ITERATIONS = 3, 10  # the least that a prediction needs


@dataclass(frozen=True)
class Reduction:
    """The reduction of a kernel over outputs, which determines its number of backward passes.

    Attributes:
        name: "trace", "sum_logits" or "projected".
        n_outputs: Number of outputs C.
        n_projections: Number of sign vectors R, for "projected".

    >>> Reduction("trace", 10).passes, Reduction("projected", 10, 8).passes, Reduction("sum_logits", 10).passes
    (10, 8, 1)
    """

    name: str
    n_outputs: int
    n_projections: int | None = None

    @property
    def passes(self) -> int:
        """Backward passes per sample: one per combination of outputs."""
        return {"trace": self.n_outputs, "projected": self.n_projections or PROJECTIONS}.get(self.name, 1)

    def seconds_as(self, other: Reduction, seconds: float) -> float:
        """Estimate the duration of a measurement with another reduction.

        The estimate scales all of the time with the number of passes: a forward pass and one backward pass per
        combination of outputs. Contractions, observables and eigenvalues do not scale like that, so small networks gain
        less than it says.

        Args:
            other: The other reduction.
            seconds: Seconds of a measurement with this one.

        Returns:
            The seconds.

        >>> Reduction("trace", 9).seconds_as(Reduction("sum_logits", 9), 5.0)  # 2 passes instead of 10
        1.0
        """
        return seconds * (1 + other.passes) / (1 + self.passes)

    def cheaper(self, seconds: float) -> list[tuple[Reduction, float]]:
        """Return the reductions with fewer passes, each with the estimated duration of a measurement.

        Args:
            seconds: Seconds of a measurement with this one.
        """
        others = (Reduction("projected", self.n_outputs, PROJECTIONS), Reduction("sum_logits", self.n_outputs))
        return [(other, self.seconds_as(other, seconds)) for other in others if other.passes < self.passes]


@dataclass(frozen=True)
class Cost:
    """Cost of a task.

    Attributes:
        measurements: Number of measurements.
        measuring_seconds: Seconds of measuring.
        training_seconds: Seconds of training.
    """

    measurements: int
    measuring_seconds: float
    training_seconds: float

    @property
    def share(self) -> float:
        """Measuring's share of the time."""
        whole = self.measuring_seconds + self.training_seconds
        return self.measuring_seconds / whole if whole else 0.0


@dataclass(frozen=True)
class Task:
    """Length of a task and the durations of a step and a measurement; a run is assumed to be a sequence of such tasks.

    Attributes:
        epochs: Its epochs.
        iterations_per_epoch: Iterations of each.
        iteration_seconds: Seconds of a training iteration.
        measurement_seconds: Seconds of a measurement, of all probes together.
    """

    epochs: int
    iterations_per_epoch: int
    iteration_seconds: float
    measurement_seconds: float

    def cost(self, schedule: Schedule) -> Cost:
        """Return the cost of the task with a schedule, by replaying a fresh copy of it.

        Args:
            schedule: The schedule; it is not modified.

        Returns:
            The cost.
        """
        schedule = _fresh(schedule)
        schedule.expect(self.epochs)
        iterations = self.epochs * self.iterations_per_epoch
        measured: list[int] = []  # iterations

        def ask(event: str, iteration: int, epoch: int) -> None:
            moment = TrainingClock(event, iteration, 0, iteration, epoch, epoch, iteration)
            # An epoch's end is not measured again at the same iteration.
            twice = event == "epoch_end" and measured[-1:] == [iteration]
            if schedule.due(moment) and not twice:
                measured.append(iteration)
                schedule.note(0.0, self.measurement_seconds)

        ask("experience_start", 0, 0)
        for iteration in range(1, iterations + 1):
            schedule.note(self.iteration_seconds, 0.0)
            epoch, rest = divmod(iteration, self.iterations_per_epoch)
            ask("iteration", iteration, epoch if rest else epoch - 1)
            if not rest:
                ask("epoch_end", iteration, epoch)
        ask("experience_end", iterations, self.epochs)
        return Cost(len(measured), len(measured) * self.measurement_seconds, iterations * self.iteration_seconds)


class CostWatch:
    """Predicts the cost of measuring from the first measurements of a run, and warns once if it is high."""

    def __init__(self) -> None:
        self._moments: list[tuple[int, float, float]] = []  # iteration, seconds of training until then, of measuring
        self._decided = False

    def look(
        self,
        clock: TrainingClock,
        training_seconds: float,
        measuring_seconds: float,
        schedule: Schedule,
        reduction: Reduction | None,
        epochs: int | None,
        iterations_per_epoch: int | None,
    ) -> str | None:
        """Register a measured moment, and predict the run's cost once enough is known.

        Args:
            clock: The moment.
            training_seconds: Seconds of training of the whole run until then, with the device synchronised.
            measuring_seconds: Seconds that it took to measure all probes.
            schedule: The schedule.
            reduction: The reduction; None if the number of outputs is unknown.
            epochs: Epochs of the task; None if unknown.
            iterations_per_epoch: Iterations of an epoch; None if unknown.

        Returns:
            A warning, at most once; None if the cost is low or not known yet.
        """
        if self._decided:
            return None
        self._moments.append((clock.iteration, training_seconds, measuring_seconds))
        if clock.event == "experience_end":  # the task's length is known now
            epochs = max(1, clock.exp_epoch)
            iterations_per_epoch = clock.exp_iteration // epochs
            if not iterations_per_epoch:  # nothing was trained
                return None
        elif len(self._moments) < _MEASUREMENTS or self._moments[-1][0] - self._moments[0][0] < _ITERATIONS:
            return None
        if not epochs or not iterations_per_epoch:
            return None
        self._decided = True
        return _warning(Task(epochs, iterations_per_epoch, *self._seconds()), schedule, reduction)

    def _seconds(self) -> tuple[float, float]:
        """Return the seconds of an iteration and of a measurement."""
        (first, *_), (last, *_) = self._moments[0], self._moments[-1]
        # The first iterations warm up; leave them out if a measurement separates them from most of the others.
        later = (m for m in self._moments if m[0] > first and 2 * m[0] <= first + last)
        begin, trained, _ = next(later, self._moments[0])
        iteration = (self._moments[-1][1] - trained) / (last - begin)
        # The first measurement also makes the plan and runs the spot check.
        return iteration, median(seconds for *_, seconds in self._moments[1:])


def _warning(task: Task, schedule: Schedule, reduction: Reduction | None) -> str | None:
    found = task.cost(schedule)
    if found.share <= _SHARE or found.measuring_seconds < _SECONDS:
        return None
    shares: dict[str, float] = {}
    for other, seconds in [] if reduction is None else reduction.cheaper(task.measurement_seconds):
        told = f"reduction={other.name!r}" + (f", n_projections={other.n_projections}" if other.n_projections else "")
        shares[told] = replace(task, measurement_seconds=seconds).cost(schedule).share
    shares |= {f"schedule={name!r}": task.cost(Schedule.from_name(name)).share for name in SPARSER}
    remedies = [f"{told} (about {percent(share)})" for told, share in shares.items() if share < found.share]
    return (
        f"measuring will take about {percent(found.share)} of this run's time: a measurement takes "
        f"{written(task.measurement_seconds)} s, a training iteration {written(task.iteration_seconds)} s, and "
        f"{schedule.describe()} measures {found.measurements} times in a task of "
        f"{task.epochs * task.iterations_per_epoch} iterations. What takes less: "
        f"{'; '.join([*remedies, 'a smaller probe'])}. (Warned once.)"
    )


def percent(share: float) -> str:
    """Return a share as a percentage for messages.

    >>> percent(0.314), percent(0.004), percent(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else f"{100 * share:.1g} %"


def _fresh(schedule: Schedule) -> Schedule:
    """Return a copy of a schedule in its initial state."""
    try:
        return Schedule.from_name(schedule.describe())
    except ArgumentError:  # a user-defined schedule, which has no name
        return copy.deepcopy(schedule)
