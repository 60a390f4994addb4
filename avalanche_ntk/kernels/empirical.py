"""`empirical_ntk`: the only door to the kernel engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import KernelError, ModelError, unknown_name
from avalanche_ntk.kernels import fallback
from avalanche_ntk.kernels.inputs import Batch
from avalanche_ntk.kernels.state import measuring
from avalanche_ntk.kernels.subject import Subject, output_rows, require_graph

REDUCTIONS = ("full", "trace", "sum_logits")


@dataclass
class KernelInfo:
    """How a kernel was computed."""

    methods: dict[str, str] = field(default_factory=dict)


def empirical_ntk(
    model: nn.Module,
    x1: Any,
    x2: Any = None,
    *,
    task_labels: Any = None,
    task_labels2: Any = None,
    reduction: str = "trace",
    params: Any = None,
    layers: Any = None,
    outputs: Sequence[int] | slice | None = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    memory_budget: int | None = None,
    dtype: torch.dtype | None = None,
    method: str = "auto",
    estimator: str | None = None,
    n_projections: int | None = None,
    return_info: bool = False,
) -> Any:
    """Empirical neural tangent kernel."""
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    b1 = Batch.of(x1, task_labels)
    b2 = None
    if x2 is not None:
        b2 = Batch.of(
            x2, task_labels2 if task_labels2 is not None else (task_labels if isinstance(task_labels, int) else None)
        )
    with measuring(model):
        subject = Subject.of(model, params, layers, dtype, output_selector)
        with subject.standing_in():
            out = subject.forward(b1.take(slice(0, 1)))
            require_graph(out, subject)
            kept = output_rows(outputs, out.shape[1])
            v = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
            v = v if kept is None else v[kept]
            if reduction == "sum_logits":
                v = v.sum(0, keepdim=True)
            names = list(subject.leaves)
            j1 = _jacobian(subject, b1, v, names)
            j2 = j1 if b2 is None else _jacobian(subject, b2, v, names)
            kernel = 0
            for n in names:
                a, b = j1[n].flatten(2), j2[n].flatten(2)
                if reduction == "full":
                    kernel = kernel + torch.einsum("ncp,mdp->nmcd", a, b)
                else:
                    kernel = kernel + a.flatten(1) @ b.flatten(1).T
    if not torch.isfinite(kernel).all():
        raise KernelError(
            "the kernel has entries that are not finite: expected finite numbers. The weights or activations overflow;"
            " check the loss for NaN, or measure with dtype=torch.float64."
        )
    return (kernel, KernelInfo({n: "jacobian" for n in names})) if return_info else kernel


def _jacobian(subject: Subject, batch: Batch, v: Tensor, names: list[str]) -> dict[str, Tensor]:
    chunks = []
    for start in range(0, len(batch), 16):
        part = batch.take(slice(start, start + 16))
        try:
            chunks.append(fallback.jacobian_vmap(subject, part, v, names))
        except ModelError:
            raise
        except Exception:
            chunks.append(fallback.jacobian_loop(subject, part, v, names))
    return {n: torch.cat([c[n] for c in chunks]) for n in names}
