"""Recurrent networks over sequences of vectors or tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, unknown_name
from avalanche_ntk.lab.layers import Layers, at_least_one

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


class RNN(nn.Module):
    """A recurrent classifier: `depth` layers of `width` units, and a linear head on the last state.

    Images are read row by row: `(N, channels, H, W)` is a sequence of H steps of `channels · W` numbers. Tokens are
    integers `(N, T)`, each looked up in a table of `vocabulary` rows of `width` numbers drawn from N(0, 1).

    With `cell="rnn"` a step is `h ← φ(W x + U h + b)`. With `cell="lstm"` gates i, f, o are logistic and `c ← f ∘ c + i
    ∘ φ(·)`, `h ← o ∘ φ(c)`. With `cell="gru"` gates r, z are logistic and `h ← (1 − z) ∘ n + z ∘ h`, `n = φ(W x + b + r
    ∘ U h)`. Rows of the weights are in torch's order, i, f, g, o and r, z, n; there is one bias instead of torch's two.

    Args:
        in_features: Size of one step; None for tokens.
        n_classes: Number of outputs C.
        width: Units of each layer.
        depth: Number of layers.
        vocabulary: Number of different tokens, for token inputs.
        cell: "rnn", "gru" or "lstm".
        parametrisation: "standard" (torch's uniform ±1/√width) or "ntk".
        activation: φ, a key of `ACTIVATIONS`.

    Raises:
        ArgumentError: A name is unknown, a number is out of range, or neither `in_features` nor `vocabulary` is given.

    Source: Elman 1990; Cho et al. 2014 for the GRU, with r applied after U as in torch; Hochreiter & Schmidhuber 1997
        with the forget gate of Gers et al. 2000.
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
        at_least_one(n_classes=n_classes, width=width, depth=depth)
        if cell not in _GATES:
            raise unknown_name("cell", cell, _GATES)
        self.embedding: nn.Module | None = None
        if vocabulary is not None:
            at_least_one(vocabulary=vocabulary)
            self.embedding, read = nn.Embedding(vocabulary, width), width
        elif in_features is not None:
            at_least_one(in_features=in_features)
            read = in_features
        else:
            raise ArgumentError(
                f"model {cell!r} looks tokens up in a table and needs its size, found vocabulary=None. Give"
                " vocabulary=16, for tokens 0 … 15."
            )
        make = Layers(parametrisation, activation)
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
