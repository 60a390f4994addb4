"""Make a plan from two passes: the uses of every parameter, and the layouts of their outputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from avalanche_ntk.kernels._device.profile import profile_of
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._structure import layout as lay
from avalanche_ntk.kernels._structure import signals
from avalanche_ntk.kernels._structure.graph import Edge
from avalanche_ntk.kernels._structure.passes import Pass
from avalanche_ntk.kernels._structure.plan import Handle, Plan, Use, chain, pure_nodes
from avalanche_ntk.kernels._structure.routing import moves_by_values

WEIGHTS = (1.0, 1.5, 2.2, 3.3, 5.0)  # of the samples of the larger pass


def read(subject: Subject, small: Pass, large: Pass) -> Plan:
    """Find the uses of every chosen parameter and their layouts.

    Returns:
        An unproved plan.
    """
    g = large.graph
    pure = pure_nodes(small.graph, g)
    vectorised = signals.vectorises(g, profile_of(large.out.device))
    plan = Plan(vectorised=vectorised, moving=moves_by_values(small.graph, g, pure))
    out_edges: list[set[int]] = [set() for _ in g.nodes]
    out_edges[0].add(0)
    for es in g.edges:
        for e in es:
            if e is not None:
                out_edges[e[0]].add(e[1])
    uses: dict[Edge, list[tuple[int, int]]] = {}
    for i, es in enumerate(g.edges):
        if pure[i]:
            continue
        for slot, e in enumerate(es):
            if e is not None and pure[e[0]]:
                uses.setdefault(e, []).append((i, slot))
    known = {e: chain(g, e) for e in uses}
    chosen = set(subject.leaves)
    uses = {e: u for e, u in uses.items() if known[e][4] & chosen}
    sites = sorted({(i, next(iter(out_edges[i]))) for u in uses.values() for i, _ in u if len(out_edges[i]) == 1})
    layouts, silent = _layouts(small, large, sites)
    if silent:
        plan.unproven = f"no signal arrives at {', '.join(dict.fromkeys(g.names[i] for i in silent))}"
    broken: dict[str, str] = {}
    index: dict[Edge, int] = {}
    for e, found in uses.items():
        kind, plain, scaled, part, below = known[e]
        made: list[Use] = []
        for i, slot in found:
            if len(out_edges[i]) != 1:
                broken |= dict.fromkeys(below, f"{g.names[i]} has several outputs")
                continue
            edge = (i, next(iter(out_edges[i])))
            where = layouts.get(edge)
            if where is None:
                broken |= dict.fromkeys(below, f"the samples cannot be distinguished at {g.names[i]}")
                continue
            made.append(Use(i, slot, edge, where))
        index[e] = len(plan.handles)
        plan.handles.append(Handle(e, tuple(made), kind, plain and len(below) == 1, scaled, part))
    for name in subject.leaves:
        mine = [h for e, h in index.items() if name in known[e][4]]
        if name in broken:
            plan.generic[name] = broken[name]
        elif mine:  # else: the output does not depend on it
            _way(plan, name, mine)
    return plan


def _way(plan: Plan, name: str, mine: list[int]) -> None:
    """Choose the method for a parameter with these handles."""
    hs = [plan.handles[h] for h in mine]
    if not all(h.plain for h in hs):
        plan.pulled[name] = mine
        return
    by_kind: dict[str, list[int]] = {}
    for i, h in zip(mine, hs, strict=True):
        by_kind.setdefault(f"{h.kind}#{h.part}", []).append(i)
    groups = list(by_kind.values())
    if len(groups) == 1:
        plan.native[name] = groups
        return
    parts = [plan.handles[g[0]].part for g in groups]
    if all(p is not None for p in parts):
        nodes = {p[0] for p in parts if p is not None}
        pieces = {p[1] for p in parts if p is not None}
        if len(nodes) == 1 and len(pieces) == len(groups):  # disjoint parts of one parameter: no cross terms
            plan.native[name] = groups
            return
    plan.pulled[name] = mine


def _signals(at: Pass, edges: list[Edge], weights: Tensor) -> list[Tensor | None]:
    cot = weights[:, None] * at.mix(1)
    targets = [GradientEdge(at.graph.nodes[i], nr) for i, nr in edges]
    return list(torch.autograd.grad(at.out, targets, cot, retain_graph=True, allow_unused=True))


def _layouts(small: Pass, large: Pass, sites: list[Edge]) -> tuple[dict[Edge, lay.Layout], list[int]]:
    """Determine layouts from shapes and weighted signals.

    If several layouts fit (signals at the first of 11 tokens only), the first one is taken, with samples outermost;
    every new batch checks it.

    Returns:
        A layout for every edge for which it could be determined, and the nodes without a signal (below a head or a gate
        that starts at zero), which prove nothing.
    """
    if not sites:
        return {}, []
    silent: list[int] = []
    ones = torch.ones(large.n, dtype=large.out.dtype, device=large.out.device)
    weights = torch.tensor(WEIGHTS, dtype=large.out.dtype, device=large.out.device)
    plain = _signals(large, sites, ones)
    weighted = _signals(large, sites, weights)
    found: dict[Edge, lay.Layout] = {}
    number = torch.arange(large.n, device=large.out.device)
    for e, p, w in zip(sites, plain, weighted, strict=True):
        options = lay.candidates(small.graph.shape(e), large.graph.shape(e), small.n, large.n)
        if not options:
            continue
        if p is None or w is None or not p.numel():  # the output does not depend on it: any layout gives zero
            found[e] = options[0]
            continue
        index, clear = lay.sample_of(p, w, weights, options[0].dim)
        fitting = [o for o in options if lay.consistent(o, index, clear, number)]
        if fitting:
            found[e] = fitting[0]
            if not bool(p.any()):
                silent.append(e[0])
    return found, silent
