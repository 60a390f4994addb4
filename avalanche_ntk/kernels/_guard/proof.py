"""Proof of a plan by comparison with autograd: kernels with gradients, layouts with signals."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.contraction import Tally
from avalanche_ntk.kernels._contract.engine import kernels
from avalanche_ntk.kernels._contract.pieces import Size
from avalanche_ntk.kernels._contract.schedule import largest_explicit
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._structure import layout as lay
from avalanche_ntk.kernels._structure import signals
from avalanche_ntk.kernels._structure.graph import Edge
from avalanche_ntk.kernels._structure.passes import Pass, forward, random_numbers
from avalanche_ntk.kernels._structure.plan import Plan

BASE = 64  # samples that one backward pass can distinguish by their weights
PROOFS = 3  # random combinations of samples that prove a new plan


def prove(subject: Subject, plan: Plan, few: Batch, at: Pass, budget: int | None) -> dict[str, list[Size]]:
    """Compare every parameter's kernel with ordinary gradients; demote what disagrees.

    Both use the same pass: in another one, rounding may switch a unit whose input is nearly zero, and with it the
    gradient. `samples.py` checks that a sample alone has the same output. For random combinations v of outputs and u of
    samples, let `G = ∇θ Σ_n u_n v·f(x_n)`. Then `Σ_{n,m} u_n u'_m vᵀΘ[n,m]v' = <G, G'>`: so any wrong entry of Θ is
    detected. Each G is compared with itself and with the first one, so only two are held at a time; a kernel with
    exchanged output pairs agrees for one combination with itself, but not with another.

    Returns:
        Sizes of each parameter's pieces.
    """
    names = [n for n in subject.leaves if n not in plan.generic]
    if not names:
        return {}
    cot = torch.stack([at.mix(2), at.mix(3)])
    coarse = at.graph.coarsest() != torch.float64
    tol = 1e-3 if coarse else 1e-9
    errors: dict[str, str] = {}
    # gradients of both combinations: from the rule, propagated to the parameter, and their sum
    each = 8 * largest_explicit(subject, plan, at) * at.out.element_size()
    if budget is not None and budget < at.n * each:
        few = few.take(slice(0, max(2, budget // each)))
        at = forward(subject, few)
    tally = Tally()
    got = kernels(subject, (plan, plan), at, at, cot, True, budget, tally, errors=errors)
    traces = kernels(subject, (plan, plan), at, at, cot, False, budget, Tally(), errors=errors)
    mixes = torch.stack([random_numbers(at.n, 4 + k).to(at.out) for k in range(PROOFS)])
    pairs = [(k, v) for k in range(PROOFS) for v in range(len(cot))]
    squares: dict[str, list[float]] = {n: [] for n in names}
    products: dict[str, list[float]] = {n: [] for n in names}
    for group in _small_groups(subject, names, (budget or 2**30) // 8):
        leaves = [subject.leaves[n] for n in group]
        first: list[Tensor | None] = []
        for k, v in pairs:
            grads = torch.autograd.grad((mixes[k] @ at.out) @ cot[v], leaves, retain_graph=True, allow_unused=True)
            found: list[Tensor | None] = [None if g is None else g.to_dense() for g in grads]
            first = first or found
            for name, f, g in zip(group, first, found, strict=True):
                squares[name].append(_inner(g, g))
                products[name].append(_inner(f, g))
    whole = max(max(w) for w in squares.values())
    # a gradient that is exactly zero (a bias before a norm) leaves only rounding errors, without relative accuracy
    noise = (1e-9 if coarse else 1e-18) * whole
    for name in names:
        if name in errors:
            plan.demote(name, errors[name])
            continue
        kernel, trace = got.get(name), traces.get(name)
        wrong = ""
        if kernel is not None and trace is not None:  # sums over outputs use other code than output pairs
            total = kernel.diagonal(dim1=2, dim2=3).sum(-1)
            if not float((trace - total).norm()) <= tol * float(total.norm()) + noise and bool(trace.isfinite().all()):
                wrong = "the sum over outputs differs"
        for i, (k, v) in enumerate(pairs):
            for j, right in ((i, squares[name][i]), (0, products[name][i])):
                u, w = pairs[j]
                read = 0.0 if kernel is None else float(mixes[u] @ kernel[:, :, w, v] @ mixes[k])
                size = (squares[name][i] * squares[name][j]) ** 0.5
                if not abs(read - right) <= tol * size + noise and right == right:
                    wrong = wrong or f"{read:.6g} against {right:.6g}"
        if wrong:
            plan.demote(name, f"the graph's reading disagreed with autograd ({wrong})")
    return {name: sizes for name, sizes in tally.sizes.items() if name not in plan.generic}


def _inner(f: Tensor | None, g: Tensor | None) -> float:
    """Return the inner product of two gradients (None is zero); large ones are summed in several parts."""
    if f is None or g is None:
        return 0.0
    return sum(float(a @ b) for a, b in zip(f.reshape(-1).split(2**16), g.reshape(-1).split(2**16), strict=True))


def _small_groups(subject: Subject, names: list[str], room: int) -> list[list[str]]:
    """Split parameters into groups whose gradients take at most `room` bytes, if single ones allow.

    Returns:
        The groups.
    """
    groups: list[list[str]] = [[]]
    load = 0
    for n in names:
        size = subject.leaves[n].numel() * subject.leaves[n].element_size()
        if groups[-1] and load + size > room:
            groups.append([])
            load = 0
        groups[-1].append(n)
        load += size
    return groups


def prove_layouts(plan: Plan, at: Pass, budget: int | None) -> bool:
    """Check every layout on the whole batch, digit by digit of the sample's index; demote parameters that fail.

    Returns:
        True if all hold.
    """
    edges = plan.edges()
    if not edges or at.n == 1:
        return True
    digits = 1
    while BASE**digits < at.n:
        digits += 1
    number = torch.arange(at.n, device=at.out.device)
    places = torch.stack([(number // BASE**k) % BASE for k in range(digits)])
    table = 1.05 ** torch.arange(BASE, dtype=at.out.dtype, device=at.out.device)
    weights = torch.cat([torch.ones_like(table[places[:1]]), table[places]])
    cotangents = weights[:, :, None] * at.mix(1)
    where = {u.edge: u.layout for h in plan.handles for u in h.uses}
    bad: set[Edge] = set()
    # the signals of one edge and the tensors for comparison are held at a time
    exact = at.graph.coarsest() if at.out.dtype == torch.float64 else at.out.dtype
    room = float("inf") if budget is None else budget / (16 * at.out.element_size() * len(weights))
    for arrived in signals.stream(at.out, at.graph, signals.segments([at.graph], edges, room), cotangents, False):
        for e, s in arrived.items():
            if s is None:
                continue
            if not where[e].fits(tuple(s.shape[1:]), at.n):
                bad.add(e)
                continue
            if not all(lay.holds(where[e], s[0], s[1 + k], table, place, exact) for k, place in enumerate(places)):
                bad.add(e)
        arrived.clear()
    broken = {h for h, handle in enumerate(plan.handles) if any(u.edge in bad for u in handle.uses)}
    for name in (*plan.native, *plan.pulled):
        if broken & set(plan.handles_of(name)):
            plan.demote(name, "samples are moved by their values")
    return not broken
