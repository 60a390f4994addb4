"""When to measure: a schedule maps a `TrainingClock` to yes or no.

Every schedule says yes at a boundary (an experience's start and end), so that no interval between two measurements
mixes two tasks. All schedules but one are pure functions of the clock. `Schedule.share_of_training` also takes the
durations of training and measuring and records its decisions. No schedule reads the machine's clock or draws random
numbers.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from avalanche_ntk.errors import ArgumentError, unknown_name
from avalanche_ntk.recorder.clock import TrainingClock

_LAST_EPOCHS = 10  # before a task's end: a reactivation's baseline takes this many velocities


class Schedule(ABC):
    """Decides at which moments of training to measure; made by the constructors below and joined by `|`.

    Schedules are equal if their descriptions are; they can be pickled and deep-copied.

    Example:
        >>> schedule = Schedule.every_iterations(10) | Schedule.every_epochs(1)
        >>> schedule
        Schedule.from_name('every_epochs:1|every_iterations:10')
        >>> start = TrainingClock("experience_start", iteration=35, experience=1, exp_iteration=0, epoch=1,
        ...                       exp_epoch=0, optimizer_step=35)
        >>> schedule.due(start)
        True
    """

    # --- what a schedule answers -------------------------------------------------------------------------------

    def due(self, clock: TrainingClock) -> bool:
        """Return whether to measure now: always at a boundary, otherwise by the schedule's rule.

        Args:
            clock: The moment, after the event `clock.event`.

        Returns:
            True if a measurement is due.
        """
        return clock.is_boundary or self._due_between(clock)

    @property
    def by_seconds(self) -> bool:
        """Whether it depends on the time spent, which differs between processes."""
        return False

    def note(self, training_seconds: float, measuring_seconds: float) -> None:
        """Pass the seconds spent since the last call; only `share_of_training` uses them.

        Args:
            training_seconds: Seconds of training, without the measurements, since the last call.
            measuring_seconds: Seconds of measuring since the last call; 0 when nothing was measured.

        A negative or non-finite number, which a clock that jumps can give, counts as 0.
        """
        self._note(_seconds(training_seconds), _seconds(measuring_seconds))

    def expect(self, epochs: int | None) -> None:  # noqa: B027  (most need not know)
        """Pass the number of epochs of the experience that begins; only `around_boundaries` uses it.

        Args:
            epochs: Epochs until the experience's end; None if unknown.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return the name from which `Schedule.from_name` makes an equal schedule."""

    @property
    def cadence(self) -> str:
        """Identifier of the spacing of measurements; velocity ratios are comparable only at equal cadence."""
        return self.describe()

    @property
    def interval(self) -> int | None:
        """Iterations between two measurements right after a boundary; None if not constant."""
        return None

    @property
    def decisions(self) -> tuple["Decision", ...]:
        """Decisions of a schedule that depends on the time spent, in order; empty for the others."""
        return ()

    @abstractmethod
    def _due_between(self, clock: TrainingClock) -> bool: ...

    def _note(self, training_seconds: float, measuring_seconds: float) -> None:
        return None

    def __or__(self, other: "Schedule") -> "Schedule":
        if not isinstance(other, Schedule):
            return NotImplemented
        return _join([self, other])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.describe())

    def __repr__(self) -> str:
        return f"Schedule.from_name({self.describe()!r})"

    # --- constructors ------------------------------------------------------------------------------------------

    @staticmethod
    def boundaries_only() -> "Schedule":
        """Return the schedule that measures at each experience's start and end, nowhere else."""
        return _BoundariesOnly()

    @staticmethod
    def every_iterations(n: int) -> "Schedule":
        """Return the schedule that measures every n training iterations, counted from the experience's start.

        Args:
            n: Iterations between measurements, at least 1.

        Returns:
            The schedule.

        Raises:
            ArgumentError: `n` is not an integer of at least 1.
        """
        return _EveryIterations(_positive("every_iterations", "n", n))

    @staticmethod
    def every_epochs(n: int = 1) -> "Schedule":
        """Return the schedule that measures at the end of each n-th epoch, counted from the experience's start.

        Args:
            n: Epochs between measurements, at least 1.

        Returns:
            The schedule.

        Raises:
            ArgumentError: `n` is not an integer of at least 1.
        """
        return _EveryEpochs(_positive("every_epochs", "n", n))

    @staticmethod
    def log_spaced(per_decade: int = 5) -> "Schedule":
        """Return the schedule that measures at iterations 10^(k/per_decade), k = 0, 1, …, rounded, since the boundary.

        Args:
            per_decade: Measurements per decade (factor of ten) of iterations, at least 1; the first decades hold fewer,
                since they have fewer integers.

        Returns:
            The schedule: with 5 a decade, iterations 1, 2, 3, 4, 6, 10, 16, 25, 40, 63, 100, …

        Raises:
            ArgumentError: `per_decade` is not an integer of at least 1.
        """
        return _LogSpaced(_positive("log_spaced", "per_decade", per_decade))

    @staticmethod
    def around_boundaries(per_decade: int = 5, every_epochs: int = 1) -> "Schedule":
        """Return the default schedule: dense just after a boundary, sparse later, and at the ends of epochs.

        If the number of a task's epochs is known when it begins (a strategy's `train_epochs`, `recorder.experience(...,
        epochs=)`), long tasks are thinned out: epochs' ends are measured at log-spaced epochs and at each of the last
        ten, which give the velocity before the next boundary. Tasks of up to eleven epochs lose no measurement. If it
        is unknown, every epoch's end is measured.

        Args:
            per_decade: Measurements per decade of iterations since the boundary, as for `log_spaced`.
            every_epochs: Epochs between the measurements at epochs' ends.

        Returns:
            The schedule: the union of `log_spaced(per_decade)` and `every_epochs(every_epochs)`.

        Raises:
            ArgumentError: An argument is not an integer of at least 1.
        """
        return _AroundBoundaries(
            _positive("around_boundaries", "per_decade", per_decade),
            _positive("around_boundaries", "every_epochs", every_epochs),
        )

    @staticmethod
    def at(iterations: Iterable[int]) -> "Schedule":
        """Return the schedule that measures after the given training iterations of the whole run.

        Args:
            iterations: Iterations of the run (`clock.iteration`), each at least 1.

        Returns:
            The schedule.

        Raises:
            ArgumentError: There is none, or one is not an integer of at least 1.
        """
        if isinstance(iterations, str) or not isinstance(iterations, Iterable):
            raise ArgumentError(
                f"at: iterations must be integers of at least 1, such as [1, 10], found {iterations!r}."
            )
        moments = frozenset(_positive("at", "each iteration", i) for i in iterations)
        if not moments:
            raise ArgumentError("at: expected at least one iteration, found none. Use boundaries_only() for none.")
        return _At(moments)

    @staticmethod
    def share_of_training(share: float = 0.05) -> "Schedule":
        """Return the schedule that limits measuring to a share of the training time.

        Between boundaries a measurement is due if the seconds of measuring so far, plus those of the slowest of the
        last three measurements, are at most `share` times the seconds of training so far. Boundaries are always
        measured and count towards the same budget. The seconds are passed by `note`; until a measurement has been
        noted, only boundaries are due. The result depends on the machine, so two runs measure at different iterations;
        `decisions` records each decision and its numbers.

        Args:
            share: The largest share of the training time to spend on measuring, above 0 and at most 1.

        Returns:
            The schedule.

        Raises:
            ArgumentError: `share` is not a number above 0 and at most 1.
        """
        number = _number(share)
        if number is None or not 0 < number <= 1:
            raise ArgumentError(f"share_of_training: share must be a number above 0 and at most 1, found {share!r}.")
        return _ShareOfTraining(number)

    @staticmethod
    def from_name(name: str) -> "Schedule":
        """Return the schedule with a name, as given by `describe`.

        Args:
            name: One of `boundaries_only`, `every_iterations:N`, `every_epochs:N`, `log_spaced[:PER_DECADE]`,
                `around_boundaries[:PER_DECADE,EPOCHS]`, `at:I,I,…`, `share_of_training:SHARE`, or several joined
                by `|`.

        Returns:
            The schedule.

        Raises:
            ArgumentError: The name is unknown or its numbers cannot be used.

        Example:
            >>> Schedule.from_name("around_boundaries") == Schedule.around_boundaries()
            True
        """
        if not isinstance(name, str):
            raise ArgumentError(
                f"schedule: expected its name, such as 'around_boundaries' or 'every_iterations:10', found {name!r}."
            )
        return _join([_parse(part) for part in name.split("|")])


