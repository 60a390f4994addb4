"""Hooks on modules: a measurement skips hooks that only observe, and keeps those that change the function.

A forward hook (or pre-hook) *only observes* if it returns None, writes into none of its arguments, and changes no
parameter, buffer or tensor attribute of its module. This is tested once per hook in a forward pass of two samples; the
hook's own state (counters, lists, closure variables) is restored afterwards. A second pass without these hooks must
give the same outputs. Torch's own hooks (weight norm, pruning) are part of the function. Backward hooks never are: they
change gradients.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import unknown_name
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._guard.attributes import noted_from

MODES = ("auto", "keep")
_FORWARD = ("_forward_pre_hooks", "_forward_hooks")
_BACKWARD = ("_backward_pre_hooks", "_backward_hooks")

_MODE: ContextVar[str] = ContextVar("hooks", default="auto")
# By model and by torch's id of a hook: whether it only observes
_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[int, bool]] = weakref.WeakKeyDictionary()


@contextmanager
def hooks_as(mode: str | None) -> Generator[None, None, None]:
    """Set the treatment of hooks in measurements: "auto" as above, "keep" to run all; None for no change.

    Raises:
        unknown_name: The mode is unknown (an `ArgumentError`).
    """
    if mode is None:
        yield
        return
    if mode not in MODES:
        raise unknown_name("hooks", mode, MODES)
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


@contextmanager
def quiet_hooks(model: nn.Module, batch: Batch) -> Generator[None, None, None]:
    """Disable hooks that only observe.

    Args:
        model: The model, in a state that will be restored.
        batch: Samples of the inputs.
    """
    tables = list(_tables(model, (*_FORWARD, *_BACKWARD)))
    if _MODE.get() == "keep" or not tables:
        yield
        return
    known = _KNOWN.setdefault(model, {})
    backward = {i for _, name, table in tables if name in _BACKWARD for i in table}
    foreign = {i for _, name, table in tables if name in _FORWARD for i, h in table.items() if not _of_torch(h)}
    if foreign - known.keys():
        found, for_good = _only_look(model, batch, foreign)
        known = known | found
        if for_good:
            _KNOWN[model] = known
    with _with(tables, lambda i, h: None if i in backward or known.get(i) else h):
        yield


def _tables(model: nn.Module, names: Iterable[str]) -> Iterator[tuple[nn.Module, str, dict[int, Any]]]:
    """Yield the modules that have hooks of these kinds, with the hooks by id."""
    for m in model.modules():
        for name in names:
            table = m.__dict__.get(name)
            if table:
                yield m, name, table


def _of_torch(hook: Any) -> bool:
    """Return whether a hook is a function of torch, or an object of a class from `torch.nn.utils`."""
    classes = (c.__module__ for c in type(hook).__mro__)
    return str(getattr(hook, "__module__", "")).startswith("torch.") or any(
        c.startswith("torch.nn.utils.") for c in classes
    )


@contextmanager
def _with(
    tables: Iterable[tuple[nn.Module, str, dict[int, Any]]], change: Callable[[int, Any], Any]
) -> Generator[None, None, None]:
    """Replace modules' hooks by those that `change` returns; None removes a hook."""
    with ExitStack() as undo:
        for m, name, table in tables:
            undo.callback(m.__dict__.__setitem__, name, table)
            changed = ((i, change(i, h)) for i, h in table.items())
            m.__dict__[name] = OrderedDict((i, h) for i, h in changed if h is not None)
        yield


@dataclass
class _Watched:
    """A hook, and whether it was found to do more than observe."""

    hook: Any
    called: bool = False
    changes: bool = False

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the hook, and compare its tensors before and after."""
        before = _versions(module, args)
        result = self.hook(module, *args, **kwargs)
        self.called = True
        self.changes = self.changes or result is not None or _versions(module, args) != before
        return result


def _versions(module: nn.Module, args: Any) -> list[tuple[Any, ...]]:
    """Return the tensors of a module and of a hook's arguments, with their version counters."""
    held = [(k, t) for table in (vars(module), module._parameters, module._buffers) for k, t in table.items()]
    given = [(str(i), t) for i, t in enumerate(_flat(args))]
    return [(k, id(t), 0 if t.is_inference() else t._version) for k, t in (*held, *given) if isinstance(t, Tensor)]


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for v in value:
            yield from _flat(v)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _only_look(model: nn.Module, batch: Batch, foreign: set[int]) -> tuple[dict[int, bool], bool]:
    """Run a model on two samples, with hooks and without those that seem to only observe.

    Returns:
        Id of a hook → whether it only observes; and whether both passes succeeded, so that the result can be kept.
    """
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    few = batch.take(slice(0, 2)).cast(own)
    tables = list(_tables(model, _FORWARD))
    watched = {i: _Watched(h) for _, _, table in tables for i, h in table.items() if i in foreign}
    undo = noted_from([part for w in watched.values() for part in _parts(w.hook)])
    undo += [partial(setattr, c, "cell_contents", c.cell_contents) for w in watched.values() for c in _cells(w.hook)]

    def outputs(change: Callable[[int, Any], Any]) -> list[Tensor]:
        try:
            with _with(tables, change), torch.no_grad():
                return _run(model, few)
        finally:
            for put_back in undo:
                put_back()

    try:
        with_all = outputs(lambda i, h: watched.get(i, h))
        looking = {i for i, w in watched.items() if w.called and not w.changes}
        without = outputs(lambda i, h: None if i in looking else h)
    except Exception:  # noqa: BLE001 - the pass that is measured says what is wrong
        return {i: not w.changes for i, w in watched.items()}, False
    same = len(with_all) == len(without) and all(map(torch.equal, with_all, without))
    return {i: same and i in looking for i in watched}, True


def _run(model: nn.Module, few: Batch) -> list[Tensor]:
    args, kwargs = few.with_tensors([t.clone() for t in few.tensors()]).arguments(model)
    return [t.clone() for t in _flat(model(*args, **kwargs)) if isinstance(t, Tensor)]


def _parts(hook: Any) -> Iterator[Any]:
    """Yield a hook's own state: closure variables, the object of a bound method, bound arguments."""
    yield from (cell.cell_contents for cell in _cells(hook))
    if isinstance(hook, partial):
        yield from (*hook.args, *hook.keywords.values(), *_parts(hook.func))
    owner = getattr(hook, "__self__", None if hasattr(hook, "__code__") else hook)
    yield vars(owner) if hasattr(owner, "__dict__") else owner


def _cells(hook: Any) -> list[CellType]:
    cells = getattr(getattr(hook, "__func__", hook), "__closure__", None) or ()
    return [c for c in cells if c != CellType()]  # those that are assigned
