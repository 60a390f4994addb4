"""Lazy and rich training by choice of initialisation, parametrisation, output scale and learning rate.

In the *lazy* (kernel) regime the tangent kernel moves less and less as networks get wider; in the *rich*
(feature-learning) regime it does not. With a smooth activation and a fixed number of steps the relative motion of the
kernel is of order 1/width in the lazy settings, so that the kernel distance `S = 1 − CKA`, which is quadratic in it,
falls as `width⁻²`; for ReLU, flips of single units add noise, which makes it `width^(−3/2)` for small motions. See
`docs/laboratory.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from avalanche_ntk.errors import ArgumentError, ModelError, checked_seed, unknown_name
from avalanche_ntk.lab.models import NTKConv2d, NTKLinear, build_model

# Gains of torch.nn.init.calculate_gain; unknown activations get ReLU's gain, since they resemble it.
_GAINS = {"leaky_relu": math.sqrt(2 / (1 + 0.01**2)), "tanh": 5 / 3, "sigmoid": 1.0, "identity": 1.0}


class CentredScaled(nn.Module):
    """`x ↦ α (f(x; θ) − f(x; θ_0))`: the model's outputs, centred at initialisation and scaled.

    Its initial outputs are 0 and its kernel is `α² Θ`. With a learning rate proportional to `1/α²`, the function
    changes at the same rate for each α, while the parameters move by the order of `1/α`: lazy for large α, rich for
    small α. `θ_0` is kept in buffers, so state dicts hold it and optimizers ignore it. Both functions run in the same
    mode; the copy's running statistics follow the data like the model's.

    Args:
        model: f, at its initial parameters.
        alpha: α > 0.

    Raises:
        ArgumentError: α is not positive.
        ModelError: The model draws random numbers in training (dropout), so that the two functions would differ.

    Source: Chizat, Oyallon & Bach 2019, section 2 ("On Lazy Training in Differentiable Programming").

    >>> wrapped = CentredScaled(nn.Linear(2, 1), alpha=10.0)
    >>> wrapped(torch.ones(1, 2)).item()
    0.0
    """

    def __init__(self, model: nn.Module, alpha: float) -> None:
        super().__init__()
        if not 0 < alpha < math.inf:
            raise ArgumentError(f"alpha must be a positive number, found {alpha}. Use 1 for the model's own scale.")
        for name, module in model.named_modules():
            dropout = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
            if isinstance(dropout, float) and dropout > 0:
                raise ModelError(
                    f"module {name or 'model'!r} ({type(module).__name__}) has dropout {dropout}: expected a model that"
                    " gives the same output twice, since its outputs at initialisation are subtracted. Set it to 0."
                )
        self.model, self.alpha = model, float(alpha)
        self._names: list[str] = []
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for number, (name, tensor) in enumerate(state.items()):
            self._names.append(name)
            self.register_buffer(f"initial_{number}", tensor.detach().clone())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return `α (f(x; θ) − f(x; θ_0))`, in the shape of the model's output.

        Args:
            *args: Passed to the model.
            **kwargs: Passed to the model.

        Returns:
            The outputs.

        Raises:
            ModelError: The outputs' shape differs from that at initialisation (a head that grew).
        """
        # The initial function first, so that the last layer called, which `feature_kernel` uses, is the model's.
        with torch.no_grad():
            initial = {name: getattr(self, f"initial_{number}") for number, name in enumerate(self._names)}
            before: Tensor = torch.func.functional_call(self.model, initial, args, kwargs)
        now: Tensor = self.model(*args, **kwargs)
        if now.shape != before.shape:
            raise ModelError(
                f"the outputs of {type(self.model).__name__} have shape {tuple(now.shape)} and had"
                f" {tuple(before.shape)} at initialisation: expected the same. Give the model its final number of"
                " outputs before it is wrapped."
            )
        return self.alpha * (now - before)


def kaiming_uniform_(model: nn.Module, activation: str = "relu", generator: torch.Generator | None = None) -> nn.Module:
    """Draw the weights of every linear layer and convolution from `U(−b, b)`, `b = gain · √(3 / fan_in)`; zero biases.

    Args:
        model: A model in standard parametrisation, changed in place.
        activation: Sets the gain: √2 for ReLU, 5/3 for tanh, ….
        generator: Random number generator; None for torch's own.

    Returns:
        The model.

    Raises:
        ArgumentError: The model is in NTK parametrisation, whose weights have variance 1 by definition.

    Source: He et al. 2015.
    """
    gain = _GAINS.get(activation, math.sqrt(2))
    for module in model.modules():
        if isinstance(module, (NTKLinear, NTKConv2d)):
            raise ArgumentError(
                "Kaiming initialisation belongs to the standard parametrisation, found a layer in NTK parametrisation."
                " Build the model with parametrisation='standard'."
            )
        if isinstance(module, (nn.Linear, _ConvNd)):
            bound = gain * math.sqrt(3 / module.weight[0].numel())
            weight = module.weight.detach()
            # A generator draws on its own device only; the weights may be on another.
            drawn = torch.empty_like(weight, device=weight.device if generator is None else generator.device)
            weight.copy_(drawn.uniform_(-bound, bound, generator=generator))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


@dataclass(frozen=True)
class Prepared:
    """A model made for a regime, with its learning rate.

    Attributes:
        model: The model to train.
        lr: Learning rate of plain SGD.
        regime: The regime's name.
        sentence: Description of model and learning rate.
    """

    model: nn.Module
    lr: float
    regime: str
    sentence: str

    def optimizer(self, **arguments: Any) -> torch.optim.SGD:
        """Return SGD for the model with that learning rate (and further `arguments`, such as momentum)."""
        return torch.optim.SGD(self.model.parameters(), lr=self.lr, **arguments)


