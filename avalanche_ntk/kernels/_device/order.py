"""Memory format of images passed to a model."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.kernels._device.profile import by_onednn
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject

# Nodes that lose precision with channels last: torch's group norm then subtracts large sums
LESS_EXACT = frozenset({"NativeGroupNormBackward0"})


def agree(a: Tensor, b: Tensor, precision: torch.dtype = torch.float64) -> bool:
    """Return whether two tensors agree up to rounding, in their own or in a coarser precision.

    Non-finite entries must agree.
    """
    a, b = a.detach(), b.detach()
    tol = 1e-9 if a.dtype == precision == torch.float64 else 1e-4
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)):
        return False
    a, b = a[finite], b[finite]
    return not a.numel() or bool((a - b).abs().max() <= tol * max(float(a.abs().max()), 1e-30))


def ordered(t: Tensor, order: torch.memory_format) -> Tensor:
    """Return a copy of a tensor; images are in this memory format."""
    return t.clone(memory_format=order if t.dim() == 4 else torch.preserve_format)


_CHANNELS_LAST: weakref.WeakKeyDictionary[nn.Module, dict[Any, bool]] = weakref.WeakKeyDictionary()


def channels_last_pays(subject: Subject, batch: Batch) -> bool:
    """Return whether to pass images to the model with channels last in memory.

    This makes convolutions of oneDNN (float32 on a CPU) and subsequent products faster. It is not used for a model that
    refuses such inputs (`view`) or gives other outputs for them, which is tested once, or for one with a group norm,
    see `LESS_EXACT`.

    Returns:
        True if a test showed the same outputs.
    """
    images = [t for t in batch.tensors()[: batch.n_inputs] if t.dim() == 4 and t.dtype == torch.float32]
    if not images or not by_onednn(images[0]):
        return False
    known = _CHANNELS_LAST.setdefault(subject.model, {})
    shapes = batch.shapes()
    if shapes not in known:
        known[shapes] = _wide_convolutions(subject.model) and _same_channels_last(subject, batch.take(slice(0, 2)))
    return known[shapes]


def never_again(subject: Subject, batch: Batch) -> None:
    """Record that the model needs its inputs' own format after all."""
    _CHANNELS_LAST[subject.model][batch.shapes()] = False


def _wide_convolutions(model: nn.Module) -> bool:
    found = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(m.in_channels >= 16 and max(m.kernel_size) > 1 for m in found)


def _same_channels_last(subject: Subject, few: Batch) -> bool:
    kinds = [torch.channels_last if t.is_floating_point() else torch.preserve_format for t in few.tensors()]
    last = few.with_tensors([ordered(t, kind) for t, kind in zip(few.tensors(), kinds, strict=True)])
    plain = subject.outputs(few)
    try:
        other = subject.call(last)
    except Exception:  # noqa: BLE001 - whatever the model has against it, it gets its own order
        return False
    return isinstance(other, Tensor) and other.shape == plain.shape and agree(plain, other)
