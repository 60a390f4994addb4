"""What is known about a graph after looking at it once: uses of every parameter, layouts, and which way each goes.

A plan is made from a handful of samples, run at two batch sizes, and *proved* there: for two random combinations of
outputs, the kernel of every parameter that the engine computes from it is compared with one made from ordinary
`torch.autograd.grad` of one sample at a time. A parameter that disagrees is sent to the generic path. Plans hold
numbers of nodes, never nodes, so that they serve every later forward pass of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from avalanche_ntk.kernels.graph import Edge, Graph
from avalanche_ntk.kernels.layout import Layout

# Parameter-only nodes that only rearrange entries, or scale all of them alike
VIEWS = (
    "TBackward0",
    "TransposeBackward0",
    "TransposeBackward1",
    "PermuteBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "UnsqueezeBackward1",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "AliasBackward0",
    "CloneBackward0",
    "ToCopyBackward0",
    "ContiguousBackward0",
    "MovedimBackward0",
    "FlipBackward0",
    "ViewAsBackward0",
)
SCALES = ("MulBackward0", "DivBackward0", "NegBackward0")
SPLITS = ("SplitBackward0", "SplitWithSizesBackward0", "UnbindBackward0", "ChunkBackward0")
# Nodes that move entries between samples according to values: what was seen for one batch proves nothing for the next
ROUTING = ("Index", "Gather", "Scatter", "Masked", "Sort", "Topk", "TopK", "Take", "RollBackward", "FlipBackward")


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


@dataclass
class Plan:
    """Way of every parameter.

    Attributes:
        handles: Borders between parameters and samples.
        native: Parameter → groups of handles whose pieces are contracted as they are (groups add up).
        pulled: Parameter → handles whose explicit gradients are carried to the parameter by its own chain.
        generic: Parameter → why it goes through explicit Jacobians.
        unused: Parameters that the output does not depend on.
        routed: Whether samples may be moved by values, so that layouts are proved anew in every measurement.
        batched: Whether signals of all outputs go in one vectorised pass.
        reads: Whether the forward pass looks at values, so that every sample is compared with itself alone each time.
        alone: Whether generic paths take one sample at a time.
        blind: Whether some layouts were guessed, because no signal arrived: the plan is not kept.
        twice: Whether nothing is planned because one sample takes another path than several (as torch's attention
            does): it is to be given twice.
    """

    handles: list[Handle] = field(default_factory=list)
    native: dict[str, list[list[int]]] = field(default_factory=dict)
    pulled: dict[str, list[int]] = field(default_factory=dict)
    generic: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    routed: bool = False
    batched: bool = True
    reads: bool = False
    alone: bool = False
    blind: bool = False
    twice: bool = False

    def copy(self) -> Plan:
        """Return a plan whose ways can be changed without changing this one."""
        return replace(self, native=dict(self.native), pulled=dict(self.pulled), generic=dict(self.generic))

    def edges(self) -> list[Edge]:
        """Return the edges whose signals are needed, without repetition, in the graph's order."""
        needed = {h for groups in self.native.values() for g in groups for h in g}
        needed |= {h for hs in self.pulled.values() for h in hs}
        return sorted({u.edge for h in needed for u in self.handles[h].uses})

    def joined(self, other: Plan) -> Plan:
        """Return the plan for two batches at once: what either sends to the generic path goes there."""
        if other is self or other.generic.keys() == self.generic.keys():
            return self
        both = self.copy()
        both.alone = self.alone or other.alone
        for name, reason in other.generic.items():
            both.demote(name, reason)
        return both

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
        node = graph.nodes[i]
        detail = [getattr(node, a, None) for a in ("_saved_dim", "_saved_dim0", "_saved_dim1", "_saved_dims")]
        kind.append(f"{name}{shape}{detail}")
        if len(children) != 1:
            plain = False
            break
        if name in SPLITS and part is None:
            part = (i, nr)
        elif name in SCALES:
            scaled = True
            kind[-1] += f"@{i}"  # two scales may differ: never merged
        elif name not in VIEWS:
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
