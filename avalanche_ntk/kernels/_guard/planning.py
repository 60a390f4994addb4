"""The plan of a pass: a known one for its graph, or a new one, made and proved on a few samples."""

from __future__ import annotations

from torch import Tensor

from avalanche_ntk.errors import ModelError, NTKError
from avalanche_ntk.kernels._contract.schedule import needs
from avalanche_ntk.kernels._device.memory import release
from avalanche_ntk.kernels._device.order import agree
from avalanche_ntk.kernels._device.profile import exhausted
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._guard import known, refusals
from avalanche_ntk.kernels._guard.policy import Look
from avalanche_ntk.kernels._guard.proof import prove, prove_layouts
from avalanche_ntk.kernels._guard.samples import (
    LARGE,
    OTHER,
    SMALL,
    Rounding,
    differing,
    first_alone,
    outputs_alone,
    same_outputs,
)
from avalanche_ntk.kernels._structure.passes import Pass, forward
from avalanche_ntk.kernels._structure.pattern import Pattern
from avalanche_ntk.kernels._structure.plan import Plan, Way
from avalanche_ntk.kernels._structure.uses import read

FLOW = "the path through the model depends on the values of the samples"


def inspect(subject: Subject, batch: Batch, at: Pass, plan: Plan, budget: int | None, look: Look) -> Plan:
    """Check that a plan holds for a pass and that its samples are independent.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        at: Their pass.
        plan: Its plan.
        budget: Bytes for what is held at a time.
        look: The comparisons to make.

    Returns:
        The plan, or a copy in which parameters that fail the check use other methods.

    Raises:
        ModelError: Outputs of one sample depend on other samples or are random.
    """
    precision = at.graph.coarsest()
    if look:
        found = differing(subject, batch, at.out, precision, look.all, plan.uses, plan.rounding)
        if found is not None:
            known.forget(subject.model)
            error: ModelError = refusals.mixing(subject, found, precision)
            raise error
    if plan.way is Way.LOOP:
        separate = not look or outputs_alone(subject, batch, at.out, precision)
    elif plan.moving:
        plan = plan.copy()
        separate = prove_layouts(plan, at, budget) or outputs_alone(subject, batch, at.out, precision)
    else:
        separate = True
    if not separate:
        mixed: ModelError = refusals.mixing(subject, batch, precision)
        raise mixed
    return plan


def new_plan(subject: Subject, batch: Batch, at: Pass, budget: int | None) -> Plan:
    """Make and prove a plan on `LARGE` samples from all over the batch (repeated if it has fewer).

    If a node receives no signal (below a head, a gate or a low-rank update that starts at zero), this is repeated with
    slightly perturbed parameters: the uses of a parameter do not depend on its values.

    Returns:
        The plan; it is remembered if proved.

    Raises:
        ModelError: Outputs of one sample depend on other samples or are random.
        NTKError: The model cannot be measured for other reasons.
        Exception: Memory is used up.
    """
    n = len(batch)
    index = [i % n for i in range(LARGE)] if n < 2 * LARGE else [(i * n) // LARGE for i in range(LARGE)]
    try:
        plan = _plan_on(subject, batch, at, budget, index)
        if plan.unproven:
            plan = _plan_nearby(subject, batch, at, budget, index) or plan
    except Exception as exc:
        if isinstance(exc, NTKError) or exhausted(exc):
            raise
        # a graph that cannot be read (weights written in the forward pass)
        cause = f"reading the graph failed ({type(exc).__name__}: {exc})"
        plan = Plan(generic=dict.fromkeys(subject.leaves, cause), unproven=cause)
    known.keep(subject, batch, at, plan)
    return plan


def _plan_nearby(subject: Subject, batch: Batch, at: Pass, budget: int | None, index: list[int]) -> Plan | None:
    """Return a plan made with slightly perturbed parameters, if possible and valid."""
    try:
        with subject.nearby() as moved:
            plan = _plan_on(moved, batch, forward(moved, batch.take(index)), budget, list(range(len(index))), index)
    except ModelError:
        return None
    return plan if not plan.unproven and plan.serves(at.graph, at.n) else None


def plan_ahead(subject: Subject, batch: Batch, budget: int | None) -> Tensor | None:
    """Make a missing plan for such inputs from a few samples, while no large pass is in memory.

    Returns:
        The outputs of these samples, for `forget_if_other`; None if no plan was made.
    """
    if known.may_have_plan(subject, batch):
        return None
    few = batch.take(slice(0, LARGE))
    try:
        at = forward(subject, few)
        if known.plan_of(subject, few, at) is None:
            new_plan(subject, few, at, budget)
        out = at.out.detach()
        del at
        release()
    except ModelError:  # if it is not due to these few samples, it is raised again for the whole batch
        return None
    return out


def forget_if_other(subject: Subject, ahead: Tensor, at: Pass) -> None:
    """Forget the plan made ahead if its samples have other outputs in the whole batch."""
    if not agree(at.out[: len(ahead)], ahead, at.graph.coarsest()):
        known.forget(subject.model)


def _plan_on(
    subject: Subject, batch: Batch, at: Pass, budget: int | None, index: list[int], among: list[int] | None = None
) -> Plan:
    """Make and prove a plan on some samples.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: N samples.
        at: A pass of them, or of those `among` them.
        budget: Bytes for what is held at a time.
        index: Positions in the pass of the samples to use.
        among: Positions in the batch of the samples of the pass; None for all.

    Returns:
        The plan.

    Raises:
        ModelError: Outputs of one sample depend on other samples or are random.
    """
    batch = batch if among is None else batch.take(among)
    few = batch.take(index)
    large = forward(subject, few)
    small = forward(subject, few.take(slice(0, SMALL)))
    alone = first_alone(subject, few)
    parts = [(index, large.out.detach()), (index[:SMALL], small.out.detach())]
    if alone is not None:
        parts.append((index[:1], alone.out.detach()))
    rounding = Rounding()
    if not same_outputs(subject, batch, at.out.detach(), at.graph.coarsest(), parts, rounding):
        error: ModelError = refusals.mixing(subject, few, large.graph.coarsest())
        raise error
    pattern = Pattern.of(small.graph, small.n, large.graph, large.n)
    like = large.graph.signature == small.graph.signature
    if not (like and large.graph.signature == at.graph.signature and pattern.fits(at.graph, at.n)):
        # copies of one sample have another graph too: the number of samples causes the difference
        return Plan(way=Way.TWICE) if like and len(batch) == 1 else _one_by_one(subject)
    plan = read(subject, small, large)
    plan.pattern, plan.rounding = pattern, rounding
    del small, alone  # tensors computed from parameters only (a parametrised weight) may be large
    plan.needs = needs(subject, plan, large, prove(subject, plan, few, large, budget))
    # again for another number of samples, which can distinguish tokens from samples
    more = forward(subject, batch.take([i % len(batch) for i in range(OTHER)]))
    plan.moving = plan.moving or not prove_layouts(plan.copy(), more, budget)
    return plan


def _one_by_one(subject: Subject) -> Plan:
    return Plan(generic=dict.fromkeys(subject.leaves, FLOW), way=Way.LOOP)
