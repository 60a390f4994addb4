"""The plan of a pass: one that is known for such a graph, or a new one, read on a few samples and proved there."""

from __future__ import annotations

import weakref
from collections import deque
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ModelError, NTKError
from avalanche_ntk.kernels._device.memory import release
from avalanche_ntk.kernels._device.order import agree
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._guard import refusals
from avalanche_ntk.kernels._guard.proof import prove, prove_layouts
from avalanche_ntk.kernels._guard.samples import (
    LARGE,
    NOTHING_SEEN,
    SMALL,
    alike,
    each_alone,
    first_alone,
    outputs_alone,
    run_again,
)
from avalanche_ntk.kernels._structure.passes import Pass, ReadsValues, forward
from avalanche_ntk.kernels._structure.pattern import Pattern
from avalanche_ntk.kernels._structure.plan import Plan
from avalanche_ntk.kernels._structure.uses import read

FLOW = "the path through the model depends on the values of the samples"

# Forgotten with their model
_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[Plan]]] = weakref.WeakKeyDictionary()
# Batches that were measured
_LAST: weakref.WeakKeyDictionary[nn.Module, deque[list[_Given]]] = weakref.WeakKeyDictionary()
_BLIND: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models whose last plan was not kept


def plan_for(
    subject: Subject, batch: Batch, at: Pass, budget: int | None = None, again: bool = True, every: bool = True
) -> Plan:
    """The plan of a pass: a known one for the same graph, or a new one, proved on a few of its samples.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        at: Their pass.
        budget: Bytes for what is held at a time.
        again: Run some of the samples again by themselves; needed once for each sample's block.
        every: Run all of them so, as is done for a new plan.

    Returns:
        The plan.

    Raises:
        ModelError: Outputs of one sample depend on other samples, or on chance.
        NTKError: The model cannot be measured for another reason.
        OutOfMemoryError: The device's memory is used up.
        MemoryError: The computer's is.
    """
    key = (at.graph.signature, batch.shapes(), at.out.shape[1], at.out.dtype, tuple(subject.leaves))
    known = _PLANS.setdefault(subject.model, {})
    plan = next((p for p in known.get(key, ()) if p.serves(at.graph, at.n)), None)
    if plan is None:
        plan = _new_plan(subject, batch, at, budget)
        if len(known) >= 32:
            known.clear()
        (_BLIND.add if plan.blind else _BLIND.discard)(subject.model)
        if not plan.blind:
            known[key] = [*known.get(key, [])[-7:], plan]
    seen = NOTHING_SEEN
    if again:
        seen = run_again(subject, batch, at.out, at.graph.coarsest(), every or not plan.turns, plan.turns)
        plan.turns += 1
    plan.reads = plan.reads or seen.reads
    precision = at.graph.coarsest()
    if seen.differing is not None:
        known.pop(key, None)
        error: ModelError = refusals.mixing(subject, seen.differing, precision)
        raise error
    plan, separate = _with_each_alone(subject, batch, at, plan, budget)
    if not separate:
        mixed: ModelError = refusals.mixing(subject, batch, precision)
        raise mixed
    return plan


def _with_each_alone(subject: Subject, batch: Batch, at: Pass, plan: Plan, budget: int | None) -> tuple[Plan, bool]:
    """Look at every sample where values may decide how it goes.

    Returns:
        The plan that serves this batch, and whether every sample alone has the output that it has in the batch.
    """
    precision = at.graph.coarsest()
    if plan.alone:
        return plan, outputs_alone(subject, batch, at.out, precision)
    if plan.reads:
        separate, one_path = each_alone(subject, batch, at, plan)
        if not (separate and one_path):
            return _alone(subject), separate
    if plan.routed:
        plan = plan.copy()
        return plan, prove_layouts(plan, at, budget) or outputs_alone(subject, batch, at.out, precision)
    return plan, True


def _alone(subject: Subject) -> Plan:
    return Plan(generic=dict.fromkeys(subject.leaves, FLOW), alone=True)