@dataclass(frozen=True)
class Decision:
    """One measurement requested by `Schedule.share_of_training`, with the numbers it was decided on.

    Attributes:
        event: The clock's event.
        iteration: The clock's iteration.
        reason: "boundary" (always measured) or "budget" (the share allowed it).
        training_seconds: Seconds of training noted until then.
        measuring_seconds: Seconds of measuring noted until then.
        expected_seconds: What the measurement was expected to cost; None while no measurement has been noted.
    """

    event: str
    iteration: int
    reason: str
    training_seconds: float
    measuring_seconds: float
    expected_seconds: float | None

    def as_dict(self) -> dict[str, str | int | float | None]:
        """Return the fields by name."""
        return asdict(self)


class _BoundariesOnly(Schedule):
    def describe(self) -> str:
        return "boundaries_only"

    def _due_between(self, clock: TrainingClock) -> bool:
        return False


class _EveryIterations(Schedule):
    def __init__(self, n: int) -> None:
        self._n = n

    def describe(self) -> str:
        return f"every_iterations:{self._n}"

    @property
    def interval(self) -> int | None:
        return self._n

    def _due_between(self, clock: TrainingClock) -> bool:
        return clock.event == "iteration" and clock.exp_iteration > 0 and clock.exp_iteration % self._n == 0


