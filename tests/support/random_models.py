"""Random networks whose Python attributes change: convolutions of one to three dimensions, and layers over tokens."""

import random

import torch
import torch.nn.functional as F
from torch import nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class RandomImages(nn.Module):
    """Convolutions of every kind, one after the other, pooled at the end so that images of any size go through."""

    def __init__(self, seed):
        super().__init__()
        r = self.r = random.Random(seed)
        self.nd, self.channels = r.choice([1, 2, 2, 3]), r.choice([1, 3, 16])
        width = self.channels
        self.layers = nn.ModuleList()
        for _ in range(r.randint(1, 3)):
            width = self._convolution(width)
            self.layers.append(self._between(width))
        self.head = nn.Linear(width, r.choice([1, 2, 4]))

    def _convolution(self, width):
        r = self.r
        out = r.choice([4, 8, 16])
        kernel = [r.randint(1, 3) for _ in range(self.nd)] if r.random() < 0.4 else 3
        how = {"stride": r.choice([1, 1, 2]), "padding": 1, "dilation": r.choice([1, 1, 2]), "bias": r.random() < 0.6}
        kind = r.choice(["plain", "plain", "grouped", "depthwise", "transposed", "pointwise"])
        mode = r.choice(["zeros", "circular", "reflect", "replicate"]) if self.nd < 3 else "zeros"
        if kind == "transposed":
            layer = TRANSPOSED[self.nd](width, out, 2, stride=r.choice([1, 2]))
        elif kind == "pointwise":
            layer = CONV[self.nd](width, out, 1, bias=False)
        elif kind == "plain":
            layer = CONV[self.nd](width, out, kernel, padding_mode=mode, **how)
        elif kind == "grouped":
            layer = CONV[self.nd](width, out, kernel, groups=2 if width % 2 == 0 else 1, **how)
        else:
            out, layer = width, CONV[self.nd](width, width, kernel, groups=width, **how)
        self.layers.append(layer)
        return out

    def _between(self, width):
        kind = self.r.choice(["batch_norm", "group_norm", "relu", "tanh", "prelu", "none"])
        if kind == "batch_norm":
            norm = BATCH_NORM[self.nd](width)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            return norm
        if kind == "group_norm":
            return nn.GroupNorm(2 if width % 2 == 0 else 1, width)
        return {"relu": nn.ReLU(inplace=True), "tanh": nn.Tanh(), "prelu": nn.PReLU(width), "none": nn.Identity()}[kind]

    def mutate(self):
        """Make the stride or dilation of some convolutions 1, as an attribute."""
        for layer in self.layers:
            if isinstance(layer, tuple(CONV.values())) and layer.padding_mode == "zeros":
                setattr(layer, self.r.choice(["stride", "dilation"]), (1,) * self.nd)

    def inputs(self, n):
        return torch.randn(n, self.channels, *(self.r.randint(6, 9 if self.nd < 3 else 6) for _ in range(self.nd)))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.flatten(2).mean(2))


WIDTH = 4


def _table(x):
    return (x.detach() * 10).long().sum(-1).remainder(7)


