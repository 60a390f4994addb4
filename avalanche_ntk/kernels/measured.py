"""Execution of a request, by one process or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
    """Compute the kernels of a request.

    Args:
        request: The request.
        part: Rows and columns to compute; None for all. The kernel of a part is returned without final processing.

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
        result, most = _Task(r, subject, members, info, b1, b2).done_by_all()
    if r.apart:
        if "" in result:
            info.standard_error = _standard_error(result[""], most)
        result = {name: kernel.sum(0) for name, kernel in result.items()}
    others = KernelInfo()  # for the groups, if the report is about the whole
    for name, kernel in result.items():
        about = others if r.whole and name else info
        result[name] = finished(kernel, name, b2 is None, about, r.report and about is info)
    return result, info


@dataclass(frozen=True)
class _Task:
    """The kernels of two batches, computed by all processes together.

    Attributes:
        request: What is asked for.
        subject: The model.
        members: Group → its parameters.
        info: Report on the computation.
        b1: First batch.
        b2: Second batch; None for a self-kernel.
    """

    request: Request
    subject: Subject
    members: dict[str, list[str]]
    info: KernelInfo
    b1: Batch
    b2: Batch | None

    def done_by_all(self) -> tuple[dict[str, Tensor], int]:
        """Return the kernels, computed by all processes, and the number of possible combinations."""
        r, model = self.request, self.subject.model
        batches = [b for b in (self.b1, self.b2) if b is not None]
        buffers = r.processes.agreed(model, [b.tensors() for b in batches])
        with self.subject.standing_in(buffers):
            with r.processes.together():
                result, most = as_fits(self._share, r.budget, model, self.b1.device)
            if r.checks is not Checks.NEVER:
                for b in batches:
                    known.note(model, b)
        return {name: r.processes.sum(kernel) for name, kernel in result.items()}, most

    def _share(self, budget: int) -> tuple[dict[str, Tensor], int]:
        """Return this process's summand of the kernels, and the number of possible combinations of outputs.

        If there are at least as many combinations of outputs as processes, these are split, otherwise rows of the
        kernel.
        """
        r = self.request
        r.budget = budget
        run = self._of(self.b1, self.b2)
        rows, most = r.combinations(run.out)
        if r.processes.size == 1:
            return run.kernels(rows, r.apart), most
        if r.reduction == "full" or len(rows) < r.processes.size:
            del run
            return self._own_part(rows), most
        own, index = own_rows(rows, r.processes.rank, r.processes.size)
        result = run.kernels(own, r.apart)
        if r.apart:
            result = {g: k.new_zeros(len(rows), *k.shape[1:]).index_copy_(0, index, k) for g, k in result.items()}
        return result, most

    def _own_part(self, rows: Tensor) -> dict[str, Tensor]:
        """Return kernels that are zero except in this process's rows and their mirror images."""
        r, n, m = self.request, len(self.b1), None if self.b2 is None else len(self.b2)
        shape = (n, m or n, len(rows), len(rows)) if r.reduction == "full" else (n, m or n)
        result = {g: rows.new_zeros(len(rows), *shape) if r.apart else rows.new_zeros(shape) for g in self.members}
        part = part_of(r.processes.rank, r.processes.size, n, m)
        if part is None:
            return result
        for g, kernel in self._of(*part.batches(self.b1, self.b2)).kernels(rows, r.apart).items():
            for into, one in zip(result[g], kernel, strict=True) if r.apart else [(result[g], kernel)]:
                part.put(into, one, mirrored=self.b2 is None)
        return result

    def _of(self, b1: Batch, b2: Batch | None) -> Measurement:
        return Measurement(self.subject, self.members, self.request, self.info, b1, b2)


def _members(subject: Subject, groups: Mapping[str, Sequence[str]], prefix: str) -> dict[str, list[str]]:
    """Return each group's parameters; `prefix` is the prefix of the model's wrappers.

    Raises:
        ArgumentError: A group has no parameter.
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
        parts: The parts.
        most: Number of different combinations; 0 if unlimited. The mean over all of them has no error.

    Returns:
        `(N, M)`; NaN for a single combination.
    """
    r = parts.shape[0]
    if r == most:
        return torch.zeros_like(parts[0])
    if r == 1:
        return torch.full_like(parts[0], torch.nan)
    error: Tensor = in_double(parts).mul(r).std(0) / r**0.5
    return (error * float((1 - r / most) ** 0.5) if most else error).to(parts)