class _EveryEpochs(Schedule):
    def __init__(self, n: int) -> None:
        self._n = n

    def describe(self) -> str:
        return f"every_epochs:{self._n}"

    def _due_between(self, clock: TrainingClock) -> bool:
        return clock.event == "epoch_end" and clock.exp_epoch > 0 and clock.exp_epoch % self._n == 0


class _LogSpaced(Schedule):
    def __init__(self, per_decade: int) -> None:
        self._per_decade = per_decade

    def describe(self) -> str:
        return f"log_spaced:{self._per_decade}"

    def _due_between(self, clock: TrainingClock) -> bool:
        return clock.event == "iteration" and _is_log_spaced(clock.exp_iteration, self._per_decade)


def _is_log_spaced(number: int, per_decade: int) -> bool:
    """Return whether a count is 10^(k/per_decade), rounded, for a whole k."""
    if number == 0:
        return False
    # Only the neighbouring exponents can round to the number.
    k = round(per_decade * math.log10(number))
    return any(round(10 ** (j / per_decade)) == number for j in (k - 1, k, k + 1) if j >= 0)


class _AroundBoundaries(Schedule):
    def __init__(self, per_decade: int, every_epochs: int) -> None:
        self._after = _LogSpaced(per_decade)
        self._epochs = _EveryEpochs(every_epochs)
        self._arguments = (per_decade, every_epochs)
        self._expected: int | None = None

    def describe(self) -> str:
        return "around_boundaries" if self._arguments == (5, 1) else "around_boundaries:{},{}".format(*self._arguments)

    def _due_between(self, clock: TrainingClock) -> bool:
        return self._after._due_between(clock) or (self._epochs._due_between(clock) and self._is_kept(clock.exp_epoch))

    def expect(self, epochs: int | None) -> None:
        self._expected = epochs

    def _is_kept(self, epoch: int) -> bool:
        """Return whether an epoch's end is measured: the last ten before the task's end, and log-spaced ones."""
        per_decade, every = self._arguments
        number = epoch // every
        last = self._expected is None or epoch >= self._expected - _LAST_EPOCHS * every
        return last or _is_log_spaced(number, per_decade)


class _At(Schedule):
    def __init__(self, iterations: frozenset[int]) -> None:
        self._iterations = iterations

    def describe(self) -> str:
        return f"at:{','.join(map(str, sorted(self._iterations)))}"

    def _due_between(self, clock: TrainingClock) -> bool:
        return clock.event == "iteration" and clock.iteration in self._iterations


