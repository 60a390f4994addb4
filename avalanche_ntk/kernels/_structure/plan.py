"""What is known about a graph after looking at it once: uses of every parameter, layouts, and which way each goes.

A plan is made from a handful of samples, run at two batch sizes, and *proved* there: for random combinations of outputs
and samples, the kernel of every parameter that the engine computes from it is compared with one made from ordinary
`torch.autograd.grad` of one sample at a time. A parameter that disagrees is sent to the generic path. Plans hold
numbers of nodes, never nodes, so that they serve every later forward pass of the same pattern.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from math import prod
from typing import Any

from avalanche_ntk.kernels._structure.graph import Edge, Graph
from avalanche_ntk.kernels._structure.layout import Layout
from avalanche_ntk.kernels._structure.nodes import spec_of
from avalanche_ntk.kernels._structure.pattern import Pattern, whole_numbers


@dataclass(frozen=True)
class Use:
    """One node that consumes a parameter (or something made of parameters only).

    Attributes:
        node: Its number.
        slot: Which of its inputs.
        edge: Where its output's signal is read.
        layout: Samples in that output.
    """

    node: int
    slot: int
    edge: Edge
    layout: Layout


@dataclass(frozen=True)
class Handle:
    """A tensor made of parameters only, at the border to the samples.

    Attributes:
        edge: The edge that carries it; the parameter itself when that is an accumulation node.
        uses: Who consumes it.
        kind: Equal for two handles made from the parameter in the same way.
        plain: Whether it has the parameter's entries, rearranged (and perhaps scaled, see `scaled`).
        scaled: Whether a scale has to be looked up.
        part: (number of a split node, which part) when it is one part of a parameter cut into pieces.
    """

    edge: Edge
    uses: tuple[Use, ...]
    kind: str
    plain: bool
    scaled: bool
    part: tuple[int, int] | None


class Way(Enum):
    """How the parameters of a plan are measured.

    * `GRAPH`: as the graph was read; some parameters may go through explicit Jacobians for a reason of their own.
    * `LOOP`: one sample at a time, since its graph alone is another than in a batch (values decide it).
    * `TWICE`: nothing is planned for a sample alone, which takes another path than several do (as in torch's
      attention): it is to be given twice.
    """

    GRAPH = "graph"
    LOOP = "loop"
    TWICE = "twice"


@dataclass
class Plan:
    """Way of every parameter.

    Attributes:
        handles: Borders between parameters and samples.
        native: Parameter → groups of handles whose pieces are contracted as they are (groups add up).
        pulled: Parameter → handles whose explicit gradients are carried to the parameter by its own chain.
        generic: Parameter → why it goes through explicit Jacobians.
        way: How they are measured.
        moving: Whether samples may be moved by values, so that layouts are proved anew in every measurement.
        vectorised: Whether signals of all outputs go in one pass.
        unproven: Why the plan is not kept (no signal arrived somewhere, so nothing is proved there); empty where it is.
        uses: How often it was used.
        needs: What a measurement by it holds, see `_contract.schedule.Needs`.
        rounding: How far outputs of samples alone were seen to differ by rounding.
        pattern: What the graph has to be like for this plan to be used again; None where nothing was read off it.
    """

    handles: list[Handle] = field(default_factory=list)
    native: dict[str, list[list[int]]] = field(default_factory=dict)
    pulled: dict[str, list[int]] = field(default_factory=dict)
    generic: dict[str, str] = field(default_factory=dict)
    way: Way = Way.GRAPH
    moving: bool = False
    vectorised: bool = True
    unproven: str = ""
    uses: int = 0
    needs: Any = None
    rounding: Any = None
    pattern: Pattern | None = None

    def serves(self, graph: Graph, n: int) -> bool:
        """Return whether the plan may be used for a pass of n samples whose graph has the same signature."""
        return (n == 1 or self.way is not Way.TWICE) and (self.pattern is None or self.pattern.fits(graph, n))

    def copy(self) -> Plan:
        """Return a plan whose ways can be changed without changing this one."""
        return replace(self, native=dict(self.native), pulled=dict(self.pulled), generic=dict(self.generic))

    def edges(self) -> list[Edge]:
        """Return the edges whose signals are needed, without repetition, in the graph's order."""
        needed = {h for groups in self.native.values() for g in groups for h in g}
        needed |= {h for hs in self.pulled.values() for h in hs}
        return sorted({u.edge for h in needed for u in self.handles[h].uses})

    def together(self) -> list[set[Edge]]:
        """Return, for each parameter, the edges whose signals are held together: all of its uses."""
        return [
            {u.edge for h in self.handles_of(name) for u in self.handles[h].uses}
            for name in (*self.native, *self.pulled)
        ]

    def matched(self, other: Plan) -> tuple[Plan, Plan]:
        """The plans for a kernel between two batches: both take the same way for every parameter.

        Each batch keeps its own layouts, and its own shapes of what is made from parameters: sequences of other
        lengths have others. Gradients are compared as the graph has them only where both sides made them alike from
        the parameter, else with respect to the parameter itself; what either sends to the generic path goes there.

        Returns:
            Both plans; the same one twice for the same plan.
        """
        if other is self:
            return self, self
        left, right = self.copy(), other.copy()
        if Way.LOOP in (self.way, other.way):
            left.way = right.way = Way.LOOP
        known = [n for plan in (self, other) for ways in (plan.native, plan.pulled, plan.generic) for n in ways]
        for name in dict.fromkeys(known):
            reason = self.generic.get(name) or other.generic.get(name)
            if reason is None and self._uses(name) != other._uses(name):
                reason = "the two batches use it in different ways"
            for plan in (left, right):
                if reason is not None:
                    plan.demote(name, reason)
                elif self._kinds(name) != other._kinds(name):
                    plan.pull(name)
        return left, right

    def _uses(self, name: str) -> list[tuple[Edge, list[tuple[int, int, Edge]]]]:
        """Return who uses a parameter where, without the layouts."""
        handles = [self.handles[h] for h in self.handles_of(name)]
        return [(h.edge, [(u.node, u.slot, u.edge) for u in h.uses]) for h in handles]

    def _kinds(self, name: str) -> list[list[str]] | None:
        """Return how the tensors of each group are made from a parameter; None where it is not contracted as it is."""
        groups = self.native.get(name)
        return None if groups is None else [[self.handles[h].kind for h in g] for g in groups]

    def handles_of(self, name: str) -> list[int]:
        """Return the handles whose signals a parameter's kernel is made of."""
        return sorted(self.pulled.get(name) or [h for g in self.native.get(name, []) for h in g])

    def pull(self, name: str) -> None:
        """Let a parameter's gradients be carried to the parameter itself before they are contracted."""
        self.pulled[name] = self.handles_of(name)
        self.native.pop(name, None)

    def demote(self, name: str, reason: str) -> None:
        """Send a parameter to the generic path."""
        self.native.pop(name, None)
        self.pulled.pop(name, None)
        self.generic[name] = reason


