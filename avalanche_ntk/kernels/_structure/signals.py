"""Backpropagated signals at chosen edges of the graph, in bounded memory.

Only signals are computed, never a weight gradient: `torch.autograd.grad` with respect to `GradientEdge`s. All outputs
go through one vectorised backward pass if the graph allows it. If the signals of all edges together are too large, the
graph is cut at its bottlenecks (edges through which everything flows), and the backward pass resumes from the signal at
the cut, so that no part runs twice.
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

from avalanche_ntk.kernels._device.profile import Profile, exhausted
from avalanche_ntk.kernels._structure.graph import Edge, Graph
from avalanche_ntk.kernels._structure.nodes import spec_of


def vectorises(graph: Graph, profile: Profile) -> bool:
    """Return whether one vectorised backward pass is expected to work and to be faster on a device.

    Returns:
        True if no node is known to be faster in a loop.
    """
    names = (name for name in graph.names if not name.endswith("AccumulateGrad"))
    specs = [spec_of(name) for name in names]
    return all(s.vectorised for s in specs) and (profile.launches or not any(s.loops for s in specs))


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
        `(R, *shape)` for each input, None if nothing arrives.

    Raises:
        RuntimeError: Memory has run out.
    """
    r = cotangents[0].shape[0]
    if r > 1 and batched:
        try:
            return _vectorised(outputs, inputs, cotangents)
        except RuntimeError as exc:  # an operator that does not support several cotangents at once (a sparse matrix)
            if exhausted(exc):
                raise
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


def _vectorised(outputs: Sequence[Any], inputs: Sequence[Any], cotangents: Sequence[Tensor]) -> list[Tensor | None]:
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
        steps: Edges whose signals to compute, grouped by step.
        end: Edge at which the next segment starts; None for the last. The first starts from the output.
    """

    steps: tuple[tuple[Edge, ...], ...]
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


def segments(graphs: Sequence[Graph], wanted: Sequence[Edge], room: float) -> list[Segment]:
    """Cut the backward pass into segments whose signals take at most `room` numbers, if bottlenecks allow.

    Args:
        graphs: Graphs of the batches processed in parallel, equal except for the number of samples.
        wanted: Edges whose signals are wanted.
        room: Limit for the signals of one output, in numbers, for the largest batch.

    Returns:
        The parts in order; one part when everything fits.
    """
    order = sorted(set(wanted))
    size = {e: max(prod(g.shape(e)) for g in graphs) for e in order}
    if sum(size.values()) <= room:
        return [Segment((tuple(order),), None)]
    cuts = bottlenecks(graphs[0], set(order))
    between: list[list[Edge]] = [[] for _ in range(len(cuts) + 1)]
    at = 0
    for e in order:
        while at < len(cuts) and cuts[at][0] <= e[0]:
            at += 1
        between[at].append(e)
    parts: list[Segment] = []
    held: list[Edge] = []
    for k, group in enumerate(between):
        if held and sum(size[e] for e in held) + sum(size[e] for e in group) > room:
            parts.append(Segment(_steps(held, size, room), cuts[k - 1]))
            held = []
        held += group
    parts.append(Segment(_steps(held, size, room), None))
    return parts


def _steps(edges: Sequence[Edge], size: dict[Edge, int], room: float) -> tuple[tuple[Edge, ...], ...]:
    """Group edges into steps whose signals take at most `room` numbers, if single signals allow."""
    steps: list[list[Edge]] = [[]]
    load = 0
    for e in edges:
        if steps[-1] and load + size[e] > room:
            steps.append([])
            load = 0
        steps[-1].append(e)
        load += size[e]
    return tuple(tuple(step) for step in steps)


def stream(
    out: Tensor, graph: Graph, parts: Sequence[Segment], cotangents: Tensor, batched: bool
) -> Generator[dict[Edge, Tensor | None], None, None]:
    """Signals of all wanted edges, step by step.

    Args:
        out: `(N, C)` output.
        graph: Its graph.
        parts: From `segments`.
        cotangents: `(R, C)`, or `(R, N, C)` if they differ between samples.
        batched: See `pull`.

    Yields:
        Edge → `(R, *shape)`, or None if nothing arrives; the same number of times for every batch with these parts.
    """
    r = cotangents.shape[0]
    source: Any = out
    gradient: Tensor | None = cotangents if cotangents.dim() == 3 else cotangents[:, None, :].expand(r, *out.shape)
    for part in parts:
        nxt: Tensor | None = None
        for i, step in enumerate(part.steps):
            cut = part.end if i == len(part.steps) - 1 else None
            edges = [*step, *(() if cut is None else (cut,))]
            if gradient is None or not edges:  # nothing flows through the last bottleneck, or nothing is wanted
                yield dict.fromkeys(step)
                continue
            found = pull([source], [GradientEdge(graph.nodes[k], nr) for k, nr in edges], [gradient], batched)
            if cut is not None:
                nxt = found.pop()
            yield dict(zip(step, found, strict=True))
            del found
        if part.end is not None:
            source, gradient = GradientEdge(graph.nodes[part.end[0]], part.end[1]), nxt
