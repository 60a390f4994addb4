"""Models of a given width and depth, in standard or NTK parametrisation, and any model by name.

Width is the number of units (channels) of every hidden layer; a sweep over widths changes nothing else. In *standard*
parametrisation layers are torch's own, initialised as torch does it. In *NTK* parametrisation (Jacot et al. 2018; Lee
et al. 2019) every weight and bias is drawn from N(0, 1) and a layer computes `(σ_w / √fan_in) · W x + σ_b · b`, so that
the kernel has a limit at infinite width under a learning rate that does not depend on width.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_ntk.errors import ArgumentError, checked_seed, unknown_name

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

# E[φ(z)²] for z ~ N(0, 1), by quadrature where it has no simple form.
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
    """σ_w of a layer that reads this activation: `1 / √E[φ(z)²]`, z ~ N(0, 1), keeps the scale of activations.

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
        fan_in: Numbers read.
        fan_out: Numbers written.
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
        # The factor is on the input, so that the weight itself enters the product: its kernel is then cheap also where
        # it is used at every time step.
        return F.linear(self.scale * x, self.weight, bias)

    def extra_repr(self) -> str:
        """Sizes, as torch's own layers print them."""
        fan_out, fan_in = self.weight.shape
        return f"{fan_in}, {fan_out}, bias={self.bias is not None}, scale={self.scale:.4g}"


class NTKConv2d(nn.Module):
    """A convolution in NTK parametrisation; `fan_in` is channels times kernel positions (Arora et al. 2019).

    Args:
        in_channels: Channels read.
        out_channels: Channels written.
        kernel_size: Side of the square kernel.
        stride: Step.
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
        """Sizes, as torch's own layers print them."""
        out_channels, in_channels, side, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={side}, stride={self.stride}, scale={self.scale:.4g}"


class _Layers:
    """Makes the layers of one parametrisation; `reads` names the activation whose output a layer reads."""

    def __init__(self, parametrisation: str, activation: str) -> None:
        if parametrisation not in PARAMETRISATIONS:
            raise unknown_name("parametrisation", parametrisation, PARAMETRISATIONS)
        if activation not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        self.ntk = parametrisation == "ntk"
        self.name = activation

    def activation(self) -> nn.Module:
        return ACTIVATIONS[self.name]()

    def linear(self, fan_in: int, fan_out: int, bias: bool = True, *, activated: bool = False) -> nn.Module:
        if not self.ntk:
            return nn.Linear(fan_in, fan_out, bias)
        return NTKLinear(fan_in, fan_out, bias, sigma_w=weight_scale(self.name) if activated else 1.0)

    def conv(
        self, fan_in: int, fan_out: int, side: int, stride: int = 1, bias: bool = True, *, activated: bool = False
    ) -> nn.Module:
        padding = side // 2
        if not self.ntk:
            return nn.Conv2d(fan_in, fan_out, side, stride, padding, bias=bias)
        sigma_w = weight_scale(self.name) if activated else 1.0
        return NTKConv2d(fan_in, fan_out, side, stride, padding, bias, sigma_w=sigma_w)


def _at_least_one(**numbers: int) -> None:
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(f"{name} must be an integer of at least 1, found {value!r}. Give {name}=1 or more.")


