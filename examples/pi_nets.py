"""Which frequencies a network can learn fast: the kernel's eigenvalues on a circle, by frequency.

A product of two ReLU layers is compared with a multilayer perceptron with one hidden layer.
"""

import argparse
import math

import numpy as np
import torch
from torch import nn

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import MLP, NTKLinear
from avalanche_ntk.measures import mode_response

parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true", help="narrower networks")
width = 128 if parser.parse_args().tiny else 4096


class Product(nn.Module):
    """Two ReLU layers that read the input, multiplied, and a linear head."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = NTKLinear(3, width), NTKLinear(3, width), NTKLinear(width, 1, sigma_w=2.0)

    def forward(self, x):
        """Return one output for each input."""
        return self.head(torch.relu(self.first(x)) * torch.relu(self.second(x)))


angles = 2 * math.pi * torch.arange(64, dtype=torch.float64) / 64
x = torch.stack([angles.cos(), angles.sin(), torch.ones_like(angles)], dim=1).float()
torch.manual_seed(0)
models = {"MLP": MLP(3, 1, width=width, depth=1, parametrisation="ntk"), "product": Product()}
print("  k  " + "".join(f"{name + ' λ_k/λ_1':>18}  in modes" for name in models))
kernels = {name: empirical_ntk(model, x, dtype=torch.float64).numpy() for name, model in models.items()}
first = {}
for k in range(1, 9):
    wave = np.cos(k * angles.numpy()) * math.sqrt(2 / 64)
    row = f"{k:3d}  "
    for name, kernel in kernels.items():
        value = wave @ kernel @ wave
        first.setdefault(name, value)
        # The eigenvectors that contain the wave: for wide networks, the two of the same frequency.
        power = mode_response(kernel, wave).power
        row += f"{value / first[name]:18.4f}  {np.sort(np.argsort(-power)[:2])}".ljust(30)
    print(row)
