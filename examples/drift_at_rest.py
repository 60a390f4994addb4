"""Does the kernel move when the loss does not? Descent with a little noise, measured once the loss is flat."""

import argparse
import copy
import math

import torch
from torch import nn

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import kernel_distance

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="as small as possible, to check that it runs")
tiny = parser.parse_args().tiny

lr, decay = 0.1, 0.003
to_rest, burn_in, lags = (50, 10, [2, 4]) if tiny else (6000, 1000, [16, 64, 256, 1024])
data = load_data("digits", standardise=True)
x = torch.stack([data.train[i][0] for i in range(50)]).double()
targets = nn.functional.one_hot(data.train_labels[:50], 10)


def descend(model, steps, temperature):
    """Make Langevin steps `θ − η (∇L + λθ) + √(2ηT) ξ`; return the last loss L."""
    for _ in range(steps):
        loss = 0.5 * (model(x) - targets).square().sum(1).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= lr * (g + decay * p)
                p += math.sqrt(2 * lr * temperature) * torch.randn_like(p)
    return float(loss.detach())


torch.manual_seed(0)
first = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=16 if tiny else 64, activation="tanh").double()
descend(first, to_rest, 0.0)

print(f"{'T':>7} {'lag':>5} {'loss':>10}  S(t, t + lag)")
for temperature in (0.0, 1e-8, 1e-7, 1e-6):
    model = copy.deepcopy(first)
    descend(model, burn_in, temperature)
    begin, done = empirical_ntk(model, x), 0
    for lag in lags:
        loss = descend(model, lag - done, temperature)
        done = lag
        print(f"{temperature:7.0e} {lag:5} {loss:10.3e}  {kernel_distance(begin, empirical_ntk(model, x)):.2e}")