def _new_plan(subject: Subject, batch: Batch, at: Pass, budget: int | None) -> Plan:
    try:
        return make_plan(subject, batch, at, budget)
    except (NTKError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as exc:  # noqa: BLE001 - a graph that cannot be read (weights written in the forward pass)
        cause = f"reading the graph failed ({type(exc).__name__}: {exc})"
        return Plan(generic=dict.fromkeys(subject.leaves, cause), blind=True)


def is_new(model: nn.Module, batch: Batch) -> bool:
    """Return whether a batch is none of the last ones that were measured on a model."""
    return not any(_same(known, batch) for known in _LAST.get(model, ()))


def note(model: nn.Module, batch: Batch) -> None:
    """Note that a batch was measured: all of its samples were seen in other company."""
    _LAST.setdefault(model, deque(maxlen=32)).append([_Given.of(value) for value in batch.given])


def _same(known: list[_Given], batch: Batch) -> bool:
    return len(known) == len(batch.given) and all(k.is_(v) for k, v in zip(known, batch.given, strict=True))


@dataclass(frozen=True)
class _Given:
    """What a caller gave: a tensor as it was then (another may get its memory later), or the value itself."""

    value: Any
    writes: int = 0

    @staticmethod
    def of(value: Any) -> _Given:
        return _Given(weakref.ref(value), _writes(value)) if isinstance(value, Tensor) else _Given(copy(value))

    def is_(self, value: Any) -> bool:
        if isinstance(self.value, weakref.ref):
            return self.value() is value and _writes(value) == self.writes
        return not isinstance(value, Tensor) and bool(np.array_equal(self.value, value))


def _writes(t: Tensor) -> int:
    return 0 if t.is_inference() else t._version


def plan_ahead(subject: Subject, batch: Batch, budget: int | None) -> Tensor | None:
    """Make the plan of a model that has none for such inputs from a few samples, while no large pass is held.

    Returns:
        The outputs of the samples it was made on, for `keep_if_true`; None where nothing was made.
    """
    known = _PLANS.setdefault(subject.model, {})
    shapes, leaves = batch.shapes(), tuple(subject.leaves)
    if subject.model in _BLIND or any(key[1] == shapes and key[4] == leaves for key in known):
        return None
    few = batch.take(slice(0, LARGE))
    try:
        at = forward(subject, few)
        plan_for(subject, few, at, budget)
        out = at.out.detach()
        del at
        release()
    except ModelError:  # found again, with the whole batch's words, where it is no matter of these few
        return None
    return out


def keep_if_true(subject: Subject, ahead: Tensor, at: Pass) -> None:
    """Forget the plan made ahead where its samples have other outputs in the whole batch."""
    if not agree(at.out[: len(ahead)], ahead, at.graph.coarsest()):
        _PLANS.pop(subject.model, None)


def make_plan(subject: Subject, batch: Batch, at: Pass, budget: int | None = None) -> Plan:
    """Read and prove a graph on `LARGE` samples of the batch (repeated where it has fewer).

    They are the first ones; where they leave a part of the model dead, others are tried, from all over the batch.

    Returns:
        The plan.

    Raises:
        ModelError: Outputs of one sample depend on other samples, or on chance.
    """
    plan = _plan_on(subject, batch, at, budget, [i % len(batch) for i in range(LARGE)])
    if plan.blind and len(batch) > LARGE:
        other = _plan_on(
            subject, batch, at, budget, [(i * len(batch)) // LARGE + len(batch) // LARGE - 1 for i in range(LARGE)]
        )
        plan = plan if other.blind else other
    return plan


def _plan_on(subject: Subject, batch: Batch, at: Pass, budget: int | None, index: list[int]) -> Plan:
    few = batch.take(index)
    large = forward(subject, few)
    small = forward(subject, few.take(slice(0, SMALL)))
    alone = first_alone(subject, few)
    same_shape = large.graph.signature == small.graph.signature == at.graph.signature
    parts = [(index, large.out.detach()), (index[:SMALL], small.out.detach())]
    if alone is not None:
        parts.append((index[:1], alone.out.detach()))
    separate = alike(subject, batch, at.out.detach(), at.graph.coarsest(), parts)
    if not separate:
        error: ModelError = refusals.mixing(subject, few, large.graph.coarsest())
        raise error
    pattern = Pattern.of(small.graph, small.n, large.graph, large.n)
    same_shape = same_shape and pattern.fits(at.graph, at.n)
    if len(batch) == 1 and not same_shape and large.graph.signature == small.graph.signature:
        return Plan(twice=True)  # copies of one sample: it is their number that makes the difference
    if not same_shape:
        return _alone(subject)
    plan = read(subject, small, large)
    plan.pattern = pattern
    with ReadsValues() as reads:  # apart: composite operators take other ways under a dispatch mode
        subject.forward(few.take(slice(0, SMALL)))
    plan.reads = reads.found
    del small, alone  # what a pass computes from parameters alone (a parametrised weight) may be large
    prove(subject, plan, few, large, budget)
    return plan
