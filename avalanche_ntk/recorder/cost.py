"""What measuring costs: the share of a run's time that it will take, from the seconds of what is done once."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from statistics import median

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.numerals import written
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.schedule import Schedule

SPARSER = ("around_boundaries:2,5", "boundaries_only", "share_of_training:0.05")
"""Schedules that are proposed where measuring takes too much time."""

PROJECTIONS = 8
"""Sign vectors of the `projected` kernel that is proposed."""

# A share is a ratio: a network of a few thousand weights has steps of a millisecond, and spends most of the time in
# measuring without anybody minding. So what is spent on a task must be worth a sentence by itself too.
_SHARE, _SECONDS = 0.20, 10.0
_MEASUREMENTS, _ITERATIONS = 3, 10  # from which on there is something to predict from


@dataclass(frozen=True)
class Reduction:
    """How outputs are combined in a kernel, which decides how many backward passes it needs.

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
        """Backward passes for each sample: one for each combination of outputs."""
        return {"trace": self.n_outputs, "projected": self.n_projections or PROJECTIONS}.get(self.name, 1)

    def seconds_as(self, other: Reduction, seconds: float) -> float:
        """Return about how long a measurement takes with another reduction.

        This is a guess. It rests on the number of passes alone, a forward pass and one backward pass for each
        combination of outputs, and takes all of a measurement's time to go with it. Contractions, observables and
        eigenvalues do not, so that small networks gain less than it says.

        Args:
            other: The other reduction.
            seconds: Seconds of a measurement with this one.

        Returns:
            The seconds.

        >>> Reduction("trace", 9).seconds_as(Reduction("sum_logits", 9), 5.0)  # 2 passes in the place of 10
        1.0
        """
        return seconds * (1 + other.passes) / (1 + self.passes)

    def cheaper(self, seconds: float) -> list[tuple[Reduction, float]]:
        """Return the reductions with fewer passes, and about how long a measurement takes with each.

        Args:
            seconds: Seconds of a measurement with this one.
        """
        others = (Reduction("projected", self.n_outputs, PROJECTIONS), Reduction("sum_logits", self.n_outputs))
        return [(other, self.seconds_as(other, seconds)) for other in others if other.passes < self.passes]


@dataclass(frozen=True)
class Cost:
    """What a task costs.

    Attributes:
        measurements: How often it is measured.
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
    """How long a task is, and what is done once in it takes; a run is taken for a row of such tasks.

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
        """Return what the task costs with a schedule: a fresh copy is asked at each moment, as a recorder asks it.

        Args:
            schedule: The schedule, which is left as it is.

        Returns:
            The cost.
        """
        schedule = _fresh(schedule)
        schedule.expect(self.epochs)
        iterations = self.epochs * self.iterations_per_epoch
        measured: list[int] = []  # iterations

        def ask(event: str, iteration: int, epoch: int) -> None:
            moment = TrainingClock(event, iteration, 0, iteration, epoch, epoch, iteration)
            # An epoch's end is not measured a second time at one iteration.
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
    """Looks at the first measurements of a run, and says once what they will cost where that is much."""

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
        """Take note of a moment that was measured, and predict what the run costs when enough is known.

        Args:
            clock: When it was.
            training_seconds: Seconds of training of the whole run until then, the device waited for.
            measuring_seconds: Seconds that it took to measure all probes.
            schedule: The schedule.
            reduction: The reduction; None where the number of outputs is not known.
            epochs: Epochs of the task; None when not known.
            iterations_per_epoch: Iterations of an epoch; None when not known.

        Returns:
            A warning, at most once; None where the cost is small, or not known yet.
        """
        if self._decided:
            return None
        self._moments.append((clock.iteration, training_seconds, measuring_seconds))
        if clock.event == "experience_end":  # now its length is known, whoever trains
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
        # The first iterations warm up, and are left out where a measurement stands between them and most of the others.
        later = (m for m in self._moments if m[0] > first and 2 * m[0] <= first + last)
        begin, trained, _ = next(later, self._moments[0])
        iteration = (self._moments[-1][1] - trained) / (last - begin)
        # The first measurement makes the plan and compares with the oracle.
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
        f"{'; '.join([*remedies, 'a smaller probe'])}. (Told once.)"
    )


def percent(share: float) -> str:
    """Return a share as a person reads it.

    >>> percent(0.314), percent(0.004), percent(0.0)
    ('31 %', '0.4 %', '0 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.01 or not share else f"{100 * share:.1g} %"


def _fresh(schedule: Schedule) -> Schedule:
    """Return a schedule that has seen nothing yet."""
    try:
        return Schedule.from_name(schedule.describe())
    except ArgumentError:  # a schedule of one's own, which no name stands for
        return copy.deepcopy(schedule)
