"""The graph engine: plan once, then signals → pieces → kernel entries, part by part.

`plan_for` reads a model's graph on a few samples and proves what it read; `kernels` computes with that plan. Both work
on a `Subject` inside `subject.standing_in()` and inside `state.measuring`.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_ntk.errors import ModelError, NTKError
from avalanche_ntk.kernels import layout as lay
from avalanche_ntk.kernels import signals
from avalanche_ntk.kernels.checks import stochastic
from avalanche_ntk.kernels.contraction import Tally, contract
from avalanche_ntk.kernels.graph import Edge, Graph
from avalanche_ntk.kernels.heap import free_bytes, release
from avalanche_ntk.kernels.inputs import Batch
from avalanche_ntk.kernels.order import LESS_EXACT, agree, channels_last_pays, never_again, ordered
from avalanche_ntk.kernels.pattern import Pattern, numbers
from avalanche_ntk.kernels.pieces import Dense, Piece, in_kind, merge
from avalanche_ntk.kernels.plan import Handle, Plan, Use, chain, pure_nodes
from avalanche_ntk.kernels.routing import moves_by_values
from avalanche_ntk.kernels.rules import Site, piece_of
from avalanche_ntk.kernels.subject import Subject, require_graph, swapped

SMALL, LARGE = 3, 5  # batch sizes at which a plan is made; coprime, so that no dimension grows by accident
WEIGHTS = (1.0, 1.5, 2.2, 3.3, 5.0)
PROOFS = 3  # random mixes of samples that a new plan is proved on


FLOW = "the path through the model depends on the values of the samples"


class Unreadable(Exception):
    """The graph cannot be read as per-sample uses of parameters; the reason is the message."""


@dataclass
class Pass:
    """One forward pass: the output, its graph, the number of samples."""

    out: Tensor
    graph: Graph
    n: int

    def agrees(self, mine: Tensor, other: Tensor) -> bool:
        """Return whether outputs of the model differ by no more than the rounding of its least exact part."""
        return agree(mine, other, self.graph.coarsest())


def forward(subject: Subject, batch: Batch) -> Pass:
    """Run the model with probe inputs marked as such in the graph.

    Inputs require a gradient (through a copy, so that in-place operations on them stay legal): only then does the graph
    show which tensors depend on the samples.

    Returns:
        The pass.

    Raises:
        ModelError: The model fails, or its output is not as expected.
    """
    batch = batch.cast(subject.dtype)
    if channels_last_pays(subject, batch):
        try:
            at = _forward(subject, batch, torch.channels_last)
            if LESS_EXACT.isdisjoint(at.graph.names):
                return at
            del at
        except ModelError:  # the model has changed since it was asked
            pass
        never_again(subject, batch)
    return _forward(subject, batch, torch.preserve_format)


def _forward(subject: Subject, batch: Batch, order: torch.memory_format) -> Pass:
    with plain_operators(subject.model):
        out = subject.forward(_marked(batch, order))
    require_graph(out, subject)
    own = {id(p): n for n, p in subject.everything().items()}
    graph = Graph.of(out, own)
    require_reached(subject, graph)
    return Pass(out, graph, len(batch))


def require_reached(subject: Subject, graph: Graph) -> None:
    """Refuse a forward pass that takes a parameter from elsewhere than the module that holds it.

    Raises:
        ModelError: It does, so that what stands in for the parameter is passed by.
    """
    present = {id(p) for p in subject.model.parameters()}
    known = subject.originals | {id(t): n for n, t in (subject.substitutes | subject.leaves).items()}
    for i in graph.owner:
        tensor = id(graph.nodes[i].variable)
        if tensor in known and tensor not in present:
            raise ModelError(
                f"the forward pass uses parameter {known[tensor]!r} from elsewhere than the module that holds it (a"
                " list, another attribute): expected it to be taken from its module, where another tensor stands in"
                " for it (it has a hook, another precision is asked for, or derivatives by torch.func are). Hold such"
                " lists as nn.ParameterList."
            )


def _marked(batch: Batch, order: torch.memory_format) -> Batch:
    return batch.with_tensors(
        [
            ordered(t.detach().requires_grad_(), order) if _is_real_or_complex(t) and i < batch.n_inputs else t
            for i, t in enumerate(batch.tensors())
        ]
    )


def _is_real_or_complex(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


@contextmanager
def plain_operators(model: nn.Module) -> Generator[None, None, None]:
    """Run recurrent layers as the elementary products they are made of: fused kernels hide who uses a weight."""
    if not any(isinstance(m, nn.RNNBase) for m in model.modules()):
        yield
        return
    mkldnn, cudnn = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
        torch._C._set_cudnn_enabled(cudnn)


_PLANS: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[Plan]]] = weakref.WeakKeyDictionary()


def forget_plans() -> None:
    """Forget every plan (plans are also forgotten with their model)."""
    _PLANS.clear()


def plan_for(subject: Subject, batch: Batch, at: Pass, budget: int | None = None, again: bool = True) -> Plan:
    """The plan of a pass: a known one for the same graph, or a new one, proved on a few of its samples.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        at: Their pass.
        budget: Bytes for what is held at a time.
        again: Run some of the samples again by themselves; needed once for each sample's block.

    Returns:
        The plan.

    Raises:
        ModelError: Outputs of one sample depend on other samples, or on chance.
        NTKError: The model cannot be measured for another reason.
        OutOfMemoryError: The device's memory is used up.
        MemoryError: The computer's is.
    """
    key = (at.graph.signature, batch.shapes(), at.out.shape[1], at.out.dtype, tuple(subject.leaves))
    known = _PLANS.setdefault(subject.model, {})
    plan = next((p for p in known.get(key, ()) if p.serves(at.graph, at.n)), None)
    if plan is None:
        try:
            plan = make_plan(subject, batch, at, budget)
        except (NTKError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as exc:  # noqa: BLE001 - a graph that cannot be read (weights written in the forward pass)
            cause = f"reading the graph failed ({type(exc).__name__}: {exc})"
            plan = Plan(generic=dict.fromkeys(subject.leaves, cause), blind=True)
        if len(known) >= 32:
            known.clear()
        if not plan.blind:
            known[key] = [*known.get(key, [])[-7:], plan]
    few, reads = _few_again(subject, batch, at) if again else (None, False)
    plan.reads = plan.reads or reads
    if few is not None:
        known.pop(key, None)
        if not (plan.reads or plan.alone):
            error: ModelError = refusal(subject, few, at.graph.coarsest())
            raise error
    if plan.reads and not (few is None and each_alone(subject, plan, batch, at)):
        return Plan(generic=dict.fromkeys(subject.leaves, FLOW), alone=True)
    if plan.routed:
        plan = plan.copy()
        _prove_layouts(plan, at, budget)
    return plan


def _few_again(subject: Subject, batch: Batch, at: Pass) -> tuple[Batch | None, bool]:
    """Run some samples of the batch again, by themselves.

    A plan that was proved once says nothing of what the model has become since: a gate that was closed may let samples
    mix, a flag may let the path depend on values. This costs one small forward pass in every measurement.

    Returns:
        `(few, reads)`: samples whose outputs are others than in the batch, None where all are the same (or where
        there is nothing to leave out); and whether the forward pass looked at values.
    """
    n = len(batch)
    index = sorted({n // 4, n // 2, n - 1}) if n > SMALL else [n - 1]
    few = batch.take(index)
    with torch.no_grad(), plain_operators(subject.model), ReadsValues() as reads:
        try:
            out = subject.forward(few)
        except ModelError as exc:  # batch norm asks for two samples
            raise _by_batch_statistics(subject.model) or exc from exc
    same = at.agrees(out, at.out[index])
    return None if same else batch.take([*index, *range(n)][:LARGE]), reads.found


def plan_ahead(subject: Subject, batch: Batch, budget: int | None) -> Tensor | None:
    """Make the plan of a model that has none for such inputs from a few samples, while no large pass is held.

    Returns:
        The outputs of the samples it was made on, for `keep_if_true`; None where nothing was made.
    """
    known = _PLANS.setdefault(subject.model, {})
    shapes, leaves = batch.shapes(), tuple(subject.leaves)
    if any(key[1] == shapes and key[4] == leaves for key in known):
        return None
    few = batch.take(slice(0, LARGE))
    try:
        at = forward(subject, few)
        plan_for(subject, few, at, budget)
        out = at.out.detach()
        del at
        release()
    except ModelError:  # found again, with the whole batch's words, where it is no matter of these few
        return None
    return out


def keep_if_true(subject: Subject, ahead: Tensor, at: Pass) -> None:
    """Forget the plan made ahead where its samples have other outputs in the whole batch."""
    if not at.agrees(at.out[: len(ahead)], ahead):
        _PLANS.pop(subject.model, None)


def make_plan(subject: Subject, batch: Batch, at: Pass, budget: int | None = None) -> Plan:
    """Read and prove a graph on `LARGE` samples of the batch (repeated where it has fewer).

    They are the first ones; where they leave a part of the model dead, others are tried, from all over the batch.

    Returns:
        The plan.

    Raises:
        ModelError: Outputs of one sample depend on other samples, or on chance.
    """
    plan = _plan_on(subject, batch, at, budget, [i % len(batch) for i in range(LARGE)])
    if plan.blind and len(batch) > LARGE:
        other = _plan_on(
            subject, batch, at, budget, [(i * len(batch)) // LARGE + len(batch) // LARGE - 1 for i in range(LARGE)]
        )
        plan = plan if other.blind else other
    return plan


def _plan_on(subject: Subject, batch: Batch, at: Pass, budget: int | None, index: list[int]) -> Plan:
    few = batch.take(index)
    large = forward(subject, few)
    small = forward(subject, few.take(slice(0, SMALL)))
    alone = _alone(subject, few)
    names = list(subject.leaves)
    same_shape = large.graph.signature == small.graph.signature == at.graph.signature
    separate = large.agrees(large.out[:SMALL], small.out) and at.agrees(at.out[: len(batch)][index], large.out)
    separate = separate and (alone is None or large.agrees(large.out[:1], alone.out))
    if not separate:
        flow = not same_shape or (alone is not None and alone.graph.names != large.graph.names)
        if _mixes(large) or not flow:
            error: ModelError = refusal(subject, few, large.graph.coarsest())
            raise error
    pattern = Pattern.of(small.graph, small.n, large.graph, large.n)
    same_shape = same_shape and pattern.fits(at.graph, at.n)
    if separate and len(batch) == 1 and not same_shape and large.graph.signature == small.graph.signature:
        return Plan(twice=True)  # copies of one sample: it is their number that makes the difference
    if not same_shape or not separate:
        return Plan(generic=dict.fromkeys(names, FLOW), alone=True)
    plan = _read(subject, small, large)
    plan.pattern = pattern
    with torch.no_grad(), ReadsValues() as reads:  # apart: composite operators take other ways under a dispatch mode
        subject.forward(few.take(slice(0, SMALL)))
    plan.reads = reads.found
    del small, alone  # what a pass computes from parameters alone (a parametrised weight) may be large
    _prove(subject, plan, few, large, budget)
    return plan


class ReadsValues(TorchDispatchMode):
    """Watches whether a forward pass looks at values (`.item()`, `if tensor:`, shapes that depend on values)."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and note its kind."""
        name = func.__name__.split(".")[0]
        self.found = self.found or name in _VALUES
        return func(*args, **(kwargs or {}))


