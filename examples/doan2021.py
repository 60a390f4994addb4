"""How much do two tasks' kernels overlap, and how much of the first task does training on the second undo?"""

import argparse
import copy

import torch
from torch import nn

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.benchmarks.transformed import Rotate
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import task_overlap

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="as small as possible, to check that it runs")
tiny = parser.parse_args().tiny

data = load_data("digits", standardise=True)
n, steps, lr = (20, 20, 0.05) if tiny else (100, 400, 0.05)
x = torch.stack([data.train[i][0] for i in range(n)])
y = data.train_labels[:n]


def train(model, x, y):
    """Descend the squared error on one-hot targets."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = 0.5 * (model(x) - nn.functional.one_hot(y, 10)).square().sum(1).mean()
        loss.backward()
        optimizer.step()


first = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=16 if tiny else 128, seed=0)
train(first, x, y)
before, own = first(x).detach(), empirical_ntk(first, x)

print(f"{'angle':>6} {'overlap':>8}   change of the first task's outputs with labels kept, exchanged")
for angle in (0, 90) if tiny else (0, 15, 30, 45, 60, 90):
    turned = torch.stack([Rotate(angle)(image) for image in x])
    overlap = task_overlap(empirical_ntk(first, x, turned), own, empirical_ntk(first, turned))
    changes = []
    for labels in (y, (y + 1) % 10):
        model = copy.deepcopy(first)
        train(model, turned, labels)
        changes.append(float((model(x).detach() - before).square().sum(1).mean()))
    print(f"{angle:5}° {overlap:8.3f}   {changes[0]:.4f}, {changes[1]:.4f}")
