"""Handling of failed measurements and undefined numbers: warn once and continue training."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from avalanche_ntk.errors import MeasurementFailedWarning, NTKError, UndefinedMeasureWarning, ended, unknown_name
from avalanche_ntk.observables import families
from avalanche_ntk.recorder.trajectory import Measurement

ON_ERROR = ("warn", "raise")
# Reasons for undefined numbers that are normal in a run.
_ORDINARY = frozenset({"the outputs have not moved since the boundary"})


class Failures:
    """Warns once per kind of failure, or raises.

    Args:
        on_error: "warn" or "raise".

    Raises:
        unknown_name: `on_error` is neither (an `ArgumentError`).
    """

    def __init__(self, on_error: str) -> None:
        if on_error not in ON_ERROR:
            raise unknown_name("on_error", on_error, ON_ERROR)
        self.on_error = on_error
        self._warned: set[str] = set()

    def guarded(self, what: str, iteration: int, action: Callable[[], Any]) -> None:
        """Run an action whose failure must not end training.

        Args:
            what: Description of the action, for the warning.
            iteration: When this is.
            action: What to run.
        """
        try:
            action()
        except Exception as error:
            self.report(error, iteration, what)

    def report(self, error: Exception, iteration: int, what: str = "a measurement") -> None:
        """Raise or warn, once for each kind of error.

        Args:
            error: What was raised.
            iteration: When this is.
            what: What failed.
        """
        if self.on_error == "raise":
            raise error
        kind = f"{what}: {type(error).__name__}"
        if kind in self._warned:
            return
        self._warned.add(kind)
        cause = str(error) if isinstance(error, NTKError) else f"{type(error).__name__}: {error}"
        warnings.warn(
            f"{what} of the NTK failed at iteration {iteration} and training goes on: {cause} "
            "(Warned once; each failure is in the trajectory. NTKPlugin(on_error='raise') stops instead.)",
            MeasurementFailedWarning,
            stacklevel=5,
        )

    def tell_undefined(self, measurement: Measurement, probe: str) -> None:
        """Warn, once per reason, of undefined numbers that a reader of the curves would miss.

        Args:
            measurement: What was measured.
            probe: Name of its probe.
        """
        prefixes = tuple(
            re.split(r"[\[{]", metric.column)[0].rstrip("_")
            for family in families().values()
            for metric in family.metrics
            if metric.missed
        )
        missed: dict[str, list[str]] = {}
        for column, reason in measurement.reasons.items():
            if column.startswith(prefixes) and reason not in _ORDINARY:
                missed.setdefault(reason, []).append(column)
        for reason, columns in missed.items():
            kind = f"undefined: {columns[0]}: {reason}"
            if kind in self._warned:
                continue
            self._warned.add(kind)
            more = f" and {len(columns) - 1} more" if len(columns) > 1 else ""
            warnings.warn(
                f"{columns[0]}{more} of probe {probe!r} undefined (NaN) at iteration {measurement.clock.iteration}: "
                f"{ended(reason)} (Warned once; every measurement's reasons are in the trajectory.)",
                UndefinedMeasureWarning,
                stacklevel=6,
            )
