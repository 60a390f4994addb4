"""Errors for models without a per-sample kernel; they name the responsible module if it can be found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels._device.order import agree
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._guard.isolation import rng_fingerprint

FEW = 3  # number of samples compared with the whole batch


def stochastic(subject: Subject, batch: Batch) -> ModelError:
    """Return the error for a forward pass that is random in eval mode; names the module that draws."""
    found: list[tuple[str, str]] = []
    hooks = []
    stack: list[Any] = []
    try:
        for name, m in subject.model.named_modules():

            def enter(_m: nn.Module, _i: Any) -> None:
                stack.append(rng_fingerprint())

            def leave(m: nn.Module, _i: Any, _o: Any, name: str = name) -> None:
                if stack.pop() != rng_fingerprint() and not found:
                    found.append((name or "model", type(m).__name__))

            hooks.append(m.register_forward_pre_hook(enter))
            hooks.append(m.register_forward_hook(leave))
        subject.call(batch)
    finally:
        for h in hooks:
            h.remove()
    where = f"module {found[0][0]!r} ({found[0][1]})" if found else f"the model {type(subject.model).__name__}"
    return ModelError(
        f"{where} is random in eval mode: expected the same output for the same input, found two different ones, so the"
        " kernel is not defined. Make it honour eval mode (F.dropout(x, p, self.training), no sampling), or"
        " fix its noise."
    )


def mixing(subject: Subject, few: Batch, precision: torch.dtype) -> ModelError:
    """Return the error for outputs that depend on the rest of the batch.

    The cause is randomness or mixing of samples; the error names the module if it can be found.
    """
    once, again = subject.outputs(few), subject.outputs(few)
    if not agree(once, again, precision):
        return stochastic(subject, few)
    norm = by_batch_statistics(subject.model)
    if norm is not None:
        return norm
    culprit = _first_coupled_module(subject, few, precision)
    where = f"module {culprit[0]!r} ({culprit[1]})" if culprit else f"the model {type(subject.model).__name__}"
    return ModelError(
        f"{where} mixes the samples of a batch: expected each output to depend on its own sample only, found that f(x)"
        " changes with the other samples given beside x, so no per-sample kernel exists."
        f" {_remedy(subject.model)}"
    )


def _remedy(model: nn.Module) -> str:
    for name, m in model.named_modules():
        if isinstance(m, nn.RNNBase | nn.MultiheadAttention) and not m.batch_first:
            return (
                f"Module {name or 'model'!r} ({type(m).__name__}) takes dimension 0 of its input for time, not for"
                " samples: make it with batch_first=True and give it inputs of shape (N, T, features), or exchange the"
                " first two dimensions before and after it."
            )
    return (
        "Remove what goes over dimension 0 (a mean, a batch norm, attention over the batch, a branch that a value of"
        " the whole batch decides), or measure the part of the model before it."
    )


def width_of_the_batch(subject: Subject, out: Tensor, other: Tensor) -> ModelError:
    """Return the error for a number of outputs that depends on the number of samples."""
    return ModelError(
        f"the output of {type(subject.model).__name__} has shape {tuple(out.shape)} for {out.shape[0]} samples and"
        f" {tuple(other.shape)} for {other.shape[0]}: expected as many outputs for each number of samples. Remove what"
        " pairs samples with each other (h @ h.T, attention weights over the batch), or pick the outputs that belong"
        " to one sample (output_selector=)."
    )


def by_batch_statistics(model: nn.Module) -> ModelError | None:
    """Return the error for a batch norm without running statistics, None if the model has none."""
    for name, m in model.named_modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None:
            return ModelError(
                f"module {name!r} ({type(m).__name__}) normalises by the statistics of the batch also in eval mode"
                " (track_running_stats=False): expected each output to depend on its own sample only, so that"
                " a per-sample kernel exists. Use running statistics, or a norm without batch statistics (GroupNorm,"
                " LayerNorm)."
            )
    return None


def _first_coupled_module(subject: Subject, few: Batch, precision: torch.dtype) -> tuple[str, str] | None:
    """Compare every module's output for some samples, run separately and within the batch.

    The first samples are compared, then the last: a module that treats samples as time steps changes only the last.

    Returns:
        `(name, class)` of the first and innermost module that differs.
    """
    for some in (slice(0, FEW), slice(-FEW, None)):
        try:
            among, order = _outputs_of_modules(subject, few, some)
            alone, _ = _outputs_of_modules(subject, few.take(some), some)
        except Exception:  # noqa: BLE001 - only the place is being looked for; the refusal itself stands
            return None
        for name in order:
            a, b = among[name], alone.get(name)
            if b is not None and a.shape == b.shape and not agree(a, b, precision):
                return (name or "model", type(subject.model.get_submodule(name)).__name__)
    return None


def _outputs_of_modules(subject: Subject, batch: Batch, some: slice) -> tuple[dict[str, Tensor], list[str]]:
    """Return some samples' outputs of each module at its first call, and the modules in the order of calls."""
    found: dict[str, Tensor] = {}
    hooks = []
    try:
        for name, m in subject.model.named_modules():

            def keep(_m: nn.Module, _i: Any, o: Any, name: str = name) -> None:
                o = o[0] if isinstance(o, tuple) and o else o  # a recurrent layer also returns its state
                if isinstance(o, Tensor) and o.dim() and name not in found:
                    found[name] = o.detach()[some].clone()

            hooks.append(m.register_forward_hook(keep))
        subject.call(batch)
    finally:
        for h in hooks:
            h.remove()
    return found, list(found)
