"""Requests: the arguments of a caller, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, checked_seed, positive, unknown_name
from avalanche_ntk.kernels._device.processes import Alone, Group
from avalanche_ntk.kernels._device.profile import default_budget
from avalanche_ntk.kernels._function.batch import Batch, labels_of_second
from avalanche_ntk.kernels._function.projections import (
    check_exact_or_projected,
    checked_projections,
    hadamard_rows,
    independent_rows,
    number_of_rows,
)
from avalanche_ntk.kernels._function.subject import output_rows
from avalanche_ntk.kernels._generic.reference import REDUCTIONS
from avalanche_ntk.kernels._guard.policy import Checks
from avalanche_ntk.kernels.info import Method

E = TypeVar("E", bound=Enum)


class CommonOptions(TypedDict, total=False):
    """Arguments of both `empirical_ntk` and `empirical_ntk_by_group`, for type checkers."""

    task_labels: Any
    task_labels2: Any
    reduction: str
    params: str | Sequence[str] | None
    outputs: Sequence[int] | slice | None
    output_selector: Callable[[Any], Tensor] | None
    memory_budget: int | None
    dtype: torch.dtype | None
    method: str | Method
    n_projections: int | None
    seed: int
    preconditioner: Mapping[str, Tensor] | None
    checks: str | Checks
    hooks: str | None
    process_group: Any


class KernelOptions(CommonOptions, total=False):
    """Arguments of `empirical_ntk`."""

    layers: str | Sequence[str] | None
    estimator: str | None
    block: int | None
    out: str | os.PathLike[str] | None


class GroupOptions(CommonOptions, total=False):
    """Arguments of `empirical_ntk_by_group`."""

    whole: bool


@dataclass
class Request:
    """Arguments of `empirical_ntk` and `empirical_ntk_by_group`, see there.

    Attributes:
        groups: Name → names of parameters or modules; None for the whole kernel only.
        whole: Whether to compute the kernel of all parameters too.
        report: Whether to return a `KernelInfo`.
    """

    model: nn.Module
    x1: Any
    x2: Any
    task_labels: Any
    task_labels2: Any
    reduction: str
    params: Any
    outputs: Any
    output_selector: Any
    memory_budget: int | None
    dtype: torch.dtype | None
    method: str | Method
    n_projections: int | None
    seed: int
    preconditioner: Mapping[str, Tensor] | None
    checks: str | Checks
    hooks: str | None
    process_group: Any
    report: bool
    layers: Any = None
    groups: Mapping[str, Sequence[str]] | None = None
    whole: bool = True
    estimator: str | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if self.reduction not in REDUCTIONS:
            raise unknown_name("reduction", self.reduction, REDUCTIONS)
        self.method = _member(Method, self.method, "method")
        self.checks = _member(Checks, self.checks, "checks")
        self._check_projections()
        if self.preconditioner is not None and not isinstance(self.preconditioner, Mapping):
            raise ArgumentError(
                "preconditioner must map names of parameters to tensors of their shapes, found"
                f" {type(self.preconditioner).__name__}. Give for example {{'fc.weight': 1 / (v.sqrt() + eps)}}."
            )
        self.processes = Alone() if self.process_group is None else Group(self.process_group)
        budget = positive("memory_budget", self.memory_budget, "bytes")
        self.block = positive("block", self.block, "samples")
        self.b1 = Batch.of(self.x1, self.task_labels)
        self.budget = default_budget(self.b1.device) if budget is None else budget
        self.b2 = None
        if self.x2 is not None:
            self.b2 = Batch.of(self.x2, labels_of_second(self.task_labels, self.task_labels2))

    def _check_projections(self) -> None:
        if self.reduction == "projected":
            if self.estimator is not None:
                raise ArgumentError(
                    f"estimator={self.estimator!r} estimates the trace kernel from independent signs, found"
                    " reduction='projected', which has its own. Leave the estimator out."
                )
            check_exact_or_projected(self.reduction, self.n_projections)
            checked_seed(self.seed)
        elif self.estimator is None:
            check_exact_or_projected(self.reduction, self.n_projections)
        elif self.estimator != "rademacher":
            raise unknown_name("estimator", self.estimator, ["rademacher"])
        elif self.reduction != "trace":
            raise ArgumentError(
                f"estimator='rademacher' estimates the trace kernel, found reduction={self.reduction!r}. Use"
                " reduction='trace', or leave the estimator out."
            )
        else:
            checked_projections(self.n_projections, "estimator='rademacher'", least=2)
            checked_seed(self.seed)

    @property
    def averaged(self) -> bool:
        """Whether the kernel is a mean over random combinations of outputs."""
        return self.reduction == "projected" or self.estimator is not None

    @property
    def apart(self) -> bool:
        """Whether the combinations are kept apart, to estimate the error of their mean."""
        return self.averaged and self.report

    def combinations(self, out: Tensor) -> tuple[Tensor, int]:
        """Return the combinations of outputs `(R, C)` whose kernels are summed, and the number of possible ones.

        Args:
            out: Outputs of a sample, `(1, C)`.
        """
        kept = output_rows(self.outputs, out.shape[1])
        rows = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
        rows = rows if kept is None else rows[kept]
        if self.reduction == "sum_logits":
            return rows.sum(0, keepdim=True), 1
        if not self.averaged:
            return rows, len(rows)
        r = int(self.n_projections or 0)
        if self.reduction == "projected":
            outputs = list(range(out.shape[1])) if kept is None else kept
            signs, most = hadamard_rows(outputs, r, self.seed), number_of_rows(len(outputs))
        else:
            signs, most = independent_rows(len(rows), r, self.seed), 0
        return (signs / len(signs) ** 0.5).to(rows) @ rows, most


def _member(kind: type[E], value: Any, what: str) -> E:
    values = [member.value for member in kind]
    if str(getattr(value, "value", value)) not in values:
        raise unknown_name(what, value, values)
    return kind(value)
