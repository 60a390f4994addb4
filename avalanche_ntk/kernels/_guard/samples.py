"""Does each output depend on its own sample only, in a batch as alone?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels._device.order import agree
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject, swapped
from avalanche_ntk.kernels._guard import refusals
from avalanche_ntk.kernels._structure.passes import Pass, ReadsValues, forward, plain_operators
from avalanche_ntk.kernels._structure.pattern import numbers, scalars
from avalanche_ntk.kernels._structure.plan import Plan

SMALL, LARGE = 3, 5  # samples that are run by themselves; coprime, so that no dimension grows by accident
NUDGES = 3  # of the parameters, to see what their last digits change; one alone may change nothing by accident

Parts = Sequence[tuple[list[int], Tensor]]  # places of samples in the batch, and their outputs when run by themselves


def alike(subject: Subject, batch: Batch, out: Tensor, precision: torch.dtype, parts: Parts) -> bool:
    """Tell whether samples have, run by themselves, the outputs that they have in the batch, but for rounding.

    Each output is compared with how much it differs between samples, so that neither a masked logit nor an offset
    covers the others. Rounding may be large beside that (`α(f − f₀)` with a large α): what differs is compared again in
    float64, and with what changes when the parameters are moved by their last digits.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        precision: Of the least exact numbers that they are made from.
        parts: Samples that ran by themselves.

    Returns:
        True when all agree.

    Raises:
        ModelError: The width of the output depends on the number of samples.
    """
    other = next((o for _, o in parts if o.shape[1] != out.shape[1]), None)
    if other is not None:
        error: ModelError = refusals.width_of_the_batch(subject, out, other)
        raise error
    tolerance = 1e-8 if out.dtype == precision == torch.float64 else 1e-4
    here = out[[i for index, _ in parts for i in index]]
    gap = (here - torch.cat([o for _, o in parts])).abs().amax(0)
    if bool((gap <= tolerance * (out.amax(0) - out.amin(0))).all()):  # false for what is not finite
        return True
    if _close(out, parts, tolerance * _spread(out)):
        return True
    try:
        with plain_operators(subject.model), subject.in_double() as finer:
            whole = finer.outputs(batch)
            again = [(index, finer.outputs(batch.take(index))) for index, _ in parts]
            if not all(agree(o, finer.outputs(batch.take(index))) for index, o in again):
                return False  # it is by chance
            noise = torch.zeros_like(whole[0])
            for seed in range(NUDGES):
                finer.nudge(seed)
                for index, o in again:
                    noise = torch.maximum(noise, (o - finer.outputs(batch.take(index))).abs().amax(0))
    except ModelError:  # it cannot be run in float64
        return all(agree(out[index], o, precision) for index, o in parts)
    digits = 16 * torch.finfo(torch.float64).eps * whole.abs().amax(0)
    rounding = (2 * noise + digits).nan_to_num(0.0, 0.0, 0.0)
    return _close(whole, again, tolerance * _spread(whole) + rounding)


def _spread(out: Tensor) -> Tensor:
    """Return how much each output differs between samples, `(C,)`, where it is finite."""
    finite = torch.isfinite(out)
    low, high = (torch.where(finite, out, k * torch.inf) for k in (1, -1))
    return (high.amax(0) - low.amin(0)).clamp_min(0)


def _close(out: Tensor, parts: Parts, allowed: Tensor) -> bool:
    for index, other in parts:
        finite = torch.isfinite(out[index])
        gap = torch.where(finite, (out[index] - other).abs(), 0)
        if not torch.equal(finite, torch.isfinite(other)) or bool((gap > allowed).any()):
            return False
    return True


@dataclass(frozen=True)
class Again:
    """What running some samples by themselves showed.

    Attributes:
        differing: Samples whose outputs are others than in the batch, with others beside them; None where all are the
            same.
        reads: Whether the forward pass looked at values.
    """

    differing: Batch | None
    reads: bool


NOTHING_SEEN = Again(None, False)


def run_again(
    subject: Subject, batch: Batch, out: Tensor, precision: torch.dtype, every: bool = False, turn: int = 0
) -> Again:
    """Run some samples by themselves.

    A plan that was proved once says nothing of what the model has become since: a gate that was closed may let samples
    mix, a flag may let the path depend on values. This costs a small forward pass in every measurement.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        precision: Of the least exact numbers that they are made from.
        every: Run all samples, every other one at a time, so that each is in other company: as much as a pass.
        turn: Which samples are run otherwise: one that changes the others (by a maximum) shows where it is left out.

    Returns:
        What was seen.

    Raises:
        ModelError: The model cannot be called with few samples.
    """
    n = len(batch)
    places = [sorted({(i + turn) % n for i in (n // 4, n // 2, n - 1)})] if n > SMALL else [[n - 1], [0]][-n:]
    if every and n > SMALL:
        places = [list(range(1, n, 2)), list(range(0, n, 2)), *places]
    parts = [_by_themselves(subject, batch, index) for index in places[:-1]]
    with ReadsValues() as reads:
        parts.append(_by_themselves(subject, batch, places[-1]))
    if alike(subject, batch, out.detach(), precision, parts):
        return Again(None, reads.found)
    index = [i for part, _ in reversed(parts) for i in part]
    return Again(batch.take([*index, *range(n)][:LARGE]), reads.found)


def _by_themselves(subject: Subject, batch: Batch, index: list[int]) -> tuple[list[int], Tensor]:
    with plain_operators(subject.model):
        try:
            return index, subject.outputs(batch.take(index))
        except ModelError as exc:
            norm = refusals.by_batch_statistics(subject.model)
            if norm is not None:  # it asks for two samples
                raise norm from exc
            if len(index) > 1:
                raise
        twice = index * 2  # a model that cannot be called with one sample
        return twice, subject.outputs(batch.take(twice))


def outputs_alone(subject: Subject, batch: Batch, out: Tensor, precision: torch.dtype) -> bool:
    """Return whether every sample has, alone, the output that it has in the batch; see `alike`."""
    parts = [_by_themselves(subject, batch, [n]) for n in range(len(batch))]
    return alike(subject, batch, out.detach(), precision, parts)


def each_alone(subject: Subject, batch: Batch, at: Pass, plan: Plan | None = None) -> tuple[bool, bool]:
    """Compare every sample alone with itself in the batch: its output, and the path by which it is made.

    The path matters where outputs do not show it: a value may decide what is detached, or how much of it.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        at: Their pass.
        plan: Its plan, which one sample given twice has to fit.

    Returns:
        Whether all outputs agree, and whether all paths do.
    """
    paths = set()
    values = {tuple(scalars(at.graph))}
    parts = []
    for n in range(len(batch)):
        one = forward(subject, batch.take([n]))
        parts.append(([n], one.out.detach()))
        paths.add((one.graph.signature, tuple(numbers(one.graph))))
        values.add(tuple(scalars(one.graph)))
    outputs = alike(subject, batch, at.out.detach(), at.graph.coarsest(), parts)
    if len(paths) > 1 or len(values) > 1 or len(batch) == 1:
        return outputs, len(paths) == len(values) == 1
    twice = forward(subject, batch.take([0, 0])).graph  # one sample takes another path than several in some layers
    return outputs, twice.signature == at.graph.signature and (plan is None or plan.serves(twice, 2))


def first_alone(subject: Subject, few: Batch) -> Pass | None:
    """The first sample by itself, where the model can be called so (squeezes and batch statistics may refuse).

    Returns:
        The pass, or None.
    """
    try:
        return forward(subject, few.take(slice(0, 1)))
    except ModelError:
        return None


def refuse_mixing(subject: Subject, batch: Batch, one_by_one: bool) -> None:
    """Refuse what no graph is read of, where some samples have other outputs by themselves than in the batch.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        one_by_one: They are going to run so; a model that can be called in no other way is not refused for it.

    Raises:
        ModelError: Outputs depend on other samples, or on chance.
    """
    try:
        with plain_operators(subject.model):
            out = subject.outputs(batch)
    except ModelError as exc:
        norm = refusals.by_batch_statistics(subject.model)
        if norm is not None:
            raise norm from exc
        if not one_by_one:
            raise
        return
    require_alone(subject, batch, out, every=True)


def _require_same(subject: Subject, again: Again, precision: torch.dtype) -> None:
    """Refuse samples that came out otherwise by themselves."""
    if again.differing is not None:
        error: ModelError = refusals.mixing(subject, again.differing, precision)
        raise error


def _precision(subject: Subject) -> torch.dtype:
    kinds = {p.dtype for p in subject.model.parameters() if p.is_floating_point()}
    return torch.float64 if kinds == {torch.float64} else torch.float32


def refuse_several_paths(subject: Subject, batch: Batch) -> None:
    """Refuse a model of which derivatives by torch.func of all samples at once would be wrong.

    Copies stand in for all parameters, as in those derivatives.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.

    Raises:
        ModelError: Outputs depend on other samples, or on chance; values that are read may decide the path, and some
            sample goes another one alone; or copies do not reach the forward pass.
    """
    own = dict(subject.model.named_parameters())
    copies = {k: t.detach().requires_grad_(k in subject.leaves) for k, t in own.items()}
    with subject.showing_originals(), swapped(subject.model, copies):
        at = forward(subject, batch)
        again = run_again(subject, batch, at.out, at.graph.coarsest(), every=True)
        _require_same(subject, again, at.graph.coarsest())
        if again.reads:
            outputs, paths = each_alone(subject, batch, at)
            if not outputs:
                mixed: ModelError = refusals.mixing(subject, batch, at.graph.coarsest())
                raise mixed
            if not paths:
                several: ModelError = refusals.several_paths(subject)
                raise several


def require_alone(subject: Subject, batch: Batch, out: Tensor, every: bool) -> None:
    """Refuse outputs of samples at once that are others than those of samples by themselves.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        every: See `run_again`.

    Raises:
        ModelError: They are, for some that were looked at; or for any where values that are read may decide the path.
    """
    precision = _precision(subject)
    again = run_again(subject, batch, out, precision, every)
    _require_same(subject, again, precision)
    if again.reads and not outputs_alone(subject, batch, out, precision):
        mixed: ModelError = refusals.mixing(subject, batch, precision)
        raise mixed
