"""Checks that each output depends on its own sample only."""

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

# Samples that are run separately; coprime, so that no dimension grows by coincidence
SMALL, LARGE, OTHER = 3, 5, 8

Parts = Sequence[tuple[list[int], Tensor]]  # positions of samples in the batch, and their outputs when run separately


class Rounding:
    """Measured rounding differences of a model's outputs, `(C,)`; None if not measured yet."""

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
    """Return whether samples run separately have the same outputs as in the batch, up to rounding.

    Differences are relative to each output's spread over samples, so that neither a masked logit nor an offset hides
    the others. Rounding may be large relative to that (`α (f − f₀)` with a large α, as in lazy training): outputs that
    differ are compared again in float64, and the rounding difference is remembered.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        precision: The coarsest precision in their computation.
        parts: Samples that were run separately.
        rounding: Known rounding differences; it is updated.

    Returns:
        True if all agree.

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
    if bool((gap <= allowed).all()):  # false for non-finite values
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
    digits = 1e-8 * whole.abs().amax(0).nan_to_num(0.0, 0.0, 0.0)  # for samples that are all equal
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
    """Run some samples separately, and compare their outputs with those in the batch.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        precision: The coarsest precision in their computation.
        every: Whether to run all samples, in two halves of every other sample; this costs as much as a pass.
        offset: Selects the samples to run otherwise; omitting a sample shows whether it affects others (by a maximum).
        rounding: See `same_outputs`.

    Returns:
        Samples whose outputs differ, with others beside them; None if all agree.
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
    """Return positions and outputs of some samples.

    Raises:
        ModelError: The model cannot be called with few samples.
    """
    with plain_operators(subject.model):
        try:
            return index, subject.outputs(batch.take(index))
        except ModelError as exc:
            norm = refusals.by_batch_statistics(subject.model)
            if norm is not None:  # it needs two samples
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
    """Return the pass of the first sample alone; None if the model cannot be called with one sample."""
    try:
        return forward(subject, few.take(slice(0, 1)))
    except ModelError:
        return None


def refuse_mixing(subject: Subject, batch: Batch, one_by_one: bool) -> None:
    """Check, for models whose graph is not read, that samples run separately have the same outputs as in the batch.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        one_by_one: Whether samples will run one by one; a model that can only be called so is then accepted.

    Raises:
        ModelError: Outputs depend on other samples or are random.
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
    """Refuse batch outputs that differ from those of samples run separately.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        out: Their outputs.
        every: See `differing`.

    Raises:
        ModelError: Some of the compared samples differ.
    """
    kinds = {p.dtype for p in subject.model.parameters() if p.is_floating_point()}
    precision = torch.float64 if kinds == {torch.float64} else torch.float32
    found = differing(subject, batch, out, precision, every)
    if found is not None:
        error: ModelError = refusals.mixing(subject, found, precision)
        raise error


def require_separate(subject: Subject, batch: Batch) -> None:
    """Refuse a model for which `torch.func` derivatives of all samples at once would be wrong.

    All parameters are replaced by copies, as in those derivatives.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.

    Raises:
        ModelError: Outputs depend on other samples or are random, or the forward pass does not use the copies.
    """
    own = dict(subject.model.named_parameters())
    copies = {k: t.detach().requires_grad_(k in subject.leaves) for k, t in own.items()}
    with subject.showing_originals(), swapped(subject.model, copies):
        require_alone(subject, batch, forward(subject, batch).out, every=True)
