"""Isolation: a measurement restores all state that it touches, also when it fails.

A measurement runs forward and backward passes through the user's live model, in the middle of a training run. State
that it may change (random number generators, train/eval flags, buffers, gradients, numerical modes) is recorded on
entry and restored on exit.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import autocast_mode
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils import checkpoint

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels._device.precision import full_precision
from avalanche_ntk.kernels._device.profile import autocasting
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.wrappers import unwrap
from avalanche_ntk.kernels._guard.attributes import copied, noted
from avalanche_ntk.kernels._guard.hooks import quiet_hooks
from avalanche_ntk.kernels._guard.written import is_watched, watch, written
from avalanche_ntk.randomness import accelerator_states, preserved_rng_state

# Torch's modes belong to the process: two threads measuring at once would restore each other's
_ONE_AT_A_TIME = threading.RLock()
_MEASURED: list[nn.Module] = []  # models in the state of a measurement, of the thread that has the lock


@contextmanager
def preserve_modules(model: nn.Module) -> Generator[None, None, None]:
    """Put the model in eval mode; restore attributes, buffers, `requires_grad` and `.grad` exactly on exit.

    Flags are set one by one and not by `model.eval()`: some modules override `train()` with side effects. A buffer is
    written back only if the measurement changed it, so that version counters of other buffers do not change; the same
    holds for parameters that a forward pass is known to write into (`written.py`). Attributes that a forward pass sets
    (counters, `weight` of the hooks in `torch.nn.utils.weight_norm`, stored activations) are restored with their
    content (`attributes.py`). Objects that the first call creates (a buffer, a parameter, a layer) are removed again.
    """
    modules = list(model.modules())
    params = list(model.parameters())
    buffers = [b for m in modules for b in m._buffers.values() if b is not None]
    dense = [t for t in (*params, *buffers) if t.layout == torch.strided and not is_lazy(t)]
    known = {id(t) for t in written(unwrap(model))}
    kept = known | {id(b) for b in buffers}
    tables = [t for m in modules for t in (vars(m), m._parameters, m._buffers, m._modules) if isinstance(t, dict)]
    with ExitStack() as undo:  # in reverse order, and all of them even if one fails
        undo.callback(_gradients_back, [(p, p.requires_grad, p.grad) for p in params])
        for t in dense:  # forward passes do not write into sparse matrices
            if id(t) in kept:
                undo.callback(copied(t, compare=id(t) in known))
        undo.callback(_memory_back, [(t, t.data) for t in dense])
        undo.callback(_put_back, noted(modules))
        undo.callback(_entries_back, [(table, dict(table)) for table in tables])
        undo.callback(_flags_back, [(m, m.training) for m in modules])
        for m in modules:
            m.training = False
        yield


def _flags_back(flags: list[tuple[nn.Module, bool]]) -> None:
    for m, flag in flags:  # including compiled modules, which keep their flags elsewhere
        m.training = flag


def _entries_back(entries: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for now, before in entries:
        for k in [k for k in now if k not in before]:
            del now[k]
        now.update((k, v) for k, v in before.items() if k not in now or now[k] is not v)


def _put_back(undo: list[Callable[[], object]]) -> None:
    for put_back in undo:
        put_back()


def _memory_back(memory: list[tuple[Tensor, Tensor]]) -> None:
    """Restore tensors' memory, which a forward pass may replace (`weight.data = …`) or resize."""
    for t, data in memory:
        if t.data_ptr() != data.data_ptr() or t.shape != data.shape:
            t.data = data


def _gradients_back(gradients: list[tuple[nn.Parameter, bool, Tensor | None]]) -> None:
    for p, needed, grad in gradients:
        if p.requires_grad != needed:
            p.requires_grad_(needed)
        if p.grad is not grad:
            p.grad = grad


