"""The autograd graph of one forward pass, read as a structure: which node consumes which parameter.

Nodes are numbered in a topological order that depends on the graph's shape only, so that knowledge about a node from
one forward pass can be used in the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Node = Any  # torch.autograd.graph.Node; its `_saved_*` attributes exist on some subclasses only
Edge = tuple[int, int]  # (number of the node, which of its outputs)


class NotKept(Exception):
    """A node does not save the requested value."""


def kept(node: Node, *names: str) -> Any:
    """Return the value that a node saves for its backward pass, under the first of these names that it has.

    Raises:
        NotKept: It has none of them, or an empty one: a device may leave out values that its backward does not need.
    """
    for name in names:
        try:
            found = _field(node, f"_saved_{name}")
        except AttributeError:
            continue
        if isinstance(found, Tensor) and not found.numel():
            break
        return found
    raise NotKept(f"{node.name()} keeps none of {', '.join(names)}")


def _field(node: Node, name: str) -> Any:
    return getattr(node, name)


@dataclass(frozen=True)
class Graph:
    """Nodes reachable from the output, the output first and parameters last.

    Attributes:
        nodes: Autograd nodes, each before everything it leads to.
        names: `node.name()` of each.
        edges: For each node, for each of its inputs, the edge that produced it, or None for a constant.
        owner: Number of an accumulation node → the name of its parameter, or None for a probe input.
        signature: Equal for two graphs of the same shape (names, connections, parameters).
    """

    nodes: list[Node]
    names: tuple[str, ...]
    edges: tuple[tuple[Edge | None, ...], ...]
    owner: dict[int, str | None]
    signature: int

    @staticmethod
    def of(out: Tensor, parameters: dict[int, str]) -> Graph:
        """Read the graph behind `out`; `parameters` maps `id(tensor)` to a name.

        Returns:
            The graph.
        """
        root = out.grad_fn if out.grad_fn is not None else out.expand_as(out).grad_fn
        order: list[Node] = []
        seen: set[Node] = set()
        stack: list[tuple[Node, bool]] = [(root, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
                continue
            if node in seen:
                continue
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child is not None and child not in seen)
        order.reverse()
        number = {node: i for i, node in enumerate(order)}
        names = tuple(node.name() for node in order)
        edges = tuple(
            tuple(None if child is None else (number[child], nr) for child, nr in node.next_functions) for node in order
        )
        owner = {
            i: parameters.get(id(node.variable)) for i, node in enumerate(order) if names[i].endswith("AccumulateGrad")
        }
        return Graph(order, names, edges, owner, hash((names, edges, tuple(owner.items()))))

    def empty(self) -> Graph:
        """Return a graph without nodes, which keeps no activations alive."""
        return Graph([], (), (), {}, self.signature)

    def shape(self, edge: Edge) -> tuple[int, ...]:
        """Shape of the tensor of an edge, including parameters and probe inputs.

        Returns:
            The shape, as a tuple.
        """
        node = self.nodes[edge[0]]
        return tuple(node.variable.shape if edge[0] in self.owner else node._input_metadata[edge[1]].shape)

    def dtype(self, edge: Edge) -> torch.dtype:
        """Return the dtype of the tensor of an edge."""
        node = self.nodes[edge[0]]
        kind: torch.dtype = node.variable.dtype if edge[0] in self.owner else node._input_metadata[edge[1]].dtype
        return kind

    def coarsest(self) -> torch.dtype:
        """Return the coarsest real dtype in the graph: float64, or float32 for any other."""
        kinds = {self.dtype((i, k)) for i, node in enumerate(self.nodes) for k in range(len(node._input_metadata))}
        return torch.float32 if kinds - {torch.float64, torch.complex128} else torch.float64

    def candidates(self) -> list[bool]:
        """For each node, whether all tensors that it depends on are parameters (except constants).

        Returns:
            One flag per node, in the graph's order.
        """
        flags = [False] * len(self.nodes)
        for i in range(len(self.nodes) - 1, -1, -1):
            if i in self.owner:
                flags[i] = self.owner[i] is not None
            else:
                children = [e for e in self.edges[i] if e is not None]
                flags[i] = bool(children) and all(flags[c] for c, _ in children)
        return flags
