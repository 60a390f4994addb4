"""Models whose parameters are sharded over processes (FSDP), gathered for a measurement if they fit."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from avalanche_ntk.errors import MemoryBudgetError


@contextmanager
def gathered(model: Any, budget: int) -> Generator[None, None, None]:
    """Give a model sharded by FSDP whole parameters, and run it without FSDP's hooks.

    Every process has to enter: gathering is a collective. The shards are restored unchanged on exit.

    Args:
        model: Any model; one that is not sharded is not changed.
        budget: Bytes that the gathered parameters may take.

    Raises:
        MemoryBudgetError: They do not fit.
    """
    if not (dist.is_available() and dist.is_initialized() and isinstance(model, nn.Module)):
        yield
        return
    from torch.distributed.fsdp import (
        FullyShardedDataParallel,
    )  # slow to import; FSDP's users have done so
    from torch.distributed.tensor import DTensor

    wrapped = [m for m in model.modules() if isinstance(m, FullyShardedDataParallel)]
    spread = [
        (m._parameters, name, p) for m in model.modules() for name, p in m._parameters.items() if isinstance(p, DTensor)
    ]
    if wrapped:
        with _summoned(model, wrapped, budget):
            yield
    elif spread:
        with _whole(model, spread, budget):
            yield
    else:
        yield


def _require_room(needed: int, budget: int, model: nn.Module) -> None:
    if needed > budget:
        raise MemoryBudgetError(
            f"the parameters of {type(model).__name__}, gathered from all processes, take {needed:,} bytes: expected"
            f" at most the memory budget of {budget:,} bytes. Raise memory_budget= to at least {2 * needed:,}, or"
            " measure a copy of the model that is not sharded."
        )


@contextmanager
def _whole(model: nn.Module, spread: list[tuple[dict[str, Any], str, Any]], budget: int) -> Generator[None, None, None]:
    """Replace distributed tensors by whole ones (`fully_shard`)."""
    from torch.distributed.fsdp import FSDPModule

    once = {id(p): p for _, _, p in spread}
    _require_room(sum(p.numel() * p.element_size() for p in once.values()), budget, model)
    full = {k: nn.Parameter(p.full_tensor().detach(), p.requires_grad) for k, p in once.items()}
    hooks = [
        (table, dict(table))
        for m in model.modules()
        if isinstance(m, FSDPModule)
        for table in (m._forward_pre_hooks, m._forward_hooks)
    ]
    try:
        for table, name, p in spread:
            table[name] = full[id(p)]
        for calls, _ in hooks:
            for key in [k for k, hook in calls.items() if _of_fsdp(hook)]:
                del calls[key]
        yield
    finally:
        for table, name, p in spread:
            table[name] = p
        for calls, before in hooks:
            calls.clear()
            calls.update(before)


def _of_fsdp(hook: Any) -> bool:
    hook = getattr(hook, "__wrapped__", hook)
    return (
        "torch.distributed" in str(getattr(hook, "__module__", ""))
        or "fsdp" in getattr(hook, "__qualname__", "").lower()
    )


@contextmanager
def _summoned(model: nn.Module, wrapped: list[Any], budget: int) -> Generator[None, None, None]:
    """Gather the flat parameters of `FullyShardedDataParallel`, and call the modules inside it directly."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    shards = sum(p.numel() * p.element_size() for p in model.parameters())
    _require_room(shards * max(dist.get_world_size(m.process_group) for m in wrapped), budget, model)
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        try:
            for m in wrapped:
                m.__dict__["forward"] = m.module.forward
            yield
        finally:
            for m in wrapped:
                m.__dict__.pop("forward", None)
