"""Wrappers of a model that share its parameters: compiled, parallel and differentially private."""

from __future__ import annotations

from typing import Any

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, `DataParallel` and Opacus' wrappers; it shares every parameter with them."""
    return _unwrapped(model)[0]


def wrapper_prefix(model: nn.Module) -> str:
    """Prefix of the wrappers that `unwrap` removes, in names of parameters and modules."""
    return _unwrapped(model)[1]


def _unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    inner: Any = model
    prefix = ""
    while True:
        if hasattr(inner, "_orig_mod"):
            inner, prefix = inner._orig_mod, prefix + "_orig_mod."
        elif isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner, prefix = inner.module, prefix + "module."
        elif type(inner).__module__.startswith("opacus."):  # its hooks need separate passes
            name = "_module" if "_module" in inner._modules else "module"
            inner, prefix = inner._modules[name], prefix + f"{name}."
        else:
            return inner, prefix
