"""Activations and gradients of single units of every layer on a probe, from a copy of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_ntk.kernels.support import Batch, measuring


@dataclass
class Units:
    """Units by name of the weighted layer that reads them (activations) or outputs them (gradients).

    Attributes:
        activity: `|h|`, mean over a sample's positions, `(N, D)`, of the input of each layer but the first.
        gradients: Largest `|∂L_n/∂a|` over a sample's positions, `(N, D)`, a the output of each layer but the last.
        gradient_norm: `‖∇ 1/N Σ L_n‖` over the trained parameters.
        weight_norm: Norm of the trained parameters.
    """

    activity: dict[str, np.ndarray] = field(default_factory=dict)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    gradient_norm: float = 0.0
    weight_norm: float = 0.0


def look_at_units(model: nn.Module, batch: Batch, loss: Callable[[Any], Tensor] | None) -> Units:
    """Run a copy of a model once, in eval mode, and record each layer with a weight of two or more dimensions.

    Args:
        model: A copy of the model, used only here.
        batch: N samples.
        loss: Maps the model's outputs to the sum of the samples' losses; None for no gradients.

    Returns:
        The units. Layers whose input or output does not have the samples in dimension 0 are omitted.
    """
    calls: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                calls.pop(name, None)  # in the order of the last call
                calls[name] = (module, inputs[0], output)

        return hook

    found = Units()
    with measuring(model, batch):
        hooks = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if _is_weighted(m)]
        try:
            args, kwargs = batch.arguments(model)
            out = model(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        names = [n for n, (_, x, y) in calls.items() if len(x) == len(batch) == len(y)]
        for name in names[1:]:
            module, x, _ = calls[name]
            found.activity[name] = _by_unit(module, x.detach().abs(), torch.mean).cpu().double().numpy()
        trained = [p for p in model.parameters() if p.requires_grad]
        found.weight_norm = float(_norm(trained))
        if loss is not None:
            made = [name for name in names[:-1] if calls[name][2].requires_grad]
            total = loss(out)
            wanted = [*(calls[name][2] for name in made), *trained]
            gradients = torch.autograd.grad(total, wanted, allow_unused=True)
            for name, g in zip(made, gradients, strict=False):
                module, _, y = calls[name]
                one = torch.zeros_like(y) if g is None else g
                found.gradients[name] = _by_unit(module, one.abs(), torch.amax).cpu().double().numpy()
            found.gradient_norm = float(_norm([g for g in gradients[len(made) :] if g is not None])) / len(batch)
    return found


def _is_weighted(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim > 1 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)


def _by_unit(module: nn.Module, values: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Channels of a convolution, last dimension of everything else; positions are reduced."""
    convolution = module._parameters["weight"].ndim > 2  # type: ignore[union-attr]
    samples_first = values.movedim(1, -1) if convolution else values
    flat = samples_first.reshape(len(values), -1, samples_first.shape[-1])
    return reduce(flat, dim=1)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.detach().double().norm() for t in tensors]).norm() if tensors else torch.zeros(())
