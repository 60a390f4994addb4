"""Snapshots of a model's parameters, and their changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Digests = Mapping[str, tuple[tuple[int, ...], str]]
"""The shape and the SHA-256 of each parameter's type and bits, by name."""


class Parameters:
    """A model's parameters at one moment.

    They are copied and compared bit for bit on their own device, so any change is detected and nothing goes through the
    host, except for `digests`, computed once per moment on first use. Only the digests are available for a moment of
    another process, a pickled one, or one that the device had no memory to copy.

    Args:
        digests: The digests of a moment without a copy.
    """

    def __init__(self, digests: Digests) -> None:
        self._values: dict[str, Tensor] | None = None
        self._digests: Digests | None = dict(digests)

    @classmethod
    def of(cls, model: nn.Module) -> Parameters:
        """Return the parameters of a model as they are now."""
        try:
            copies = {name: p.detach().clone() for name, p in model.named_parameters()}
        except torch.OutOfMemoryError:
            return cls({name: _digest(p) for name, p in model.named_parameters()})
        found = cls({})
        found._values, found._digests = copies, None
        return found

    @property
    def digests(self) -> Digests:
        """The shape and the SHA-256 of each parameter's type and bits, by name."""
        if self._digests is None:
            self._digests = {name: _digest(value) for name, value in (self._values or {}).items()}
        return self._digests

    def change_to(self, model: nn.Module) -> Change:
        """Compare with the present parameters of a model.

        Args:
            model: The model.

        Returns:
            How they have changed since.
        """
        now = {name: p.detach() for name, p in model.named_parameters()}
        before = self.digests if self._values is None else self._values
        comparable = [name for name in sorted(before.keys() & now.keys()) if self._shape(name) == now[name].shape]
        kept = tuple(name for name in comparable if self._is(name, now[name]))
        changed = tuple(name for name in comparable if name not in kept)
        same = len(comparable) == len(before) == len(now)
        return Change(changed, kept, same, bool(before.keys() - now.keys()))

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._values[name].shape) if self._values is not None else self.digests[name][0]

    def _is(self, name: str, now: Tensor) -> bool:
        if self._values is None:
            return self.digests[name] == _digest(now)
        return same_bits(self._values[name], now)

    def __getstate__(self) -> dict[str, Any]:
        return {"_values": None, "_digests": self.digests}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same type, shape and bits, wherever they are."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a.to(b.device)), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor as integers, in logical order: NaN equals itself, and −0 differs from 0."""
    return tensor.contiguous().reshape(-1).view(torch.int32 if tensor.element_size() % 4 == 0 else torch.uint8)


def _digest(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    data = tensor.detach().cpu()
    digest = hashlib.sha256(str(data.dtype).encode())
    digest.update(_bits(data).numpy().data)
    return tuple(tensor.shape), digest.hexdigest()


@dataclass(frozen=True)
class Change:
    """How parameters differ between two moments.

    Attributes:
        changed: Names of those whose values differ, without those added, removed or resized.
        kept: Names of those with the same values.
        same_names: Whether none was added, removed or resized.
        lost: Whether some were removed.
    """

    changed: tuple[str, ...]
    kept: tuple[str, ...]
    same_names: bool
    lost: bool

    def __bool__(self) -> bool:
        return bool(self.changed) or not self.same_names

    @property
    def is_another_model(self) -> bool:
        """Whether no old value is left: the model was reinitialised or replaced (not only grown)."""
        return not self.kept and (bool(self.changed) or self.lost)

    def describe(self, when: str) -> str:
        """Return a description of the change.

        Args:
            when: When it happened, such as "since the last experience".

        Returns:
            The sentence.
        """
        if self.is_another_model:
            return f"the parameters were changed {when}: a new segment begins"
        what = ", ".join(self.changed) if self.changed else "the set of parameters"
        return f"{what} changed {when}, outside training"
