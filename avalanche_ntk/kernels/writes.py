"""Which parameters a forward pass writes into (an embedding's `max_norm`, a constraint kept by clamping).

They have to be copied before a measurement and put back after it. All others need no copy, which for a large model
would cost as much memory as its weights: so a model is watched once, and a parameter copied just before it is written.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_ntk.kernels.inputs import Batch

_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[int, list[weakref.ref[Tensor]]]] = weakref.WeakKeyDictionary()


def written(model: nn.Module) -> list[Tensor] | None:
    """Return the parameters that a model's forward pass is known to write into, None where it was not watched yet."""
    size, found = _KNOWN.get(model, (-1, []))
    return [p for r in found if (p := r()) is not None] if size == sum(1 for _ in model.modules()) else None


def watch(model: nn.Module, batch: Batch) -> None:
    """Run a model on two samples, note what parameters it writes into, and put those back.

    Where the pass fails, nothing is noted: the pass that is measured says what is wrong.
    """
    params = list(model.parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in params):
        return
    own = next((p.dtype for p in params if p.is_floating_point()), None)
    args, kwargs = batch.take(slice(0, 2)).cast(own).with_gradients().arguments(model)
    with _CopiesOnWrite(params) as copies, suppress(Exception):
        model(*args, **kwargs)
        _KNOWN[model] = (sum(1 for _ in model.modules()), [weakref.ref(p) for p, _ in copies.held])
    copies.put_back()


class _CopiesOnWrite(TorchDispatchMode):
    """Copies a parameter when an operator is about to write into its memory."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__()
        self.waiting = {p.untyped_storage().data_ptr(): p for p in params if p.layout == torch.strided}
        self.held: list[tuple[nn.Parameter, Tensor]] = []

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
            p = self.waiting.pop(t.untyped_storage().data_ptr(), None)
            if p is not None:
                self.held.append((p, p.detach().clone()))

    def put_back(self) -> None:
        """Write the copies back."""
        with torch.no_grad():
            for p, value in self.held:
                p.copy_(value)
