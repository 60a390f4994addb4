"""Diagonal preconditioners of optimisers, for the preconditioned kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError


def adam_preconditioner(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the present `1/(√v̂ + ε)` of Adam or AdamW, `v̂ = v/(1 − β₂ᵗ)`, by the model's parameter names.

    The kernel `J P Jᵀ` with this P drives the outputs in a step, apart from momentum and weight decay (see Malladi et
    al. 2023 for its limit, the kernel of SignGD).

    Args:
        optimizer: `torch.optim.Adam` or `AdamW`, with or without `amsgrad`.
        model: The model that it trains.

    Returns:
        Name → tensor of the parameter's shape, for parameters that have been updated.

    Raises:
        ArgumentError: The optimizer keeps no squared gradients, or has made no step yet.
    """
    names = {p: n for n, p in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if p not in names or "exp_avg_sq" not in state:
                continue
            squares = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
            corrected = squares / (1 - group["betas"][1] ** float(state["step"]))
            found[names[p]] = 1 / (corrected.sqrt() + group["eps"])
    if not found:
        raise ArgumentError(
            f"{type(optimizer).__name__} keeps no mean of squared gradients for a parameter of {type(model).__name__}:"
            " expected torch.optim.Adam or AdamW after at least one step. Take a step first; SGD has P = 1."
        )
    return found
