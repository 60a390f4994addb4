"""With a plan: signals → pieces → kernel entries, part by part, for two passes held at the same time.

Works on a `Subject` inside `subject.standing_in()` and inside `isolation.measuring`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.contraction import Tally, contract
from avalanche_ntk.kernels._contract.pieces import Piece, outputs_of, with_outputs
from avalanche_ntk.kernels._contract.side import Side
from avalanche_ntk.kernels._device.memory import free_bytes, release
from avalanche_ntk.kernels._device.profile import profile_of
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._structure import signals
from avalanche_ntk.kernels._structure.graph import Edge
from avalanche_ntk.kernels._structure.passes import Pass
from avalanche_ntk.kernels._structure.plan import Plan

_Stream = Iterator[dict[Edge, Tensor | None]]


@torch.no_grad()
def kernels(
    subject: Subject,
    plans: tuple[Plan, Plan],
    p: Pass,
    q: Pass,
    cotangents: Tensor,
    full: bool,
    budget: int | None,
    tally: Tally,
    force: str | None = None,
    errors: dict[str, str] | None = None,
    groups: dict[str, list[str]] | None = None,
    apart: bool = False,
) -> dict[str, Tensor]:
    """Kernels of all parameters that the plan covers, or their sums over groups.

    Args:
        subject: The model.
        plans: Plans of the two passes, see `Plan.matched`.
        p: First batch.
        q: Second batch, the same object for a self-kernel.
        cotangents: `(R, C)` combinations of outputs.
        full: Keep output pairs apart.
        budget: Bytes for signals and blocks beyond the two passes; None for no bound.
        tally: Statistics to update.
        force: See `contract`.
        errors: If given, failed parameters are left out and their reasons are stored here; otherwise errors are raised.
        groups: Parameter → names of the sums it belongs to; None for a separate kernel of each parameter.
        apart: Keep the kernel of each combination apart.

    Returns:
        Parameter (or group) → `(N, M)`, `(N, M, R, R)` or `(R, N, M)`; without those that receive no signal.
    """
    plan, same, r = plans[0], p is q, cotangents.shape[0]
    edges = plan.edges()
    if not edges:
        return {}
    item = p.out.element_size()
    total = float("inf") if budget is None else budget / item
    sides = 1 if same else 2
    step = r if full else outputs_at_once(plan, [p] if same else [p, q], r, total)
    parts = signals.segments([p.graph] if same else [p.graph, q.graph], edges, total * 0.3 / sides / step)
    # Gram matrices of inputs do not depend on the outputs: keep small ones between steps
    small = p.n * q.n * len(plan.native) <= 0.15 * total
    tally.input_grams = {} if step < r and small else None
    tally.room, tally.steps = (0.3 * total, -(-r // step)) if step < r else (0.0, 1)
    workspace = int(min(total, profile_of(p.out.device).workspace) * 0.25 * item)
    spare = spare_for([p] if same else [p, q], edges, r, budget)
    sums = _Sums(full, r if apart else 0, workspace, spare, tally, force, errors, groups)
    for start in range(0, r, step):
        cot = cotangents[start : start + step]
        if start:
            sums.give_back()
        sums.first = start
        one = Side(subject, plan, p)
        left = signals.stream(p.out, p.graph, parts, cot, plan.vectorised)
        if same:
            sums.consume(one, one, left, left)
        else:
            right = signals.stream(q.out, q.graph, parts, cot, plan.vectorised)
            sums.consume(one, Side(subject, plans[1], q), left, right)
    tally.input_grams = None
    sums.give_back()
    return sums.result


def spare_for(passes: list[Pass], edges: list[Edge], r: int, budget: int | None) -> int | None:
    """Return how many bytes of freed memory the C library may keep, which could otherwise double the memory in use.

    Returns:
        None if there is no bound or the signals are too small to matter.
    """
    if budget is None or not profile_of(passes[0].out.device).pages:
        return None
    signals = sum(prod(p.graph.shape(e)) for p in passes for e in edges) * r * passes[0].out.element_size()
    return budget // 4 if 4 * signals > budget // 4 else None


def outputs_at_once(plan: Plan, passes: list[Pass], r: int, total: float) -> int:
    """Number of outputs for which the largest signals of one parameter, and the signal held at a cut, fit.

    Returns:
        Between 1 and r; 1 if outputs are processed one by one anyway and several would need copies.
    """
    if total == float("inf"):
        return r
    largest = max((sum(prod(p.graph.shape(e)) for p in passes for e in edges) for edges in plan.together()), default=1)
    step = int(max(1, min(r, total * 0.125 // max(1, largest))))
    return step if plan.vectorised or step == r else 1


@dataclass
class Waiting:
    """Parameters that still wait for signals, and the remaining users of each signal."""

    sides: list[Side]

    def __post_init__(self) -> None:
        self.plan = self.sides[0].plan
        native = {n: [h for g in groups for h in g] for n, groups in self.plan.native.items()}
        self.handles = native | dict(self.plan.pulled)
        self.users = Counter(e for hs in self.handles.values() for e in self.sides[0].edges_of(hs))

    def ready(self) -> Iterator[str]:
        """Yield each parameter once all its signals are there; free signals that no other parameter needs."""
        for name in [n for n, hs in self.handles.items() if self.sides[0].ready(hs)]:
            needed = self.sides[0].edges_of(self.handles.pop(name))
            yield name
            for e in needed:
                self.users[e] -= 1
                if not self.users[e]:
                    for side in self.sides:
                        side.signals[e] = None


@dataclass
class _Sums:
    """Sums of kernels, parameter by parameter as their signals arrive.

    Attributes:
        full: Keep output pairs apart.
        apart: Number of combinations whose kernels are kept apart; 0 if they are summed.
        workspace: Bytes for intermediate blocks of a contraction.
        spare: Bytes of freed memory that the C library may keep; None for any.
        tally: Statistics to update.
        force: See `contract`.
        errors: If given, reasons of failed parameters.
        groups: Parameter → names of the sums it belongs to; None for a separate kernel of each parameter.
        first: Index of the first combination being processed.
        result: The sums.
    """

    full: bool
    apart: int
    workspace: int
    spare: int | None
    tally: Tally
    force: str | None
    errors: dict[str, str] | None
    groups: dict[str, list[str]] | None
    first: int = 0
    result: dict[str, Tensor] = field(default_factory=dict)

    def give_back(self) -> None:
        """Return freed memory to the system if there is too much of it."""
        if self.spare is not None and free_bytes() > self.spare:
            release()

    def consume(self, one: Side, two: Side, left: _Stream, right: _Stream) -> None:
        """Contract each parameter as soon as its signals have arrived on both sides, and free them."""
        waiting = Waiting([one] if one is two else [one, two])
        for arrived in left:
            one.signals |= arrived
            if two is not one:
                two.signals |= next(right)
            for name in waiting.ready():
                self._add(one, two, name)
            arrived.clear()
            self.tally.last = None
            if waiting.handles:
                self.give_back()

    def _add(self, one: Side, two: Side, name: str) -> None:
        try:
            value = self._parameter(one, two, name)
        except Exception as exc:
            if self.errors is None:
                raise
            self.errors[name] = f"reading the graph failed ({type(exc).__name__}: {exc})"
            return
        if value is None:
            return
        for group in [name] if self.groups is None else self.groups.get(name, []):
            held = self.result.get(group)
            if self.apart:
                if held is None:
                    held = self.result[group] = value.new_zeros(self.apart, *value.shape[1:])
                held[self.first : self.first + len(value)] += value
            else:
                self.result[group] = value.clone() if held is None else held.add_(value)

    def _parameter(self, one: Side, two: Side, name: str) -> Tensor | None:
        """Kernel of one parameter from the signals at hand.

        Returns:
            `(N, M)`, `(N, M, R, R)` or `(R, N, M)`, or None if no signal arrives.
        """
        scales = scales_of([one, two], name)
        if one.silent(name):
            return None
        total: Tensor | None = None
        found: list[Tensor] = []
        every = [slice(None)] if self.full else output_parts([one, two], name, self.workspace)
        for rows in every:
            left = one.pieces(name, rows)
            right = left if one is two else two.pieces(name, rows)
            if name in one.by_own_backward:
                self.tally.forms[name] = "masked"
            self.tally.note(name, left)
            apart = self.apart > 0
            k = contract_groups(left, right, scales, self.full, self.workspace, self.tally, self.force, name, apart)
            if k is not None and apart:
                found.append(k)
            elif k is not None:
                total = k if total is None else total + k
        return torch.cat(found) if found else total


def output_parts(sides: list[Side], name: str, workspace: int) -> list[slice]:
    """Return slices of outputs to process at a time: fewer than all if explicit gradients would be too large."""
    side = sides[0]
    hs = side.plan.handles_of(name)
    r = next(s.shape[0] for e in side.edges_of(hs) if (s := side.signals[e]) is not None)
    if not (name in side.plan.pulled or any(side.is_dense(h) for h in hs)):
        return [slice(0, r)]
    size = max(side.subject.leaves[name].numel(), *(prod(side.w_shape(side.plan.handles[h])) for h in hs))
    samples = sum(s.at.n for s in {id(s): s for s in sides}.values())
    # formed, propagated to the parameter in two steps, and laid out for a sum
    each = samples * size * side.at.out.element_size() * (4 if name in side.plan.pulled else 2)
    block = max(1, min(r, workspace // max(1, each)))
    return [slice(i, min(i + block, r)) for i in range(0, r, block)]


def scales_of(sides: list[Side], name: str) -> list[float]:
    """Return the factor of each group of a parameter's handles, over all sides.

    If entries have different factors, gradients are propagated to the parameter itself, on each side.
    """
    if name not in sides[0].plan.native:
        return [1.0]
    by_side = {id(side): [side.scale(g, name) for g in side.plan.native[name]] for side in sides}
    found = [by_side[id(side)] for side in sides]
    scales = [prod(pair) for pair in zip(*found, strict=True) if None not in pair]
    if len(scales) == len(found[0]):
        return [float(s) for s in scales if s is not None]
    for side in sides:
        side.pull(name)
    return [1.0]


def contract_groups(
    left: list[Piece | None],
    right: list[Piece | None],
    scales: list[float],
    full: bool,
    workspace: int,
    tally: Tally,
    force: str | None,
    name: str,
    apart: bool = False,
) -> Tensor | None:
    """Return the sum of the kernels of groups of handles; None if no signal arrives.

    With `apart`, those of all combinations of outputs, `(R, N, M)`.
    """
    total: Tensor | None = None
    key = name if len(scales) == 1 else ""  # under which a Gram matrix may be kept
    for a, b, scale in zip(left, right, scales, strict=True):
        if a is None or b is None:
            continue
        if apart:
            parts = []
            for row in range(outputs_of(a)):
                one = with_outputs(a, slice(row, row + 1))
                other = one if a is b else with_outputs(b, slice(row, row + 1))
                value, form = contract(one, other, full, workspace, tally, force, key)
                parts.append(value)
            k = torch.stack(parts)
        else:
            k, form = contract(a, b, full, workspace, tally, force, key)
        tally.forms.setdefault(name, form)
        k = k if scale == 1 else k * scale
        total = k if total is None else total + k
    return total
