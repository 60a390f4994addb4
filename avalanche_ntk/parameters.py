"""Fingerprints of a model's parameters: what changed between two moments without a copy of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Digests = dict[str, tuple[tuple[int, ...], str]]


def digests(parameters: Mapping[str, Tensor]) -> Digests:
    """Return the shape and the SHA-256 of each tensor's type and bits."""
    found = {}
    for name, tensor in parameters.items():
        data = tensor.detach().cpu().contiguous()
        digest = hashlib.sha256(str(data.dtype).encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
        found[name] = (tuple(tensor.shape), digest.hexdigest())
    return found


def digests_of(model: nn.Module) -> Digests:
    """Return the digests of a model's parameters."""
    return digests(dict(model.named_parameters()))


@dataclass(frozen=True)
class Change:
    """How parameters differ between two moments.

    Attributes:
        changed: Names of those that have other values; those that came, went or were resized have none to compare.
        kept: Names of those that have the same values.
        same_names: Whether none came, went or was resized.
        lost: Whether some went.
    """

    changed: tuple[str, ...]
    kept: tuple[str, ...]
    same_names: bool
    lost: bool

    def __bool__(self) -> bool:
        return bool(self.changed) or not self.same_names

    @property
    def is_another_model(self) -> bool:
        """Whether nothing is left of what there was: the model was reinitialised or exchanged (not only grown)."""
        return not self.kept and (bool(self.changed) or self.lost)

    def describe(self, when: str) -> str:
        """Return a sentence about it.

        Args:
            when: When it happened, such as "since the last experience".

        Returns:
            The sentence.
        """
        if self.is_another_model:
            return f"the parameters were changed {when}: a new segment begins"
        what = ", ".join(self.changed) if self.changed else "the set of parameters"
        return f"{what} changed {when}, outside training"


def change_between(before: Digests, now: Digests) -> Change:
    """Compare the digests of two moments.

    Args:
        before: The earlier ones; nothing counts as changed when they are empty.
        now: The later ones.

    Returns:
        The change.
    """
    comparable = [name for name in sorted(before.keys() & now.keys()) if before[name][0] == now[name][0]]
    changed = tuple(name for name in comparable if before[name] != now[name])
    kept = tuple(name for name in comparable if before[name] == now[name])
    same = not before or len(comparable) == len(before) == len(now)
    return Change(changed, kept, same, bool(before.keys() - now.keys()))
