"""Counting of an optimizer's actual steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class StepCounter:
    """Counts an optimizer's steps as they happen: an iteration may have none or several.

    Steps of an inner optimizer with the same parameters count too (SAM's base optimizer may be called without the outer
    one); nested steps count as one.

    If steps cannot be observed, each iteration counts as one step. This holds for objects that are not a
    `torch.optim.Optimizer`, and for wrappers that never call its `__init__` (Lookahead, optimizers of differential
    privacy). A strategy without an optimizer makes no steps.

    Attributes:
        count: Steps so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._followed: Any = None
        self._unhook: Callable[[], Any] | None = None
        self._depth = 0

    def follow(self, optimizer: Any) -> None:
        """Count the steps of this optimizer from now on, instead of the previous one's."""
        self._depth = 0  # an interrupted step never ends
        if optimizer is self._followed:
            return
        self.leave()
        self._followed = optimizer
        if _calls_hooks(optimizer):
            hooks = (
                register_optimizer_step_pre_hook(_weakly(self._begin)),
                register_optimizer_step_post_hook(_weakly(self._end)),
            )
            # Called by `leave`, or when this object is garbage-collected after interrupted training.
            self._unhook = weakref.finalize(self, _remove, hooks)

    def leave(self) -> None:
        """Stop following the optimizer."""
        if self._unhook is not None:
            self._unhook()
        self._unhook = self._followed = None

    def iteration(self) -> None:
        """Count a completed iteration."""
        if self.by_iterations:
            self.count += 1

    @property
    def by_iterations(self) -> bool:
        """Whether iterations are counted instead of steps."""
        return self._followed is not None and self._unhook is None

    @property
    def note(self) -> list[str]:
        """A note on the present count for the record; empty if steps are counted as they happen."""
        if not self.by_iterations:
            return []
        name = type(self._followed).__name__
        return [f"each iteration counts as one optimizer step: {name} does not report its steps"]

    def _begin(self, optimizer: torch.optim.Optimizer) -> None:
        self._depth += self._is_followed(optimizer)

    def _end(self, optimizer: torch.optim.Optimizer) -> None:
        if self._is_followed(optimizer):
            self._depth -= 1
            self.count += not self._depth

    def _is_followed(self, optimizer: torch.optim.Optimizer) -> bool:
        return optimizer is self._followed or not _parameters(optimizer).isdisjoint(_parameters(self._followed))

    def __getstate__(self) -> dict[str, Any]:
        # Hooks belong to this process; the next call of `follow` attaches them again.
        return {**self.__dict__, "_unhook": None, "_followed": None}


def _calls_hooks(optimizer: Any) -> bool:
    """Return whether an optimizer's steps call the hooks for all optimizers.

    `torch.optim.Optimizer.__init__` wraps the class's `step` to call them; the `step` of a class that skips it calls
    none.
    """
    return isinstance(optimizer, torch.optim.Optimizer) and bool(getattr(type(optimizer).step, "hooked", False))


def _parameters(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _weakly(method: Callable[[torch.optim.Optimizer], None]) -> Callable[..., None]:
    """Return a hook that holds the method's object weakly, and does nothing once it is gone."""
    reference = weakref.WeakMethod(method)

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        alive = reference()
        if alive is not None:
            alive(optimizer)

    return hook


def _remove(hooks: tuple[Any, ...]) -> None:
    for hook in hooks:
        hook.remove()


def described(optimizer: Any) -> dict[str, Any] | None:
    """Return an optimizer's entry in a run's description; None without an optimizer.

    Args:
        optimizer: Any object with a `step`.

    Returns:
        Its class's `name`, and the `learning_rate` of each of its parameter groups; None if it has no such groups, or a
        group has no such number.
    """
    if optimizer is None:
        return None
    groups = getattr(optimizer, "param_groups", None)
    return {
        "name": type(optimizer).__name__,
        "learning_rate": [_rate(group) for group in groups] if isinstance(groups, (list, tuple)) else None,
    }


def _rate(group: Any) -> float | None:
    try:
        return float(group["lr"])  # a number or a tensor of one number
    except (TypeError, ValueError, KeyError, RuntimeError):
        return None
