"""Matrix products: W on either side, with a bias, matrix by matrix, bilinear."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.pieces import Dense, Outer, Piece
from avalanche_ntk.kernels._contract.rules.elementwise import broadcast, scalar
from avalanche_ntk.kernels._contract.rules.site import Site, need
from avalanche_ntk.kernels._structure.layout import Layout
from avalanche_ntk.kernels._structure.nodes import node


def _product(s: Site, left: Tensor | None, right: Tensor | None, left_slot: int, scale: float) -> Piece:
    """The product `left @ right`: samples are rows of it (W on the right) or columns (W on the left).

    Returns:
        An `Outer` piece.
    """
    g = s.g if scale == 1 else s.g * scale
    if s.slot == left_slot + 1:  # W = right, (in, out); samples among the rows
        need(s.layout.dim == 0 and left is not None)
        assert left is not None
        return Outer(s.positions(left.conj()[None], 1)[0], s.positions(g, 1), a_first=True)
    need(s.layout.dim == 1 and right is not None)  # W = left, (out, in); samples among the columns
    assert right is not None
    turned = Site(s.node, s.slot, g, Layout(0, s.layout.before, s.layout.after), s.n, s.shape)
    return Outer(turned.positions(right.conj().T[None], 1)[0], turned.positions(g.transpose(1, 2), 1), a_first=False)


@node("Mm", factored=True, sums=((0, 1), (1, 0)), chain="product")
def mm(s: Site) -> Piece:
    """`self @ mat2`."""
    return _product(s, s.kept("self") if s.slot == 1 else None, s.kept("mat2") if s.slot == 0 else None, 0, 1)


@node("Addmm", factored=True, sums=((1, 1), (2, 0)))
def addmm(s: Site) -> Piece:
    """`beta·bias + alpha·(mat1 @ mat2)`."""
    if s.slot == 0:
        beta = float(s.kept("beta"))
        if s.g.shape[1] == s.n and beta == 1 and s.shape == tuple(s.g.shape[2:]):
            # one position: the bias is a weight whose input is 1, and shares the weight's Gram matrix of signals
            return Outer(s.g.new_ones(s.n, 1, 1), s.g.unsqueeze(2), a_first=True, ones=True)
        return broadcast(s, None, beta)
    alpha = float(s.kept("alpha"))
    return _product(s, s.kept("mat1") if s.slot == 2 else None, s.kept("mat2") if s.slot == 1 else None, 1, alpha)


def _batched_product(s: Site, left: Tensor | None, right: Tensor | None, left_slot: int, scale: float) -> Piece:
    """`left @ right` matrix by matrix, where the batch is not the samples' (heads, groups, an ensemble's members).

    Returns:
        An `Outer` piece for one matrix, else explicit gradients.
    """
    need(s.layout.dim in (1, 2))
    signal = s.g if scale == 1 else s.g * scale
    if s.slot == left_slot + 1:
        need(s.layout.dim == 1 and left is not None)
        assert left is not None
        a, g, a_first = left, signal, True
    else:
        need(s.layout.dim == 2 and right is not None)
        assert right is not None
        a, g, a_first = right.transpose(1, 2), signal.transpose(2, 3), False
    turned = Site(s.node, s.slot, g, Layout(1, s.layout.before, s.layout.after), s.n, s.shape)
    a = turned.layout.samples_first(a.conj()[None], s.n)[0]  # (N, groups, T, A)
    g = turned.layout.samples_first(g, s.n)  # (R, N, groups, T, B)
    if a.shape[1] == 1:
        return Outer(a[:, 0], g[:, :, 0], a_first)
    return Dense(torch.einsum("nhta,rnhtb->nrhab" if a_first else "nhta,rnhtb->nrhba", a, g))


@node("Bmm", sums=((0, 2), (1, 1)))
def bmm(s: Site) -> Piece:
    """`self @ mat2`, matrix by matrix."""
    return _batched_product(s, s.kept("self") if s.slot == 1 else None, s.kept("mat2") if s.slot == 0 else None, 0, 1)


@node("Baddbmm", sums=((1, 2), (2, 1)))
def baddbmm(s: Site) -> Piece:
    """`beta·self + alpha·(batch1 @ batch2)`, matrix by matrix."""
    if s.slot == 0:
        return broadcast(s, None, scalar(s.kept("beta")))
    left, right = s.kept("batch1") if s.slot == 2 else None, s.kept("batch2") if s.slot == 1 else None
    return _batched_product(s, left, right, 1, scalar(s.kept("alpha")))


@node("Trilinear", factored=True, keeps=False)
def bilinear(s: Site) -> Piece:
    """`x1ᵀ W[o] x2`, as `nn.Bilinear` calls it: a linear layer whose inputs are the products of both."""
    dims = [list(s.kept(k)) for k in ("expand1", "expand2", "expand3", "sumdim")]
    need(s.slot == 1 and dims == [[1, 3], [0], [1, 2], [2, 3]] and s.layout.dim == 0)
    a = (s.kept("i1").unsqueeze(2) * s.kept("i3").unsqueeze(1)).flatten(1).conj()
    return Outer(s.positions(a[None], 1)[0], s.positions(s.g, 1), a_first=False)


@node("Mv", sums=((0, 1), (1, 0)))
def mv(s: Site) -> Piece:
    """`matrix @ vector` with the vector as W."""
    need(s.slot == 1 and s.layout.dim == 0)
    return Outer(s.positions(s.kept("self").conj()[None], 1)[0], s.positions(s.g[..., None], 1), a_first=True)
