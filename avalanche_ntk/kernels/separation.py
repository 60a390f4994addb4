"""Does each output depend on its own sample only? And who is to blame where it does not?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels.checks import stochastic
from avalanche_ntk.kernels.inputs import Batch
from avalanche_ntk.kernels.order import agree
from avalanche_ntk.kernels.passes import Pass, ReadsValues, forward, plain_operators
from avalanche_ntk.kernels.pattern import numbers, scalars
from avalanche_ntk.kernels.plan import Plan
from avalanche_ntk.kernels.subject import Subject, swapped

SMALL, LARGE = 3, 5  # samples that are run by themselves; coprime, so that no dimension grows by accident


def few_again(subject: Subject, batch: Batch, at: Pass) -> tuple[Batch | None, bool]:
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


def each_alone(subject: Subject, plan: Plan, batch: Batch, at: Pass) -> bool:
    """Tell whether every sample has, alone, the output that it has in the batch, by the same path.

    The path matters where outputs do not show it: a value may decide what is detached, or how much of it.

    Returns:
        True when all agree.
    """
    paths = set()
    values = {tuple(scalars(at.graph))}
    for n in range(len(batch)):
        one = forward(subject, batch.take(slice(n, n + 1)))
        if not at.agrees(one.out, at.out[n : n + 1]):
            return False
        paths.add((one.graph.signature, tuple(numbers(one.graph))))
        values.add(tuple(scalars(one.graph)))
        if len(paths) > 1 or len(values) > 1:
            return False
    twice = forward(subject, batch.take([0, 0])).graph  # one sample takes another path than several in some layers
    return len(batch) == 1 or (twice.signature == at.graph.signature and plan.serves(twice, 2))


def first_alone(subject: Subject, few: Batch) -> Pass | None:
    """The first sample by itself, where the model can be called so (squeezes and batch statistics may refuse).

    Returns:
        The pass, or None.
    """
    try:
        return forward(subject, few.take(slice(0, 1)))
    except ModelError:
        return None


def mixes(at: Pass) -> bool:
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
    first[0] = at.mix(0)
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
        few, reads = few_again(subject, some, at)
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