def pure_nodes(small: Graph, large: Graph) -> list[bool]:
    """Nodes that depend on parameters only: they lead to nothing else, and no shape of theirs grows with the batch.

    Returns:
        One flag a node.
    """
    flags = large.candidates()
    for i in range(len(flags) - 1, -1, -1):
        if flags[i] and i not in large.owner:
            shapes = range(len(large.nodes[i]._input_metadata))
            same = all(small.shape((i, k)) == large.shape((i, k)) for k in shapes)
            flags[i] = same and all(flags[e[0]] for e in large.edges[i] if e is not None)
    return flags


def chain(graph: Graph, edge: Edge) -> tuple[str, bool, bool, tuple[int, int] | None, set[str]]:
    """How a parameter-only tensor is made.

    Returns:
        `(kind, plain, scaled, part, parameters)`, see `Handle`.
    """
    kind: list[str] = []
    plain, scaled, part = True, False, None
    i, nr = edge
    while i not in graph.owner:
        name = graph.names[i]
        children = [e for e in graph.edges[i] if e is not None]
        shape = graph.shape((i, nr))
        kind.append(f"{name}{shape}{whole_numbers(graph.nodes[i])}")
        if len(children) != 1 or graph.dtype((i, nr)).is_complex:
            plain = False
            break
        what = spec_of(name).chain
        if what == "split" and part is None:
            part = (i, nr)
        elif prod(shape) != prod(graph.shape(children[0])):
            plain = False  # entries are used several times (a gain times a constant of a larger shape), or left out
        elif what == "scale":
            scaled = True
            kind[-1] += f"@{i}"  # two scales may differ: never merged
        elif what != "view":
            plain = False
        i, nr = children[0]
    below: set[str] = set()
    stack, seen = [edge[0]], set()
    while stack:
        k = stack.pop()
        if k in seen:
            continue
        seen.add(k)
        if k in graph.owner:
            owner = graph.owner[k]
            if owner is not None:
                below.add(owner)
        stack.extend(e[0] for e in graph.edges[k] if e is not None)
    return "|".join(kind), plain, scaled, part, below