class _ShareOfTraining(Schedule):
    def __init__(self, share: float) -> None:
        self._share = share
        self._training = 0.0
        self._measuring = 0.0
        self._recent: tuple[float, ...] = ()
        self._decisions: list[Decision] = []

    def describe(self) -> str:
        return f"share_of_training:{self._share!r}"

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(self._decisions)

    @property
    def by_seconds(self) -> bool:
        return True

    def due(self, clock: TrainingClock) -> bool:
        due = super().due(clock)
        if due:
            decision = Decision(
                clock.event,
                clock.iteration,
                "boundary" if clock.is_boundary else "budget",
                self._training,
                self._measuring,
                max(self._recent, default=None),
            )
            # Two calls at one moment are one decision.
            if not self._decisions or self._decisions[-1] != decision:
                self._decisions.append(decision)
        return due

    def _due_between(self, clock: TrainingClock) -> bool:
        # Iterations only: an epoch's end has the same weights as its last iteration.
        if clock.event != "iteration" or not self._recent:
            return False
        return self._measuring + max(self._recent) <= self._share * self._training

    def _note(self, training_seconds: float, measuring_seconds: float) -> None:
        self._training += training_seconds
        if measuring_seconds > 0:
            self._measuring += measuring_seconds
            self._recent = (*self._recent, measuring_seconds)[-3:]


class _Union(Schedule):
    def __init__(self, parts: tuple[Schedule, ...]) -> None:
        self._parts = parts

    @property
    def by_seconds(self) -> bool:
        return any(part.by_seconds for part in self._parts)

    def describe(self) -> str:
        return "|".join(part.describe() for part in self._parts)

    @property
    def interval(self) -> int | None:
        # Epochs' ends add measurements between, rarely right after a boundary; any other partner does.
        others = [part for part in self._parts if not isinstance(part, _EveryEpochs)]
        return others[0].interval if len(others) == 1 else None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(decision for part in self._parts for decision in part.decisions)

    def due(self, clock: TrainingClock) -> bool:
        # Call every part, since one of them may record its decisions.
        return any([part.due(clock) for part in self._parts])  # noqa: C419

    def _due_between(self, clock: TrainingClock) -> bool:
        return any([part._due_between(clock) for part in self._parts])  # noqa: C419

    def expect(self, epochs: int | None) -> None:
        for part in self._parts:
            part.expect(epochs)

    def _note(self, training_seconds: float, measuring_seconds: float) -> None:
        for part in self._parts:
            part._note(training_seconds, measuring_seconds)


def _join(schedules: Iterable[Schedule]) -> Schedule:
    """Return the union in canonical form: flat, sorted, without repetitions and redundant parts."""
    parts: dict[str, Schedule] = {}
    for schedule in schedules:
        for part in schedule._parts if isinstance(schedule, _Union) else (schedule,):
            if not isinstance(part, _BoundariesOnly):
                parts.setdefault(part.describe(), part)
    if not parts:
        return _BoundariesOnly()
    if len(parts) == 1:
        return next(iter(parts.values()))
    return _Union(tuple(parts[key] for key in sorted(parts)))


_FORMS: dict[str, tuple[str, Callable[..., Schedule], Callable[[str], float], range]] = {
    # name: (form shown in messages, constructor, type of its numbers, how many numbers it takes)
    "boundaries_only": ("boundaries_only", Schedule.boundaries_only, int, range(0, 1)),
    "every_iterations": ("every_iterations:N", Schedule.every_iterations, int, range(1, 2)),
    "every_epochs": ("every_epochs:N", Schedule.every_epochs, int, range(0, 2)),
    "log_spaced": ("log_spaced:PER_DECADE", Schedule.log_spaced, int, range(0, 2)),
    "around_boundaries": ("around_boundaries:PER_DECADE,EPOCHS", Schedule.around_boundaries, int, range(0, 3)),
    "at": ("at:ITERATION,ITERATION,…", lambda *iterations: Schedule.at(iterations), int, range(1, 10**9)),
    "share_of_training": ("share_of_training:SHARE", Schedule.share_of_training, float, range(0, 2)),
}


def _parse(text: str) -> Schedule:
    name, colon, rest = text.strip().partition(":")
    if name not in _FORMS:
        raise unknown_name("schedule", name, _FORMS)
    form, make, number, counts = _FORMS[name]
    try:
        arguments = [number(argument) for argument in rest.split(",")] if colon else []
        if len(arguments) not in counts:
            raise ValueError
    except ValueError:
        raise ArgumentError(f"schedule {text.strip()!r}: expected the form {form!r} with numbers in it.") from None
    return make(*arguments)


def _positive(schedule: str, name: str, value: object) -> int:
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1:
        raise ArgumentError(f"{schedule}: {name} must be an integer of at least 1, found {value!r}.")
    return number


def _number(value: object) -> float | None:
    try:
        return None if isinstance(value, (bool, str, bytes)) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _seconds(value: float) -> float:
    return float(value) if 0 <= value < math.inf else 0.0
