"""The steps of a kernel's computation, chosen to fit the memory budget with as few passes as possible.

If the signals of all samples fit, parameter by parameter, everything is done in one step. Otherwise passes run for a
block of samples at a time, and their pieces (factors, or explicit gradients if cheaper or smaller) are held until all
samples are done: each sample's passes run once. If the pieces of all samples do not fit, those of some are held while
the others are recomputed: with two such groups, the second group's passes run twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from avalanche_ntk.errors import MemoryBudgetError
from avalanche_ntk.kernels._contract.contraction import costs
from avalanche_ntk.kernels._contract.pieces import Size
from avalanche_ntk.kernels._contract.side import Side
from avalanche_ntk.kernels._device.profile import PROCESSOR, Profile, profile_of
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._structure.nodes import spec_of
from avalanche_ntk.kernels._structure.passes import Pass
from avalanche_ntk.kernels._structure.plan import Plan

_HELD, _PASSING = 0.5, 0.25  # shares of the budget: for pieces that are held, and for the passes that make them


@dataclass(frozen=True)
class Needs:
    """Memory needs of a measurement, in numbers.

    Attributes:
        alone: The least that one sample needs.
        passing: What each sample of a block adds during its passes.
        signal: The part of these due to the largest signals of one parameter.
        pieces: Sizes of each parameter's pieces.
        item: Bytes of a number.
        profile: Profile of the device.
    """

    alone: int
    passing: int
    signal: int
    pieces: dict[str, list[Size]]
    item: int
    profile: Profile = PROCESSOR


@dataclass(frozen=True)
class Steps:
    """The steps of a measurement.

    Attributes:
        block: Samples whose passes run at a time.
        held: Samples whose pieces are held at a time; 0 if one step does everything.
        outputs: Outputs for which pieces are held at a time.
        explicit: Parameters that are held as explicit gradients.
    """

    block: int
    held: int
    outputs: int
    explicit: frozenset[str] = frozenset()


def needs(subject: Subject, plan: Plan, at: Pass, pieces: dict[str, list[Size]]) -> Needs:
    """Estimate from a pass the memory that one sample needs.

    A backward pass holds, besides the requested signals, those of both branches of a residual block and the copies that
    convolutions make: six in all. The rule for nodes without a rule makes as many again, for all of a node's inputs.

    Returns:
        The needs.
    """
    graph, n = at.graph, at.n
    signal = max((sum(prod(graph.shape(e)) // n for e in edges) for edges in plan.together()), default=1)
    uses = [(handle, u) for handle in plan.handles for u in handle.uses]
    patches = [
        # every weight of one output channel, at every position
        prod(graph.shape(h.edge)) // max(1, graph.shape(h.edge)[0]) * (prod(graph.shape(u.edge)[2:]))
        for h, u in uses
        if graph.names[u.node] == "ConvolutionBackward0" and u.slot == 1
    ]
    explicit = largest_explicit(subject, plan, at)
    pulled = max((subject.leaves[name].numel() for name in plan.pulled), default=0)
    ruled = all(spec_of(graph.names[u.node]).rule is not None for _, u in uses)
    passing = max((6 if ruled else 12) * signal, 3 * explicit, 5 * pulled)
    least, profile = 3 * max(signal, explicit, *patches, 1), profile_of(at.out.device)
    return Needs(least, passing, signal, pieces, at.out.element_size(), profile)


def largest_explicit(subject: Subject, plan: Plan, at: Pass) -> int:
    """Return the number of entries of the largest parameter whose gradients are formed."""
    side = Side(subject, plan, at)
    dense = [n for n, groups in plan.native.items() if any(side.is_dense(h) for g in groups for h in g)]
    return max((subject.leaves[n].numel() for n in (*dense, *plan.pulled, *plan.generic)), default=1)


def steps(need: Needs, n: int, m: int | None, r: int, full: bool, budget: int, block: int | None, name: str) -> Steps:
    """Choose the steps of a measurement.

    Args:
        need: Its memory needs.
        n: Samples of the first batch.
        m: Samples of the second batch; None for a self-kernel.
        r: Outputs.
        full: Output pairs are kept apart.
        budget: Bytes.
        block: Samples of a block, if chosen by the caller.
        name: The model's class, for messages.

    Returns:
        The steps.

    Raises:
        MemoryBudgetError: The budget is too small for one sample.
    """
    item, numbers = need.item, budget / need.item
    copies = r if full else 1
    most = max(n, m or 0)
    if need.alone * copies > numbers:
        raise MemoryBudgetError(
            f"memory_budget={budget} bytes is too small for a block of one sample: about {need.alone * copies * item}"
            f" bytes are needed for {name} with {r} outputs. Raise memory_budget to that."
        )
    if (block is None and most * need.passing * copies <= numbers) or (block is not None and block >= most):
        return Steps(most, 0, r)
    most_passing = block or int(max(1, _PASSING * numbers // max(1, need.passing * copies)))
    if block is None and need.profile.pages:  # signals of more than a tile are fetched page by page
        most_passing = max(1, min(most_passing, need.profile.tile // need.signal))
    fast = {k for k, sizes in need.pieces.items() if _explicit_is_faster(sizes, n, m, r, full, budget, need)}
    small = {k for k, sizes in need.pieces.items() if sum(_kept(s, r, True) - _kept(s, r, False) for s in sizes) < 0}
    best: tuple[float, Steps] | None = None
    for explicit in (fast, small):
        outputs = r
        while True:
            kept = sum(_kept(s, outputs, k in explicit) for k, sizes in need.pieces.items() for s in sizes)
            room = int(_HELD * numbers // max(1, kept))
            held, passing = min(n, room), min(most_passing, room)
            if held < n or m is not None:  # beside them, pieces of one block at a time
                passing = max(1, min(most_passing, room // 2))
                held = max(1, min(n, room - passing))
            time = _passes(n, m, held, outputs, r)
            if best is None or time < 0.9 * best[0]:
                best = time, Steps(max(1, min(passing, held)), held, outputs, frozenset(explicit))
            if full or outputs == 1:
                break
            outputs = ceil(outputs / 2)
    assert best is not None
    return best[1]


def _kept(size: Size, outputs: int, explicit: bool) -> int:
    if explicit and size.explicit is not None:
        return outputs * size.explicit
    return size.fixed + outputs * size.factors


def _explicit_is_faster(sizes: list[Size], n: int, m: int | None, r: int, full: bool, budget: int, need: Needs) -> bool:
    if any(size.explicit is None or not size.b for size in sizes):
        return False
    if all(size.t == 1 for size in sizes):
        return False
    pairs = [costs(size, n, m, r, full, budget // 4, need.item, profile=need.profile) for size in sizes]
    return sum(explicit.time for explicit, _ in pairs) <= sum(product.time for _, product in pairs)


def _passes(n: int, m: int | None, held: int, outputs: int, r: int) -> float:
    """Return the time of the passes, in forward passes of one sample; a backward pass counts as two."""
    groups = ceil(n / held)
    samples = (groups + 1) / 2 * n if m is None else n + groups * m
    return samples * (ceil(r / outputs) + 2 * r)
