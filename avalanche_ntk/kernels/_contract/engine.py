"""With a plan: signals → pieces → kernel entries, part by part.

Works on a `Subject` inside `subject.standing_in()` and inside `state.measuring`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from avalanche_ntk.kernels._contract.contraction import Tally, contract
from avalanche_ntk.kernels._contract.pieces import Dense, Piece, in_kind, merge
from avalanche_ntk.kernels._contract.rules import Site, piece_of
from avalanche_ntk.kernels._device.memory import free_bytes, release
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._structure import signals
from avalanche_ntk.kernels._structure.graph import Edge
from avalanche_ntk.kernels._structure.nodes import is_factored, spec_of
from avalanche_ntk.kernels._structure.passes import Pass
from avalanche_ntk.kernels._structure.plan import Handle, Plan

CARRIED = 2**21  # numbers that are carried through a parameter's own chain at a time

_Stream = Iterator[dict[Edge, Tensor | None]]


class Unreadable(Exception):
    """The graph cannot be read as per-sample uses of parameters; the reason is the message."""


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
) -> dict[str, Tensor]:
    """Kernel of every parameter that the plan knows a way for, or their sums over groups.

    Args:
        subject: The model.
        plans: Of the two passes, see `Plan.matched`.
        p: First batch.
        q: Second batch, the same object for a self-kernel.
        cotangents: `(R, C)` combinations of outputs.
        full: Keep output pairs apart.
        budget: Bytes for signals and blocks beyond the two passes; None for no bound.
        tally: Where work is noted.
        force: See `contract`.
        errors: Where given, a parameter that fails is noted here with its reason, and the others go on.
        groups: Parameter → names of the sums it belongs to; by default each parameter is a sum of its own.

    Returns:
        Group → `(N, M)` or `(N, M, R, R)`. Groups without any signal are absent.
    """
    same, plan = p is q, plans[0]
    item = p.out.element_size()
    r = cotangents.shape[0]
    sides = 1 if same else 2
    total = float("inf") if budget is None else budget / item
    edges = plan.edges()
    if not edges:
        return {}
    step = r if full else _outputs_at_once(plan, p, q, r, total, same)
    if step < r and not plan.vectorised:
        step = 1  # a loop over outputs gains nothing from several, and one needs no copies
    parts = signals.segments([p.graph] if same else [p.graph, q.graph], edges, total * 0.3 / sides / step)
    # Gram matrices of inputs do not depend on the outputs: kept from step to step where they are small
    small = p.n * q.n * len(plan.native) <= 0.15 * total
    tally.lefts = {} if step < r and small else None
    tally.room, tally.steps = (0.3 * total, -(-r // step)) if step < r else (0.0, 1)
    # freed signals that the C library keeps would add up to as much again as is allowed
    spare = budget // 4 if budget is not None and p.out.device.type == "cpu" else None
    sums = _Sums(full, int(min(total, 2**28) * 0.25 * item), spare, tally, force, errors, groups)
    for start in range(0, r, step):
        cot = cotangents[start : start + step]
        if start:
            sums.give_back()
        one = _Side(subject, plan, p)
        left = signals.stream(p.out, p.graph, parts, cot, plan.vectorised)
        if same:
            sums.consume(one, one, left, left)
        else:
            right = signals.stream(q.out, q.graph, parts, cot, plan.vectorised)
            sums.consume(one, _Side(subject, plans[1], q), left, right)
    tally.lefts = None
    sums.give_back()
    return sums.result


def sample_sizes(subject: Subject, plan: Plan, at: Pass) -> tuple[int, int]:
    """Numbers that one sample of this pass needs at a time.

    A backward pass holds, besides the signals asked for, those of both branches of a residual block and the copies that
    convolutions make of theirs: six in all. The rule for nodes without one makes as many again, all of a node's inputs.

    Returns:
        `(alone, each)`: what one sample needs by itself, thrice its largest signals, gradient or patches (which are
        made for some samples at a time); and what every sample of a block adds: explicit gradients are there as a rule
        makes them, as they are contracted, and, where they are carried to the parameter, twice on the way.
    """
    signal = max((sum(prod(at.graph.shape(e)) for e in edges) // at.n for edges in plan.together()), default=1)
    patches = []
    for handle in plan.handles:
        for u in handle.uses:
            if at.graph.names[u.node] == "ConvolutionBackward0" and u.slot == 1:
                # every weight of one output channel, at every position
                weight, out = at.graph.shape(handle.edge), at.graph.shape(u.edge)
                patches.append(prod(weight) // max(1, weight[0]) * (prod(out) // max(1, out[1])) // at.n)
    explicit = largest_explicit(subject, plan, at)
    pulled = max((subject.leaves[name].numel() for name in plan.pulled), default=0)
    held = (
        6
        if all(spec_of(at.graph.names[u.node]).rule is not None for handle in plan.handles for u in handle.uses)
        else 12
    )
    return 3 * max(signal, explicit, *patches, 1), max(held * signal, 3 * explicit, 5 * pulled)


def largest_explicit(subject: Subject, plan: Plan, at: Pass) -> int:
    """Return the number of entries of the largest parameter whose gradients are formed."""
    side = _Side(subject, plan, at)
    dense = [n for n, groups in plan.native.items() if any(side.is_dense(h) for g in groups for h in g)]
    return max((subject.leaves[n].numel() for n in (*dense, *plan.pulled, *plan.generic)), default=1)


def _outputs_at_once(plan: Plan, p: Pass, q: Pass, r: int, total: float, same: bool) -> int:
    """Outputs for which the largest signals of one parameter, and the one held at a cut, fit.

    Returns:
        Between 1 and r.
    """
    if total == float("inf"):
        return r
    graphs = [p.graph] if same else [p.graph, q.graph]
    largest = max(sum(prod(g.shape(e)) for g in graphs for e in edges) for edges in plan.together())
    return int(max(1, min(r, total * 0.125 // max(1, largest))))


class _Side:
    """Signals of one batch that have arrived, and what they make."""

    def __init__(self, subject: Subject, plan: Plan, at: Pass) -> None:
        self.subject, self.plan, self.at = subject, plan, at
        self.signals: dict[Edge, Tensor | None] = {}

    def ready(self, handles: list[int]) -> bool:
        """Return whether all signals of these handles are there."""
        return all(u.edge in self.signals for h in handles for u in self.plan.handles[h].uses)

    def w_shape(self, handle: Handle) -> tuple[int, ...]:
        """Return the shape of the handle's tensor."""
        return self.at.graph.shape(handle.edge)

    def _piece(self, handles: list[int], rows: slice, tally: Tally, name: str) -> Piece | None:
        """Return the merged piece of these handles for some outputs, or None where no signal arrives."""
        pieces: list[Piece] = []
        shape: tuple[int, ...] = ()
        for h in handles:
            handle = self.plan.handles[h]
            shape = self.w_shape(handle)
            for u in handle.uses:
                g = self.signals[u.edge]
                if g is None:
                    continue
                if not u.layout.fits(tuple(g.shape[1:]), self.at.n):
                    raise Unreadable(f"the shape at {self.at.graph.names[u.node]} is not the one the plan was made for")
                node = self.at.graph.nodes[u.node]
                site = Site(node, u.slot, g[rows].detach(), u.layout, self.at.n, shape)
                piece, way = piece_of(site, self.at.graph.names[u.node])
                if way == "masked":
                    tally.forms[name] = "masked"
                kind = self.at.out.dtype
                complex_ = self.at.graph.dtype(handle.edge).is_complex
                pieces.append(in_kind(piece, kind.to_complex() if complex_ else kind))
        return merge(pieces, shape) if pieces else None

    def is_dense(self, handle: int) -> bool:
        """Return whether its pieces are likely explicit (grouped convolutions, whatever has no rule)."""
        graph = self.at.graph
        return not all(is_factored(graph.names[u.node], graph.nodes[u.node]) for u in self.plan.handles[handle].uses)

    def scale(self, handles: list[int], name: str) -> float | None:
        """Return the factor that the chain multiplies all entries with; None where it has more than one."""
        handle = self.plan.handles[handles[0]]
        if not handle.scaled:
            return 1.0
        graph = self.at.graph
        ones = torch.ones(self.w_shape(handle), dtype=graph.dtype(handle.edge), device=self.at.out.device)
        edge = GradientEdge(graph.nodes[handle.edge[0]], handle.edge[1])
        (s,) = torch.autograd.grad([edge], [self.subject.leaves[name]], [ones], retain_graph=True)
        low, high = float(s.min()), float(s.max())
        return low if low == high else None

    def pull(self, name: str) -> None:
        """Let this parameter's gradients be carried to the parameter itself, in this pass alone."""
        self.plan = self.plan.copy()
        self.plan.pull(name)

    def pieces(self, name: str, rows: slice, tally: Tally) -> list[Piece | None]:
        """Return what a parameter's kernel is contracted from, a piece for every group of handles."""
        if name in self.plan.pulled:
            return [self._carried(self.plan.pulled[name], rows, tally, name)]
        return [self._piece(group, rows, tally, name) for group in self.plan.native[name]]

    def _carried(self, handles: list[int], rows: slice, tally: Tally, name: str) -> Dense | None:
        """Return explicit gradients carried through the parameter's own chain."""
        leaf = self.subject.leaves[name]
        total: Tensor | None = None
        for h in handles:
            piece = self._piece([h], rows, tally, name)
            if piece is None:
                continue
            handle = self.plan.handles[h]
            j = piece.dense(self.w_shape(handle))
            if handle.edge[0] not in self.at.graph.owner:
                carried = self._through_chain(j, handle, leaf, own=not isinstance(piece, Dense))
                if carried is None:
                    continue
                j = carried
            total = j if total is None else total + j
        return None if total is None else Dense(total.to(self.at.out.dtype))

    def _through_chain(self, j: Tensor, handle: Handle, leaf: Tensor, own: bool) -> Tensor | None:
        """Carry gradients `(N, R, …)` to the parameter that the handle is made from, some at a time.

        Those that are our own are overwritten where they have the parameter's shape: all of them once more are large.

        Returns:
            `(N, R, *leaf.shape)`, or None where nothing arrives.
        """
        n, r = j.shape[:2]
        edge = GradientEdge(self.at.graph.nodes[handle.edge[0]], handle.edge[1])
        flat = j.reshape(n * r, *j.shape[2:]).to(self.at.graph.dtype(handle.edge))
        step = max(1, CARRIED // max(1, leaf.numel(), flat[0].numel()))
        found: Tensor | None = None
        for start in range(0, n * r, step):
            (got,) = signals.pull([edge], [leaf], [flat[start : start + step]], True)
            if got is None:
                return None
            if found is None:
                same = own and flat.shape[1:] == leaf.shape and flat.dtype == got.dtype
                found = flat if same else got.new_empty(n * r, *leaf.shape)
            found[start : start + step] = got.clone() if found is flat else got  # a transpose is a view of them
        assert found is not None  # there is a sample, and an output
        return found.reshape(n, r, *leaf.shape)


@dataclass
class _Sums:
    """Sums of kernels, parameter by parameter as their signals arrive.

    Attributes:
        full: Keep output pairs apart.
        workspace: Bytes for what a contraction makes on the way.
        spare: Bytes of freed memory that the C library may keep; None for any.
        tally: Where work is noted.
        force: See `contract`.
        errors: Where given, reasons of parameters that failed.
        groups: Parameter → names of the sums it belongs to; None for one of its own each.
        result: The sums.
    """

    full: bool
    workspace: int
    spare: int | None
    tally: Tally
    force: str | None
    errors: dict[str, str] | None
    groups: dict[str, list[str]] | None
    result: dict[str, Tensor] = field(default_factory=dict)

    def give_back(self) -> None:
        """Give freed memory back to the system where there is too much of it."""
        if self.spare is not None and free_bytes() > self.spare:
            release()

    def consume(self, one: _Side, two: _Side, left: _Stream, right: _Stream) -> None:
        """Contract each parameter as soon as its signals have arrived on both sides, and let them go."""
        plan = one.plan
        waiting = {n: [h for g in groups for h in g] for n, groups in plan.native.items()} | dict(plan.pulled)
        users = Counter(e for hs in waiting.values() for e in {u.edge for h in hs for u in plan.handles[h].uses})
        for arrived in left:
            one.signals |= arrived
            if two is not one:
                two.signals |= next(right)
            for name in [n for n, hs in waiting.items() if one.ready(hs)]:
                hs = waiting.pop(name)
                self._add(one, two, name)
                for e in {u.edge for h in hs for u in plan.handles[h].uses}:
                    users[e] -= 1
                    if not users[e]:
                        one.signals[e] = None
                        two.signals[e] = None
            arrived.clear()
            self.tally.last = None
            if waiting:
                self.give_back()

    def _add(self, one: _Side, two: _Side, name: str) -> None:
        try:
            value = self._parameter(one, two, name)
        except Exception as exc:
            if self.errors is None:
                raise
            self.errors[name] = f"reading the graph failed ({type(exc).__name__}: {exc})"
            return
        if value is not None:
            for group in [name] if self.groups is None else self.groups.get(name, []):
                held = self.result.get(group)
                self.result[group] = value.clone() if held is None else held.add_(value)

    def _parameter(self, one: _Side, two: _Side, name: str) -> Tensor | None:
        """Kernel of one parameter from the signals at hand.

        Returns:
            `(N, M)` or `(N, M, R, R)`, or None where no signal arrives.
        """
        scales: list[Any] = [1.0]
        if name in one.plan.native:
            pairs = [(one.scale(g, name), two.scale(g, name)) for g in one.plan.native[name]]
            scales = [None if None in pair else prod(pair) for pair in pairs]
            if None in scales:  # entries are not all multiplied alike
                scales = [1.0]
                for side in {id(one): one, id(two): two}.values():
                    side.pull(name)
        hs = one.plan.handles_of(name)
        found = [s for h in hs for u in one.plan.handles[h].uses if (s := one.signals[u.edge]) is not None]
        if not found:
            return None
        total: Tensor | None = None
        for rows in self._parts(one, two, name, found[0].shape[0]):
            left = one.pieces(name, rows, self.tally)
            right = left if one is two else two.pieces(name, rows, self.tally)
            for a, b, scale in zip(left, right, scales, strict=True):
                if a is None or b is None:
                    continue
                key = name if len(scales) == 1 else ""
                k, form = contract(a, b, self.full, self.workspace, self.tally, self.force, key)
                self.tally.forms.setdefault(name, form)
                if scale != 1:
                    k = k * scale
                total = k if total is None else total + k
        return total

    def _parts(self, one: _Side, two: _Side, name: str, r: int) -> list[slice]:
        """Return the outputs that are taken at a time: fewer than all where explicit gradients would be too large."""
        plan = one.plan
        hs = plan.handles_of(name)
        if self.full or not (name in plan.pulled or any(one.is_dense(h) for h in hs)):
            return [slice(0, r)]
        size = max(one.subject.leaves[name].numel(), *(prod(one.w_shape(plan.handles[h])) for h in hs))
        each = (one.at.n + (0 if one is two else two.at.n)) * size * one.at.out.element_size()
        each *= 4 if name in plan.pulled else 2  # made, carried to the parameter in two steps, and laid out for a sum
        block = max(1, min(r, self.workspace // max(1, each)))
        return [slice(i, min(i + block, r)) for i in range(0, r, block)]
