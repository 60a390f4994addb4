"""Undefined measures: they return NaN with a warning that gives the reason, never 0, 1 or an exception."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import NoReturn, ParamSpec

from avalanche_ntk.errors import KernelError, UndefinedMeasureWarning

P = ParamSpec("P")


class Undefined(KernelError):
    """Raised inside this package if a measure is undefined; its text is the reason, a clause without a full stop.

    Measures catch it: `nan_when_undefined` turns it into NaN and a warning, `summary` into a reason. Only the
    attributes of a `KernelView` raise it to the caller, as a `KernelError`.
    """


def undefined(reason: str) -> NoReturn:
    """Raise `Undefined` with a reason."""
    raise Undefined(reason)


def warn_undefined(measure: str, reason: object, *, stacklevel: int = 3) -> None:
    """Issue an `UndefinedMeasureWarning` that names the measure and the reason."""
    warnings.warn(f"{measure} is undefined (NaN): {reason}", UndefinedMeasureWarning, stacklevel=stacklevel)


def nan_when_undefined(measure: Callable[P, float]) -> Callable[P, float]:
    """Decorate a scalar measure: return NaN with a warning if it raises `Undefined`."""

    @functools.wraps(measure)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> float:
        try:
            return measure(*args, **kwargs)
        except Undefined as reason:
            warn_undefined(measure.__name__, reason)
            return math.nan

    return guarded