_VALUES = frozenset(
    {
        "_local_scalar_dense",
        "nonzero",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "masked_select",
        "equal",
        "is_nonzero",
    }
)


def each_alone(subject: Subject, plan: Plan, batch: Batch, at: Pass) -> bool:
    """Tell whether every sample has, alone, the output that it has in the batch, by the same path.

    The path matters where outputs do not show it: a value may decide what is detached.

    Returns:
        True when all agree.
    """
    paths = set()
    for n in range(len(batch)):
        one = forward(subject, batch.take(slice(n, n + 1)))
        if not at.agrees(one.out, at.out[n : n + 1]):
            return False
        paths.add((one.graph.signature, tuple(numbers(one.graph))))
    twice = forward(subject, batch.take([0, 0])).graph  # one sample takes another path than several in some layers
    return len(paths) == 1 and (len(batch) == 1 or (twice.signature == at.graph.signature and plan.serves(twice, 2)))


def _alone(subject: Subject, few: Batch) -> Pass | None:
    """The first sample by itself, where the model can be called so (squeezes and batch statistics may refuse).

    Returns:
        The pass, or None.
    """
    try:
        return forward(subject, few.take(slice(0, 1)))
    except ModelError:
        return None


def _mixes(at: Pass) -> bool:
    """Tell whether some output's gradient reaches another sample's input or activation.

    Returns:
        True when a signal carries the mark of more than one sample.
    """
    g = at.graph
    edges = sorted({e for es in g.edges for e in es if e is not None and e[0] not in g.owner})
    shapes = {e: g.shape(e) for e in edges}
    edges += [(i, 0) for i, name in g.owner.items() if name is None]
    shapes |= {(i, 0): tuple(g.nodes[i].variable.shape) for i, name in g.owner.items() if name is None}
    edges = [e for e in edges if shapes[e] and shapes[e][0] == at.n]
    first = torch.zeros_like(at.out)
    first[0] = _random(at.out.shape[1], 0).to(first)
    for e in edges:
        target = g.nodes[e[0]].variable if e[0] in g.owner else GradientEdge(g.nodes[e[0]], e[1])
        (s,) = torch.autograd.grad(at.out, [target], first, retain_graph=True, allow_unused=True)
        if s is not None and s[1:].numel() and float(s[1:].abs().max()) > 1e-9 * float(s.abs().max()):
            return True
    return False


