"""Numbers that a plan relies on beyond the graph's names and edges: shapes, and integers saved by nodes.

A model is Python code: if an attribute changes between two calls, the same operators may use another dimension
(`w.transpose(self.d, 1)`) or give other shapes. A plan is reused only if all these numbers are unchanged, where each is
constant or linear in the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avalanche_ntk.kernels._structure.graph import Graph, Node

Numbers = tuple[int, ...] | None
_KEPT: dict[type, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Pattern:
    """Numbers of a graph as functions of the number of samples N.

    Attributes:
        constant: Numbers independent of N, by position among a graph's numbers.
        growing: Numbers `base + slope·N`, by position.
        count: Number of entries.
    """

    constant: dict[int, Numbers]
    growing: dict[int, tuple[tuple[int, int], ...]]
    count: int

    @staticmethod
    def of(small: Graph, n_small: int, large: Graph, n_large: int) -> Pattern:
        """Derive the pattern from two passes; numbers that are neither constant nor linear are left open."""
        constant: dict[int, Numbers] = {}
        growing: dict[int, tuple[tuple[int, int], ...]] = {}
        low, high = numbers(small), numbers(large)
        for i, (a, b) in enumerate(zip(low, high, strict=False)):
            if a == b:
                constant[i] = a
            elif a is not None and b is not None and len(a) == len(b):
                lines = [_line(u, v, n_small, n_large) for u, v in zip(a, b, strict=True)]
                known = tuple(line for line in lines if line is not None)
                if len(known) == len(lines):
                    growing[i] = known
        return Pattern(constant, growing, len(high))

    def fits(self, graph: Graph, n: int) -> bool:
        """Return whether a graph of n samples has these numbers.

        Returns:
            True if all agree.
        """
        found = numbers(graph)
        return (
            len(found) == self.count
            and all(found[i] == value for i, value in self.constant.items())
            and all(found[i] == tuple(b + s * n for b, s in lines) for i, lines in self.growing.items())
        )


def _line(u: int, v: int, n: int, m: int) -> tuple[int, int] | None:
    """Return `(base, slope)` of the line through two numbers, or None if it is not plausible for batches."""
    slope, rest = divmod(v - u, m - n)
    base = u - slope * n
    return None if rest or base < 0 else (base, slope)


def numbers(graph: Graph) -> list[Numbers]:
    """Return the shapes of every node's outputs, and the integers that it saves for its backward pass."""
    found: list[Numbers] = []
    for node in graph.nodes:
        found.extend(tuple(m.shape) for m in node._input_metadata)
        found.extend(whole_numbers(node))
    return found


def whole_numbers(node: Node) -> list[Numbers]:
    """Return the integers that a node saves for its backward pass, in a fixed order; None for other values."""
    return [_whole(getattr(node, name)) for name in _kept(node)]


def _kept(node: Node) -> tuple[str, ...]:
    """Names of the saved values of a kind of node, except tensors (which also have `_raw_saved_…`) and input sizes."""
    kind = type(node)
    names = _KEPT.get(kind)
    if names is None:
        every = set(dir(kind))
        saved = [a for a in every if a.startswith("_saved_") and "_sym_" not in a and f"_raw{a}" not in every]
        _KEPT[kind] = names = tuple(sorted(saved))
    return names


def _whole(value: Any) -> Numbers:
    """Return integers as a tuple, None for other values."""
    if isinstance(value, int):
        return (int(value),)
    if isinstance(value, tuple | list) and all(isinstance(v, int) for v in value):
        return tuple(int(v) for v in value)
    return None
