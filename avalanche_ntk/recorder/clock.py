"""Training time of a measurement."""

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from avalanche_ntk.errors import ArgumentError, unknown_name

EVENTS = ("experience_start", "iteration", "epoch_end", "experience_end")
"""The moments at which a measurement can be taken, in their order within an experience."""

BOUNDARY_EVENTS = frozenset({"experience_start", "experience_end"})
"""The moments at which every schedule measures."""


@dataclass(frozen=True)
class TrainingClock:
    """The training time of one moment of a run, in counts; never wall-clock time.

    Attributes:
        event: What has just happened, one of `EVENTS`.
        iteration: Training iterations (minibatches) completed in the whole run.
        experience: Number of the experience that is being trained on, from 0.
        exp_iteration: Training iterations completed since this experience's start.
        epoch: Epochs completed in the whole run.
        exp_epoch: Epochs completed since this experience's start.
        optimizer_step: Optimizer steps made in the whole run (fewer than `iteration` under gradient accumulation, more
            with several steps per minibatch).
        task_label: The experience's task label; None if it has several or none.

    Raises:
        ArgumentError: An unknown event, a count that is negative or not an integer, or a count since the experience's
            start that is larger than that of the whole run.

    Example:
        >>> clock = TrainingClock("iteration", iteration=12, experience=1, exp_iteration=2, epoch=1, exp_epoch=0,
        ...                       optimizer_step=12, task_label=0)
        >>> clock.is_boundary
        False
        >>> TrainingClock.from_dict(clock.as_dict()) == clock
        True
    """

    event: str
    iteration: int
    experience: int
    exp_iteration: int
    epoch: int
    exp_epoch: int
    optimizer_step: int
    task_label: int | None = None

    def __post_init__(self) -> None:
        if self.event not in EVENTS:
            raise unknown_name("clock event", self.event, EVENTS)
        for name in ("iteration", "experience", "exp_iteration", "epoch", "exp_epoch", "optimizer_step"):
            # Store plain ints, so that numpy counts can be written as JSON.
            object.__setattr__(self, name, _count(name, getattr(self, name)))
        if self.task_label is not None:
            object.__setattr__(self, "task_label", _count("task_label", self.task_label, " or None"))
        for part, whole in (("exp_iteration", "iteration"), ("exp_epoch", "epoch")):
            if getattr(self, part) > getattr(self, whole):
                raise ArgumentError(
                    f"clock: {part} counts since the experience's start and cannot exceed {whole}, which counts the "
                    f"whole run: found {part}={getattr(self, part)}, {whole}={getattr(self, whole)}. "
                    f"Pass {whole} as the run's total."
                )

    @property
    def is_boundary(self) -> bool:
        """Whether an experience has just begun (before any step of it) or has just ended."""
        return self.event in BOUNDARY_EVENTS

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the fields by name: strings, ints and None only."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "TrainingClock":
        """Return the clock with the fields in `data`, as made by `as_dict`.

        Args:
            data: Every field by name (`task_label` may be absent). Further keys are ignored, so that a later version
                may add some.

        Returns:
            The validated clock.

        Raises:
            ArgumentError: `data` is not a mapping, lacks a field, or holds an invalid value.
        """
        if not isinstance(data, Mapping):
            raise ArgumentError(f"clock: expected a mapping of its fields, found {type(data).__name__}.")
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in data and name != "task_label"]
        if missing:
            raise ArgumentError(f"clock: expected the fields {', '.join(names)}; missing: {', '.join(missing)}.")
        return cls(**{name: data[name] for name in names if name in data})  # type: ignore[arg-type]


def _count(name: str, value: object, alternative: str = "") -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if number < 0:
        raise ArgumentError(f"clock: {name} must be an integer of at least 0{alternative}, found {value!r}.")
    return number