@dataclass(frozen=True)
class _Request:
    build: Callable[[str], nn.Module]
    base_lr: float
    base_width: int
    width: int | None
    alpha: float
    activation: str
    seed: int

    def known_width(self, regime: str) -> int:
        if self.width is None:
            raise ArgumentError(
                f"regime {regime!r} scales the learning rate with width and needs to know it, found width=None."
                " Give width, and a model that has one."
            )
        return self.width


def _lazy(r: _Request) -> Prepared:
    lr = r.base_lr * r.base_width / r.known_width("lazy")
    sentence = f"standard parametrisation, η = {r.base_lr:g} · {r.base_width}/width"
    return Prepared(r.build("standard"), lr, "lazy", sentence)


def _rich(r: _Request) -> Prepared:
    generator = torch.Generator("cpu").manual_seed(checked_seed(r.seed))
    model = kaiming_uniform_(r.build("standard"), r.activation, generator)
    return Prepared(
        model, r.base_lr, "rich", f"standard parametrisation, Kaiming uniform, η = {r.base_lr:g} at any width"
    )


def _ntk(r: _Request) -> Prepared:
    return Prepared(r.build("ntk"), r.base_lr, "ntk", f"NTK parametrisation, η = {r.base_lr:g} at any width")


def _centred(r: _Request) -> Prepared:
    model = CentredScaled(r.build("standard"), r.alpha)
    sentence = f"outputs α (f(θ) − f(θ_0)) with α = {r.alpha:g}, η = {r.base_lr:g}/α²"
    return Prepared(model, r.base_lr / r.alpha**2, "centred", sentence)


def _mean_field(r: _Request) -> Prepared:
    scale = r.alpha / math.sqrt(r.known_width("mean_field"))
    model = CentredScaled(r.build("ntk"), scale)
    outputs = f"outputs s (f(θ) − f(θ_0)) with s = {r.alpha:g}/√width = {scale:.4g}"
    sentence = f"NTK parametrisation, {outputs}, η = {r.base_lr:g}/s²"
    return Prepared(model, r.base_lr / scale**2, "mean_field", sentence)


REGIMES: dict[str, Callable[[_Request], Prepared]] = {
    "lazy": _lazy,
    "rich": _rich,
    "ntk": _ntk,
    "centred": _centred,
    "mean_field": _mean_field,
}


def build_regime(
    regime: str,
    model: str | Callable[..., nn.Module] = "mlp",
    *,
    input_shape: tuple[int, ...],
    n_classes: int,
    width: int | None = None,
    base_lr: float = 0.1,
    base_width: int = 64,
    alpha: float = 1.0,
    activation: str | None = None,
    seed: int = 0,
    **arguments: Any,
) -> Prepared:
    """Build a model and its learning rate for lazy or rich training.

    | regime | model | learning rate | as width grows |
    |---|---|---|---|
    | `lazy` | standard, torch's initialisation | `base_lr · base_width / width` | kernel stops moving |
    | `rich` | standard, Kaiming uniform | `base_lr` | steps get larger than the kernel allows, and it keeps moving |
    | `ntk` | NTK parametrisation | `base_lr` | kernel stops moving |
    | `centred` | `α (f(θ) − f(θ_0))`, standard | `base_lr / α²` | lazy as α grows, at a fixed width |
    | `mean_field` | `s (f(θ) − f(θ_0))`, `s = α/√width`, NTK | `base_lr / s²` | kernel moves by the same amount |

    Args:
        regime: A key of `REGIMES`.
        model: As in `build_model`.
        input_shape: Shape of one input.
        n_classes: Number of outputs C.
        width: Width; required if the learning rate or the scale depends on it.
        base_lr: Learning rate at the base width, for scale 1.
        base_width: Width at which the lazy learning rate is `base_lr`.
        alpha: α of `centred` and `mean_field`.
        activation: As in `build_model`; also sets the gain of the Kaiming initialisation.
        seed: Seed of the weights, without affecting torch's generator.
        **arguments: Further arguments of `build_model`, such as `depth`.

    Returns:
        Model and learning rate.

    Raises:
        ArgumentError: The regime or model is unknown, or a number is out of range.

    Source: "Reactivation: Empirical NTK Dynamics Under Task Shifts" (arXiv 2507.16039) for `lazy` and `rich`; Jacot et
    al. 2018 for `ntk`; Chizat et al. 2019 for `centred`; Geiger et al. 2020 for the scale `α/√width` of `mean_field`.
    """  # noqa: DOC501  (unknown_name makes an ArgumentError)
    if regime not in REGIMES:
        raise unknown_name("regime", regime, REGIMES)
    for name, value in (("base_lr", base_lr), ("alpha", alpha), ("base_width", base_width)):
        if not 0 < value < math.inf:
            raise ArgumentError(f"{name} must be a positive number, found {value}. Give {name}=1, for example.")
    if "parametrisation" in arguments:
        raise ArgumentError(
            f"a regime sets the parametrisation itself, found parametrisation={arguments['parametrisation']!r}."
            " Leave it out, or use build_model."
        )
    shared: dict[str, Any] = {
        "input_shape": input_shape,
        "n_classes": n_classes,
        "width": width,
        "activation": activation,
        "seed": seed,
    }

    def build(parametrisation: str) -> nn.Module:
        # Other models have no parametrisation argument and are standard.
        chosen = None if parametrisation == "standard" else parametrisation
        return build_model(model, parametrisation=chosen, **shared, **arguments)

    return REGIMES[regime](_Request(build, base_lr, base_width, width, alpha, activation or "relu", seed))
