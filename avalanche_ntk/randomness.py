"""Save and restore the states of all random number generators that training may use."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def preserved_rng_state() -> Generator[None]:
    """Restore the random states of `random`, numpy and torch on exit, also after an error.

    For torch these are the CPU and all accelerators in use (CUDA, XPU, MPS, a custom backend).
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerators = accelerator_states()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        for states, put_back in accelerators:
            put_back(states)


def accelerator_states() -> list[tuple[Any, Callable[[Any], object]]]:
    """Return the generator states of all accelerators in use, each with the function that restores it.

    Reading a state draws no numbers and initialises no device.
    """
    found: list[tuple[Any, Callable[[Any], object]]] = []
    for kind in ("cuda", "xpu", torch._C._get_privateuse1_backend_name()):
        module: Any = getattr(torch, kind, None)
        if hasattr(module, "get_rng_state_all") and module.is_initialized():
            found.append((module.get_rng_state_all(), module.set_rng_state_all))
    if torch.backends.mps.is_available():
        found.append((torch.mps.get_rng_state(), torch.mps.set_rng_state))
    return found
