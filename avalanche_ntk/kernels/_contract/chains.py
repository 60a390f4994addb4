"""Propagate factored gradients through a weight's computation from parameters, such as `W + B A`, without forming them.

The gradient with respect to a matrix is `Σ_t u_t ⊗ v_t`, u along its rows and v along its columns. Sums, scalar factors
and transpositions keep that form; through a product `P Q` it is `Σ_t u_t ⊗ (Q v_t)` for P and `Σ_t (Pᵀ u_t) ⊗ v_t` for
Q, whose rank is small in a low-rank update.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.patches import Patches
from avalanche_ntk.kernels._contract.pieces import Outer, Piece
from avalanche_ntk.kernels._structure.graph import Edge, Graph, NotKept, kept
from avalanche_ntk.kernels._structure.nodes import spec_of

_SAME = ("Alias", "Clone", "Contiguous", "ToCopy")  # views of the same shape and order


def carried_factors(piece: Piece, graph: Graph, edge: Edge, name: str) -> Outer | None:
    """Propagate a factored gradient from the tensor of an edge to a parameter.

    Args:
        piece: The gradient with respect to that tensor.
        graph: The graph.
        edge: Edge of the tensor, which depends on parameters only.
        name: Name of the parameter.

    Returns:
        The gradient with respect to the parameter; None if there is more than one path or the path does not keep the
        form.
    """
    if not isinstance(piece, Outer) or isinstance(piece.a, Patches) or len(graph.shape(edge)) != 2:
        return None
    if piece.a.is_complex() or piece.g.is_complex():
        return None
    here, found = edge[0], piece
    while here not in graph.owner:
        slots = [s for s, e in enumerate(graph.edges[here]) if e is not None and _leads_to(graph, e[0], name)]
        if len(slots) != 1:
            return None
        step = _through(found, graph, here, slots[0])
        if step is None:
            return None
        found, (here, _) = step, graph.edges[here][slots[0]]  # type: ignore[misc]
    return found


def _leads_to(graph: Graph, start: int, name: str) -> bool:
    stack, seen = [start], set()
    while stack:
        i = stack.pop()
        if graph.owner.get(i) == name:
            return True
        if i not in seen:
            seen.add(i)
            stack.extend(e[0] for e in graph.edges[i] if e is not None)
    return False


def _through(piece: Outer, graph: Graph, here: int, slot: int) -> Outer | None:
    """Propagate through one node to one of its inputs; None if the form is not known to be kept."""
    at, kind = graph.nodes[here], graph.names[here].split("Backward")[0]
    child = graph.edges[here][slot]
    assert child is not None
    same_shape = graph.shape(child) == graph.shape((here, 0))
    try:
        if kind in ("T", "Permute", "Transpose"):
            turned = kind == "T" or _dims(at, kind)[0] % 2 == 1
            return replace(piece, a_first=piece.a_first != turned)
        if kind in _SAME and same_shape:
            return piece
        what = spec_of(graph.names[here]).chain
        if what == "sum" and same_shape:
            return _scaled(piece, kept(at, "alpha") if slot else 1)
        if what == "scale" and same_shape:
            return _scaled(piece, -1 if kind == "Neg" else _factor(at, kind, slot))
        if what == "product":
            return _product(piece, kept(at, "mat2"), False) if slot == 0 else _product(piece, kept(at, "self"), True)
    except NotKept:
        pass
    return None


def _dims(at: Any, kind: str) -> list[int]:
    """Return the node's order of the two dimensions of a matrix."""
    if kind == "Permute":
        return [int(d) for d in kept(at, "dims")]
    swapped = int(kept(at, "dim0")) % 2 != int(kept(at, "dim1")) % 2
    return [1, 0] if swapped else [0, 1]


def _factor(at: Any, kind: str, slot: int) -> Any:
    other = kept(at, "other" if slot == 0 else "self")
    if slot and kind == "Div":  # a divisor
        return None
    return 1 / other if kind == "Div" else other


def _scaled(piece: Outer, factor: Any) -> Outer | None:
    if factor is None or (isinstance(factor, Tensor) and factor.dim()):
        return None
    return piece if not isinstance(factor, Tensor) and factor == 1 else replace(piece, g=piece.g * factor)


def _product(piece: Outer, other: Tensor | None, left: bool) -> Outer | None:
    """Propagate through `P Q` to P (`other` is Q), or to Q (`left`: `other` is P)."""
    if other is None or other.is_complex():
        return None
    matrix = other.detach() if left else other.detach().T  # u ↦ u P, v ↦ v Qᵀ
    rows_are_a = piece.a_first
    if left == rows_are_a:
        assert isinstance(piece.a, Tensor)
        return replace(piece, a=torch.matmul(piece.a, matrix.to(piece.a)))
    return replace(piece, g=torch.matmul(piece.g, matrix.to(piece.g)))
