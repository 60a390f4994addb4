"""What depends on the device that a kernel is computed on: how much at a time, how much memory, what a clock waits for.

The other modules of this room do what is more than a number: `precision` switches off TF32 and the like, `memory` gives
freed memory back and goes on with less of it, `order` puts channels last. Random number generators of all devices are
kept by `avalanche_ntk.randomness`. Sizes of the processor are measured; those of accelerators are chosen so that a
step takes many times longer than its launch, and no accelerator has been timed with them yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GIB = 2**30
SHARE = 0.25  # of an accelerator's free memory, for a measurement beyond the forward pass

# CUDA cards whose float64 has half the rate of float32, by compute capability; others have a 32nd or a 64th
_FAST_DOUBLE = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})


@dataclass(frozen=True)
class Profile:
    """How much goes at a time on one kind of device, in numbers.

    Attributes:
        pairs: Pairs of positions in one block of products that are never formed: on a processor some copies of it stay
            in the cache, on an accelerator a block is worth its launches.
        tile: A tile of explicit gradients: on a processor below 32 MiB, where the C library would fetch new pages.
        workspace: What the blocks of one contraction are cut from, at most.
        patches: A convolution's patches that are made at a time.
        carried: Gradients that are carried through a parameter's own chain at a time.
        looked: Signals that are looked at in one go.
        pages: Whether the C library fetches memory and gives it back, page by page.
        launches: Whether starting an operator costs more than a small one takes: then several cotangents go through a
            convolution at once, where a processor is as fast or faster one by one.
    """

    pairs: int
    tile: int
    workspace: int
    patches: int
    carried: int
    looked: int
    pages: bool
    launches: bool


PROCESSOR = Profile(
    pairs=2**18,
    tile=2**23 - 2**16,
    workspace=2**28,
    patches=2**22,
    carried=2**21,
    looked=2**19,
    pages=True,
    launches=False,
)
ACCELERATOR = Profile(
    pairs=2**24,
    tile=2**26,
    workspace=2**29,
    patches=2**26,
    carried=2**25,
    looked=2**24,
    pages=False,
    launches=True,
)


def profile_of(device: torch.device) -> Profile:
    """Return the profile of a device."""
    return PROCESSOR if device.type in ("cpu", "meta") else ACCELERATOR


def default_budget(device: torch.device) -> int:
    """Return the bytes that a measurement may take beyond the forward pass where nobody said.

    1 GiB on a processor. On an accelerator a quarter of what is free there, memory that torch keeps for itself
    included, rounded down to a power of two: some megabytes more or less change no block, and so no rounding.
    """
    free = _free(device)
    return GIB if free is None else 2 ** max(20, int(SHARE * free).bit_length() - 1)


def _free(device: torch.device) -> int | None:
    """Return the bytes that are free on an accelerator; None where this cannot be told."""
    if device.type == "cpu":
        return None
    module: Any = _module(device)
    if hasattr(module, "mem_get_info"):  # CUDA (ROCm too), XPU
        free = int(module.mem_get_info(device)[0])
        if hasattr(module, "memory_reserved") and hasattr(module, "memory_allocated"):
            free += int(module.memory_reserved(device)) - int(module.memory_allocated(device))
        return free
    if hasattr(module, "recommended_max_memory"):  # MPS
        return max(0, int(module.recommended_max_memory()) - int(module.current_allocated_memory()))
    return None


def synchronise(device: torch.device | str) -> None:
    """Wait until a device has done what it was asked for: before a clock is read, on both sides of what is timed.

    A processor has done it already.
    """
    device = torch.device(device)
    wait = getattr(_module(device), "synchronize", None)
    if device.type == "cpu" or wait is None:
        return
    wait() if device.type == "mps" else wait(device)


def empty_cache(device: torch.device) -> None:
    """Give memory that torch keeps on a device for itself back to the device."""
    empty = getattr(_module(device), "empty_cache", None)
    if device.type != "cpu" and empty is not None:
        empty()


def autocasting() -> list[str]:
    """Return the kinds of devices at hand on which autocast may be on."""
    kinds = {"cpu", *(k for k in ("cuda", "xpu", "mps") if getattr(torch, k).is_available())}
    return sorted(k for k in kinds if torch.amp.is_autocast_available(k))


def has_double(device: torch.device) -> bool:
    """Return whether float64 exists on a device."""
    return device.type != "mps"


def fast_double(device: torch.device) -> bool:
    """Return whether float64 on a device has at least about half the speed of float32."""
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) in _FAST_DOUBLE
    return has_double(device)


def in_double(t: Tensor) -> Tensor:
    """Return a small tensor in float64, on the processor where its device has none."""
    return t.double() if has_double(t.device) else t.cpu().double()


def by_onednn(t: Tensor) -> bool:
    """Return whether convolutions of a tensor are oneDNN's: float32 on a processor."""
    enabled = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return t.device.type == "cpu" and t.dtype == torch.float32 and enabled


def exhausted(error: BaseException) -> bool:
    """Return whether an error, or what caused it, says that memory is used up, the device's or the computer's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if error.__cause__ is not None and exhausted(error.__cause__):
        return True
    text = str(error) if isinstance(error, RuntimeError) else ""
    return any(words in text for words in ("can't allocate memory", "not enough memory", "out of memory"))


def _module(device: torch.device) -> Any:
    """Return torch's module for a kind of device, such as `torch.cuda`; None where there is none."""
    try:
        return torch.get_device_module(device)
    except RuntimeError:
        return None
