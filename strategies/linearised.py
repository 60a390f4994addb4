"""Tangent training: from a boundary on, the model that is trained is its own linearisation there."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche_ntk.strategies.memory import at_least, evaluating
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from avalanche_ntk.adapters.reading import model_of
from avalanche_ntk.kernels.support import swapped


class TangentForward:
    """The forward pass `x ↦ f(x; θ_b) + J_b(x)(θ − θ_b)` of a model whose parameters are θ.

    It takes the place of the model's `forward` and leaves the module, the names of its parameters and the optimizer as
    they are: the linearisation is the same module with another function. f and its derivative along θ − θ_b come from
    one forward-mode pass (`torch.func.jvp`); a backward pass through it is the gradient of the linear model.

    Running statistics are those of θ_b, and f is in eval mode also in training: a linearisation is that of one
    function.

    Args:
        model: The model at θ_b.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.base = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.statistics = {name: b.detach().clone() for name, b in model.named_buffers() if b.is_floating_point()}

    def base_of(self, name: str, now: Tensor) -> Tensor:
        """Return θ_b of a parameter; that of entries that have come since is their value when they are first seen."""
        base = self.base.get(name)
        if base is None or base.shape != now.shape:
            new = now.detach().clone()
            if base is not None and base.dim() == new.dim():
                common = tuple(slice(0, min(a, b)) for a, b in zip(base.shape, new.shape, strict=True))
                new[common] = base[common]
            base = new
            # A measurement puts other tensors in the parameter's place for a moment; only the real one is remembered.
            if isinstance(now, nn.Parameter):
                self.base[name] = new
        return base.to(now)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the linearised output, of the structure of the model's own."""
        model = self.model
        base = {name: self.base_of(name, p) for name, p in model.named_parameters()}
        tangents = {name: p - base[name] for name, p in model.named_parameters()}
        own = dict(model.named_buffers())
        statistics = {
            name: value.to(own[name]) for name, value in self.statistics.items() if own[name].shape == value.shape
        }

        def f(theta: dict[str, Tensor]) -> Any:
            with swapped(model, {**statistics, **theta}):
                return type(model).forward(model, *args, **kwargs)

        # Attention has a forward-mode derivative in its plain form only; torch warns when it first loads forward mode.
        with evaluating(model), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            moved = torch.func.jvp(f, (base,), (tangents,))
        return tree_map(torch.add, moved[0], moved[1])


class LinearisedPlugin(SupervisedPlugin):
    """Trains the model's linearisation `f(x; θ_b) + J_b(x)(θ − θ_b)` from the boundary of an experience on.

    Its tangent kernel is that of the boundary, `J_b J_bᵀ`, for ever after: the static-kernel approximation made true.
    The base θ_b is set once, before the first step of experience `from_experience`, and stays for all later ones: the
    function does not jump there, since both agree at θ_b. Evaluation uses the linearisation too.

    From the boundary on the model is in eval mode inside its forward pass: BatchNorm uses the statistics of the
    boundary and dropout is off. The forward pass must be one that `torch.func.jvp` can go through.

    Args:
        from_experience: Number of the experience, in the order of training, at whose start the model is linearised.

    Raises:
        ArgumentError: `from_experience` is negative.

    Source: Lee et al. 2019, "Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent", eq. 2;
    Ortiz-Jiménez, Moosavi-Dezfooli & Frossard 2021, "What can linearized neural networks actually say about
    generalization?".
    """

    def __init__(self, from_experience: int = 1) -> None:
        super().__init__()
        at_least("from_experience", from_experience, 0, 1)
        self.from_experience = from_experience
        self.experience = -1

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Linearise the model when training has reached the boundary."""
        self.experience += 1
        if self.experience >= self.from_experience:
            linearise(model_of(strategy))


def linearise(model: nn.Module) -> TangentForward:
    """Make a model compute its linearisation at its present parameters; once linearised it stays as it is.

    Args:
        model: The model, changed in place.

    Returns:
        Its forward pass.
    """
    known = model.__dict__.get("forward")
    if not isinstance(known, TangentForward):
        known = model.__dict__["forward"] = TangentForward(model)
    return known


class Linearised(SupervisedTemplate):
    """Tangent training from a boundary on as a strategy, see `LinearisedPlugin`.

    Args:
        model: The model; changed in place at the boundary.
        optimizer: The optimizer.
        from_experience: See `LinearisedPlugin`.
        plugins: Your plugins.
        **usual: The other arguments of `avalanche.training.templates.SupervisedTemplate`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        from_experience: int = 1,
        plugins: Any = None,
        **usual: Any,
    ) -> None:
        own = LinearisedPlugin(from_experience)
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or ()), own], **usual)
