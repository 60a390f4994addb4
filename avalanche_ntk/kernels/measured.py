"""What is measured for a request: by one process or by several, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels._device.memory import as_fits
from avalanche_ntk.kernels._device.profile import in_double
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.sharded import gathered
from avalanche_ntk.kernels._function.subject import Subject, names_of, select_parameters
from avalanche_ntk.kernels._function.wrappers import wrapper_prefix
from avalanche_ntk.kernels._guard import known
from avalanche_ntk.kernels._guard.hooks import hooks_as
from avalanche_ntk.kernels._guard.isolation import measuring
from avalanche_ntk.kernels._guard.policy import Checks
from avalanche_ntk.kernels.diagnostics import finished
from avalanche_ntk.kernels.info import KernelInfo
from avalanche_ntk.kernels.measurement import Measurement
from avalanche_ntk.kernels.request import Request
from avalanche_ntk.kernels.sharing import Part, own_rows, part_of


def measured(request: Request, part: Part | None = None) -> tuple[dict[str, Tensor], KernelInfo]:
    """Measure what a request asks for.

    Args:
        request: It is.
        part: The rows and columns that are wanted; None for all. The kernel of a part is given as it was computed.

    Returns:
        Group → kernel, and how it was computed.
    """
    r, info = request, KernelInfo(processes=request.processes.size)
    b1, b2 = (r.b1, r.b2) if part is None else part.batches(r.b1, r.b2)
    with gathered(r.model, r.budget), ExitStack() as leaving:
        with r.processes.together():
            leaving.enter_context(hooks_as(r.hooks))
            leaving.enter_context(measuring(r.model, b1))
            subject = Subject.of(r.model, r.params, r.layers, r.dtype, r.output_selector)
            members = {"": list(subject.leaves)} if r.whole else {}
            members |= _members(subject, r.groups or {}, wrapper_prefix(r.model))
            if not r.whole:
                subject = subject.restricted({n for names in members.values() for n in names})
        result, most = _with_others(r, subject, members, info, (b1, b2))
    apart = r.averaged and r.report
    if apart:
        if "" in result:
            info.standard_error = _standard_error(result[""], most)
        result = {name: kernel.sum(0) for name, kernel in result.items()}
    others = KernelInfo()  # of the groups, where the report is about the whole
    for name, kernel in result.items():
        about = others if r.whole and name else info
        result[name] = finished(kernel, name, b2 is None, about, r.report and about is info)
    return result, info


def _with_others(
    r: Request,
    subject: Subject,
    members: dict[str, list[str]],
    info: KernelInfo,
    batches: tuple[Batch, Batch | None],
) -> tuple[dict[str, Tensor], int]:
    """Return the kernels, each process having computed its share of them, and how many combinations there could be."""
    b1 = batches[0]
    processes = r.processes
    inputs = {f"{k} of batch {i}": t for i, b in enumerate(batches, 1) if b for k, t in enumerate(b.tensors())}
    processes.require_equal("parameter", dict(subject.model.named_parameters()))
    processes.require_equal("input", inputs)
    buffers = processes.of_the_first(dict(subject.model.named_buffers()))
    with subject.standing_in(buffers):
        with processes.together():

            def attempt(budget: int) -> tuple[dict[str, Tensor], int]:
                r.budget = budget
                return _share(r, subject, members, info, batches)

            result, most = as_fits(attempt, r.budget, subject.model, b1.device)
        if r.checks is not Checks.NEVER:
            for b in batches:
                if b is not None:
                    known.note(subject.model, b)
    return {name: processes.sum(kernel) for name, kernel in result.items()}, most


def _share(
    r: Request,
    subject: Subject,
    members: dict[str, list[str]],
    info: KernelInfo,
    batches: tuple[Batch, Batch | None],
) -> tuple[dict[str, Tensor], int]:
    """Return this process's summand of the kernels, and how many combinations of outputs there could be.

    Where there are as many combinations of outputs as processes, these are shared out; else rows of the kernel.
    """
    processes, apart = r.processes, r.averaged and r.report
    run = Measurement(subject, members, r, info, *batches)
    rows, most = r.combinations(run.out)
    if processes.size == 1:
        return run.kernels(rows, apart), most
    if r.reduction == "full" or len(rows) < processes.size:
        del run
        return _own_part(r, subject, members, info, batches, rows), most
    own, index = own_rows(rows, processes.rank, processes.size)
    result = run.kernels(own, apart)
    if apart:
        result = {g: k.new_zeros(len(rows), *k.shape[1:]).index_copy_(0, index, k) for g, k in result.items()}
    return result, most


def _own_part(
    r: Request,
    subject: Subject,
    members: dict[str, list[str]],
    info: KernelInfo,
    batches: tuple[Batch, Batch | None],
    rows: Tensor,
) -> dict[str, Tensor]:
    """Return kernels with zeros everywhere but in the rows of this process and their mirror images."""
    b1, b2 = batches
    n, m = len(b1), None if b2 is None else len(b2)
    full, apart = r.reduction == "full", r.averaged and r.report
    shape = (n, m or n, len(rows), len(rows)) if full else (n, m or n)
    result = {g: rows.new_zeros(len(rows), *shape) if apart else rows.new_zeros(shape) for g in members}
    part = part_of(r.processes.rank, r.processes.size, n, m)
    if part is None:
        return result
    run = Measurement(subject, members, r, info, *part.batches(b1, b2))
    for g, kernel in run.kernels(rows, apart).items():
        for into, one in zip(result[g], kernel, strict=True) if apart else [(result[g], kernel)]:
            part.put(into, one, mirrored=b2 is None)
    return result


def _members(subject: Subject, groups: Mapping[str, Sequence[str]], prefix: str) -> dict[str, list[str]]:
    """Return each group's parameters; `prefix` is what wrappers of the model put before every name.

    Raises:
        ArgumentError: A group names nothing.
    """
    members: dict[str, list[str]] = {}
    everything = dict(subject.model.named_parameters(remove_duplicate=False))
    for name, patterns in groups.items():
        chosen: set[str] = set()
        for given in names_of(patterns, f"group {name!r}"):
            pattern = given.removeprefix(prefix)
            if pattern in subject.leaves:
                chosen.add(pattern)
                continue
            as_parameter = pattern in everything or any(fnmatchcase(n, pattern) for n in everything)
            kind = {"params": pattern} if as_parameter else {"layers": pattern}
            chosen |= set(select_parameters(subject.model, **kind))
        members[name] = [n for n in subject.leaves if n in chosen]
        if not members[name]:
            raise ArgumentError(
                f"group {name!r} ({', '.join(sorted(chosen))}) has no parameter in common with the whole"
                f" ({', '.join(subject.leaves)}). Leave the group out, or let params cover it."
            )
    return members


def _standard_error(parts: Tensor, most: int) -> Tensor:
    """Standard error of a mean over combinations of outputs, from its parts `(R, N, M)`, each `1/R` of one kernel.

    Args:
        parts: They are.
        most: How many different combinations there are; 0 for any number. The mean over all of them has no error.

    Returns:
        `(N, M)`; NaN where one combination tells nothing of the others.
    """
    r = parts.shape[0]
    if r == most:
        return torch.zeros_like(parts[0])
    if r == 1:
        return torch.full_like(parts[0], torch.nan)
    error: Tensor = in_double(parts).mul(r).std(0) / r**0.5
    return (error * float((1 - r / most) ** 0.5) if most else error).to(parts)