@contextmanager
def exact_arithmetic() -> Generator[None, None, None]:
    """Gradients on, autocast off, and full float32 precision in products (no TF32, no bfloat16) on every backend.

    Autocast stays off even if the model turns it on in its forward pass.
    """
    default, threads = torch.get_default_dtype(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in autocasting():
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(full_precision())
        enter = autocast_mode.autocast.__enter__
        autocast_mode.autocast.__enter__ = _enter_disabled(enter)  # type: ignore[method-assign]
        try:
            yield
        finally:
            autocast_mode.autocast.__enter__ = enter  # type: ignore[method-assign]
            if torch.get_default_dtype() != default:  # by the model itself
                torch.set_default_dtype(default)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            if torch.are_deterministic_algorithms_enabled() != deterministic:
                torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _enter_disabled(enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a replacement for entering autocast regions that disables them."""

    def disabled(region: Any) -> Any:
        enabled, region._enabled = region._enabled, False
        try:
            return enter(region)
        finally:
            region._enabled = enabled

    return disabled


@contextmanager
def fresh_parametrizations() -> Generator[None, None, None]:
    """Recompute parametrised weights: values in `parametrize.cached()` may have been made without gradients.

    The cache does not keep weights in the precision of the measurement either.
    """
    held, depth = parametrize._cache, parametrize._cache_enabled
    parametrize._cache, parametrize._cache_enabled = {}, 0
    try:
        yield
    finally:
        parametrize._cache, parametrize._cache_enabled = held, depth


@contextmanager
def eager(model: nn.Module) -> Generator[None, None, None]:
    """Run the original Python code of compiled models and submodules: a compiled graph hides the uses of parameters."""
    compiled = any(
        getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod") for m in model.modules()
    )
    if not compiled and "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def plain_calls() -> Generator[None, None, None]:
    """Replace constructs that hide parameters from autograd's graph: reentrant checkpoints, fused attention layers.

    A reentrant checkpoint keeps its block out of the graph, and `torch.autograd.grad` refuses it; run as a plain call,
    the block computes the same numbers. The fused transformer layer has no derivative at all.
    """
    original = checkpoint.CheckpointFunction.__dict__.get("apply")
    fast = torch.backends.mha.get_fastpath_enabled()
    checkpoint.CheckpointFunction.apply = staticmethod(_call)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if original is None:
            del checkpoint.CheckpointFunction.apply
        else:
            checkpoint.CheckpointFunction.apply = original


def _call(function: Any, _preserve: bool, *args: Any) -> Any:
    return function(*args)


@contextmanager
def measuring(model: nn.Module, batch: Batch) -> Generator[None, None, None]:
    """All of the above: leave the model, the random generators and the numerical modes unchanged.

    Inside of another one of the same model nothing is to be done: the state is that of a measurement, and the outer one
    puts everything back.

    Args:
        model: The model.
        batch: Some of what it is going to be run on.

    Raises:
        ArgumentError: The model is not a module, or a `torch.func` transform is active.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model must be a torch.nn.Module, found {type(model).__name__}. Wrap a function in a module that holds"
            " its parameters."
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise ArgumentError(
            "a measurement was started inside a torch.func transform (vmap, grad, jvp, …): expected ordinary tensors. "
            "Measure outside of the transform."
        )
    inner = unwrap(model)
    with _ONE_AT_A_TIME:
        if any(inner is m for m in _MEASURED):
            yield
            return
        with (
            preserved_rng_state(),
            exact_arithmetic(),
            fresh_parametrizations(),
            eager(model),
            plain_calls(),
        ):
            if not is_watched(inner):
                with preserve_modules(model), quiet_hooks(inner, batch):
                    watch(inner, batch)
            with preserve_modules(model), quiet_hooks(inner, batch):
                _MEASURED.append(inner)
                try:
                    yield
                finally:
                    _MEASURED.pop()


def rng_fingerprint() -> tuple[Any, ...]:
    """Return a value that changes if any generator on the host or an accelerator in use was drawn from."""
    npy = np.random.get_state(legacy=False)
    parts: list[Any] = [torch.get_rng_state().numpy().tobytes(), random.getstate()]
    parts.append((str(npy["state"]["pos"]), npy["state"]["key"].tobytes()) if "key" in npy["state"] else repr(npy))
    for states, _ in accelerator_states():
        parts += [s.numpy().tobytes() for s in (states if isinstance(states, list) else [states])]
    return tuple(parts)
