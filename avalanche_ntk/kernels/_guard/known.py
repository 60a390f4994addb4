"""Per-model memory between measurements: plans, and batches that were checked in full."""

from __future__ import annotations

import weakref
from collections import deque
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._structure.passes import Pass
from avalanche_ntk.kernels._structure.plan import Plan

_PATTERNS, _VARIANTS, _BATCHES = 32, 8, 32  # numbers remembered per model

# Dropped together with the model
_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[Plan]]] = weakref.WeakKeyDictionary()
_SEEN: weakref.WeakKeyDictionary[nn.Module, deque[list[_Given]]] = weakref.WeakKeyDictionary()
_UNPROVEN: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def plan_of(subject: Subject, batch: Batch, at: Pass) -> Plan | None:
    """Return the known plan for the graph of a pass."""
    known = _PLANS.get(subject.model, {}).get(_key(subject, batch, at), ())
    return next((p for p in known if p.serves(at.graph, at.n)), None)


def keep(subject: Subject, batch: Batch, at: Pass, plan: Plan) -> None:
    """Remember a plan if it was fully proved."""
    if plan.unproven:
        _UNPROVEN.add(subject.model)
        return
    _UNPROVEN.discard(subject.model)
    known = _PLANS.setdefault(subject.model, {})
    if len(known) >= _PATTERNS:
        known.clear()
    key = _key(subject, batch, at)
    known[key] = [*known.get(key, [])[1 - _VARIANTS :], plan]


def forget(model: nn.Module) -> None:
    """Forget a model's plans."""
    _PLANS.pop(model, None)


def may_have_plan(subject: Subject, batch: Batch) -> bool:
    """Return whether a plan for such inputs is known, or making one has failed."""
    shapes, leaves = batch.shapes(), tuple(subject.leaves)
    known = _PLANS.get(subject.model, {})
    return subject.model in _UNPROVEN or any(key[1] == shapes and key[4] == leaves for key in known)


def latest_needs(subject: Subject, batch: Batch) -> Any:
    """Return the memory needs of the latest plan for such inputs; None if there is none."""
    shapes, leaves = batch.shapes(), tuple(subject.leaves)
    found = [
        p
        for key, plans in _PLANS.get(subject.model, {}).items()
        if key[1] == shapes and key[4] == leaves
        for p in plans
    ]
    return found[-1].needs if found else None


def _key(subject: Subject, batch: Batch, at: Pass) -> Any:
    return at.graph.signature, batch.shapes(), at.out.shape[1], at.out.dtype, tuple(subject.leaves)


def is_new(model: nn.Module, batch: Batch) -> bool:
    """Return whether a batch is not among the last ones checked in full."""
    return not any(_same(seen, batch) for seen in _SEEN.get(model, ()))


def note(model: nn.Module, batch: Batch) -> None:
    """Record that a batch was checked in full."""
    if is_new(model, batch):
        _SEEN.setdefault(model, deque(maxlen=_BATCHES)).append([_Given.of(value) for value in batch.given])


def _same(seen: list[_Given], batch: Batch) -> bool:
    return len(seen) == len(batch.given) and all(k.is_(v) for k, v in zip(seen, batch.given, strict=True))


@dataclass(frozen=True)
class _Given:
    """An argument of a caller: a weak reference to a tensor with its version, or the value itself."""

    value: Any
    writes: int = 0

    @staticmethod
    def of(value: Any) -> _Given:
        return _Given(weakref.ref(value), _writes(value)) if isinstance(value, Tensor) else _Given(copy(value))

    def is_(self, value: Any) -> bool:
        if isinstance(self.value, weakref.ref):
            return self.value() is value and isinstance(value, Tensor) and _writes(value) == self.writes
        return value is self.value or (not isinstance(value, Tensor) and bool(np.array_equal(self.value, value)))


def _writes(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version
