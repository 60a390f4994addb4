"""Exact kernels without any knowledge of the model: explicit per-sample Jacobians of some parameters.

Two ways, tried in this order: `torch.func` (`vmap` over samples), and one sample at a time by `autograd.grad`, which
works wherever a backward pass works (data-dependent branches, `.item()`, custom functions).
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.func import vjp, vmap

from avalanche_ntk.kernels._contract.contraction import inner
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject, require_graph, swapped
from avalanche_ntk.kernels._guard.written import exchanges_memory


def jacobian_vmap(subject: Subject, batch: Batch, cotangents: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Per-sample gradients of `cotangents @ f` by `vmap(vjp)`.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        batch: B samples.
        cotangents: `(R, C)`.
        names: The parameters.

    Returns:
        name → `(B, R, *parameter shape)`.
    """
    leaves = {n: subject.leaves[n].detach() for n in names}

    cast = batch.cast(subject.dtype)

    def one(*sample: Tensor) -> dict[str, Tensor]:
        args, kwargs = cast.with_tensors([t.unsqueeze(0).clone() for t in sample]).arguments(subject.model)

        def f(theta: dict[str, Tensor]) -> Tensor:
            with swapped(subject.model, theta):
                out = subject.model(*args, **kwargs)
            return (out if subject.selector is None else subject.selector(out))[0]

        pull = vjp(f, leaves)[1]
        rows: dict[str, Tensor] = vmap(lambda v: pull(v)[0])(cotangents)
        return rows

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap announces operators it has no batching rule for; they are still exact
        result = vmap(one, randomness="error")(*cast.tensors())
    return {n: result[n].detach() for n in names}


def jacobian_loop(subject: Subject, batch: Batch, cotangents: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The same by one forward pass and R backward passes per sample."""
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


def kernels(
    subject: Subject,
    b1: Batch,
    b2: Batch | None,
    cotangents: Tensor,
    names: list[str],
    full: bool,
    budget: int,
    alone: bool,
) -> dict[str, tuple[Tensor, str]]:
    """Kernels of some parameters from explicit per-sample Jacobians, in groups that fit the budget.

    Args:
        subject: The model; call inside `subject.standing_in()`.
        b1: N samples.
        b2: M samples, or None for the self-kernel.
        cotangents: `(R, C)`.
        names: Parameters.
        full: Keep output pairs apart.
        budget: Bytes for the Jacobians held at a time.
        alone: Whether to process one sample at a time from the start.

    Returns:
        Parameter → `(kernel, way)`, way being `jacobian` or `loop`.
    """
    n, m = len(b1), 0 if b2 is None else len(b2)
    r = cotangents.shape[0]
    item = cotangents.element_size()
    result: dict[str, tuple[Tensor, str]] = {}
    room = max(1, budget // 2)
    groups: list[list[str]] = [[]]
    load = 0
    for name in names:
        size = (n + m) * subject.leaves[name].numel() * item * (r if full else 1)
        if groups[-1] and load + size > room:
            groups.append([])
            load = 0
        groups[-1].append(name)
        load += size
    for group in groups:
        size = (n + m) * sum(subject.leaves[k].numel() for k in group) * item
        step = r if full else max(1, min(r, room // max(1, size)))
        for start in range(0, r, step):
            rows = cotangents[start : start + step]
            left, way = jacobian(subject, b1, rows, group, alone)
            right = left if b2 is None else jacobian(subject, b2, rows, group, way == "loop")[0]
            for k in group:
                j, h = (t if k not in subject.roots else t * subject.roots[k] for t in (left[k], right[k]))
                j, h = (t.reshape(t.shape[0], t.shape[1], -1) for t in (j, h))
                if full:
                    value = inner(j.flatten(0, 1), h.flatten(0, 1)).reshape(len(j), r, len(h), r).transpose(1, 2)
                else:
                    value = inner(j.flatten(1), h.flatten(1))
                result[k] = (value + result[k][0] if k in result else value, way)
    return result


def jacobian(
    subject: Subject, batch: Batch, cotangents: Tensor, names: list[str], alone: bool = False
) -> tuple[dict[str, Tensor], str]:
    """Per-sample Jacobians by `vmap` if it works and agrees with single samples, otherwise one at a time.

    Returns:
        name → `(N, R, *shape)`, and the method used.
    """
    if not alone and not exchanges_memory(subject.model):
        starts = range(0, len(batch), 8)
        try:
            chunks = [jacobian_vmap(subject, batch.take(slice(i, i + 8)), cotangents, names) for i in starts]
        except Exception:  # noqa: BLE001 - whatever vmap cannot do is done one sample at a time
            chunks = []
        # chunks of one size: to vmap, a last chunk of another size is another program (its instance_norm is wrong for
        # one sample)
        sizes = {min(8, len(batch) - i): (i, chunk) for i, chunk in reversed(list(zip(starts, chunks, strict=False)))}
        if chunks and all(
            _agrees(subject, batch.take(slice(i, i + 1)), cotangents, names, chunk) for i, chunk in sizes.values()
        ):
            return {k: torch.cat([c[k] for c in chunks]) for k in names}, "jacobian"
    return jacobian_loop(subject, batch, cotangents, names), "loop"


def _agrees(subject: Subject, sample: Batch, cotangents: Tensor, names: list[str], found: dict[str, Tensor]) -> bool:
    """Return whether the first of several samples' Jacobians equals that of the sample alone."""
    one = jacobian_loop(subject, sample, cotangents, names)
    tol = 1e-3 if cotangents.dtype == torch.float32 else 1e-9
    return all(
        found[k].shape[1:] == one[k].shape[1:] and float((found[k][:1] - one[k]).norm()) <= tol * float(one[k].norm())
        for k in names
    )
