"""Which parameters and buffers a forward pass writes into (an embedding's `max_norm`, a constraint kept by clamping).

They have to be copied before a measurement and put back after it. All others need no copy, which for a large model
would cost as much memory as its weights: so a model is run once where it was not seen in this state before, with copies
of everything, and compared.
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
    """What was seen of a model in some state: tensors written into, and whether memory is exchanged."""

    state: int
    written: tuple[weakref.ref[Tensor], ...]
    exchanges: bool


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def _state(model: nn.Module) -> int:
    """Return a number that changes with modules and with their switches, on which it may depend what is written."""
    return hash(
        tuple(
            (id(m), *((k, v) for k, v in vars(m).items() if v.__class__ in ATOMS and k != "training"))
            for m in model.modules()
        )
    )


def is_watched(model: nn.Module) -> bool:
    """Return whether a model was watched as it is now."""
    known = _KNOWN.get(model)
    return known is not None and known.state == _state(model)


def written(model: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers that a model's forward pass is known to write into."""
    known = _KNOWN.get(model)
    return [] if known is None else [t for r in known.written if (t := r()) is not None]


def exchanges_memory(model: nn.Module) -> bool:
    """Return whether a forward pass gives tensors other memory (`weight.data = …`, as constraints in EEG networks do).

    Under a transform of `torch.func`, torch does not survive that.
    """
    known = _KNOWN.get(model)
    return known is not None and known.exchanges


def watch(model: nn.Module, batch: Batch) -> None:
    """Run a model on two samples, note what it writes into, and put that back.

    Where the pass fails, nothing is noted: the pass that is measured says what is wrong.
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
        for t, memory, before, version in held:  # `memory` stays the one of before where it was exchanged
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
