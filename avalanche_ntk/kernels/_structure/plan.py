"""A plan: the uses of every parameter in a graph, their layouts, and the method for each parameter.

A plan is made from a few samples, run at two batch sizes, and *proved* on them: for random combinations of outputs and
samples, every parameter's kernel is compared with one from ordinary `torch.autograd.grad`. A parameter that disagrees
uses the generic method. Plans hold indices of nodes, not nodes, so they can be used for every later forward pass of the
same pattern.
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
        node: Its index.
        slot: Which of its inputs.
        edge: Edge at which its output's signal is read.
        layout: Layout of the samples in that output.
    """

    node: int
    slot: int
    edge: Edge
    layout: Layout


@dataclass(frozen=True)
class Handle:
    """A tensor made of parameters only, consumed together with samples.

    Attributes:
        edge: Its edge; the parameter itself if the node is an accumulation node.
        uses: The nodes that consume it.
        kind: Equal for handles made from the parameter in the same way.
        plain: Whether it holds the parameter's entries, rearranged (and possibly scaled, see `scaled`).
        scaled: Whether a scale factor has to be determined.
        part: (index of a split node, index of the part) if it is a part of a split parameter.
    """

    edge: Edge
    uses: tuple[Use, ...]
    kind: str
    plain: bool
    scaled: bool
    part: tuple[int, int] | None


class Way(Enum):
    """Method for the parameters of a plan.

    * `GRAPH`: by the graph; some parameters may use explicit Jacobians for individual reasons.
    * `LOOP`: one sample at a time, since its graph alone differs from that in a batch (it depends on values).
    * `TWICE`: a sample alone takes another path than several samples (as in torch's attention), so it is given twice.
    """

    GRAPH = "graph"
    LOOP = "loop"
    TWICE = "twice"


@dataclass
class Plan:
    """The method for every parameter.

    Attributes:
        handles: Tensors at the border between parameters and samples.
        native: Parameter → groups of handles whose pieces are contracted directly (groups are summed).
        pulled: Parameter → handles whose explicit gradients are propagated to the parameter by its chain.
        generic: Parameter → reason for using explicit Jacobians.
        way: The method.
        moving: Whether samples may be moved by values, so that layouts are proved in every measurement.
        vectorised: Whether signals of all outputs are computed in one pass.
        unproven: Why the plan is not kept (a node without a signal proves nothing); empty if it is kept.
        uses: Number of times it was used.
        needs: Memory needs of a measurement, see `_contract.schedule.Needs`.
        rounding: Measured rounding differences of outputs of single samples.
        pattern: Pattern that a graph must have to use this plan; None if the graph was not read.
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
        """Return a copy whose methods can be changed independently."""
        return replace(self, native=dict(self.native), pulled=dict(self.pulled), generic=dict(self.generic))

    def edges(self) -> list[Edge]:
        """Return the edges whose signals are needed, without repetitions, in the graph's order."""
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
        """The plans for a kernel between two batches: both use the same method for every parameter.

        Each batch keeps its own layouts and its own shapes of tensors made from parameters, which depend on the
        sequence length. Gradients are contracted directly only if both sides derive the tensor from the parameter in
        the same way, otherwise with respect to the parameter itself. A parameter that is generic in either is generic
        in both.

        Returns:
            Both plans; twice the same object if they are equal.
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
        """Return the uses of a parameter, without the layouts."""
        handles = [self.handles[h] for h in self.handles_of(name)]
        return [(h.edge, [(u.node, u.slot, u.edge) for u in h.uses]) for h in handles]

    def _kinds(self, name: str) -> list[list[str]] | None:
        """Return how the tensors of each group are made from a parameter; None if it is not contracted directly."""
        groups = self.native.get(name)
        return None if groups is None else [[self.handles[h].kind for h in g] for g in groups]

    def handles_of(self, name: str) -> list[int]:
        """Return the handles whose signals are needed for a parameter's kernel."""
        return sorted(self.pulled.get(name) or [h for g in self.native.get(name, []) for h in g])

    def pull(self, name: str) -> None:
        """Propagate a parameter's gradients to the parameter itself before the contraction."""
        self.pulled[name] = self.handles_of(name)
        self.native.pop(name, None)

    def demote(self, name: str, reason: str) -> None:
        """Use the generic method for a parameter."""
        self.native.pop(name, None)
        self.pulled.pop(name, None)
        self.generic[name] = reason


def pure_nodes(small: Graph, large: Graph) -> list[bool]:
    """Nodes that depend on parameters only, and whose shapes do not grow with the batch.

    Returns:
        One flag per node.
    """
    flags = large.candidates()
    for i in range(len(flags) - 1, -1, -1):
        if flags[i] and i not in large.owner:
            shapes = range(len(large.nodes[i]._input_metadata))
            same = all(small.shape((i, k)) == large.shape((i, k)) for k in shapes)
            flags[i] = same and all(flags[e[0]] for e in large.edges[i] if e is not None)
    return flags


def chain(graph: Graph, edge: Edge) -> tuple[str, bool, bool, tuple[int, int] | None, set[str]]:
    """Describe how a tensor is made from parameters.

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
            kind[-1] += f"@{i}"  # scales may differ, so they are never merged
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
