"""Scales and shifts of norm layers."""

from __future__ import annotations

from avalanche_ntk.kernels._contract.pieces import Dense, Piece
from avalanche_ntk.kernels._contract.rules.elementwise import broadcast
from avalanche_ntk.kernels._contract.rules.site import Site, need
from avalanche_ntk.kernels._structure.nodes import node


@node("NativeBatchNorm CudnnBatchNorm MiopenBatchNorm BatchNorm")
def batch_norm(s: Site) -> Piece:
    """Batch norm by running statistics (in eval mode)."""
    if s.slot == 2:
        return broadcast(s, None, dims=(1,))
    x = s.kept("input")
    need(s.slot == 1 and not bool(s.kept("training")))
    view = (1, -1) + (1,) * (x.dim() - 2)
    invstd = (s.kept("running_var") + float(s.kept("eps", "epsilon"))).rsqrt()
    piece = broadcast(s, x - s.kept("running_mean").view(view), dims=(1,))
    assert isinstance(piece, Dense)
    return Dense(piece.j * invstd.view(s.shape))  # after the sum over positions: one pass over x less


@node("NativeLayerNorm")
def layer_norm(s: Site) -> Piece:
    """Layer norm."""
    if s.slot == 2:
        return broadcast(s, None)
    need(s.slot == 1)
    return broadcast(s, (s.kept("input") - s.kept("result1")) * s.kept("result2"))


@node("NativeGroupNorm")
def group_norm(s: Site) -> Piece:
    """Group norm."""
    if s.slot == 2:
        return broadcast(s, None, dims=(1,))
    need(s.slot == 1)
    x, groups = s.kept("input"), int(s.kept("group"))
    xs = x.reshape(x.shape[0], groups, -1)
    normed = (xs - s.kept("result1").reshape(-1, groups, 1)) * s.kept("result2").reshape(-1, groups, 1)
    return broadcast(s, normed.reshape(x.shape), dims=(1,))
