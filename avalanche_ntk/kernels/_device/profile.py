"""Device-dependent block sizes, memory limits and synchronisation.

Related modules: `precision` switches off TF32, `memory` frees memory and retries with a smaller budget, `order` puts
channels last. `avalanche_ntk.randomness` preserves the random number generators of all devices. Sizes for the CPU are
measured. Those for accelerators are chosen so that a step takes many times longer than its launch; no accelerator has
been timed with them yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GIB = 2**30
SHARE = 0.25  # share of an accelerator's free memory for a measurement, beyond the forward pass

# CUDA cards whose float64 runs at half the rate of float32, by compute capability; on others it is 1/32 or 1/64
_FAST_DOUBLE = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})


@dataclass(frozen=True)
class Profile:
    """Block sizes for one kind of device, in numbers.

    Attributes:
        pairs: Pairs of positions in one block of the ghost form: on a CPU some copies of it fit in the cache, on an
            accelerator a block outweighs its launches.
        tile: A tile of explicit gradients: on a CPU below 32 MiB, above which the C library would fetch new pages.
        workspace: Limit for all blocks of one contraction.
        patches: A convolution's patches expanded at a time.
        carried: Gradients propagated through a parameter's chain at a time.
        looked: Signals checked at a time.
        pages: Whether the C library fetches and returns memory page by page.
        launches: Whether launching an operator takes longer than a small operator: then several cotangents go through a
            convolution at once; a CPU is as fast or faster one by one.
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
    """Return the default bytes that a measurement may take beyond the forward pass.

    1 GiB on a CPU. On an accelerator a quarter of the free memory, including torch's cache, rounded down to a power of
    two, so that small differences change neither blocks nor rounding.
    """
    free = _free(device)
    return GIB if free is None else 2 ** max(20, int(SHARE * free).bit_length() - 1)


def _free(device: torch.device) -> int | None:
    """Return the free bytes of an accelerator; None if unknown."""
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
    """Wait for a device's pending work, before and after a timed section.

    On a CPU this does nothing.
    """
    device = torch.device(device)
    wait = getattr(_module(device), "synchronize", None)
    if device.type == "cpu" or wait is None:
        return
    wait() if device.type == "mps" else wait(device)


def empty_cache(device: torch.device) -> None:
    """Empty torch's memory cache of a device."""
    empty = getattr(_module(device), "empty_cache", None)
    if device.type != "cpu" and empty is not None:
        empty()


def autocasting() -> list[str]:
    """Return the available kinds of devices on which autocast may be on."""
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
    """Return a small tensor in float64, on the CPU if its device does not support it."""
    return t.double() if has_double(t.device) else t.cpu().double()


def by_onednn(t: Tensor) -> bool:
    """Return whether oneDNN computes a tensor's convolutions: float32 on a CPU."""
    enabled = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return t.device.type == "cpu" and t.dtype == torch.float32 and enabled


def exhausted(error: BaseException) -> bool:
    """Return whether an error, or its cause, is about lack of memory on the device or the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if error.__cause__ is not None and exhausted(error.__cause__):
        return True
    text = str(error) if isinstance(error, RuntimeError) else ""
    return any(words in text for words in ("can't allocate memory", "not enough memory", "out of memory"))


def _module(device: torch.device) -> Any:
    """Return torch's module for a kind of device, such as `torch.cuda`; None if there is none."""
    try:
        return torch.get_device_module(device)
    except RuntimeError:
        return None
