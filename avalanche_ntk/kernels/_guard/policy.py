"""Policy of comparisons in a measurement: all for a new plan or a new batch, fewer later."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

CADENCE = 50  # measurements with one plan between two checks of single samples


class Checks(str, Enum):
    """How often to check that a plan still holds and samples are independent.

    * `AUTO`: a new plan is proved, and all samples of a new plan or a new batch are rerun in other batches. Later,
      three samples are run separately in every 50th measurement, and in between a plan with an unchanged pattern is
      trusted. `NTKPlugin` also checks at every boundary.
    * `ALWAYS`: three samples are run separately in every measurement, different ones each time.
    * `NEVER`: a new plan is proved, nothing else.
    """

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class Look:
    """The comparisons of one measurement.

    Attributes:
        all: All samples are rerun in other batches, and the layouts of all samples are proved.
        some: Three samples are run separately, and the layouts of all samples are proved.
    """

    all: bool = False
    some: bool = False

    def __bool__(self) -> bool:
        return self.all or self.some

    @property
    def told(self) -> str:
        """Its description in reports."""
        return TOLD[2] if self.all else TOLD[1] if self.some else TOLD[0]


TOLD = ("trusted", "some samples", "all samples")


def look(checks: Checks, new: bool, uses: int) -> Look:
    """Return the comparisons, given whether the plan or batch is new and how often the plan was used."""
    if checks is Checks.NEVER:
        return Look()
    if new:
        return Look(all=True, some=True)
    return Look(some=checks is Checks.ALWAYS or uses % CADENCE == 0)
