"""What is compared in a measurement: everything for a new plan or a new batch, then less."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

CADENCE = 50  # measurements by one plan between two looks at samples alone


class Checks(str, Enum):
    """How often it is asked whether a plan still holds and samples are independent.

    * `AUTO`: a new plan is proved, and all samples of a new plan or a new batch are run in other company; afterwards
      three samples are run by themselves in every 50th measurement, and a plan whose pattern is unchanged is trusted
      between them. `NTKPlugin` asks for a look at every boundary too.
    * `ALWAYS`: three samples are run by themselves in every measurement, others each time.
    * `NEVER`: a new plan is proved, and that is all.
    """

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True)
class Look:
    """What is compared in one measurement.

    Attributes:
        all: All samples are run in other company, and the places of all samples are proved.
        some: Three samples are run by themselves, and the places of all samples are proved.
    """

    all: bool = False
    some: bool = False

    def __bool__(self) -> bool:
        return self.all or self.some

    @property
    def told(self) -> str:
        """What the report says of it."""
        return TOLD[2] if self.all else TOLD[1] if self.some else TOLD[0]


TOLD = ("trusted", "some samples", "all samples")


def look(checks: Checks, new: bool, uses: int) -> Look:
    """Return what is compared, for a plan that is new or a batch that is, and a plan used so often before."""
    if checks is Checks.NEVER:
        return Look()
    if new:
        return Look(all=True, some=True)
    return Look(some=checks is Checks.ALWAYS or uses % CADENCE == 0)