def apart(subject: Subject, batch: Batch, at_once: bool = False) -> None:
    """Refuse what no graph is read of, where outputs of some samples are others than those of more of them.

    Copies stand in for the chosen parameters, as in derivatives by torch.func.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        at_once: The samples are going to run all at once: where values that are read may decide the path, each has to
            come out alone as it does then.

    Raises:
        ModelError: Outputs depend on other samples, or on chance; or copies do not reach the forward pass.
    """
    n = len(batch)
    some = batch.take([(i * n) // LARGE for i in range(LARGE)]) if n > LARGE else batch
    with swapped(subject.model, {name: t.detach().requires_grad_() for name, t in subject.leaves.items()}):
        at = forward(subject, some)
        few, reads = _few_again(subject, some, at)
        if few is not None:
            error: ModelError = refusal(subject, few, at.graph.coarsest())
            raise error
    if reads and at_once:
        with torch.no_grad():
            out = subject.forward(batch)
            alone = torch.cat([subject.forward(batch.take(slice(i, i + 1))) for i in range(n)])
        if not agree(out, alone, at.graph.coarsest()):
            raise ModelError(
                f"the path through {type(subject.model).__name__} depends on values of the batch, and some sample goes"
                " another one alone: expected one path for all, to run them at once. Use empirical_ntk, which takes"
                " such samples one by one."
            )


def refusal(subject: Subject, few: Batch, precision: torch.dtype) -> ModelError:
    """Return the error for outputs that change with the batch that a sample is given in.

    It is by chance, or by the other samples; the error names the module if it can.
    """
    with torch.no_grad():
        once, again = subject.forward(few), subject.forward(few)
    if not agree(once, again, precision):
        return stochastic(subject, few)
    norm = _by_batch_statistics(subject.model)
    if norm is not None:
        return norm
    culprit = _first_coupled_module(subject, few, precision)
    where = f"module {culprit[0]!r} ({culprit[1]})" if culprit else f"the model {type(subject.model).__name__}"
    return ModelError(
        f"{where} mixes the samples of a batch: expected each output to depend on its own sample only, found that f(x)"
        " changes with the other samples given beside x, so no per-sample kernel exists. Remove the operation over"
        " dimension 0 (a mean, a batch norm, attention over the batch), or measure the part of the model before it."
    )


def _by_batch_statistics(model: nn.Module) -> ModelError | None:
    """Return the error for a batch norm without running statistics, None if the model has none."""
    for name, m in model.named_modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None:
            return ModelError(
                f"module {name!r} ({type(m).__name__}) normalises by the statistics of the batch also in eval mode"
                " (track_running_stats=False): expected each output to depend on its own sample only, so that"
                " a per-sample kernel exists. Use running statistics, or a norm without batch statistics (GroupNorm,"
                " LayerNorm)."
            )
    return None


def _first_coupled_module(subject: Subject, few: Batch, precision: torch.dtype) -> tuple[str, str] | None:
    """Compare every module's output for one sample given alone and given among others.

    Returns:
        `(name, class)` of the innermost first module that differs.
    """
    seen: list[dict[str, Tensor]] = []
    order: list[str] = []
    for part in (few, few.take(slice(0, SMALL))):
        found: dict[str, Tensor] = {}
        hooks = []
        try:
            for name, m in subject.model.named_modules():

                def keep(_m: nn.Module, _i: Any, o: Any, name: str = name, found: dict[str, Tensor] = found) -> None:
                    if isinstance(o, Tensor) and o.dim() and name not in found:
                        found[name] = o.detach()[:SMALL].clone()
                        order.append(name)

                hooks.append(m.register_forward_hook(keep))
            with torch.no_grad():
                subject.call(part)
        except Exception:  # noqa: BLE001 - only the place is being looked for; the refusal itself stands
            return None
        finally:
            for h in hooks:
                h.remove()
        seen.append(found)
    modules = dict(subject.model.named_modules())
    for name in order:
        a, b = seen[0].get(name), seen[1].get(name)
        if a is not None and b is not None and a.shape == b.shape and not agree(a, b, precision):
            return (name or "model", type(modules[name]).__name__)
    return None


def _read(subject: Subject, small: Pass, large: Pass) -> Plan:
    """Find the uses of every chosen parameter and where their samples are.

    Returns:
        An unproved plan.
    """
    g = large.graph
    pure = pure_nodes(small.graph, g)
    plan = Plan(batched=signals.batches_well(g))
    plan.routed = moves_by_values(small.graph, g, pure, large.n / small.n)
    out_edges: list[set[int]] = [set() for _ in g.nodes]
    out_edges[0].add(0)
    for es in g.edges:
        for e in es:
            if e is not None:
                out_edges[e[0]].add(e[1])
    uses: dict[Edge, list[tuple[int, int]]] = {}
    for i, es in enumerate(g.edges):
        if pure[i]:
            continue
        for slot, e in enumerate(es):
            if e is not None and pure[e[0]]:
                uses.setdefault(e, []).append((i, slot))
    known = {e: chain(g, e) for e in uses}
    chosen = set(subject.leaves)
    uses = {e: u for e, u in uses.items() if known[e][4] & chosen}
    sites = sorted({(i, next(iter(out_edges[i]))) for u in uses.values() for i, _ in u if len(out_edges[i]) == 1})
    layouts, plan.blind = _layouts(small, large, sites)
    plan.routed = plan.routed or plan.blind
    broken: dict[str, str] = {}
    index: dict[Edge, int] = {}
    for e, found in uses.items():
        kind, plain, scaled, part, below = known[e]
        made: list[Use] = []
        for i, slot in found:
            if len(out_edges[i]) != 1:
                broken |= dict.fromkeys(below, f"{g.names[i]} has several outputs")
                continue
            edge = (i, next(iter(out_edges[i])))
            where = layouts.get(edge)
            if where is None:
                broken |= dict.fromkeys(below, f"the samples cannot be told apart at {g.names[i]}")
                continue
            made.append(Use(i, slot, edge, where))
        index[e] = len(plan.handles)
        plan.handles.append(Handle(e, tuple(made), kind, plain and len(below) == 1, scaled, part))
    for name in subject.leaves:
        mine = [h for e, h in index.items() if name in known[e][4]]
        if name in broken:
            plan.generic[name] = broken[name]
        elif mine:  # otherwise the output does not depend on it
            _way(plan, name, mine)
    return plan


def _way(plan: Plan, name: str, mine: list[int]) -> None:
    """Choose how a parameter with these handles is contracted."""
    hs = [plan.handles[h] for h in mine]
    if not all(h.plain for h in hs):
        plan.pulled[name] = mine
        return
    by_kind: dict[str, list[int]] = {}
    for i, h in zip(mine, hs, strict=True):
        by_kind.setdefault(f"{h.kind}#{h.part}", []).append(i)
    groups = list(by_kind.values())
    if len(groups) == 1:
        plan.native[name] = groups
        return
    parts = [plan.handles[g[0]].part for g in groups]
    if all(p is not None for p in parts):
        nodes = {p[0] for p in parts if p is not None}
        pieces = {p[1] for p in parts if p is not None}
        if len(nodes) == 1 and len(pieces) == len(groups):  # disjoint parts of one parameter: no cross terms
            plan.native[name] = groups
            return
    plan.pulled[name] = mine


def _probe(out: Tensor, seed: int) -> Tensor:
    """A random combination of outputs, by a generator of its own.

    Returns:
        `(C,)`.
    """
    return _random(out.shape[1], seed).to(out)


def _signals(at: Pass, edges: list[Edge], weights: Tensor) -> list[Tensor | None]:
    cot = weights[:, None] * _probe(at.out, 1)
    targets = [GradientEdge(at.graph.nodes[i], nr) for i, nr in edges]
    return list(torch.autograd.grad(at.out, targets, cot, retain_graph=True, allow_unused=True))


def _layouts(small: Pass, large: Pass, sites: list[Edge]) -> tuple[dict[Edge, lay.Layout], bool]:
    """Read the samples' places off shapes and weighted signals.

    Returns:
        A layout for every edge where it could be told, and whether signals vanish at some (a head or a gate that starts
        at zero, dead units): they show no order, and prove nothing. What was guessed there is checked on the whole
        batch, and not remembered.
    """
    if not sites:
        return {}, False
    blind = False
    ones = torch.ones(large.n, dtype=large.out.dtype, device=large.out.device)
    weights = torch.tensor(WEIGHTS, dtype=large.out.dtype, device=large.out.device)
    plain = _signals(large, sites, ones)
    weighted = _signals(large, sites, weights)
    found: dict[Edge, lay.Layout] = {}
    number = torch.arange(large.n, device=large.out.device)
    for e, p, w in zip(sites, plain, weighted, strict=True):
        options = lay.candidates(small.graph.shape(e), large.graph.shape(e), small.n, large.n)
        if not options:
            continue
        if p is None or w is None or not p.numel():  # no signal arrives here: any reading gives zero
            found[e] = options[0]
            continue
        index, clear = lay.sample_of(p, w, weights, options[0].dim)
        fitting = [o for o in options if lay.consistent(o, index, clear, number)]
        if fitting:
            found[e] = fitting[0]
            blind = blind or len(fitting) > 1 or not bool(p.any())
    return found, blind


def _prove_layouts(plan: Plan, at: Pass, budget: int | None) -> None:
    """Check every layout on the whole batch, digit by digit of the sample's number; demote what does not hold."""
    edges = plan.edges()
    if not edges or at.n == 1:
        return
    base = 64
    digits = 1
    while base**digits < at.n:
        digits += 1
    number = torch.arange(at.n, device=at.out.device)
    places = torch.stack([(number // base**k) % base for k in range(digits)])
    table = 1.05 ** torch.arange(base, dtype=at.out.dtype, device=at.out.device)
    weights = torch.cat([torch.ones_like(table[places[:1]]), table[places]])
    cotangents = weights[:, :, None] * _probe(at.out, 1)
    where = {u.edge: u.layout for h in plan.handles for u in h.uses}
    bad: set[Edge] = set()
    # the signals of an edge, and what is made to compare them, are held at a time
    room = float("inf") if budget is None else budget / (16 * at.out.element_size() * len(weights))
    for arrived in signals.stream(at.out, at.graph, signals.segments([at.graph], edges, room), cotangents, False):
        for e, s in arrived.items():
            if s is None:
                continue
            if not where[e].fits(tuple(s.shape[1:]), at.n):
                bad.add(e)
                continue
            for k, place in enumerate(places):
                index, clear = lay.sample_of(s[0], s[1 + k], table, where[e].dim)
                if not lay.consistent(where[e], index, clear, place):
                    bad.add(e)
        arrived.clear()
    broken = {h for h, handle in enumerate(plan.handles) if any(u.edge in bad for u in handle.uses)}
    for name in (*plan.native, *plan.pulled):
        if broken & set(plan.handles_of(name)):
            plan.demote(name, "samples are moved by their values")


def _prove(subject: Subject, plan: Plan, few: Batch, at: Pass, budget: int | None) -> None:
    """Compare every parameter's kernel with ordinary gradients of samples taken alone; demote what disagrees.

    For random combinations v of outputs and random mixes u of samples, let `G = ∇θ Σ_n u_n v·f(x_n)`. Then
    `Σ_{n,m} u_n u'_m vᵀΘ[n,m]v' = <G, G'>`: any entry of Θ that is wrong shows in it. Each G is compared with itself
    and with the first one, so that only two have to be held at a time; a kernel whose output pairs are exchanged agrees
    with itself, but not with another mix.
    """
    names = [n for n in subject.leaves if n not in plan.generic]
    if not names:
        return
    cot = torch.stack([_probe(at.out, 2), _probe(at.out, 3)])
    coarse = at.graph.coarsest() != torch.float64
    tol = 1e-3 if coarse else 1e-9
    errors: dict[str, str] = {}
    # gradients of both combinations, as the rule has them, as they are carried to the parameter, and their sum
    each = 8 * _largest_explicit(_Side(subject, plan, at)) * at.out.element_size()
    if budget is not None and budget < at.n * each:
        few = few.take(slice(0, max(2, budget // each)))
        at = forward(subject, few)
    got = kernels(subject, (plan, plan), at, at, cot, True, budget, Tally(), errors=errors)
    outs = []
    for n in range(at.n):
        try:
            outs.append(forward(subject, few.take(slice(n, n + 1))).out[0])
        except ModelError:  # a model that cannot be called with one sample
            outs.append(at.out[n])
    apart = torch.stack(outs)
    mixes = torch.stack([_random(at.n, 4 + k).to(at.out) for k in range(PROOFS)])
    pairs = [(k, v) for k in range(PROOFS) for v in range(len(cot))]
    squares: dict[str, list[float]] = {n: [] for n in names}
    products: dict[str, list[float]] = {n: [] for n in names}
    for group in _small_groups(subject, names, (budget or 2**30) // 8):
        leaves = [subject.leaves[n] for n in group]
        # gradients of samples alone are held several at a time: the batch's own serves where they are large
        large = sum(p.numel() * p.element_size() for p in leaves) > (budget or 2**30) // 8
        alone = at.out if large else apart
        first: list[Tensor | None] = []
        for k, v in pairs:
            grads = torch.autograd.grad((mixes[k] @ alone) @ cot[v], leaves, retain_graph=True, allow_unused=True)
            found: list[Tensor | None] = [None if g is None else g.to_dense() for g in grads]
            first = first or found
            for name, f, g in zip(group, first, found, strict=True):
                squares[name].append(_inner(g, g))
                products[name].append(_inner(f, g))
    whole = max(max(w) for w in squares.values())
    # a gradient that vanishes exactly (a bias before a norm) leaves only rounding, which has no relative accuracy
    noise = (1e-9 if coarse else 1e-18) * whole
    for name in names:
        if name in errors:
            plan.demote(name, errors[name])
            continue
        kernel = got.get(name)
        wrong = ""
        for i, (k, v) in enumerate(pairs):
            for j, right in ((i, squares[name][i]), (0, products[name][i])):
                u, w = pairs[j]
                read = 0.0 if kernel is None else float(mixes[u] @ kernel[:, :, w, v] @ mixes[k])
                size = (squares[name][i] * squares[name][j]) ** 0.5
                if not abs(read - right) <= tol * size + noise and right == right:
                    wrong = wrong or f"{read:.6g} against {right:.6g}"
        if wrong:
            plan.demote(name, f"the graph's reading disagreed with autograd ({wrong})")


def _inner(f: Tensor | None, g: Tensor | None) -> float:
    """Return the inner product of two gradients, None being zero; that of large ones is summed in several parts."""
    if f is None or g is None:
        return 0.0
    return sum(float(a @ b) for a, b in zip(f.reshape(-1).split(2**16), g.reshape(-1).split(2**16), strict=True))


def _random(n: int, seed: int) -> Tensor:
    # on the processor whatever torch's default device is
    return torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")


def _small_groups(subject: Subject, names: list[str], room: int) -> list[list[str]]:
    """Split parameters so that the gradients of each group take at most `room` bytes, where single ones allow.

    Returns:
        The groups.
    """
    groups: list[list[str]] = [[]]
    load = 0
    for n in names:
        size = subject.leaves[n].numel() * subject.leaves[n].element_size()
        if groups[-1] and load + size > room:
            groups.append([])
            load = 0
        groups[-1].append(n)
        load += size
    return groups


@torch.no_grad()
def kernels(
    subject: Subject,
    plans: tuple[Plan, Plan],
    p: Pass,
    q: Pass,
    cotangents: Tensor,
    full: bool,
    budget: int | None,
    tally: Tally,
    force: str | None = None,
    errors: dict[str, str] | None = None,
    groups: dict[str, list[str]] | None = None,
) -> dict[str, Tensor]:
    """Kernel of every parameter that the plan knows a way for, or their sums over groups.

    Args:
        subject: The model.
        plans: Of the two passes, see `Plan.matched`.
        p: First batch.
        q: Second batch, the same object for a self-kernel.
        cotangents: `(R, C)` combinations of outputs.
        full: Keep output pairs apart.
        budget: Bytes for signals and blocks beyond the two passes; None for no bound.
        tally: Where work is noted.
        force: See `contract`.
        errors: Where given, a parameter that fails is noted here with its reason, and the others go on.
        groups: Parameter → names of the sums it belongs to; by default each parameter is a sum of its own.

    Returns:
        Group → `(N, M)` or `(N, M, R, R)`. Groups without any signal are absent.
    """
    same, plan = p is q, plans[0]
    item = p.out.element_size()
    r = cotangents.shape[0]
    sides = 1 if same else 2
    total = float("inf") if budget is None else budget / item
    edges = plan.edges()
    if not edges:
        return {}
    step = r if full else _outputs_at_once(plan, p, q, r, total, same)
    if step < r and not plan.batched:
        step = 1  # a loop over outputs gains nothing from several, and one needs no copies
    room = total * 0.3 / sides
    workspace = int(min(total, 2**28) * 0.25 * item)
    parts = signals.segments([p.graph] if same else [p.graph, q.graph], edges, room / step)
    result: dict[str, Tensor] = {}
    # Gram matrices of inputs do not depend on the outputs: kept from step to step where they are small
    small = p.n * q.n * len(plan.native) <= 0.15 * total
    tally.lefts = {} if step < r and small else None
    tally.room, tally.steps = (0.3 * total, -(-r // step)) if step < r else (0.0, 1)
    # freed signals that the C library keeps would add up to as much again as is allowed
    spare = budget // 4 if budget is not None and p.out.device.type == "cpu" else None
    for start in range(0, r, step):
        cot = cotangents[start : start + step]
        if start and spare is not None and free_bytes() > spare:
            release()
        left = signals.stream(p.out, p.graph, parts, cot, plan.batched)
        right = left if same else signals.stream(q.out, q.graph, parts, cot, plan.batched)
        _consume(subject, plans, p, q, left, right, full, workspace, tally, result, force, errors, groups, spare)
    tally.lefts = None
    if spare is not None and free_bytes() > spare:
        release()
    return result


def sample_sizes(subject: Subject, plan: Plan, at: Pass) -> tuple[int, int]:
    """Numbers that one sample of this pass needs at a time.

    A backward pass holds, besides the signals asked for, those of both branches of a residual block and the copies that
    convolutions make of theirs: six in all.

    Returns:
        `(alone, each)`: what one sample needs by itself, thrice its largest signals, gradient or patches (which are
        made for some samples at a time); and what every sample of a block adds: explicit gradients are there as a rule
        makes them, as they are contracted, and, where they are carried to the parameter, twice on the way.
    """
    signal = max((sum(_numel(at.graph.shape(e)) for e in edges) // at.n for edges in plan.together()), default=1)
    patches = []
    side = _Side(subject, plan, at)
    for handle in plan.handles:
        for u in handle.uses:
            if at.graph.names[u.node] == "ConvolutionBackward0" and u.slot == 1:
                # every weight of one output channel, at every position
                weight, out = side.w_shape(handle), at.graph.shape(u.edge)
                patches.append(_numel(weight) // max(1, weight[0]) * (_numel(out) // max(1, out[1])) // at.n)
    explicit = _largest_explicit(side)
    pulled = max((subject.leaves[name].numel() for name in plan.pulled), default=0)
    return 3 * max(signal, explicit, *patches, 1), max(6 * signal, 3 * explicit, 5 * pulled)


def _largest_explicit(side: _Side) -> int:
    """Return the number of entries of the largest parameter whose gradients are formed."""
    plan = side.plan
    dense = [n for n, groups in plan.native.items() if any(_is_dense(side, h) for g in groups for h in g)]
    return max((side.subject.leaves[n].numel() for n in (*dense, *plan.pulled, *plan.generic)), default=1)


def _outputs_at_once(plan: Plan, p: Pass, q: Pass, r: int, total: float, same: bool) -> int:
    """Outputs for which the largest signals of one parameter, and the one held at a cut, fit.

    Returns:
        Between 1 and r.
    """
    if total == float("inf"):
        return r
    graphs = [p.graph] if same else [p.graph, q.graph]
    largest = max(sum(_numel(g.shape(e)) for g in graphs for e in edges) for edges in plan.together())
    return int(max(1, min(r, total * 0.125 // max(1, largest))))


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


class _Side:
    """Signals of one batch that have arrived, and what they make."""

    def __init__(self, subject: Subject, plan: Plan, at: Pass) -> None:
        self.subject, self.plan, self.at = subject, plan, at
        self.signals: dict[Edge, Tensor | None] = {}

    def ready(self, handles: list[int]) -> bool:
        """Return whether all signals of these handles are there."""
        return all(u.edge in self.signals for h in handles for u in self.plan.handles[h].uses)

    def w_shape(self, handle: Handle) -> tuple[int, ...]:
        """Return the shape of the handle's tensor."""
        return self.at.graph.shape(handle.edge)

    def piece(self, handles: list[int], rows: slice, tally: Tally, name: str) -> Piece | None:
        """Return the merged piece of these handles for some outputs, or None where no signal arrives."""
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
                    raise Unreadable(f"the shape at {self.at.graph.names[u.node]} is not the one the plan was made for")
                node = self.at.graph.nodes[u.node]
                site = Site(node, u.slot, g[rows].detach(), u.layout, self.at.n, shape)
                piece, way = piece_of(site, self.at.graph.names[u.node])
                if way == "masked":
                    tally.forms[name] = "masked"
                kind = self.at.out.dtype
                complex_ = self.at.graph.dtype(handle.edge).is_complex
                pieces.append(in_kind(piece, kind.to_complex() if complex_ else kind))
        return merge(pieces, shape) if pieces else None

    def scale(self, handles: list[int], name: str) -> float | None:
        """Return the factor that the chain multiplies all entries with; None where it has more than one."""
        handle = self.plan.handles[handles[0]]
        if not handle.scaled:
            return 1.0
        graph = self.at.graph
        ones = torch.ones(self.w_shape(handle), dtype=graph.dtype(handle.edge), device=self.at.out.device)
        edge = GradientEdge(graph.nodes[handle.edge[0]], handle.edge[1])
        (s,) = torch.autograd.grad([edge], [self.subject.leaves[name]], [ones], retain_graph=True)
        low, high = float(s.min()), float(s.max())
        return low if low == high else None

    def pulled(self, handles: list[int], rows: slice, tally: Tally, name: str) -> Dense | None:
        """Return explicit gradients carried through the parameter's own chain."""
        leaf = self.subject.leaves[name]
        total: Tensor | None = None
        for h in handles:
            piece = self.piece([h], rows, tally, name)
            if piece is None:
                continue
            handle = self.plan.handles[h]
            j = piece.dense(self.w_shape(handle))
            if handle.edge[0] not in self.at.graph.owner:
                n, r = j.shape[:2]
                edge = GradientEdge(self.at.graph.nodes[handle.edge[0]], handle.edge[1])
                flat = j.reshape(n * r, *j.shape[2:]).to(self.at.graph.dtype(handle.edge))
                try:
                    (got,) = signals.pull([edge], [leaf], [flat], True)
                except RuntimeError:
                    (got,) = signals.pull([edge], [leaf], [flat], False)
                if got is None:
                    continue
                j = got.reshape(n, r, *leaf.shape)
            total = j if total is None else total + j
        return None if total is None else Dense(total.to(self.at.out.dtype))


def _consume(
    subject: Subject,
    plans: tuple[Plan, Plan],
    p: Pass,
    q: Pass,
    left: Any,
    right: Any,
    full: bool,
    workspace: int,
    tally: Tally,
    result: dict[str, Tensor],
    force: str | None,
    errors: dict[str, str] | None,
    groups: dict[str, list[str]] | None,
    spare: int | None,
) -> None:
    """Contract each parameter as soon as its signals have arrived, and let them go."""
    same, plan = p is q, plans[0]
    one = _Side(subject, plan, p)
    two = one if same else _Side(subject, plans[1], q)
    waiting = {n: [h for g in groups for h in g] for n, groups in plan.native.items()} | dict(plan.pulled)
    users: dict[Edge, int] = {}
    for hs in waiting.values():
        for e in {u.edge for h in hs for u in plan.handles[h].uses}:
            users[e] = users.get(e, 0) + 1
    for arrived in left:
        one.signals |= arrived
        if not same:
            two.signals |= next(right)
        for name in [n for n, hs in waiting.items() if one.ready(hs)]:
            hs = waiting.pop(name)
            value = None
            try:
                value = _parameter(one, two, name, full, workspace, tally, force)
            except Exception as exc:
                if errors is None:
                    raise
                errors[name] = f"reading the graph failed ({type(exc).__name__}: {exc})"
            if value is not None:
                for group in [name] if groups is None else groups.get(name, []):
                    result[group] = result[group].add_(value) if group in result else value.clone()
            for e in {u.edge for h in hs for u in plan.handles[h].uses}:
                users[e] -= 1
                if not users[e]:
                    one.signals[e] = None
                    two.signals[e] = None
        arrived.clear()
        tally.last = None
        if spare is not None and waiting and free_bytes() > spare:
            release()


def _parameter(
    one: _Side, two: _Side, name: str, full: bool, workspace: int, tally: Tally, force: str | None
) -> Tensor | None:
    """Kernel of one parameter from the signals at hand.

    Returns:
        `(N, M)` or `(N, M, R, R)`, or None where no signal arrives.
    """
    plan = one.plan
    scales = {}
    if name in plan.native:
        scales = {i: (one.scale(g, name), two.scale(g, name)) for i, g in enumerate(plan.native[name])}
        if any(None in pair for pair in scales.values()):  # entries are not all multiplied alike
            one.plan, two.plan = (side.plan.copy() for side in (one, two))
            one.plan.pull(name)
            two.plan.pull(name)
            plan = one.plan
    hs = plan.pulled.get(name) or [h for g in plan.native[name] for h in g]
    found = [s for h in hs for u in plan.handles[h].uses if (s := one.signals[u.edge]) is not None]
    if not found:
        return None
    r = found[0].shape[0]
    rows = [slice(0, r)]
    explicit = name in plan.pulled or any(_is_dense(one, h) for h in hs)
    if explicit and not full:
        size = max(one.subject.leaves[name].numel(), *(_numel(one.w_shape(plan.handles[h])) for h in hs))
        each = (one.at.n + (0 if one is two else two.at.n)) * size * one.at.out.element_size()
        each *= 4 if name in plan.pulled else 2  # made, carried to the parameter in two steps, and laid out for a sum
        block = max(1, min(r, workspace // max(1, each)))
        rows = [slice(i, min(i + block, r)) for i in range(0, r, block)]
    total: Tensor | None = None
    for part in rows:
        if name in plan.pulled:
            a = one.pulled(plan.pulled[name], part, tally, name)
            b = a if one is two else two.pulled(two.plan.pulled[name], part, tally, name)
            values = [(a, b, 1.0)]
        else:
            values = []
            for i, (group, other) in enumerate(zip(plan.native[name], two.plan.native[name], strict=True)):
                a = one.piece(group, part, tally, name)  # type: ignore[assignment]
                b = a if one is two else two.piece(other, part, tally, name)  # type: ignore[assignment]
                values.append((a, b, prod(scales[i])))  # type: ignore[arg-type]
        for a, b, scale in values:
            if a is None or b is None:
                continue
            k, form = contract(a, b, full, workspace, tally, force, name if len(values) == 1 else "")
            tally.forms.setdefault(name, form)
            if scale != 1:
                k = k * scale
            total = k if total is None else total + k
    return total


def _is_dense(side: _Side, h: int) -> bool:
    """Return whether a handle's pieces are likely explicit (grouped convolutions, whatever has no rule)."""
    names = {side.at.graph.names[u.node] for u in side.plan.handles[h].uses}
    return not names <= {"AddmmBackward0", "MmBackward0", "EmbeddingBackward0", "EmbeddingBagBackward0"} and not (
        names == {"ConvolutionBackward0"}
        and all(int(side.at.graph.nodes[u.node]._saved_groups) == 1 for u in side.plan.handles[h].uses)
    )
