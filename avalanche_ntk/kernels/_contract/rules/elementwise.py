"""Elementwise uses of W, broadcast or repeated over the output."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.pieces import Dense, Piece
from avalanche_ntk.kernels._contract.rules.site import Site, need
from avalanche_ntk.kernels._structure.nodes import node


def broadcast(s: Site, factor: Tensor | None, scale: float = 1.0, dims: tuple[int, ...] | None = None) -> Piece:
    """W enters elementwise, times `factor`, broadcast over the output: sum over the broadcast dimensions.

    Args:
        s: The site.
        factor: Broadcasts against the output, or None for 1.
        scale: A further scalar.
        dims: Output dimension of each of W's; by default the trailing ones, as torch broadcasts.

    Returns:
        A `Dense` piece.
    """
    out = s.g.shape[1:]
    if dims is None:
        dims = tuple(range(len(out) - len(s.shape), len(out)))
    need(len(dims) == len(s.shape) and all(d >= 0 and k in (1, out[d]) for d, k in zip(dims, s.shape, strict=True)))
    kept = [d for d, size in zip(dims, s.shape, strict=True) if size != 1]
    # the samples' dimension can be one of W's only if W has one copy per sample, which a parameter has not
    need(s.layout.dim not in kept)
    gone = [1 + d for d in range(len(out)) if d not in kept]
    if factor is None:
        first = s.layout.samples_first(s.g, s.n)  # (R, N, *out) with the samples' dimension before·after
        size = [first.shape[1 + d] for d in gone]
        first = first.flatten(2) if prod(size) == 1 else first.sum([1 + d for d in gone])
        j = first.reshape(s.g.shape[0], s.n, *s.shape).transpose(0, 1)
        return Dense(j if scale == 1 else j * scale)
    factor = s.layout.samples_first(factor.expand(out)[None], s.n)[0]
    rows = []
    for g in s.g:  # one output at a time: the product with `factor` stays small
        first = s.layout.samples_first(g[None], s.n)[0]
        rows.append((first * factor.conj()).sum(gone).reshape(s.n, *s.shape))
    j = torch.stack(rows, 1)
    return Dense(j if scale == 1 else j * scale)


def scalar(value: Any) -> float:
    return float(value.item() if isinstance(value, Tensor) else value)


@node("Add", chain="sum")
def add(s: Site) -> Piece:
    """`self + alpha·other`."""
    return broadcast(s, None, scalar(s.kept("alpha")) if s.slot == 1 else 1.0)


@node("Sub")
def sub(s: Site) -> Piece:
    """`self - alpha·other`."""
    return broadcast(s, None, -scalar(s.kept("alpha")) if s.slot == 1 else 1.0)


@node("Mul", chain="scale")
def mul(s: Site) -> Piece:
    """`self·other`."""
    factor = s.kept("other") if s.slot == 0 else s.kept("self")
    need(factor is not None)
    return broadcast(s, factor)


@node("Div", chain="scale")
def div(s: Site) -> Piece:
    """`self / other`."""
    other = s.kept("other")
    if s.slot == 0:
        return broadcast(s, other.reciprocal())
    return broadcast(s, -s.kept("self") / (other * other))


@node("Expand")
def expand(s: Site) -> Piece:
    """A parameter repeated for every sample (class tokens, `matmul(W, x)` with a batch of x)."""
    return broadcast(s, None)


@node("Repeat")
def repeat(s: Site) -> Piece:
    """A parameter tiled for every sample, along its own dimension (instance norm) or a new one."""
    first = s.layout.samples_first(s.g, s.n)  # (R, N, *out) with the samples' dimension before·after
    w = (1,) * (first.dim() - 2 - len(s.shape)) + tuple(s.shape)
    need(s.layout.before == 1 and all(o % k == 0 for o, k in zip(first.shape[2:], w, strict=True)))
    folded = first.reshape(*first.shape[:2], *(v for o, k in zip(first.shape[2:], w, strict=True) for v in (o // k, k)))
    j = folded.sum(list(range(2, folded.dim(), 2)))
    return Dense(j.transpose(0, 1).reshape(s.n, s.g.shape[0], *s.shape))


@node("PreluKernel")
def prelu(s: Site) -> Piece:
    """`max(x, 0) + w·min(x, 0)`."""
    need(s.slot == 1)
    return broadcast(s, s.kept("self").clamp(max=0))
