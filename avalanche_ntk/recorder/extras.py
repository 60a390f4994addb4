"""Results of a measurement beside the kernel; a number that fails is absent, with its reason, and affects no other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from avalanche_ntk.observables import Observation

T = TypeVar("T")


@dataclass
class Extras(Observation):
    """Results beside one kernel, and failures.

    Attributes:
        notes: Sentences for the record.
        trust: Results of checks of the kernel.
        errors: Failed computations and their reasons.
    """

    notes: list[str] = field(default_factory=list)
    trust: dict[str, Any] = field(default_factory=dict)
    errors: list[tuple[str, Exception]] = field(default_factory=list)

    def attempt(self, name: str, compute: Callable[[], T]) -> T | None:
        """Return the result of `compute`; if it fails, return None and record the reason under `name`."""
        try:
            return compute()
        except Exception as error:  # noqa: BLE001  (told, and no reason to lose the kernel)
            self.reasons[name] = f"{type(error).__name__}: {error}"
            self.errors.append((name, error))
            return None

    def take(self, seen: Any, samples: int) -> None:
        """Add an observable's results, all of them or none.

        Args:
            seen: An `Observation`.
            samples: N, the number of samples of its kernels.

        Raises:
            TypeError: It is not an `Observation`, or has a value that is not a number.
            ValueError: A kernel is not an N by N matrix of numbers.
        """
        if not isinstance(seen, Observation):
            raise TypeError(f"observe must return an Observation, found {type(seen).__name__}")
        numbers = {str(name): float(value) for name, value in seen.values.items()}
        kernels = {str(name): _matrix(str(name), kernel, samples) for name, kernel in seen.kernels.items()}
        reasons = {name: "it is not a number" for name, value in numbers.items() if math.isnan(value)}
        self.values.update({name: value for name, value in numbers.items() if name not in reasons})
        self.kernels.update(kernels)
        self.reasons.update({**reasons, **{str(name): str(reason) for name, reason in seen.reasons.items()}})
        self.records += seen.records


def _matrix(name: str, kernel: Any, samples: int) -> np.ndarray:
    matrix = np.array(kernel)
    if matrix.shape != (samples, samples) or matrix.dtype.kind not in "fiu" or matrix.dtype.itemsize > 8:
        raise ValueError(
            f"the kernel {name!r} must be an array of {samples} by {samples} real numbers, found shape {matrix.shape} "
            f"of {matrix.dtype}"
        )
    return matrix
