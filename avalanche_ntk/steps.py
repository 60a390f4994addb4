"""How many steps an optimizer has really made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class StepCounter:
    """Counts an optimizer's steps by a hook on it; there may be none or several in an iteration.

    An object that does not tell of its steps is left alone, and each iteration counts as one step: what is no
    `torch.optim.Optimizer`, and what is one in name only, as wrappers are that never call its `__init__` (Lookahead,
    the optimizers of differential privacy). A strategy without an optimizer makes no steps.

    Attributes:
        count: Steps so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._followed: Any = None
        self._hook: Any = None

    def follow(self, optimizer: Any) -> None:
        """Count the steps of this optimizer from now on, and no longer those of another one."""
        if optimizer is self._followed:
            return
        self.leave()
        self._followed, self._hook = optimizer, _hook_on(optimizer, self._add)

    def leave(self) -> None:
        """Take the hook from the optimizer."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._followed = None

    def iteration(self) -> None:
        """Take note that an iteration is over."""
        if self.by_iterations:
            self.count += 1

    @property
    def by_iterations(self) -> bool:
        """Whether iterations are counted in place of steps."""
        return self._followed is not None and self._hook is None

    @property
    def note(self) -> list[str]:
        """What a record must say of the present count; nothing where steps are counted as they happen."""
        if not self.by_iterations:
            return []
        name = type(self._followed).__name__
        return [f"each iteration counts as one optimizer step: {name} does not tell when it makes one"]

    def _add(self, *_: Any) -> None:
        self.count += 1

    def __getstate__(self) -> dict[str, Any]:
        # The hook belongs to the optimizer object, which is found again by the next call of `follow`.
        return {**self.__dict__, "_hook": None, "_followed": None}


def _hook_on(optimizer: Any, call: Callable[..., None]) -> Any:
    """Return the handle of a hook that will be called after each step; None where it would not be.

    `torch.optim.Optimizer.__init__` makes the place for hooks and wraps the class's `step`, which then calls them. A
    class that leaves it out has neither, or a place that nothing looks at.
    """  # noqa: DOC201  (what is returned stands in the first line)
    if not isinstance(optimizer, torch.optim.Optimizer) or not getattr(type(optimizer).step, "hooked", False):
        return None
    try:
        return optimizer.register_step_post_hook(call)
    except AttributeError:
        return None


def described(optimizer: Any) -> dict[str, Any] | None:
    """Return what a run's description says of its optimizer; None without one.

    Args:
        optimizer: Any object with a `step`.

    Returns:
        Its class's `name`, and the `learning_rate` of each of its parameter groups; None where it has no such groups,
        or a group has no such number.
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
