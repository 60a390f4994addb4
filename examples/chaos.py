"""Chaotic training: a network and a twin perturbed by 1e-8, with the same minibatches, at several step sizes.

The exponent is the growth rate of their distance over a window of iterations: positive if tiny differences grow.
"""

import argparse
import copy
import math

import torch
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import kernel_distance

parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true", help="fewer iterations")
window = 10 if parser.parse_args().tiny else 40

digits = load_data("digits", standardise=True)
x = torch.stack([digits.train[i][0] for i in range(400)]).double()
y = torch.as_tensor(digits.train_labels[:400])


def distance(a, b):
    return math.sqrt(
        sum(float(((p - q).detach() ** 2).sum()) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    )


print("   η  window            exponent  kernel distance of the twins")
for lr in (0.1, 0.5, 1.0, 1.4):
    torch.manual_seed(0)
    model = MLP(64, 10, width=64, activation="tanh").double()
    for number in range(4):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter += 1e-8 * torch.randn_like(parameter)
        first = distance(model, twin)
        for _ in range(window):
            batch = torch.randperm(len(x))[:40]
            for net in (model, twin):
                optimizer = torch.optim.SGD(net.parameters(), lr=lr)
                optimizer.zero_grad()
                cross_entropy(net(x[batch]), y[batch]).backward()
                optimizer.step()
        exponent = math.log(distance(model, twin) / first) / window
        apart = kernel_distance(empirical_ntk(model, x[:30]).numpy(), empirical_ntk(twin, x[:30]).numpy())
        print(f"{lr:4.1f}  {number * window:4d} to {(number + 1) * window:4d}  {exponent:10.4f}  {apart:.1e}")