class MLP(nn.Module):
    """A fully connected network: `depth` hidden layers of `width` units, and a linear head.

    Args:
        in_features: Numbers in one flattened input.
        n_classes: Number of outputs C.
        width: Units in each hidden layer.
        depth: Number of hidden layers; 0 makes a linear model.
        parametrisation: "standard" or "ntk".
        activation: A key of `ACTIVATIONS`.

    Raises:
        ArgumentError: A name is unknown or a number is out of range.
    """

    def __init__(
        self,
        in_features: int = 64,
        n_classes: int = 10,
        *,
        width: int = 256,
        depth: int = 2,
        parametrisation: str = "standard",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _at_least_one(in_features=in_features, n_classes=n_classes, width=width)
        if depth != 0:
            _at_least_one(depth=depth)
        make = _Layers(parametrisation, activation)
        widths = [in_features, *[width] * depth]
        layers: list[nn.Module] = [nn.Flatten()]
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            layers += [make.linear(fan_in, fan_out, activated=number > 0), make.activation()]
        self.features = nn.Sequential(*layers)
        self.classifier = make.linear(widths[-1], n_classes, activated=depth > 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape `(N, C)` for inputs whose trailing dimensions hold `in_features` numbers."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class CNN(nn.Module):
    """A plain convolutional network: `depth` 3×3 convolutions of `width` channels and a linear head.

    The head reads the mean over positions or, with `flatten`, every position.

    Args:
        in_channels: Channels of the images.
        n_classes: Number of outputs C.
        width: Channels of each convolution.
        depth: Number of convolutions.
        pools: How many of the first convolutions are followed by 2×2 average pooling; images must survive that many
            halvings.
        flatten: Whether the head reads every position, which needs `image_size`.
        image_size: Height and width of the images.
        parametrisation: "standard" or "ntk".
        activation: A key of `ACTIVATIONS`.

    Raises:
        ArgumentError: A name is unknown or a number is out of range, or `flatten` is without `image_size`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 10,
        *,
        width: int = 64,
        depth: int = 3,
        pools: int = 2,
        flatten: bool = False,
        image_size: Sequence[int] | None = None,
        parametrisation: str = "standard",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _at_least_one(in_channels=in_channels, n_classes=n_classes, width=width, depth=depth)
        make = _Layers(parametrisation, activation)
        layers: list[nn.Module] = []
        for number in range(depth):
            layers.append(make.conv(width if number else in_channels, width, 3, activated=number > 0))
            layers.append(make.activation())
            if number < pools:
                layers.append(nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        self.flatten = flatten
        inputs = width
        if flatten:
            if image_size is None:
                raise ArgumentError(
                    "a head that reads every position needs the images' size, found image_size=None. Give "
                    "image_size=(height, width), or leave flatten out."
                )
            halvings = min(pools, depth)
            inputs *= math.prod(side >> halvings for side in image_size)
        self.classifier = make.linear(inputs, n_classes, activated=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape `(N, C)` for images `(N, in_channels, H, W)`."""
        maps = self.features(x)
        logits: Tensor = self.classifier(maps.flatten(1) if self.flatten else maps.mean(dim=(2, 3)))
        return logits


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    # One group: statistics of the sample alone, whatever the width.
    "group": partial(nn.GroupNorm, 1),
    "none": lambda channels: nn.Identity(),
}


class _BasicBlock(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: str, make: _Layers) -> None:
        super().__init__()
        self.conv1 = make.conv(fan_in, fan_out, 3, stride, bias=False, activated=True)
        self.bn1 = NORMS[norm](fan_out)
        self.relu = make.activation()
        self.conv2 = make.conv(fan_out, fan_out, 3, bias=False, activated=True)
        self.bn2 = NORMS[norm](fan_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or fan_in != fan_out:
            self.downsample = nn.Sequential(make.conv(fan_in, fan_out, 1, stride, bias=False), NORMS[norm](fan_out))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + kept)
        return out


class ResNet18(nn.Module):
    """ResNet-18 with the CIFAR stem: a 3×3 convolution of stride 1 in place of the 7×7 one, and no max-pooling.

    Its four stages have `width`, 2, 4 and 8 times `width` channels. Parameters have torchvision's names.

    Args:
        in_channels: Channels of the images.
        n_classes: Number of outputs C.
        width: Channels of the first stage; 64 in the original.
        depth: Residual blocks in each stage; 2 makes ResNet-18.
        norm: "batch" (a kernel then holds its running statistics fixed), "group" (one group) or "none".
        parametrisation: "standard" or "ntk".
        activation: A key of `ACTIVATIONS`.

    Raises:
        ArgumentError: A name is unknown or a number is out of range.

    Source: He et al. 2016, section 4.2 (the stem) and table 1 (the stages).
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_classes: int = 10,
        *,
        width: int = 64,
        depth: int = 2,
        norm: str = "batch",
        parametrisation: str = "standard",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        _at_least_one(in_channels=in_channels, n_classes=n_classes, width=width, depth=depth)
        if norm not in NORMS:
            raise unknown_name("norm", norm, NORMS)
        make = _Layers(parametrisation, activation)
        self.conv1 = make.conv(in_channels, width, 3, bias=False)
        self.bn1 = NORMS[norm](width)
        self.relu = make.activation()
        channels = width
        for stage in range(4):
            blocks = []
            for number in range(depth):
                wide = width * 2**stage
                stride = 2 if stage and not number else 1
                blocks.append(_BasicBlock(channels, wide, stride, norm, make))
                channels = wide
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = make.linear(channels, n_classes, activated=True)
        if parametrisation == "standard":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape `(N, C)` for images `(N, in_channels, H, W)`."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, make: _Layers) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (make.linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            by_head: Tensor = t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            return by_head

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: int, make: _Layers) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads, make)
        self.up = make.linear(width, mlp_ratio * width)
        self.activation = make.activation()
        self.down = make.linear(mlp_ratio * width, width, activated=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.down(self.activation(self.up(self.norm2(x))))
        return out


class ViT(nn.Module):
    """A small vision transformer with layer norm first, learned positions, and the mean of the tokens before the head.

    Args:
        in_channels: Channels of the images.
        n_classes: Number of outputs C.
        image_size: Side of the square images.
        patch_size: Side of a patch; divides `image_size`.
        width: Numbers in a token; a multiple of `heads`.
        depth: Encoder blocks.
        heads: Attention heads; a sweep over widths keeps their number and widens each.
        mlp_ratio: Hidden units of a block's MLP, as a multiple of `width`.
        parametrisation: "standard" or "ntk".
        activation: A key of `ACTIVATIONS`.

    Raises:
        ArgumentError: A name is unknown, a number is out of range, or sizes do not divide (the message gives some that
            do).

    Source: Dosovitskiy et al. 2021; mean pooling and no class token as in Beyer et al. 2022.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_classes: int = 10,
        *,
        image_size: int = 32,
        patch_size: int = 4,
        width: int = 192,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        parametrisation: str = "standard",
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        _at_least_one(in_channels=in_channels, n_classes=n_classes, width=width, depth=depth, heads=heads)
        _at_least_one(image_size=image_size, patch_size=patch_size, mlp_ratio=mlp_ratio)
        if width % heads:
            near = sorted({max(heads, width // heads * heads), (width // heads + 1) * heads})
            raise ArgumentError(
                f"width must be a multiple of the number of heads, found width={width} and heads={heads}."
                f" Use width={' or '.join(map(str, near))}."
            )
        if image_size % patch_size:
            fitting = [p for p in range(1, image_size + 1) if image_size % p == 0]
            raise ArgumentError(
                f"patch_size must divide image_size, found patch_size={patch_size} and image_size={image_size}."
                f" Use one of {', '.join(map(str, fitting))}."
            )
        make = _Layers(parametrisation, activation)
        self.patch_size = patch_size
        n_tokens = (image_size // patch_size) ** 2
        self.embed = make.linear(in_channels * patch_size**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, n_tokens, width))
        self.blocks = nn.Sequential(*[_EncoderBlock(width, heads, mlp_ratio, make) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.classifier = make.linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape `(N, C)` for images `(N, in_channels, image_size, image_size)`."""
        tokens = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        logits: Tensor = self.classifier(self.norm(self.blocks(self.embed(tokens) + self.positions)).mean(dim=1))
        return logits


_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


class RNN(nn.Module):
    """A recurrent classifier: `depth` layers of `width` units, and a linear head on the last state.

    Images are read row by row: `(N, channels, H, W)` is a sequence of H steps of `channels · W` numbers. Tokens are
    integers `(N, T)`, each looked up in a table of `vocabulary` rows of `width` numbers drawn from N(0, 1).

    With `cell="rnn"` a step is `h ← φ(W x + U h + b)`. With `cell="lstm"` gates i, f, o are logistic and
    `c ← f ∘ c + i ∘ φ(·)`, `h ← o ∘ φ(c)`. With `cell="gru"` gates r, z are logistic and `h ← (1 − z) ∘ n + z ∘ h`,
    `n = φ(W x + b + r ∘ U h)`. Rows of the weights are in torch's order, i, f, g, o and r, z, n; there is one bias
    where torch has two.

    Args:
        in_features: Numbers in one step; None for tokens.
        n_classes: Number of outputs C.
        width: Units of each layer.
        depth: Number of layers.
        vocabulary: Number of different tokens, for inputs that are tokens.
        cell: "rnn", "gru" or "lstm".
        parametrisation: "standard" (torch's uniform ±1/√width) or "ntk".
        activation: φ, a key of `ACTIVATIONS`.

    Raises:
        ArgumentError: A name is unknown, a number is out of range, or it is not said what a step is.

    Source: Elman 1990; Cho et al. 2014 for the GRU, with r behind U as torch has it; Hochreiter & Schmidhuber 1997 with
    the forget gate of Gers et al. 2000.
    """

    def __init__(
        self,
        in_features: int | None = 8,
        n_classes: int = 10,
        *,
        width: int = 64,
        depth: int = 1,
        vocabulary: int | None = None,
        cell: str = "rnn",
        parametrisation: str = "standard",
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        _at_least_one(n_classes=n_classes, width=width, depth=depth)
        if cell not in _GATES:
            raise unknown_name("cell", cell, _GATES)
        self.embedding: nn.Module | None = None
        if vocabulary is not None:
            _at_least_one(vocabulary=vocabulary)
            self.embedding, read = nn.Embedding(vocabulary, width), width
        elif in_features is not None:
            _at_least_one(in_features=in_features)
            read = in_features
        else:
            raise ArgumentError(
                f"model {cell!r} looks tokens up in a table and needs its size, found vocabulary=None. Give"
                " vocabulary=16, for tokens 0 … 15."
            )
        make = _Layers(parametrisation, activation)
        self.cell, self.width = cell, width
        rows = _GATES[cell] * width
        self.inputs = nn.ModuleList(make.linear(width if layer else read, rows) for layer in range(depth))
        self.states = nn.ModuleList(make.linear(width, rows, bias=False) for _ in range(depth))
        self.activation = make.activation()
        self.classifier = make.linear(width, n_classes)
        if parametrisation == "standard":
            for parameter in [*self.inputs.parameters(), *self.states.parameters()]:
                nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, C)` for sequences `(N, T, in_features)`, images `(N, channels, T, W)`, tokens `(N, T)`."""
        if self.embedding is not None:
            x = self.embedding(x)
        elif x.dim() == 4:
            x = x.transpose(1, 2).flatten(2)
        for read, keep in zip(self.inputs, self.states, strict=True):
            x = self._layer(read(x), keep)
        logits: Tensor = self.classifier(x[:, -1])
        return logits

    def _layer(self, drive: Tensor, keep: nn.Module) -> Tensor:
        h = c = drive.new_zeros(drive.shape[0], self.width)
        states = []
        for t in range(drive.shape[1]):
            new, kept = drive[:, t], keep(h)
            if self.cell == "rnn":
                h = self.activation(new + kept)
            elif self.cell == "gru":
                (r, z, n), (kept_r, kept_z, kept_n) = new.chunk(3, dim=1), kept.chunk(3, dim=1)
                n = self.activation(n + (r + kept_r).sigmoid() * kept_n)
                h = n + (z + kept_z).sigmoid() * (h - n)
            else:
                i, f, g, o = (new + kept).chunk(4, dim=1)
                c = f.sigmoid() * c + i.sigmoid() * self.activation(g)
                h = o.sigmoid() * self.activation(c)
            states.append(h)
        return torch.stack(states, dim=1)


def _mlp(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"in_features": math.prod(shape)}


def _image(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    if len(shape) != 3:
        raise ArgumentError(
            f"model {name!r} reads images: expected input_shape (channels, height, width), found {shape}."
            " Reshape the inputs, or use model 'mlp'."
        )
    return {"in_channels": shape[0]}


def _cnn(shape: tuple[int, ...]) -> dict[str, Any]:
    return {**_image("cnn", shape), "image_size": shape[1:]}


def _vit(shape: tuple[int, ...]) -> dict[str, Any]:
    sizes = _image("vit", shape)
    if shape[1] != shape[2]:
        raise ArgumentError(
            f"model 'vit' reads square images, found input_shape {shape}. Crop or resize the images, or use model"
            " 'cnn'."
        )
    # Digits of 8×8 pixels in patches of 4 would leave four tokens.
    return {
        **sizes,
        "image_size": shape[1],
        "patch_size": 4 if shape[1] >= 28 and shape[1] % 4 == 0 else 2 - shape[1] % 2,
    }


def _sequence(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    if len(shape) not in (1, 2, 3):
        raise ArgumentError(
            f"model {name!r} reads sequences: expected input_shape (steps, features), (channels, rows, columns), or"
            f" (steps,) of tokens, found {shape}. Reshape the inputs, or use model 'mlp'."
        )
    if len(shape) == 1:
        return {"in_features": None}
    return {"in_features": shape[1] if len(shape) == 2 else shape[0] * shape[2]}


# Name → class, and the arguments that follow from the shape of one input.
MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[[tuple[int, ...]], dict[str, Any]]]] = {
    "mlp": (MLP, _mlp),
    "cnn": (CNN, _cnn),
    "resnet18": (ResNet18, partial(_image, "resnet18")),
    "vit": (ViT, _vit),
    "rnn": (partial(RNN, cell="rnn"), partial(_sequence, "rnn")),
    "gru": (partial(RNN, cell="gru"), partial(_sequence, "gru")),
    "lstm": (partial(RNN, cell="lstm"), partial(_sequence, "lstm")),
}


def build_model(
    model: str | Callable[..., nn.Module],
    *,
    input_shape: Sequence[int],
    n_classes: int,
    width: int | None = None,
    depth: int | None = None,
    parametrisation: str | None = None,
    activation: str | None = None,
    seed: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a model by name, or by a factory of yours.

    Args:
        model: A key of `MODELS`; `"torchvision:NAME"`, or a torchvision name that is no key of `MODELS` (built without
            pretrained weights, nothing is downloaded); `"module:factory"`, a callable of an importable module; or a
            callable. A factory is given those of `input_shape`, `n_classes` that it has parameters for, and every
            other argument of this call that is not None.
        input_shape: Shape of one input, without the batch.
        n_classes: Number of outputs C.
        width: Width of the hidden layers; the model's own default when None.
        depth: Depth; the model's own default when None.
        parametrisation: "standard" or "ntk"; the model's own default when None.
        activation: A key of `ACTIVATIONS`; the model's own default when None.
        seed: Seed of the initial weights; torch's generator is then left as it was, and used when None.
        **arguments: Further arguments of the model.

    Returns:
        The model, on the CPU.

    Raises:
        ArgumentError: The name is unknown (the nearest are listed), an argument does not fit, or what was built is not
            a module.

    Examples:
        >>> net = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=32, depth=1, seed=0)
        >>> sum(p.numel() for p in net.parameters())  # 64·32 + 32 + 32·10 + 10
        2410
    """
    builder = _builder(model, tuple(int(n) for n in input_shape), n_classes)
    given = {"width": width, "depth": depth, "parametrisation": parametrisation, "activation": activation, **arguments}
    chosen = {name: value for name, value in given.items() if value is not None}
    builder.require(chosen)
    if seed is None:
        built = builder.call(**{**builder.fixed, **chosen})
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(checked_seed(seed))
            built = builder.call(**{**builder.fixed, **chosen})
    if not isinstance(built, nn.Module):
        raise ArgumentError(
            f"model {builder.label!r} must build a torch.nn.Module, found {type(built).__name__}."
            " Return the module from the factory."
        )
    return built


def width_sweep(
    model: str | Callable[..., nn.Module], widths: Sequence[int], **arguments: Any
) -> Iterator[tuple[int, nn.Module]]:
    """Yield `(width, model)` for each width: same depth, heads, activation, parametrisation and seed.

    Args:
        model: As in `build_model`; it must have an argument `width`.
        widths: The widths, in the order wanted.
        **arguments: Arguments of `build_model`; everything but the width is kept.

    Yields:
        The width and a model of that width.

    Raises:
        ArgumentError: As in `build_model`.
    """
    if "width" in arguments:
        raise ArgumentError(
            f"width_sweep sets the width itself, found width={arguments['width']!r} besides widths={list(widths)}."
            " Leave width out."
        )
    for width in widths:
        yield width, build_model(model, width=width, **arguments)


_OWN = ("width", "depth", "parametrisation", "activation")


@dataclass(frozen=True)
class _Builder:
    """How a model is called in messages, what makes it, what it accepts, and the arguments that the data fix."""

    label: str
    call: Callable[..., Any]
    fixed: dict[str, Any]
    accepts: frozenset[str]
    anything: bool = False
    refuses: tuple[str, ...] = ()

    def require(self, chosen: dict[str, Any]) -> None:
        foreign = [n for n in chosen if n in self.refuses or (n not in self.accepts and not self.anything)]
        if foreign:
            offer = f"it accepts {', '.join(sorted(self.accepts))}" if self.accepts else "it accepts none of these"
            raise ArgumentError(
                f"model {self.label!r} has no argument {', '.join(map(repr, foreign))}: {offer}."
                " Leave what it lacks out, or use a model that has it."
            )


def _builder(model: str | Callable[..., nn.Module], shape: tuple[int, ...], n_classes: int) -> _Builder:
    data = {"input_shape": shape, "n_classes": n_classes}
    if not isinstance(model, str):
        if not callable(model) or isinstance(model, nn.Module):
            raise ArgumentError(
                f"model must be a name or a callable that builds a module, found {type(model).__name__}."
                " Give lambda: module, or a name."
            )
        return _of_user(getattr(model, "__name__", type(model).__name__), model, data)
    if model in MODELS:
        call, sizes = MODELS[model]
        fixed = {"n_classes": n_classes, **sizes(shape)}
        named, _ = _parameters(call)
        return _Builder(model, call, fixed, frozenset(named) - {"n_classes", "in_features", "in_channels", "cell"})
    if ":" in model and not model.startswith("torchvision:"):
        return _of_user(model, _imported(model), data)
    zoo = importlib.import_module("torchvision.models")
    name = model.removeprefix("torchvision:")
    if name not in zoo.list_models(module=zoo):  # detection and segmentation models return no logits
        raise _unknown_model(model, name, zoo.list_models(module=zoo))
    named, _ = _parameters(zoo.get_model_builder(name))
    accepts = frozenset(named) - {"weights", "progress"}
    call = partial(zoo.get_model, name, weights=None)
    # Its builders take **kwargs and hand them to classes that have none of our own arguments.
    return _Builder(model, call, {"num_classes": n_classes}, accepts, anything=True, refuses=_OWN)


def _of_user(label: str, call: Callable[..., Any], data: dict[str, Any]) -> _Builder:
    named, anything = _parameters(call)
    fixed = {k: v for k, v in data.items() if k in named}
    return _Builder(label, call, fixed, frozenset(named) - frozenset(data), anything)


def _parameters(call: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of the parameters that may be given by name, and whether any other may be."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature complains itself
        return [], True
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _unknown_model(asked: str, name: str, zoo: Sequence[str]) -> ArgumentError:
    own = sorted(MODELS)
    near = get_close_matches(name, sorted({*own, *zoo}), n=3)
    hint = f" The nearest: {', '.join(map(repr, near))}." if near else ""
    return ArgumentError(
        f"unknown model {asked!r}: expected one of {', '.join(map(repr, own))}, a classifier of torchvision.models, or"
        f" 'module:factory'.{hint}"
    )


def _imported(path: str) -> Callable[..., Any]:
    where, _, what = path.partition(":")
    try:
        module = importlib.import_module(where)
    except (ImportError, ValueError) as exc:  # an empty module name is a ValueError
        raise ArgumentError(
            f"model {path!r} cannot be imported ({exc}): expected 'module:factory' with an importable module."
            " Install it, or run where it can be found."
        ) from exc
    factory: Any = getattr(module, what, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(what, names, n=3)
        hint = f" The nearest: {', '.join(map(repr, near))}." if near else ""
        raise ArgumentError(f"module {where!r} has no callable {what!r}: expected a function or class.{hint}")
    made: Callable[..., Any] = factory
    return made
