"""Convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.patches import Patches, unfolded
from avalanche_ntk.kernels._contract.pieces import Dense, Outer, Piece
from avalanche_ntk.kernels._contract.rules.elementwise import broadcast
from avalanche_ntk.kernels._contract.rules.site import Site, need
from avalanche_ntk.kernels._structure.graph import Node
from avalanche_ntk.kernels._structure.layout import Layout
from avalanche_ntk.kernels._structure.nodes import node


def _one_group(at: Node) -> bool:
    return int(at._saved_groups) == 1


@node("Convolution", factored=_one_group, table=1, loops=True)
def convolution(s: Site) -> Piece:
    """Convolutions of 1–3 dimensions, strided, padded, dilated, grouped, transposed."""
    need(s.layout.dim == 0)
    if s.slot == 2:
        return broadcast(s, None, 1.0, dims=(1,))
    need(s.slot == 1)
    x, groups, transposed = s.kept("input"), int(s.kept("groups")), bool(s.kept("transposed"))
    stride, padding, dilation = list(s.kept("stride")), list(s.kept("padding")), list(s.kept("dilation"))
    need(x is not None and x.dim() > 2)
    nd = x.dim() - 2
    stride, padding, dilation = ([v[0]] * nd if len(v) == 1 else v for v in (stride, padding, dilation))
    kernel = list(s.shape[2:])
    r, batch = s.g.shape[:2]
    if transposed:
        # y = Wᵀ-convolution of x: the weight's gradient pairs every input pixel with the patch of the signal it feeds
        a = x.reshape(batch, groups, x.shape[1] // groups, -1).transpose(2, 3)
        flat = s.g.reshape(r * batch, *s.g.shape[2:])
        p = unfolded(flat, kernel, stride, padding, dilation, list(x.shape[2:]))
        g = p.reshape(r, batch, groups, -1, a.shape[2]).transpose(3, 4)
        a_first = True
    else:
        out = list(s.g.shape[3:])
        if groups == 1 and s.layout == Layout(0) and batch == s.n:
            g = s.g.flatten(3).transpose(2, 3)
            return Outer(Patches(x, kernel, stride, padding, dilation, out, g.shape[3]), g, a_first=False)
        if all(k == 1 for k in kernel) and all(v == 1 for v in stride) and not any(padding):
            p = x
        else:
            p = unfolded(x, kernel, stride, padding, dilation, out)
        a = p.reshape(batch, groups, -1, s.g[0, 0, 0].numel()).transpose(2, 3)
        g = s.g.reshape(r, batch, groups, s.g.shape[2] // groups, -1).transpose(3, 4)
        a_first = False
    a = s.layout.samples_first(a[None], s.n)[0]  # (N, frames, groups, T, A)
    g = s.layout.samples_first(g, s.n)  # (R, N, frames, groups, T, B)
    if groups == 1:
        return Outer(_join(a[:, :, 0], 1), _join(g[:, :, :, 0], 2), a_first)
    return Dense(torch.einsum("nfhta,rnfhtb->nrhab" if a_first else "nfhta,rnfhtb->nrhba", a, g))


def _join(t: Tensor, dim: int) -> Tensor:
    """Merge dimensions `dim` and `dim + 1`, without a copy where the first has size 1.

    Returns:
        The merged tensor.
    """
    return t.squeeze(dim) if t.shape[dim] == 1 else t.flatten(dim, dim + 1)
