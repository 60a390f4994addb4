"""One batch in a measurement: its signals and the pieces made from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from avalanche_ntk.kernels._contract.chains import carried_factors
from avalanche_ntk.kernels._contract.pieces import Dense, Piece, in_kind, merge
from avalanche_ntk.kernels._contract.rules import Site, piece_of
from avalanche_ntk.kernels._device.profile import profile_of
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._structure import signals
from avalanche_ntk.kernels._structure.graph import Edge
from avalanche_ntk.kernels._structure.nodes import is_factored
from avalanche_ntk.kernels._structure.passes import Pass
from avalanche_ntk.kernels._structure.plan import Handle, Plan


class Unreadable(Exception):
    """The graph cannot be read as per-sample uses of parameters; the reason is the message."""


class Side:
    """The signals of one batch that have arrived, and their pieces.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        plan: Plan of the pass.
        at: The pass.
    """

    def __init__(self, subject: Subject, plan: Plan, at: Pass) -> None:
        self.subject, self.plan, self.at = subject, plan, at
        self.signals: dict[Edge, Tensor | None] = {}
        self.by_own_backward: set[str] = set()  # parameters of nodes without a rule

    def edges_of(self, handles: list[int]) -> set[Edge]:
        """Return the edges whose signals these handles need."""
        return {u.edge for h in handles for u in self.plan.handles[h].uses}

    def ready(self, handles: list[int]) -> bool:
        """Return whether all signals of these handles have arrived."""
        return self.edges_of(handles) <= self.signals.keys()

    def silent(self, name: str) -> bool:
        """Return whether no signal arrives at any use of a parameter."""
        return all(self.signals[e] is None for e in self.edges_of(self.plan.handles_of(name)))

    def w_shape(self, handle: Handle) -> tuple[int, ...]:
        """Return the shape of the handle's tensor."""
        return self.at.graph.shape(handle.edge)

    def is_dense(self, handle: int) -> bool:
        """Return whether its pieces are likely explicit (grouped convolutions, nodes without a rule)."""
        graph = self.at.graph
        return not all(is_factored(graph.names[u.node], graph.nodes[u.node]) for u in self.plan.handles[handle].uses)

    def pieces(self, name: str, rows: slice) -> list[Piece | None]:
        """Return a parameter's pieces, one for every group of handles."""
        if name in self.plan.pulled:
            return [self._carried(self.plan.pulled[name], rows, name)]
        return [self._piece(group, rows, name) for group in self.plan.native[name]]

    def _piece(self, handles: list[int], rows: slice, name: str) -> Piece | None:
        """Return the merged piece of these handles for some outputs, or None if no signal arrives."""
        graph = self.at.graph
        pieces: list[Piece] = []
        shape: tuple[int, ...] = ()
        for h in handles:
            handle = self.plan.handles[h]
            shape = self.w_shape(handle)
            for u in handle.uses:
                g = self.signals[u.edge]
                if g is None:
                    continue
                if not u.layout.fits(tuple(g.shape[1:]), self.at.n):
                    raise Unreadable(f"the shape at {graph.names[u.node]} is not the one the plan was made for")
                site = Site(graph.nodes[u.node], u.slot, g[rows].detach(), u.layout, self.at.n, shape)
                piece, way = piece_of(site, graph.names[u.node])
                if way == "masked":
                    self.by_own_backward.add(name)
                kind = self.at.out.dtype
                pieces.append(in_kind(piece, kind.to_complex() if graph.dtype(handle.edge).is_complex else kind))
        return merge(pieces, shape) if pieces else None

    def scale(self, handles: list[int], name: str) -> float | None:
        """Return the factor by which the chain multiplies all entries; None if there is more than one."""
        handle = self.plan.handles[handles[0]]
        if not handle.scaled:
            return 1.0
        graph = self.at.graph
        ones = torch.ones(self.w_shape(handle), dtype=graph.dtype(handle.edge), device=self.at.out.device)
        edge = GradientEdge(graph.nodes[handle.edge[0]], handle.edge[1])
        (s,) = torch.autograd.grad([edge], [self.subject.leaves[name]], [ones], retain_graph=True)
        low, high = torch.stack([s.min(), s.max()]).tolist()
        return float(low) if low == high else None

    def pull(self, name: str) -> None:
        """Propagate this parameter's gradients to the parameter itself, in this pass only."""
        self.plan = self.plan.copy()
        self.plan.pull(name)

    def _carried(self, handles: list[int], rows: slice, name: str) -> Piece | None:
        """Return gradients propagated through the parameter's chain: factored if possible, otherwise explicit.

        Those of a preconditioned parameter are always explicit, since each entry has its own weight.
        """
        leaf, graph, root = self.subject.leaves[name], self.at.graph, self.subject.roots.get(name)
        made = [(self.plan.handles[h], piece) for h in handles if (piece := self._piece([h], rows, name)) is not None]
        factors = [carried_factors(piece, graph, handle.edge, name) for handle, piece in made]
        if factors and all(f is not None for f in factors):
            whole = merge([f for f in factors if f is not None], tuple(leaf.shape))
            return whole if root is None else Dense(whole.dense(tuple(leaf.shape)).mul_(root))
        total: Tensor | None = None
        for handle, piece in made:
            j: Tensor | None = piece.dense(self.w_shape(handle))
            if handle.edge[0] not in graph.owner:
                assert j is not None
                j = self._through_chain(j, handle, leaf, own=not isinstance(piece, Dense))
            if j is not None:
                total = j if total is None else total + j
        if total is None:
            return None
        total = total.to(self.at.out.dtype)
        return Dense(total if root is None else total * root)

    def _through_chain(self, j: Tensor, handle: Handle, leaf: Tensor, own: bool) -> Tensor | None:
        """Propagate gradients `(N, R, …)` to the parameter that the handle is made from, some at a time.

        Gradients made here (`own`) are overwritten if they have the parameter's shape, to save memory.

        Returns:
            `(N, R, *leaf.shape)`, or None if nothing arrives.
        """
        n, r = j.shape[:2]
        edge: Any = GradientEdge(self.at.graph.nodes[handle.edge[0]], handle.edge[1])
        flat = j.reshape(n * r, *j.shape[2:]).to(self.at.graph.dtype(handle.edge))
        step = max(1, profile_of(j.device).carried // max(1, leaf.numel(), flat[0].numel()))
        found: Tensor | None = None
        for start in range(0, n * r, step):
            (got,) = signals.pull([edge], [leaf], [flat[start : start + step]], True)
            if got is None:
                return None
            if found is None:
                same = own and flat.shape[1:] == leaf.shape and flat.dtype == got.dtype
                found = flat if same else got.new_empty(n * r, *leaf.shape)
            found[start : start + step] = got.clone() if found is flat else got  # a transpose is a view of them
        assert found is not None  # there is a sample, and an output
        return found.reshape(n, r, *leaf.shape)
