"""Immutable copies of records, safe to hand out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn


class FrozenDict(dict[Any, Any]):
    """An immutable dict; `dict(...)` makes a mutable copy."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a record of what was measured cannot be changed; take a copy with dict(...)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


def frozen(value: Any) -> Any:
    """Return an immutable copy of nested mappings and sequences; other values are returned unchanged."""
    if isinstance(value, Mapping):
        return FrozenDict({key: frozen(part) for key, part in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(frozen(part) for part in value)
    return value
