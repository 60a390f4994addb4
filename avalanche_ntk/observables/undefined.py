"""A number, or the reason why there is none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from avalanche_ntk.errors import UndefinedMeasureWarning
from avalanche_ntk.observables.base import Observation


def value_or_reason(found: Observation, column: str, compute: Callable[..., float | str], *arguments: Any) -> None:
    """Put a number into an observation, or the reason why it is undefined.

    Args:
        found: The observation.
        column: Name of the number.
        compute: Returns the number, or the reason as text; a measure's own warning is taken as the reason too.
        arguments: Given to `compute`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = compute(*arguments)
    for warning in caught:
        if not issubclass(warning.category, UndefinedMeasureWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    reasons = [str(w.message) for w in caught if issubclass(w.category, UndefinedMeasureWarning)]
    if isinstance(value, str):
        found.reasons[column] = value
    elif math.isnan(value):
        found.reasons[column] = reasons[0] if reasons else "it is not a number"
    else:
        found.values[column] = float(value)
