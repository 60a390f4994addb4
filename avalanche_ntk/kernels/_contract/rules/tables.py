"""Rows of a table, selected by integers."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.pieces import Lookup, Piece
from avalanche_ntk.kernels._contract.rules.site import Inseparable, Site, need
from avalanche_ntk.kernels._structure.layout import Layout
from avalanche_ntk.kernels._structure.nodes import node


def _ids(indices: Tensor, padding: int, rows: int) -> Tensor:
    return indices if padding < 0 else torch.where(indices == padding, torch.full_like(indices, -1), indices)


@node("Embedding", factored=True, table=0)
def embedding(s: Site) -> Piece:
    """Embedding tables, dense or sparse gradients."""
    if bool(s.kept("scale_grad_by_freq")):
        raise Inseparable("a row's gradient is scaled by its frequency in the batch")
    rows = int(s.shape[0])
    padding = int(s.kept("padding_idx"))
    padding = padding - 2**64 if padding >= 2**63 else padding
    ids = _ids(s.kept("indices"), padding, rows)
    at = s.layout.samples_first(ids.unsqueeze(-1)[None], s.n)[0].reshape(s.n, -1)
    return Lookup(at, s.positions(s.g, 1), rows)


def _rows_taken(s: Site, ids: Tensor) -> Piece:
    """Rows of W, one for each of `ids`, whose dimensions are the output's first."""
    need(s.layout.dim < ids.dim())
    rows = int(s.shape[0])
    g = s.g.reshape(*s.g.shape[: 1 + ids.dim()], prod(s.shape[1:]))
    at = s.positions((ids % rows)[None, ..., None], 1)[0].squeeze(-1)
    return Lookup(at, s.positions(g, 1), rows)


@node("Index", factored=True, table=0)
def index(s: Site) -> Piece:
    """`W[ids]` with integers: a table of rows."""
    indices = s.kept("indices")
    need(indices[0] is not None and all(i is None for i in indices[1:]) and indices[0].dtype == torch.int64)
    return _rows_taken(s, indices[0])


@node("IndexSelect", factored=True, table=0)
def index_select(s: Site) -> Piece:
    """`W.index_select(0, ids)`."""
    need(int(s.kept("dim")) == 0)
    return _rows_taken(s, s.kept("index"))


@node("EmbeddingBag", factored=True, table=0, vectorised=False)
def embedding_bag(s: Site) -> Piece:
    """Sums and means of embedding rows, one bag a sample."""
    mode = int(s.kept("mode"))
    if bool(s.kept("scale_grad_by_freq")):
        raise Inseparable("a row's gradient is scaled by its frequency in the batch")
    need(s.slot == 0 and mode in (0, 1))
    need(s.layout == Layout(0) and s.g.shape[1] == s.n)
    indices, offset2bag, size = s.kept("indices"), s.kept("result1"), s.kept("result2")
    need(offset2bag.numel() == indices.numel())
    padding = int(s.kept("padding_idx"))
    padding = padding - 2**64 if padding >= 2**63 else padding
    ids = _ids(indices, padding, int(s.shape[0]))
    weight = torch.ones(indices.shape, dtype=s.g.dtype, device=s.g.device)
    if mode == 1:
        weight = weight / size[offset2bag].to(s.g.dtype).clamp(min=1)
    if s.kept("per_sample_weights") is not None:
        weight = weight * s.kept("per_sample_weights").reshape(-1)
    counts = torch.bincount(offset2bag, minlength=s.n)
    longest = max(int(counts.max()), 1)
    at = torch.full((s.n, longest), -1, dtype=ids.dtype, device=ids.device)
    w = s.g.new_zeros(s.n, longest)
    start = torch.cumsum(counts, 0) - counts
    column = torch.arange(ids.numel(), device=ids.device) - start[offset2bag]
    at[offset2bag, column] = ids
    w[offset2bag, column] = weight
    return Lookup(at, s.g[:, :, None, :] * w[None, :, :, None], int(s.shape[0]))
