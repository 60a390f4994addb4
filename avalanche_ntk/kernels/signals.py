"""Backpropagated signals at chosen edges of the graph, in bounded memory.

Only signals are computed, never a weight gradient: `torch.autograd.grad` with respect to `GradientEdge`s. All outputs
go through one vectorised backward pass where the graph allows it. Where the signals of all edges together are too
large, the graph is cut at its bottlenecks (edges through which everything flows) and the backward pass is resumed from
the signal at the cut, so that no part of it runs twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from avalanche_ntk.kernels.graph import Edge, Graph

# Nodes whose backward has no batching rule, or whose rule is slower than a loop over outputs
_LOOP = ("Convolution", "FlashAttention", "Mkldnn", "Cudnn", "Thnn", "Checkpoint", "CompiledFunction", "EmbeddingBag")


def batches_well(graph: Graph) -> bool:
    """Tell whether one vectorised backward pass is expected to work and to pay.

    Returns:
        True when no node is known to be better off in a loop.
    """
    return not any(
        any(k in name for k in _LOOP) or not name.endswith(("0", "1", "AccumulateGrad")) for name in graph.names
    )


def pull(
    outputs: Sequence[Any], inputs: Sequence[Any], cotangents: Sequence[Tensor], batched: bool
) -> list[Tensor | None]:
    """Vector–Jacobian products for R cotangents at once.

    Args:
        outputs: Tensors or edges to start from.
        inputs: Tensors or edges to stop at.
        cotangents: One `(R, *shape)` tensor for each output.
        batched: One vectorised pass, or a loop over R.

    Returns:
        `(R, *shape)` for each input, None where nothing arrives.
    """
    r = cotangents[0].shape[0]
    if r == 1 or not batched:
        found: list[Tensor | None] = [None] * len(inputs)
        for k in range(r):
            row = torch.autograd.grad(outputs, inputs, [c[k] for c in cotangents], retain_graph=True, allow_unused=True)
            for i, g in enumerate(row):
                if g is None:
                    continue
                if r == 1:
                    found[i] = g.unsqueeze(0)
                    continue
                if k == 0:
                    found[i] = _room_for(r, g)
                held = found[i]
                assert held is not None
                held[k].copy_(g)
            del row
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap announces operators without a batching rule; they are still exact
        return list(
            torch.autograd.grad(
                outputs, inputs, list(cotangents), retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        )


def _room_for(r: int, g: Tensor) -> Tensor:
    """Return memory for r tensors like g, in its order of dimensions."""
    if g.dim() == 4 and not g.is_contiguous() and g.is_contiguous(memory_format=torch.channels_last):
        n, c, h, w = g.shape
        return g.new_empty(r, n, h, w, c).permute(0, 1, 4, 2, 3)
    return g.new_empty((r, *g.shape))


@dataclass(frozen=True)
class Segment:
    """A part of the backward pass between two bottlenecks.

    Attributes:
        start: Edge to start from; None for the output itself.
        edges: Edges whose signals are wanted.
        end: Edge where the next segment starts; None for the last.
    """

    start: Edge | None
    edges: tuple[Edge, ...]
    end: Edge | None


def bottlenecks(graph: Graph, wanted: set[Edge]) -> list[Edge]:
    """Edges through which every path from the output to the rest of the wanted edges runs.

    Returns:
        The edges, nearest to the output first.
    """
    size = len(graph.nodes)
    ends = {i for i, _ in wanted}
    leads = [False] * size
    for i in range(size - 1, -1, -1):
        leads[i] = i in ends or any(e is not None and leads[e[0]] for e in graph.edges[i])
    pending: set[Edge] = set()
    cuts: list[Edge] = []
    for i in range(size):
        if not leads[i]:
            continue
        if i and len(pending) == 1 and next(iter(pending))[0] == i:
            cuts.append(next(iter(pending)))
        pending = {e for e in pending if e[0] != i}
        pending |= {e for e in graph.edges[i] if e is not None and leads[e[0]]}
    return cuts


def segments(graph: Graph, wanted: Sequence[Edge], room: float) -> list[Segment]:
    """Cut the backward pass so that the signals of each part take at most `room` numbers, where bottlenecks allow.

    Returns:
        The parts in order; one part when everything fits.
    """
    order = sorted(set(wanted))
    size = {e: prod(graph.shape(e)) for e in order}
    if sum(size.values()) <= room:
        return [Segment(None, tuple(order), None)]
    cuts = bottlenecks(graph, set(order))
    between: list[list[Edge]] = [[] for _ in range(len(cuts) + 1)]
    at = 0
    for e in order:
        while at < len(cuts) and cuts[at][0] <= e[0]:
            at += 1
        between[at].append(e)
    parts: list[Segment] = []
    start: Edge | None = None
    held: list[Edge] = []
    for k, group in enumerate(between):
        if held and sum(size[e] for e in held) + sum(size[e] for e in group) > room:
            parts.append(Segment(start, tuple(held), cuts[k - 1]))
            start, held = cuts[k - 1], []
        held += group
    parts.append(Segment(start, tuple(held), None))
    return parts


def stream(
    out: Tensor, graph: Graph, parts: Sequence[Segment], cotangents: Tensor, room: float, batched: bool
) -> Generator[dict[Edge, Tensor | None], None, None]:
    """Signals of all wanted edges, part by part.

    Args:
        out: `(N, C)` output.
        graph: Its graph.
        parts: From `segments`.
        cotangents: `(R, C)`.
        room: Numbers that the signals of one step may take.
        batched: See `pull`.

    Yields:
        Edge → `(R, *shape)`, or None where nothing arrives.
    """
    r = cotangents.shape[0]
    source: Any = out
    gradient = cotangents[:, None, :].expand(r, *out.shape)
    for part in parts:
        groups: list[list[Edge]] = [[]]
        load = 0
        for e in part.edges:
            size = r * prod(graph.shape(e))
            if groups[-1] and load + size > room:
                groups.append([])
                load = 0
            groups[-1].append(e)
            load += size
        nxt: Tensor | None = None
        for i, group in enumerate(groups):
            last = i == len(groups) - 1
            edges = group + ([part.end] if last and part.end is not None else [])
            if not edges:
                continue
            found = pull([source], [GradientEdge(graph.nodes[k], nr) for k, nr in edges], [gradient], batched)
            if last and part.end is not None:
                nxt = found.pop()
            yield dict(zip(group, found, strict=True))
            del found
        if part.end is None:
            return
        if nxt is None:  # nothing flows through the bottleneck
            for later in parts[parts.index(part) + 1 :]:
                yield dict.fromkeys(later.edges)
            return
        source, gradient = GradientEdge(graph.nodes[part.end[0]], part.end[1]), nxt
