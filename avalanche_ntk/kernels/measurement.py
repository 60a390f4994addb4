"""One measurement: blocks of samples, the graph engine, and generic methods for the rest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from avalanche_ntk.errors import ModelError, NTKError
from avalanche_ntk.kernels._contract import engine, schedule
from avalanche_ntk.kernels._contract.contraction import Tally
from avalanche_ntk.kernels._contract.held import Held, fill
from avalanche_ntk.kernels._contract.pieces import Size
from avalanche_ntk.kernels._contract.side import Unreadable
from avalanche_ntk.kernels._device.memory import release
from avalanche_ntk.kernels._device.profile import exhausted
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._generic import jacobians
from avalanche_ntk.kernels._guard import known, planning, refusals, samples
from avalanche_ntk.kernels._guard.isolation import rng_fingerprint
from avalanche_ntk.kernels._guard.policy import TOLD, Checks, Look, look
from avalanche_ntk.kernels._structure.passes import Pass, forward
from avalanche_ntk.kernels._structure.plan import Plan, Way
from avalanche_ntk.kernels.info import KernelInfo, Method
from avalanche_ntk.kernels.request import Request
from avalanche_ntk.kernels.sharing import transposed

_BY_GRAPH = {Method.AUTO: None, Method.GHOST: "ghost", Method.EXPLICIT: "explicit"}


class Measurement:
    """Kernels of a model on one batch or between two, by groups of parameters.

    Args:
        subject: The model; everything runs inside `subject.standing_in()`.
        members: Group → its parameters.
        request: What is asked for.
        info: Report on the computation.
        b1: First batch.
        b2: Second batch; None for a self-kernel.
    """

    def __init__(
        self,
        subject: Subject,
        members: dict[str, list[str]],
        request: Request,
        info: KernelInfo,
        b1: Batch,
        b2: Batch | None,
    ) -> None:
        self.subject, self.members, self.info = subject, members, info
        self.b1, self.b2 = b1, b2
        self.full, self.budget, self.block = request.reduction == "full", request.budget, request.block
        self.method, self.checks = Method(request.method), Checks(request.checks)
        self.weighted = subject if not request.preconditioner else subject.preconditioned(request.preconditioner)
        self.groups = {n: [g for g, names in members.items() if n in names] for n in subject.leaves}
        self.tally = Tally()
        self.looks: dict[int, Look] = {}  # by plan
        self.looked: set[tuple[int, int]] = set()  # blocks (index of the batch, its first sample) that were checked
        batches = [b1] if b2 is None else [b1, b2]
        self.new = any(known.is_new(subject.model, b) for b in batches)
        self.whole: Pass | None = None  # pass of the first batch, if used as a whole
        self.plan: Plan | None = None  # its plan
        self.steady = False  # whether a known model is measured on a known batch
        if self.method not in _BY_GRAPH:
            for b in batches:
                samples.refuse_mixing(subject, b, one_by_one=self.method is Method.LOOP)
            self.out = self._forward(b1.take(slice(0, 1))).out.detach()
            return
        ahead = None if len(b1) < 4 * samples.LARGE else planning.plan_ahead(subject, b1, self.budget)
        need = known.latest_needs(subject, b1)
        self.steady = need is not None and not self.new and self.checks is Checks.AUTO
        if need is None or len(b1) * need.passing * need.item <= self.budget:
            self.whole = self._forward(b1)
            self.out = self.whole.out.detach()[:1]
            if ahead is not None:
                planning.forget_if_other(subject, ahead, self.whole)
        else:
            self.out = self._forward(b1.take(slice(0, 2))).out.detach()[:1]

    # ------------------------------------------------------------------ kernels

    def kernels(self, rows: Tensor, apart: bool = False) -> dict[str, Tensor]:
        """Compute the kernels.

        Args:
            rows: `(R, C)` combinations of outputs.
            apart: Whether to keep their kernels apart instead of summing them.

        Returns:
            Group → `(N, M)`, `(N, M, R, R)` for output pairs, or `(R, N, M)`.
        """
        n, m, r = len(self.b1), len(self.b1 if self.b2 is None else self.b2), rows.shape[0]
        self.apart = apart
        shape = (n, m, r, r) if self.full else (r, n, m) if apart else (n, m)
        self.result = {g: rows.new_zeros(shape) for g in self.members}
        rest, alone = list(self.subject.leaves), self.method is Method.LOOP
        if self.method in _BY_GRAPH:
            rest, alone = self._by_graph(rows)
        if rest:
            self._by_jacobians(rows, rest, alone)
        for name in self.subject.leaves:
            self.tally.forms.setdefault(name, "unused")
        self.info.block = self.info.block or min(self.block or max(n, m), max(n, m))
        self.info.methods |= self.tally.forms
        self.info.flops = self.tally.flops
        self.info.peak_bytes = max(self.info.peak_bytes, self.tally.peak)
        return self.result

    def _add(self, name: str, value: Tensor, here: slice, there: slice, rows: slice, mirrored: bool) -> None:
        """Add a parameter's kernel between some samples, for some combinations of outputs."""
        for g in self.groups[name]:
            into = self.result[g][rows] if self.apart else self.result[g]
            if self.apart:
                into[:, here, there] += value
            else:
                into[here, there] += value
            if mirrored and self.apart:
                into[:, there, here] += value.transpose(1, 2)
            elif mirrored:
                into[there, here] += transposed(value)

    def _by_graph(self, rows: Tensor) -> tuple[list[str], bool]:
        """Add the kernels from the graph; return the remaining parameters, and whether samples must run one by one."""
        subject = self.subject
        steps = self._steps(rows)
        self.info.block = steps.block
        try:
            if steps.held:
                self.whole = None
                return self._held(rows, steps), False
            return self._at_once(rows)
        except Exception as exc:
            if isinstance(exc, NTKError) or exhausted(exc):
                raise
            # after any error here, the exact method without the graph remains
            cause = exc if isinstance(exc, Unreadable) else f"{type(exc).__name__}: {exc}"
            self.info.reasons |= dict.fromkeys(subject.leaves, f"reading the graph failed ({cause})")
            for kernel in self.result.values():
                kernel.zero_()
            return list(subject.leaves), False

    def _steps(self, rows: Tensor) -> schedule.Steps:
        """Choose the steps from the plan of some samples; a single step if there is no plan."""
        n, m = len(self.b1), None if self.b2 is None else len(self.b2)
        some = self.b1 if self.whole is not None else self.b1.take(slice(0, 2 * samples.LARGE))
        plan = self._plan(some, self._forward(some) if self.whole is None else self.whole)
        if plan.needs is None:
            return schedule.Steps(max(n, m or 0), 0, rows.shape[0])
        need = plan.needs
        if self.weighted.roots:
            sizes = {name: root.numel() for name, root in self.weighted.roots.items()}
            pieces = {name: [Size(0, k, k)] for name, k in sizes.items() if name in need.pieces}
            need = replace(need, passing=max(need.passing, 5 * max(sizes.values())), pieces=need.pieces | pieces)
        return schedule.steps(
            need, n, m, rows.shape[0], self.full, self.budget, self.block, type(self.subject.model).__name__
        )

    def _at_once(self, rows: Tensor) -> tuple[list[str], bool]:
        """Compute everything in one step: all signals of a parameter fit."""
        p, plan = self._planned(self.b1, 0, self.whole)
        q, other = p, plan
        if self.b2 is not None:
            q, other = self._planned(self.b2, 1)
            if q.graph.signature != p.graph.signature:
                self.info.reasons |= dict.fromkeys(self.subject.leaves, "the two batches have different graphs")
                return list(self.subject.leaves), Way.LOOP in (plan.way, other.way)
            plan, other = plan.matched(other)
        values = engine.kernels(
            self.weighted,
            (self._pulled(plan), self._pulled(other)),
            p,
            q,
            rows,
            self.full,
            self.budget,
            self.tally,
            _BY_GRAPH[self.method],
            groups=self.groups,
            apart=self.apart,
        )
        n, m = len(self.b1), len(self.b1 if self.b2 is None else self.b2)
        for g, value in values.items():  # a single sample may have been given twice
            self.result[g] += value[:, :n, :m] if self.apart else value[:n, :m]
        self.info.reasons |= plan.generic
        return list(plan.generic), plan.way is Way.LOOP

    # ------------------------------------------------------------------ pieces that are held

    def _held(self, rows: Tensor, steps: schedule.Steps) -> list[str]:
        """Hold the pieces of some samples, and contract them with themselves and with all later ones."""
        second, which = (self.b1, 0) if self.b2 is None else (self.b2, 1)
        plans = self._matched_plans(second)
        for start in range(0, rows.shape[0], steps.outputs):
            cot = rows[start : start + steps.outputs]
            self.rows = slice(start, start + len(cot))
            for i in range(0, len(self.b1), steps.held):
                mine = range(i, min(i + steps.held, len(self.b1)))
                held = Held(len(mine), len(cot), self._explicit(steps))
                self._fill(held, self.b1, 0, mine, steps.block, cot, plans)
                if self.b2 is None:
                    self._contract(held, held, mine, mine)
                for k in range(mine.stop if self.b2 is None else 0, len(second), steps.block):
                    some = range(k, min(k + steps.block, len(second)))
                    passing = Held(len(some), len(cot), held.explicit)
                    self._fill(passing, second, which, some, steps.block, cot, plans)
                    self._contract(held, passing, mine, some)
                del held
                release()
        generic = next(iter(plans.values())).generic
        self.info.reasons |= generic
        return list(generic)

    def _matched_plans(self, second: Batch) -> dict[int, Plan]:
        """Return matching plans for both batches, by plan."""
        found = [self._usable(b.take(slice(0, 2 * samples.LARGE)))[2] for b in (self.b1, second)]
        if any(plan.unproven for plan in found):
            raise Unreadable(found[0].unproven or found[1].unproven)
        return dict(zip(map(id, found), map(self._pulled, found[0].matched(found[1])), strict=True))

    def _pulled(self, plan: Plan) -> Plan:
        """Return a plan with explicit gradients for preconditioned parameters, to weight their entries."""
        names = [name for name in self.weighted.roots if name in plan.native]
        if names:
            plan = plan.copy()
            for name in names:
                plan.pull(name)
        return plan

    def _explicit(self, steps: schedule.Steps) -> frozenset[str]:
        every = frozenset(self.subject.leaves)
        return {Method.GHOST: frozenset[str](), Method.EXPLICIT: every}.get(self.method, steps.explicit)

    def _fill(
        self, held: Held, batch: Batch, which: int, some: range, block: int, cot: Tensor, plans: dict[int, Plan]
    ) -> None:
        """Run the passes of some samples, block by block."""
        for k in range(some.start, some.stop, block):
            stop = min(k + block, some.stop)
            at, plan = self._planned(batch.take(slice(k, stop)), which, first=k)
            if id(plan) not in plans:
                raise Unreadable("blocks of samples have different graphs")
            fill(
                held,
                self.weighted,
                plans[id(plan)],
                at,
                range(k - some.start, stop - some.start),
                cot,
                self.budget // 4,
                self.tally,
            )
            del at
        self.tally.forms |= dict.fromkeys(held.by_own_backward, "masked")

    def _contract(self, one: Held, two: Held, mine: range, others: range) -> None:
        """Add the kernel between the held samples and others."""
        workspace = self.budget // 4
        here, there = slice(mine.start, mine.stop), slice(others.start, others.stop)
        for name, left in one.pieces.items():
            right = two.pieces.get(name)
            if right is None:
                continue
            if one.scales[name] != two.scales[name]:
                raise Unreadable(f"blocks of samples use {name} in different ways")
            scales = [s * t for s, t in zip(one.scales[name], two.scales[name], strict=True)]
            force = _BY_GRAPH[self.method]
            k = engine.contract_groups(
                left, right, scales, self.full, workspace, self.tally, force, name, apart=self.apart
            )
            if k is None:
                continue
            if name in one.explicit and self.tally.forms[name] == "dense":
                self.tally.forms[name] = "explicit"
            self._add(name, k, here, there, self.rows, mirrored=self.b2 is None and one is not two)

    # ------------------------------------------------------------------ explicit Jacobians

    def _by_jacobians(self, rows: Tensor, names: list[str], alone: bool) -> None:
        """Add the kernels of parameters that the graph does not show, in blocks of both batches."""
        copies = rows.shape[0] if self.full else 1
        largest = max(self.subject.leaves[name].numel() for name in names) * copies * rows.element_size()
        size = self.block or max(1, self.budget // (4 * largest))
        b1, b2 = self.b1, self.b2
        n, m = len(b1), len(b1 if b2 is None else b2)
        for start in range(len(rows)) if self.apart else [None]:
            some = slice(None) if start is None else slice(start, start + 1)
            for i in range(0, n, size):
                left = b1.take(slice(i, i + size))
                for k in range(i if b2 is None else 0, m, size):
                    right = None if b2 is None and k == i else (b1 if b2 is None else b2).take(slice(k, k + size))
                    found = jacobians.kernels(
                        self.weighted, left, right, rows[some], names, self.full, self.budget, alone
                    )
                    here, there = slice(i, i + size), slice(k, k + size)
                    for name, (value, way) in found.items():
                        self.tally.forms[name] = way
                        self._add(name, value, here, there, some, mirrored=b2 is None and k != i)

    # ------------------------------------------------------------------ passes and plans

    def _forward(self, batch: Batch) -> Pass:
        """Return a pass; if it drew random numbers, it is repeated and must give the same outputs."""
        if self.steady:
            return forward(self.subject, batch)
        before = rng_fingerprint()
        at = forward(self.subject, batch)
        if rng_fingerprint() != before and not torch.equal(at.out, forward(self.subject, batch).out):
            error: ModelError = refusals.stochastic(self.subject, batch)
            raise error
        return at

    def _planned(self, batch: Batch, which: int, at: Pass | None = None, first: int = 0) -> tuple[Pass, Plan]:
        """Return the pass of some samples and its checked plan; a single sample may be given twice.

        Args:
            batch: The samples.
            which: Index of their batch.
            at: Their pass, if it exists already.
            first: Position of the first sample in its batch.
        """
        batch, at, plan = self._usable(batch, at)
        seen = Look() if (which, first) in self.looked else self.looks[id(plan)]
        self.looked.add((which, first))
        return at, planning.inspect(self.subject, batch, at, plan, self.budget, seen)

    def _usable(self, batch: Batch, at: Pass | None = None) -> tuple[Batch, Pass, Plan]:
        """Return samples, their pass and its plan; a single sample is doubled if the model treats one differently."""
        try:
            at = self._forward(batch) if at is None else at
        except ModelError:  # else: a remainder of one sample, with which the model cannot be called
            if len(batch) > 1:
                raise
        else:
            plan = self._plan(batch, at)
            if plan.way is not Way.TWICE:
                return batch, at, plan
        batch = batch.take([0, 0])
        at = forward(self.subject, batch)
        return batch, at, self._plan(batch, at)

    def _plan(self, batch: Batch, at: Pass) -> Plan:
        """Return the plan of a pass, and record the checks to make with it."""
        if at is self.whole and self.plan is not None:
            return self.plan
        plan = known.plan_of(self.subject, batch, at)
        new = plan is None
        if plan is None:
            plan = planning.new_plan(self.subject, batch, at, self.budget)
        if id(plan) not in self.looks:
            self.looks[id(plan)] = look(self.checks, new or self.new, plan.uses)
            plan.uses += 1
            self.info.checks = max(self.info.checks, self.looks[id(plan)].told, key=TOLD.index)
            self.info.plan_not_kept = self.info.plan_not_kept or plan.unproven
        if at is self.whole:
            self.plan = plan
        return plan
