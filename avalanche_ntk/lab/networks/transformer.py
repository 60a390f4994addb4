"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.lab.layers import Layers, at_least_one


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, make: Layers) -> None:
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
    def __init__(self, width: int, heads: int, mlp_ratio: int, make: Layers) -> None:
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
    """A small vision transformer with pre-layer-norm, learned positions, and mean pooling of the tokens.

    Args:
        in_channels: Channels of the images.
        n_classes: Number of outputs C.
        image_size: Side of the square images.
        patch_size: Side of a patch; divides `image_size`.
        width: Numbers in a token; a multiple of `heads`.
        depth: Encoder blocks.
        heads: Number of attention heads; a sweep over widths keeps it and widens each head.
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
        at_least_one(in_channels=in_channels, n_classes=n_classes, width=width, depth=depth, heads=heads)
        at_least_one(image_size=image_size, patch_size=patch_size, mlp_ratio=mlp_ratio)
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
        make = Layers(parametrisation, activation)
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
