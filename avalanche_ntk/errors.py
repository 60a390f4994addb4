"""The package's exceptions and warnings.

Every message says what was expected, what was found and what to do. Errors about an argument's value are also
`ValueError`s, so code that does not know this package can catch them.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral
from typing import TypeGuard


class NTKError(Exception):
    """Base of everything this package raises on purpose."""


class ArgumentError(NTKError, ValueError):
    """An argument has a value that cannot be used (an unknown name, a wrong shape, a number out of range)."""


_MOST, _SOME = 60, 5  # up to _MOST names all are listed, of more than that _SOME


def unknown_name(kind: str, found: object, choices: Iterable[str]) -> ArgumentError:
    """Return the error for a name that is not one of `choices`; it lists them, or the closest ones if there are many.

    >>> print(unknown_name("reduction", "trce", ["full", "trace"]))
    unknown reduction 'trce': expected one of 'full', 'trace'. Did you mean 'trace'?
    """
    names = sorted(choices)
    near = get_close_matches(str(found), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(map(repr, names))
    if len(names) > _MOST:
        some = get_close_matches(str(found), names, n=_SOME, cutoff=0.0)
        listed = f"{len(names)} names, such as {', '.join(map(repr, some))}"
    return ArgumentError(f"unknown {kind} {found!r}: expected one of {listed}.{hint}")


class ModelError(NTKError):
    """The model's per-sample kernel is undefined or not computable; the message names module, reason and remedy."""


class MemoryBudgetError(NTKError):
    """The memory budget is too small for one block; the message says how much is needed."""


class KernelError(NTKError):
    """A computed kernel is unusable (non-finite entries)."""


class ProcessError(NTKError):
    """A measurement shared by several processes failed: another process raised, ended, or has different inputs."""


class ProbeError(NTKError):
    """A probe set cannot be chosen, or differs from the expected one."""


class PluginError(NTKError):
    """The plugin or its metrics are attached to the strategy incorrectly."""


class RunFolderError(NTKError):
    """A run folder cannot be created, read or continued."""


class NTKWarning(UserWarning):
    """Base of this package's warnings."""


class UndefinedMeasureWarning(NTKWarning):
    """A measure is undefined for this input and NaN was returned; the message is the reason."""


class ProbeWarning(NTKWarning):
    """A probe was chosen differently from its spec; the message says how and why."""


class MeasurementFailedWarning(NTKWarning):
    """A measurement failed; training continues and the record holds the reason."""


class MemoryWarning(NTKWarning):
    """A measurement ran out of memory and continues in smaller blocks; the message says how small."""


class MeasurementCostWarning(NTKWarning):
    """Measuring will take a large share of the run's time; the message says how much, and what takes less."""


class PrecisionWarning(NTKWarning):
    """A kernel is inaccurate (asymmetric, or strongly negative eigenvalues); the message suggests float64."""


def ended(text: str) -> str:
    """Return a text from another source with a full stop at its end.

    >>> ended("it failed"), ended("It failed.")
    ('it failed.', 'It failed.')
    """
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def positive(name: str, value: int | None, unit: str) -> int | None:
    """Return a count unchanged, or None for None.

    Raises:
        ArgumentError: It is not a positive integer.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(
            f"{name} must be a positive number of {unit}, found {value!r}. Leave it out for the default."
        )
    return value


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer of Python or numpy; booleans are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def checked_seed(seed: object, name: str = "seed") -> int:
    """Return a random number generator's seed as an `int`.

    Raises:
        ArgumentError: It is not a whole number from 0 to 2**63 - 1.
    """
    if not is_whole(seed) or not 0 <= int(seed) < 2**63:
        raise ArgumentError(
            f"{name} must be a whole number from 0 to 2**63 - 1, found {seed!r}. Give for example {name}=0."
        )
    return int(seed)
