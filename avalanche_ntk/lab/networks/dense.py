"""A fully connected network."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from avalanche_ntk.lab.layers import Layers, at_least_one


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
        at_least_one(in_features=in_features, n_classes=n_classes, width=width)
        if depth != 0:
            at_least_one(depth=depth)
        make = Layers(parametrisation, activation)
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
