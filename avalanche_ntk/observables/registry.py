"""Every observable that has a flag, and every flag of `ntk_metrics`."""

from __future__ import annotations

from typing import TypeVar

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.observables.base import Observable
from avalanche_ntk.observables.declaration import Family
from avalanche_ntk.observables.kernel_numbers import FAMILIES

O = TypeVar("O", bound=type[Observable])  # noqa: E741

_FAMILIES: dict[str, Family] = {family.flag: family for family in FAMILIES}


def register(observable: O) -> O:
    """Class decorator that adds an observable's flag to `ntk_metrics`.

    Args:
        observable: A subclass of `Observable` with a `flag`, and `metrics` or `images`.

    Returns:
        The class itself.

    Raises:
        ArgumentError: Its declaration is incomplete, or its flag, name or a tag is already taken.
    """
    family = observable.family()
    if not family.flag.isidentifier() or not (family.metrics or family.images):
        raise ArgumentError(
            f"{observable.__name__} cannot be registered: expected a flag that is a Python identifier and metrics or "
            f"images, found flag={family.flag!r}, {len(family.metrics)} metrics and {len(family.images)} images. "
            "Declare them in the class: flag = 'mine'; metrics = (Metric('NTK_Mine', 'mine'),)."
        )
    for other in _FAMILIES.values():
        if _is_same(other.observable, observable):  # a notebook cell was run again
            continue
        shared = _tags(other) & _tags(family)
        if other.flag == family.flag or shared or (other.observable and other.observable.name == observable.name):
            found = f"the tag {min(shared)!r}" if shared else f"flag={family.flag!r}, name={observable.name!r}"
            raise ArgumentError(
                f"{observable.__name__} cannot be registered: {found} is taken by "
                f"{other.observable.__name__ if other.observable else other.flag}. Choose another one."
            )
    _FAMILIES[family.flag] = family
    return observable


def families() -> dict[str, Family]:
    """Return the families of metrics by flag of `ntk_metrics`: the kernel's own numbers first, then the observables."""
    return dict(_FAMILIES)


def _is_same(known: type[Observable] | None, new: type[Observable]) -> bool:
    return known is not None and (known.__module__, known.__qualname__) == (new.__module__, new.__qualname__)


def _tags(family: Family) -> set[str]:
    return {metric.tag for metric in family.metrics} | {image.tag for image in family.images}
