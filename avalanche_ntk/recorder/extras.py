"""What is found beside a kernel: one number that fails is absent with its reason, and takes nothing else with it."""

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
    """What was found beside one kernel, and what failed meanwhile.

    Attributes:
        notes: Sentences for the record.
        trust: What a check of the kernel found.
        errors: What was asked for in vain, and why.
    """

    notes: list[str] = field(default_factory=list)
    trust: dict[str, Any] = field(default_factory=dict)
    errors: list[tuple[str, Exception]] = field(default_factory=list)

    def attempt(self, name: str, compute: Callable[[], T]) -> T | None:
        """Return what `compute` returns; None when it fails, which is then the reason why `name` is absent."""
        try:
            return compute()
        except Exception as error:  # noqa: BLE001  (told, and no reason to lose the kernel)
            self.reasons[name] = f"{type(error).__name__}: {error}"
            self.errors.append((name, error))
            return None

    def take(self, seen: Any, samples: int) -> None:
        """Add what an observable found, all of it or nothing.

        Args:
            seen: An `Observation`.
            samples: N, the number of samples of its kernels.

        Raises:
            TypeError: It is no `Observation`, or has a value that is no number.
            ValueError: A kernel is no matrix of N by N numbers.
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
