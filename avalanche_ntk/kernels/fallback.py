"""Exact kernels without any knowledge of the model: explicit per-sample Jacobians of some parameters.

Two ways, tried in this order: `torch.func` (`vmap` over samples), and one sample at a time by `autograd.grad`, which
goes wherever a backward pass goes (data-dependent branches, `.item()`, custom functions).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from avalanche_ntk.kernels.inputs import Batch
from avalanche_ntk.kernels.subject import Subject, require_graph


def jacobian_vmap(subject: Subject, batch: Batch, cotangents: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Per-sample gradients of `cotangents @ f` by `vmap(vjp)`.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: B samples.
        cotangents: `(R, C)`.
        names: Parameters wanted.

    Returns:
        name → `(B, R, *parameter shape)`.
    """
    leaves = {n: subject.leaves[n].detach() for n in names}

    cast = batch.cast(subject.dtype)

    def one(*sample: Tensor) -> dict[str, Tensor]:
        args, kwargs = cast.with_tensors([t.unsqueeze(0) for t in sample]).arguments()

        def f(theta: dict[str, Tensor]) -> Tensor:
            out = functional_call(subject.model, theta, args, kwargs, tie_weights=True)
            return (out if subject.selector is None else subject.selector(out))[0]

        _, pull = vjp(f, leaves)
        return vmap(lambda v: pull(v)[0])(cotangents)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap announces operators it has no batching rule for; they are still exact
        result = vmap(one, randomness="error")(*cast.tensors())
    return {n: result[n].detach() for n in names}


def jacobian_loop(subject: Subject, batch: Batch, cotangents: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The same by one forward pass and R backward passes for every sample alone."""
    leaves = [subject.leaves[n] for n in names]
    rows: list[list[Tensor]] = [[] for _ in names]
    for n in range(len(batch)):
        out = subject.forward(batch.take(slice(n, n + 1)))
        require_graph(out, subject)
        per_row = []
        for v in cotangents:
            grads = torch.autograd.grad(out[0] @ v, leaves, retain_graph=True, allow_unused=True)
            per_row.append(
                [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(grads, leaves, strict=True)]
            )
        for i in range(len(names)):
            rows[i].append(torch.stack([r[i] for r in per_row]))
    return {n: torch.stack(r).detach() for n, r in zip(names, rows, strict=True)}
