"""Layers in standard or NTK parametrisation, with weight scales by activation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_ntk.errors import ArgumentError, unknown_name

PARAMETRISATIONS = ("standard", "ntk")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}

# E[φ(z)²] for z ~ N(0, 1), by quadrature if it has no simple form.
SECOND_MOMENTS = {
    "relu": 0.5,
    "leaky_relu": 0.50005,
    "gelu": 0.4252214826,
    "silu": 0.3557755198,
    "elu": 0.6449454175,
    "softplus": 0.9212459089,
    "tanh": 0.3942944904,
    "sigmoid": 0.2933790359,
    "identity": 1.0,
}


def weight_scale(activation: str) -> float:
    """σ_w of a layer after this activation: `1 / √E[φ(z)²]`, z ~ N(0, 1), which preserves the scale of activations.

    Args:
        activation: A key of `ACTIVATIONS`.

    Returns:
        σ_w; √2 for ReLU.

    Source: He et al. 2015, equation 10, for ReLU; the same condition for the others.

    >>> round(weight_scale("relu") ** 2, 12)
    2.0
    """
    return float(SECOND_MOMENTS[activation] ** -0.5)


class NTKLinear(nn.Module):
    """A linear layer in NTK parametrisation, `(σ_w / √fan_in) · W x + σ_b · b` with W, b ~ N(0, 1).

    Args:
        fan_in: Size of the input.
        fan_out: Size of the output.
        bias: Whether there is a bias.
        sigma_w: σ_w.
        sigma_b: σ_b; small, so that biases do not dominate the kernel of inputs with a small norm.

    Source: Jacot et al. 2018, section 2; Lee et al. 2019, equation 1.
    """

    def __init__(
        self, fan_in: int, fan_out: int, bias: bool = True, *, sigma_w: float = 1.0, sigma_b: float = 0.1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in))
        self.bias = nn.Parameter(torch.randn(fan_out)) if bias else None
        self.scale = sigma_w / math.sqrt(fan_in)
        self.sigma_b = sigma_b

    def forward(self, x: Tensor) -> Tensor:
        """Return `(…, fan_out)` for `(…, fan_in)`."""
        bias = None if self.bias is None else self.sigma_b * self.bias
        # Scale the input, not the weight: the weight itself then enters the product, so its kernel is cheap even if it
        # is used at every time step.
        return F.linear(self.scale * x, self.weight, bias)

    def extra_repr(self) -> str:
        """Sizes, in the format of torch's own layers."""
        fan_out, fan_in = self.weight.shape
        return f"{fan_in}, {fan_out}, bias={self.bias is not None}, scale={self.scale:.4g}"


class NTKConv2d(nn.Module):
    """A convolution in NTK parametrisation; `fan_in` is channels times kernel positions (Arora et al. 2019).

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Side of the square kernel.
        stride: Stride.
        padding: Zeros added at each side.
        bias: Whether there is a bias.
        sigma_w: σ_w.
        sigma_b: σ_b.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        *,
        sigma_w: float = 1.0,
        sigma_b: float = 0.1,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.randn(out_channels)) if bias else None
        self.scale = sigma_w / math.sqrt(in_channels * kernel_size**2)
        self.sigma_b = sigma_b
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, out_channels, H', W')` for `(N, in_channels, H, W)`."""
        bias = None if self.bias is None else self.sigma_b * self.bias
        return F.conv2d(self.scale * x, self.weight, bias, self.stride, self.padding)

    def extra_repr(self) -> str:
        """Sizes, in the format of torch's own layers."""
        out_channels, in_channels, side, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={side}, stride={self.stride}, scale={self.scale:.4g}"


class Layers:
    """Makes the layers of one parametrisation."""

    def __init__(self, parametrisation: str, activation: str) -> None:
        if parametrisation not in PARAMETRISATIONS:
            raise unknown_name("parametrisation", parametrisation, PARAMETRISATIONS)
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        self.ntk = parametrisation == "ntk"
        self.name = activation

    def activation(self) -> nn.Module:
        """Return the activation."""
        return ACTIVATIONS[self.name]()

    def linear(self, fan_in: int, fan_out: int, bias: bool = True, *, activated: bool = False) -> nn.Module:
        """Return a linear layer; `activated` if its input is the activation's output."""
        if not self.ntk:
            return nn.Linear(fan_in, fan_out, bias)
        return NTKLinear(fan_in, fan_out, bias, sigma_w=weight_scale(self.name) if activated else 1.0)

    def conv(
        self, fan_in: int, fan_out: int, side: int, stride: int = 1, bias: bool = True, *, activated: bool = False
    ) -> nn.Module:
        """Return a convolution that keeps the size at stride 1; `activated` if its input is the activation's output."""
        padding = side // 2
        if not self.ntk:
            return nn.Conv2d(fan_in, fan_out, side, stride, padding, bias=bias)
        sigma_w = weight_scale(self.name) if activated else 1.0
        return NTKConv2d(fan_in, fan_out, side, stride, padding, bias, sigma_w=sigma_w)


def at_least_one(**numbers: int) -> None:
    """Refuse numbers that are not integers of at least 1.

    Raises:
        ArgumentError: One is not; the message names it.
    """
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name} must be an integer of at least 1, found {value!r}. Give {name}=1 or more.")
