"""The reference implementation: one sample and one output at a time, by `torch.autograd.grad`. Slow and simple.

All faster methods are tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import unknown_name
from avalanche_ntk.kernels._function.batch import Batch, labels_of_second
from avalanche_ntk.kernels._function.projections import checked_projections, hadamard_rows
from avalanche_ntk.kernels._function.subject import Subject, output_rows, require_graph
from avalanche_ntk.kernels._guard.isolation import measuring

REDUCTIONS = ("full", "trace", "sum_logits", "projected")


def reference_jacobian(
    model: nn.Module,
    x: Any,
    *,
    task_labels: Any = None,
    params: Any = None,
    layers: Any = None,
    outputs: Sequence[int] | slice | None = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    dtype: torch.dtype | None = torch.float64,
) -> Tensor:
    """Jacobian `J[n, c] = ∂f_c(x_n)/∂θ`, shape `(N, C, P)`, with a separate forward pass for each sample.

    Args:
        model: The model; evaluated in eval mode and left unchanged.
        x: Tensor, tuple or dict of tensors, samples in dimension 0.
        task_labels: Passed to the model as its next positional argument if not None.
        params: Names of parameters to cover (wildcards allowed); None for every trainable one.
        layers: Names of modules to cover (wildcards allowed).
        outputs: Indices of the outputs kept.
        output_selector: Maps the model's raw output to `(N, C)`.
        dtype: Working precision.

    Returns:
        `(N, C, P)` with P the number of chosen parameters.
    """
    return jacobian_and_outputs(model, x, task_labels, params, layers, outputs, output_selector, dtype)[0]


def jacobian_and_outputs(
    model: nn.Module,
    x: Any,
    task_labels: Any,
    params: Any,
    layers: Any,
    outputs: Sequence[int] | slice | None,
    output_selector: Callable[[Any], Tensor] | None,
    dtype: torch.dtype | None,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, list[int]]:
    """Return `reference_jacobian` (times the square root of a preconditioner), and the indices of its outputs."""
    batch = Batch.of(x, task_labels)
    with measuring(model, batch):
        subject = Subject.of(model, params, layers, dtype, output_selector)
        leaves = list(subject.leaves.values())
        jacobian: Tensor | None = None
        with subject.standing_in():
            for n in range(len(batch)):
                out = subject.forward(batch.take(slice(n, n + 1)))
                require_graph(out, subject)
                kept = output_rows(outputs, out.shape[1])
                chosen = list(range(out.shape[1])) if kept is None else kept
                if jacobian is None:
                    jacobian = _empty(len(batch), len(chosen), leaves)
                for row, c in zip(jacobian[n], chosen, strict=True):
                    grads = torch.autograd.grad(out[0, c], leaves, retain_graph=True, allow_unused=True)
                    parts = row.split([p.numel() for p in leaves])
                    for part, g in zip(parts, grads, strict=True):
                        part.zero_() if g is None else part.copy_(g.to_dense().reshape(-1))
        assert jacobian is not None  # there is a sample
        if preconditioner:
            roots = subject.preconditioned(preconditioner).roots
            jacobian *= torch.cat([roots.get(n, torch.ones_like(p)).flatten() for n, p in subject.leaves.items()])
    return jacobian, chosen


def _empty(n: int, c: int, leaves: Sequence[Tensor]) -> Tensor:
    """Return an `(n, c, P)` tensor to be filled, in the widest precision of the leaves."""
    kinds = [p.dtype for p in leaves]
    return leaves[0].new_empty((n, c, sum(p.numel() for p in leaves)), dtype=reduce(torch.promote_types, kinds))


def reference_ntk(
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
    dtype: torch.dtype | None = torch.float64,
    n_projections: int | None = None,
    seed: int = 0,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Empirical NTK from explicit Jacobians: `Θ[n,m,c,d] = <J[n,c], J[m,d]>` and its reductions.

    Arguments are those of `empirical_ntk`; the working precision is float64 by default.

    Returns:
        `(N, M, C, C)` for `full`, `(N, M)` for `trace` (Σ_c Θ[n,m,c,c]), `sum_logits` (Σ_{c,d} Θ[n,m,c,d]) and
        `projected` (the mean of `vᵀΘ[n,m]v` over signs v).

    Raises:
        unknown_name: The reduction is none of these (an `ArgumentError`).

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> reference_ntk(model, x)
        tensor([[5., 6.],
                [6., 9.]], dtype=torch.float64)
    """
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)

    def gradients(x: Any, labels: Any) -> Tensor:
        j, kept = jacobian_and_outputs(
            model, x, labels, params, layers, outputs, output_selector, dtype, preconditioner
        )
        return combined(j, kept, reduction, n_projections, seed)

    j1 = gradients(x1, task_labels)
    j2 = j1 if x2 is None else gradients(x2, labels_of_second(task_labels, task_labels2))
    return torch.einsum("ncp,mdp->nmcd" if reduction == "full" else "ncp,mcp->nm", j1, j2)


def combined(jacobian: Tensor, outputs: Sequence[int], reduction: str, n_projections: int | None, seed: int) -> Tensor:
    """Return the gradients of combinations of outputs whose kernels, summed, are those of a reduction.

    Args:
        jacobian: `(N, C, P)`.
        outputs: Indices of the C outputs.
        reduction: See `reference_ntk`; for `full` and `trace`, each output is a combination by itself.
        n_projections: For `projected`.
        seed: For `projected`.

    Returns:
        `(N, R, P)`.
    """
    if reduction == "sum_logits":
        return jacobian.sum(1, keepdim=True)
    if reduction != "projected":
        return jacobian
    signs = hadamard_rows(outputs, checked_projections(n_projections, "reduction='projected'"), seed)
    return torch.einsum("rc,ncp->nrp", signs.to(jacobian) / len(signs) ** 0.5, jacobian)
