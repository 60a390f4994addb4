"""Detection of graphs that may move samples by their values, so that one batch proves nothing for the next.

Layouts are measured on a few samples. They hold for every batch if all operators keep samples in their positions. An
index, a custom function, or a product that sums over samples (the dispatch of a mixture of experts) may move them by
values.
"""

from __future__ import annotations

from avalanche_ntk.kernels._structure.graph import Edge, Graph
from avalanche_ntk.kernels._structure.nodes import spec_of


def moves_by_values(small: Graph, large: Graph, pure: list[bool]) -> bool:
    """Return whether some operator may move samples according to their values.

    Args:
        small: The graph of a few samples.
        large: The graph of more.
        pure: Which nodes depend on parameters only.

    Returns:
        True if a node is not known to keep them in place.
    """

    def grows(edge: Edge | None, dim: int) -> bool:
        if edge is None:  # a constant
            return False
        a, b = small.shape(edge), large.shape(edge)
        return len(a) != len(b) or a[dim] != b[dim]

    def keeps(i: int) -> bool:
        spec, edges = spec_of(large.names[i]), large.edges[i]
        table = None if spec.table is None else edges[spec.table]
        from_samples = table is not None and not pure[table[0]]
        return spec.keeps and not from_samples and not any(grows(edges[slot], dim) for slot, dim in spec.sums)

    return any(not pure[i] and i not in large.owner and not keeps(i) for i in range(len(large.nodes)))
