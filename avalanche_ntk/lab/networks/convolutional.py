"""Convolutional networks: a plain one, and a ResNet-18 for small images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, unknown_name
from avalanche_ntk.lab.layers import Layers, at_least_one


class CNN(nn.Module):
    """A plain convolutional network: `depth` 3×3 convolutions of `width` channels and a linear head.

    The head reads the mean over positions or, with `flatten`, every position.

    Args:
        in_channels: Channels of the images.
        n_classes: Number of outputs C.
        width: Channels of each convolution.
        depth: Number of convolutions.
        pools: Number of convolutions, from the first, followed by 2×2 average pooling; it limits the least image size.
        flatten: Whether the head reads every position, which needs `image_size`.
        image_size: Height and width of the images.
        parametrisation: "standard" or "ntk".
        activation: A key of `ACTIVATIONS`.

    Raises:
        ArgumentError: A name is unknown, a number is out of range, or `flatten` is given without `image_size`.
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
        at_least_one(in_channels=in_channels, n_classes=n_classes, width=width, depth=depth)
        make = Layers(parametrisation, activation)
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
    # One group: per-sample statistics, independent of the width.
    "group": partial(nn.GroupNorm, 1),
    "none": lambda channels: nn.Identity(),
}


class _BasicBlock(nn.Module):
    def __init__(self, fan_in: int, fan_out: int, stride: int, norm: str, make: Layers) -> None:
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
    """ResNet-18 with the CIFAR stem: a 3×3 convolution of stride 1 instead of the 7×7 one, and no max-pooling.

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
        at_least_one(in_channels=in_channels, n_classes=n_classes, width=width, depth=depth)
        if norm not in NORMS:
            raise unknown_name("norm", norm, NORMS)
        make = Layers(parametrisation, activation)
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
