"""Models of a given width and depth."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Module):
    """A fully connected network: `depth` hidden layers of `width` units, ReLU, and a linear head.

    Args:
        in_features: Numbers in one flattened input.
        n_classes: Number of outputs C.
        width: Units in each hidden layer.
        depth: Number of hidden layers.
    """

    def __init__(self, in_features: int = 64, n_classes: int = 10, *, width: int = 256, depth: int = 2) -> None:
        super().__init__()
        widths = [in_features, *[width] * depth]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape `(N, C)` for inputs whose trailing dimensions hold `in_features` numbers."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
