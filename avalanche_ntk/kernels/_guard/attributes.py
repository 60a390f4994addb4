"""Module attributes beside parameters and buffers: lists, dicts (including hooks), generators, plain tensors.

A forward pass may write into any of them. A measurement restores them in place, because other objects may refer to
them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LARGEST = 2**22  # largest plain tensor that is copied, in numbers; larger ones are data rather than state
_CONTAINERS = (dict, list, set, deque)
ATOMS = frozenset({bool, int, float, str, type(None)})
_ELSEWHERE = frozenset({"_parameters", "_buffers", "_modules"})


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are bitwise interchangeable (NaN equals NaN)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a, b)) or bool(((a == b) | ((a != a) & (b != b))).all())


def noted(modules: Iterable[nn.Module]) -> list[Callable[[], object]]:
    """Record the attributes of modules, including nested containers.

    Returns:
        Functions that restore each of them to its present state.
    """
    modules = list(modules)
    elsewhere = {id(t) for m in modules for table in (m._parameters, m._buffers) for t in table.values()}
    return noted_from((v for m in modules for k, v in vars(m).items() if k not in _ELSEWHERE), elsewhere)


def noted_from(values: Iterable[Any], elsewhere: Iterable[int] = ()) -> list[Callable[[], object]]:
    """Record the content of objects, see `noted`; `elsewhere` has the ids of objects that are restored elsewhere."""
    seen = set(elsewhere)
    empty: list[Any] = []  # nearly all: every module has ten dicts of hooks
    undo: list[Callable[[], object]] = [lambda: _empty_again(empty)]
    waiting = [v for v in values if v.__class__ not in ATOMS]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _CONTAINERS) and not value:
            empty.append(value)
            continue
        put_back = _noted(value)
        if isinstance(value, tuple):
            waiting.extend(v for v in value if v.__class__ not in ATOMS)
        if put_back is None or id(value) in seen:
            continue
        seen.add(id(value))
        undo.append(put_back)
        if isinstance(value, _CONTAINERS):
            inside = value.values() if isinstance(value, dict) else value
            waiting.extend(v for v in inside if v.__class__ not in ATOMS)
    return undo


def _empty_again(containers: list[Any]) -> None:
    for c in containers:
        if c:
            c.clear()


def _noted(value: Any) -> Callable[[], object] | None:
    if isinstance(value, _CONTAINERS):
        return _container(value)
    if isinstance(value, Tensor):
        return None if isinstance(value, nn.Parameter) else _tensor(value)
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None


def _entries(container: Any) -> list[Any]:
    return [part for entry in container.items() for part in entry] if isinstance(container, dict) else list(container)


def _container(container: Any) -> Callable[[], object]:
    before = _entries(container)

    def put_back() -> None:
        now = _entries(container)
        if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
            return
        container.clear()
        if isinstance(container, dict):
            container.update(zip(before[::2], before[1::2], strict=True))
        elif isinstance(container, set):
            container.update(before)
        else:
            container.extend(before)

    return put_back


def _tensor(t: Tensor) -> Callable[[], object] | None:
    if t.layout != torch.strided or t.is_meta or t.is_inference() or t.numel() > LARGEST:
        return None
    return copied(t)


def copied(t: Tensor, compare: bool = True) -> Callable[[], object]:
    """Return a function that restores a tensor's present values if they have changed.

    Args:
        t: The tensor.
        compare: Whether to compare bits always; otherwise only if torch counted a write.
    """
    before = t.detach().clone()
    writes = None if compare or t.is_inference() else t._version

    def put_back() -> None:
        if writes is not None and t._version == writes and t.shape == before.shape:
            return
        with torch.no_grad():
            if not same_bits(t, before):
                t.copy_(before)

    return put_back