# What a step does with activations (N, T, WIDTH), by its name, given its module or parameter.
STEPS = {
    "linear": (lambda: nn.Linear(WIDTH, WIDTH), lambda m, x, s: m(x)),
    "einsum": (lambda: torch.randn(WIDTH, WIDTH) / 2, lambda w, x, s: torch.einsum("ntd,de->nte", x, w)),
    "function of a weight": (lambda: torch.randn(WIDTH, WIDTH), lambda w, x, s: x @ torch.tanh(w)),
    "normalised weight": (lambda: torch.randn(WIDTH, WIDTH), lambda w, x, s: x @ (w / w.norm(dim=0))),
    "turned weight": (lambda: torch.randn(WIDTH, WIDTH) / 2, lambda w, x, s: x @ w.transpose(s.turn, 1)),
    "gain": (lambda: torch.randn(WIDTH) + 1, lambda w, x, s: x * w),
    "quotient": (lambda: torch.rand(WIDTH) + 0.5, lambda w, x, s: x / w),
    "power": (lambda: torch.rand(WIDTH) + 0.5, lambda w, x, s: (x.abs() + 0.5).pow(w)),
    "scalar": (lambda: torch.randn(()), lambda w, x, s: x * w),
    "outer": (lambda: torch.randn(WIDTH), lambda w, x, s: x @ torch.outer(w, w)),
    "token": (lambda: torch.randn(WIDTH), lambda w, x, s: torch.cat([x, w.expand(len(x), 1, WIDTH)], 1)[:, s.cut :]),
    "layer norm": (lambda: nn.LayerNorm(WIDTH), lambda m, x, s: m(x)),
    "rms norm": (lambda: nn.RMSNorm(WIDTH), lambda m, x, s: m(x)),
    "attention": (
        lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        lambda m, x, s: x + m(x, x, x, need_weights=False)[0],
    ),
    "token-major": (
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda m, x, s: (
            m(x.permute(s.order).reshape(-1, WIDTH)).view(*(x.shape[d] for d in s.order)).permute(s.order).tanh()
        ),
    ),
    "convolution": (
        lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1),
        lambda m, x, s: m(x.transpose(1, 2)).transpose(1, 2),
    ),
    "recurrence": (lambda: nn.GRU(WIDTH, WIDTH, batch_first=True), lambda m, x, s: m(x)[0]),
    "bilinear": (lambda: nn.Bilinear(WIDTH, WIDTH, WIDTH), lambda m, x, s: m(x.contiguous(), x.sin())),
    "embedding": (lambda: nn.Embedding(7, WIDTH), lambda m, x, s: x + m(_table(x))),
    "table": (lambda: torch.randn(7, WIDTH), lambda w, x, s: x + w[_table(x)]),
    "complex": (
        lambda: torch.randn(WIDTH, 2),
        lambda w, x, s: torch.view_as_real(torch.complex(x, x.tanh()) * torch.view_as_complex(w)).sum(-1),
    ),
    "relu": (None, lambda m, x, s: F.relu(x)),
    "cumulative": (None, lambda m, x, s: x.cumsum(1) / 2),
    "rolled": (None, lambda m, x, s: x.roll(s.cut, 1)),
    "flipped": (None, lambda m, x, s: x.flip(1)),
}


class RandomTokens(nn.Module):
    """Steps over tokens in a random order; some parameters are frozen, and one weight is used in several places."""

    def __init__(self, seed):
        super().__init__()
        r = self.r = random.Random(seed)
        self.turn, self.cut, self.order = 0, 1, (0, 1, 2)
        self.names = [r.choice([*STEPS, "shared"]) for _ in range(r.randint(2, 6))]
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.parts = nn.ModuleDict()
        for i, name in enumerate(self.names):
            made = STEPS[name][0]() if name in STEPS and STEPS[name][0] is not None else None
            if isinstance(made, nn.Module):
                self.parts[str(i)] = made
            elif made is not None:
                self.register_parameter(f"w{i}", nn.Parameter(made))
        self.head = nn.Linear(WIDTH, r.choice([1, 3]))
        for p in list(self.parameters())[:: r.choice([2, 3, 100])]:
            p.requires_grad_(False)
        self.head.requires_grad_(True)

    def mutate(self):
        """Change over which dimension a weight is turned, which tokens are cut, and whether tokens come first."""
        self.turn, self.cut, self.order = 1 - self.turn, 2 - self.cut, (1, 0, 2) if self.order[0] == 0 else (0, 1, 2)

    def inputs(self, n):
        return torch.randn(n, self.r.choice([3, 4, 5]), WIDTH)

    def forward(self, x):
        for i, name in enumerate(self.names):
            if name == "shared":
                x = self.shared(x).tanh()
            else:
                part = self.parts[str(i)] if str(i) in self.parts else getattr(self, f"w{i}", None)
                x = STEPS[name][1](part, x, self)
        return self.head(x.mean(1))
