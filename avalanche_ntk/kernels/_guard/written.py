"""Which parameters a forward pass writes into (an embedding's `max_norm`, a constraint kept by clamping).

They have to be copied before a measurement and put back after it. All others need no copy, which for a large model
would cost as much memory as its weights: so a model is watched where it was not seen in this state before, and a
parameter is copied just before it is written.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._guard.attributes import ATOMS


@dataclass(frozen=True)
class _Known:
    """What was seen of a model in some state: parameters written into, and whether memory is exchanged."""

    state: int
    written: tuple[weakref.ref[nn.Parameter], ...]
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
    """Return the parameters that a model's forward pass is known to write into."""
    known = _KNOWN.get(model)
    return [] if known is None else [p for r in known.written if (p := r()) is not None]


def exchanges_memory(model: nn.Module) -> bool:
    """Return whether a forward pass gives tensors other memory (`weight.data = …`).

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
    tensors = [t for t in (*params, *model.buffers()) if t.layout == torch.strided]
    memory, state = [t.data_ptr() for t in tensors], _state(model)
    copies = _CopiesOnWrite(params)
    try:
        with copies, suppress(Exception):
            model(*args, **kwargs)
            exchanges = memory != [t.data_ptr() for t in tensors]
            held = tuple(weakref.ref(p) for p, _, _ in copies.held)
            _KNOWN[model] = _Known(state, held, exchanges)
    finally:
        copies.put_back()


class _CopiesOnWrite(TorchDispatchMode):
    """Copies a parameter when an operator is about to write into its memory."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__()
        self.waiting: dict[int, list[nn.Parameter]] = {}  # by memory, of which several may be parts
        for p in params:
            if p.layout == torch.strided:
                self.waiting.setdefault(p.untyped_storage().data_ptr(), []).append(p)
        self.held: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, after copies of what it writes into."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                if argument.is_write:
                    value = args[i] if i < len(args) else kwargs.get(argument.name)
                    for t in value if isinstance(value, list | tuple) else [value]:
                        self._copy(t)
        return func(*args, **kwargs)

    def _copy(self, t: Any) -> None:
        if isinstance(t, Tensor) and t.layout == torch.strided:
            for p in self.waiting.pop(t.untyped_storage().data_ptr(), ()):
                self.held.append((p, p.detach(), p.detach().clone()))

    def put_back(self) -> None:
        """Write the copies back into the memory that they were made from."""
        with torch.no_grad():
            for _, memory, value in self.held:
                memory.copy_(value)
