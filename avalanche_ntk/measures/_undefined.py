"""What a measure does when its input has no answer: NaN and a warning that says why, never 0, 1 or an exception."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import NoReturn, ParamSpec

from avalanche_ntk.errors import KernelError, UndefinedMeasureWarning

P = ParamSpec("P")


class Undefined(KernelError):
    """Raised inside this package where a measure has no value; its text is the reason, a clause without a full stop.

    No measure lets it through: `nan_when_undefined` turns it into NaN and a warning, `summary` into a reason. Only the
    attributes of a `KernelView` raise it, as the `KernelError` that it is.
    """


def undefined(reason: str) -> NoReturn:
    """Leave a measure's body: it has no value, for this reason."""
    raise Undefined(reason)


def warn_undefined(measure: str, reason: object, *, stacklevel: int = 3) -> None:
    """Issue the one `UndefinedMeasureWarning` wording: which measure, what it returns, why."""
    warnings.warn(f"{measure} is undefined (NaN): {reason}", UndefinedMeasureWarning, stacklevel=stacklevel)


def nan_when_undefined(measure: Callable[P, float]) -> Callable[P, float]:
    """Return a scalar measure that gives NaN with a warning where the body of this one is undefined."""

    @functools.wraps(measure)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> float:
        try:
            return measure(*args, **kwargs)
        except Undefined as reason:
            warn_undefined(measure.__name__, reason)
            return math.nan

    return guarded
