"""Does each output depend on its own sample only, in a batch as alone?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels._device.order import agree
from avalanche_ntk.kernels._device.profile import has_double
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject, swapped
from avalanche_ntk.kernels._guard import refusals
from avalanche_ntk.kernels._structure.passes import Pass, forward, plain_operators

# Samples that are run by themselves; coprime, so that no dimension grows by accident
SMALL, LARGE, OTHER = 3, 5, 8

Parts = Sequence[tuple[list[int], Tensor]]  # places of samples in the batch, and their outputs when run by themselves


class Rounding:
    """How far outputs of a model were seen to differ by rounding alone, `(C,)`; None as long as it was not asked."""

    def __init__(self) -> None:
        self.seen: Tensor | None = None


def same_outputs(
    subject: Subject,
    batch: Batch,
    out: Tensor,
    precision: torch.dtype,
    parts: Parts,
    rounding: Rounding | None = None,
) -> bool:
    """Tell whether samples have, run by themselves, the outputs that they have in the batch, but for rounding.

    Each output is compared with how much it differs between samples, so that neither a masked logit nor an offset
    covers the others. Rounding may be large beside that (`α (f − f₀)` with a large α, as lazy training has it): what
    differs is compared again in float64, and the difference that was rounding is remembered.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        precision: Of the least exact numbers that they are made from.
        parts: Samples that ran by themselves.
        rounding: What was seen before, and is written to.

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
    here, alone = out[[i for index, _ in parts for i in index]], torch.cat([o for _, o in parts])
    gap = (here - alone).abs().amax(0)
    allowed = tolerance * (out.amax(0) - out.amin(0))
    if rounding is not None and rounding.seen is not None and rounding.seen.shape == allowed.shape:
        allowed = torch.maximum(allowed, 4 * rounding.seen)
    if bool((gap <= allowed).all()):  # false for what is not finite
        return True
    if _close(here, alone, torch.maximum(tolerance * _spread(out), allowed.nan_to_num(0.0, 0.0, 0.0))):
        return True
    if not has_double(out.device):
        return agree(here, alone, precision)
    try:
        with plain_operators(subject.model), subject.in_double() as finer:
            whole = finer.outputs(batch)
            again = torch.cat([finer.outputs(batch.take(index)) for index, _ in parts])
    except ModelError:  # it cannot be run in float64
        return agree(here, alone, precision)
    digits = 1e-8 * whole.abs().amax(0).nan_to_num(0.0, 0.0, 0.0)  # of samples that are all alike
    if not _close(whole[[i for index, _ in parts for i in index]], again, 1e-6 * _spread(whole) + digits):
        return False
    if rounding is not None:
        rounding.seen = gap.nan_to_num(0.0, 0.0, 0.0)
    return True


def _spread(out: Tensor) -> Tensor:
    """Return how much each output differs between samples, `(C,)`, where it is finite."""
    finite = torch.isfinite(out)
    low, high = (torch.where(finite, out, k * torch.inf) for k in (1, -1))
    return (high.amax(0) - low.amin(0)).clamp_min(0)


def _close(here: Tensor, alone: Tensor, allowed: Tensor) -> bool:
    finite = torch.isfinite(here)
    gap = torch.where(finite, (here - alone).abs(), 0)
    return torch.equal(finite, torch.isfinite(alone)) and not bool((gap > allowed).any())


def differing(
    subject: Subject,
    batch: Batch,
    out: Tensor,
    precision: torch.dtype,
    every: bool = False,
    offset: int = 0,
    rounding: Rounding | None = None,
) -> Batch | None:
    """Run some samples by themselves, and look for other outputs than in the batch.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        precision: Of the least exact numbers that they are made from.
        every: Run all samples, every other one at a time, so that each is in other company: as much as a pass.
        offset: Which samples are run otherwise: one that changes the others (by a maximum) shows where it is left out.
        rounding: See `same_outputs`.

    Returns:
        Samples whose outputs differ, with others beside them; None where there is none.
    """
    n = len(batch)
    places = [sorted({(i + offset) % n for i in (n // 4, n // 2, n - 1)})] if n > SMALL else [[n - 1], [0]][-n:]
    if every and n > SMALL:
        places = [list(range(1, n, 2)), list(range(0, n, 2)), *places]
    parts = [_by_themselves(subject, batch, index) for index in places]
    if same_outputs(subject, batch, out.detach(), precision, parts, rounding):
        return None
    index = [i for part, _ in reversed(parts) for i in part]
    return batch.take([*index, *range(n)][:LARGE])


def _by_themselves(subject: Subject, batch: Batch, index: list[int]) -> tuple[list[int], Tensor]:
    """Return places and outputs of some samples.

    Raises:
        ModelError: The model cannot be called with few samples.
    """
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
    """Return whether every sample has, alone, the output that it has in the batch; see `same_outputs`."""
    parts = [_by_themselves(subject, batch, [n]) for n in range(len(batch))]
    return same_outputs(subject, batch, out.detach(), precision, parts)


def first_alone(subject: Subject, few: Batch) -> Pass | None:
    """Return the pass of the first sample by itself; None where the model cannot be called so."""
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


def require_alone(subject: Subject, batch: Batch, out: Tensor, every: bool) -> None:
    """Refuse outputs of samples at once that are others than those of samples by themselves.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        every: See `differing`.

    Raises:
        ModelError: They are, for some that were looked at.
    """
    kinds = {p.dtype for p in subject.model.parameters() if p.is_floating_point()}
    precision = torch.float64 if kinds == {torch.float64} else torch.float32
    found = differing(subject, batch, out, precision, every)
    if found is not None:
        error: ModelError = refusals.mixing(subject, found, precision)
        raise error


def require_separate(subject: Subject, batch: Batch) -> None:
    """Refuse a model of which derivatives by torch.func of all samples at once would be wrong.

    Copies stand in for all parameters, as in those derivatives.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.

    Raises:
        ModelError: Outputs depend on other samples, or on chance; or copies do not reach the forward pass.
    """
    own = dict(subject.model.named_parameters())
    copies = {k: t.detach().requires_grad_(k in subject.leaves) for k, t in own.items()}
    with subject.showing_originals(), swapped(subject.model, copies):
        require_alone(subject, batch, forward(subject, batch).out, every=True)
