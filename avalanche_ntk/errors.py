"""The one family of exceptions and warnings.

Every message says what was expected, what was found and what to do. Errors about an argument's value are also
`ValueError`s, so that code which knows nothing of this package still catches them the usual way.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral
from typing import TypeGuard


class NTKError(Exception):
    """Base of everything this package raises on purpose."""


class ArgumentError(NTKError, ValueError):
    """An argument has a value that cannot be used (an unknown name, a wrong shape, a number out of range)."""


_MOST, _SOME = 60, 5  # names that are all listed, and how many of more


def unknown_name(kind: str, found: object, choices: Iterable[str]) -> ArgumentError:
    """Return the error for a name that is not one of `choices`; it lists them (of very many those most like it).

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
    """The model has no per-sample kernel, or none that can be computed; the message names module, reason, remedy."""


class MemoryBudgetError(NTKError):
    """The memory budget is too small for one block; the message says how much is needed."""


class KernelError(NTKError):
    """A kernel was computed and cannot be used (non-finite entries)."""


class ProcessError(NTKError):
    """A measurement shared by several processes failed: another one raised, is gone, or has other inputs."""


class ProbeError(NTKError):
    """A probe set cannot be chosen, or is not the one it should be."""


class PluginError(NTKError):
    """The plugin or its metrics are not wired to the strategy as they must be."""


class RunFolderError(NTKError):
    """A run folder cannot be created, read or continued."""


class NTKWarning(UserWarning):
    """Base of this package's warnings."""


class UndefinedMeasureWarning(NTKWarning):
    """A measure has no value for this input (NaN was returned); the message is the reason."""


class ProbeWarning(NTKWarning):
    """A probe was chosen otherwise than asked for; the message says how and why."""


class MeasurementFailedWarning(NTKWarning):
    """A measurement failed; training goes on and the record holds the reason."""


class MemoryWarning(NTKWarning):
    """Memory ran out in a measurement, which goes on in smaller blocks; the message says how small."""


class MeasurementCostWarning(NTKWarning):
    """Measuring will take much of a run's time; the message says how much, and what takes less."""


class PrecisionWarning(NTKWarning):
    """A kernel is less exact than it should be (asymmetric, strongly negative eigenvalues); float64 is proposed."""


def ended(text: str) -> str:
    """Return a text that came from elsewhere with one full stop at its end.

    >>> ended("it failed"), ended("It failed.")
    ('it failed.', 'It failed.')
    """
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def positive(name: str, value: int | None, unit: str) -> int | None:
    """Return a count as it is; None stays None.

    Raises:
        ArgumentError: It is no positive integer.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(
            f"{name} must be a positive number of {unit}, found {value!r}. Leave it out for the default."
        )
    return value


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number, Python's or numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def checked_seed(seed: object, name: str = "seed") -> int:
    """Return a random number generator's seed as an `int`.

    Raises:
        ArgumentError: It is no whole number from 0 to 2**63 - 1.
    """
    if not is_whole(seed) or not 0 <= int(seed) < 2**63:
        raise ArgumentError(
            f"{name} must be a whole number from 0 to 2**63 - 1, found {seed!r}. Give for example {name}=0."
        )
    return int(seed)
