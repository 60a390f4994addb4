"""Parameters and buffers that a forward pass writes into (an embedding's `max_norm`, a constraint by clamping).

They must be copied before a measurement and restored after it. Copying all others would cost as much memory as the
weights. So a model in a new state is run once with copies of everything, and compared.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._guard.attributes import ATOMS, same_bits


@dataclass(frozen=True)
class _Known:
    """Results for a model in one state: tensors written into, and whether memory is replaced."""

    state: int
    written: tuple[weakref.ref[Tensor], ...]
    exchanges: bool


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def _state(model: nn.Module) -> int:
    """Return a number that changes with modules and their settings, on which the written tensors may depend."""
    return hash(
        tuple(
            (id(m), *((k, v) for k, v in vars(m).items() if v.__class__ in ATOMS and k != "training"))
            for m in model.modules()
        )
    )


def is_watched(model: nn.Module) -> bool:
    """Return whether a model was watched in its present state."""
    known = _KNOWN.get(model)
    return known is not None and known.state == _state(model)


def written(model: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers that a model's forward pass is known to write into."""
    known = _KNOWN.get(model)
    return [] if known is None else [t for r in known.written if (t := r()) is not None]


def exchanges_memory(model: nn.Module) -> bool:
    """Return whether a forward pass replaces tensors' memory (`weight.data = …`, as constraints in EEG networks do).

    Under a `torch.func` transform, torch crashes in this case.
    """
    known = _KNOWN.get(model)
    return known is not None and known.exchanges


def watch(model: nn.Module, batch: Batch) -> None:
    """Run a model on two samples, record what it writes into, and restore it.

    If the pass fails, nothing is recorded; the measurement's own pass raises the error.
    """
    params = list(model.parameters())
    if any(is_lazy(p) for p in params):
        return
    own = next((p.dtype for p in params if p.is_floating_point()), None)
    args, kwargs = batch.take(slice(0, 2)).cast(own).with_gradients().arguments(model)
    tensors: list[Tensor] = [t for t in (*params, *model.buffers()) if t.layout == torch.strided]
    state, whole = _state(model), False
    held = [(t, t.detach(), t.detach().clone(), t._version if not t.is_inference() else 0) for t in tensors]
    try:
        with suppress(Exception):
            model(*args, **kwargs)
            whole = True
    finally:
        changed = []
        exchanged = False
        for t, memory, before, version in held:  # `memory` is the original even if it was replaced
            moved = t.data_ptr() != memory.data_ptr() or t.shape != memory.shape
            touched = not same_bits(memory, before)
            if touched:
                with torch.no_grad():
                    memory.copy_(before)
            exchanged = exchanged or moved
            if moved or touched or (not t.is_inference() and t._version != version):
                changed.append(t)
        if whole:
            _KNOWN[model] = _Known(state, tuple(map(weakref.ref, changed)), exchanged)
