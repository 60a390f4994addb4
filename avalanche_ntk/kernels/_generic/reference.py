"""The oracle: one sample and one output at a time, by `torch.autograd.grad`. Slow, and right by inspection.

Every faster path of this package is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import unknown_name
from avalanche_ntk.kernels._function.batch import Batch, labels_of_second
from avalanche_ntk.kernels._function.subject import Subject, output_rows, require_graph
from avalanche_ntk.kernels._guard.isolation import measuring

REDUCTIONS = ("full", "trace", "sum_logits")


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
    """Jacobian `J[n, c] = ∂f_c(x_n)/∂θ`, shape `(N, C, P)`, each row from a forward pass of its sample alone.

    Args:
        model: The model; evaluated in eval mode and left as it was.
        x: Tensor, tuple or dict of tensors, samples in dimension 0.
        task_labels: Passed to the model as its next positional argument when not None.
        params: Names of parameters to cover (wildcards allowed); None for every trainable one.
        layers: Names of modules to cover (wildcards allowed).
        outputs: Indices of the outputs kept.
        output_selector: Maps the model's raw output to `(N, C)`.
        dtype: Working precision.

    Returns:
        `(N, C, P)` with P the number of chosen parameters.
    """
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
                chosen = range(out.shape[1]) if kept is None else kept
                if jacobian is None:
                    jacobian = _empty(len(batch), len(chosen), leaves)
                for row, c in zip(jacobian[n], chosen, strict=True):
                    grads = torch.autograd.grad(out[0, c], leaves, retain_graph=True, allow_unused=True)
                    parts = row.split([p.numel() for p in leaves])
                    for part, g in zip(parts, grads, strict=True):
                        part.zero_() if g is None else part.copy_(g.to_dense().reshape(-1))
    assert jacobian is not None
    return jacobian


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
) -> Tensor:
    """Empirical NTK from explicit Jacobians: `Θ[n,m,c,d] = <J[n,c], J[m,d]>` and its reductions.

    Arguments are those of `empirical_ntk`; the working precision is float64 unless told otherwise.

    Returns:
        `(N, M, C, C)` for `full`, `(N, M)` for `trace` (Σ_c Θ[n,m,c,c]) and `sum_logits` (Σ_{c,d} Θ[n,m,c,d]).

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

    def jacobian(x: Any, labels: Any) -> Tensor:
        return reference_jacobian(
            model,
            x,
            task_labels=labels,
            params=params,
            layers=layers,
            outputs=outputs,
            output_selector=output_selector,
            dtype=dtype,
        )

    j1 = jacobian(x1, task_labels)
    j2 = j1 if x2 is None else jacobian(x2, labels_of_second(task_labels, task_labels2))
    if reduction == "full":
        return torch.einsum("ncp,mdp->nmcd", j1, j2)
    if reduction == "trace":
        return torch.einsum("ncp,mcp->nm", j1, j2)
    return j1.sum(1) @ j2.sum(1).T
