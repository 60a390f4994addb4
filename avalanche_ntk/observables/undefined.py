"""Numbers, or the reasons why they are undefined."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from avalanche_ntk.errors import UndefinedMeasureWarning
from avalanche_ntk.observables.base import Observation


def value_or_reason(found: Observation, column: str, compute: Callable[..., float | str], *arguments: Any) -> None:
    """Put a number into an observation, or the reason why it is undefined.

    Args:
        found: The observation.
        column: Name of the number.
        compute: Returns the number, or the reason as text; a measure's warning also counts as the reason.
        arguments: Given to `compute`.
    """

    def one() -> list[float] | str:
        value = compute(*arguments)
        return value if isinstance(value, str) else [value]

    values_or_reason(found, [column], one)


def values_or_reason(
    found: Observation, columns: Sequence[str], compute: Callable[..., Sequence[float] | str], *arguments: Any
) -> None:
    """Put several numbers of one computation into an observation, or their reason for being undefined.

    Args:
        found: The observation.
        columns: Names of the numbers.
        compute: Returns the numbers, or the reason as text; a measure's warning also counts as the reason.
        arguments: Given to `compute`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = compute(*arguments)
    for warning in caught:
        if not issubclass(warning.category, UndefinedMeasureWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    reasons = [str(w.message) for w in caught if issubclass(w.category, UndefinedMeasureWarning)]
    if isinstance(values, str):
        found.reasons |= dict.fromkeys(columns, values)
        return
    for column, value in zip(columns, values, strict=True):
        if math.isnan(value):
            found.reasons[column] = reasons[0] if reasons else "it is not a number"
        else:
            found.values[column] = float(value)
