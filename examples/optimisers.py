"""Reactivation under SGD, momentum and Adam at the same training loss, and in Adam's preconditioned kernel.

Change the step sizes, the loss at which the task changes, or the network.
"""

import argparse

import torch
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import adam_preconditioner, empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import kernel_velocity

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds only")
tiny = parser.parse_args().tiny
LOSS, EVERY, PROBE, WIDTH = (1.5, 5, 8, 16) if tiny else (0.02, 10, 40, 128)

digits = load_data("digits", standardise=True)
images, labels = torch.stack([digits.train[i][0] for i in range(1000)]).double(), digits.train_labels[:1000]
tasks = [(images[chosen], labels[chosen]) for chosen in (labels < 5, labels >= 5)]
probe = tasks[0][0][:PROBE]
OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=3.7e-4),
}


def kernels():
    """The plain and the preconditioned kernel."""
    adam = isinstance(optimizer, torch.optim.Adam) and optimizer.state  # before its first step Adam has no P
    seen = adam_preconditioner(optimizer, model) if adam else None
    return empirical_ntk(model, probe), empirical_ntk(model, probe, preconditioner=seen)


def interval(x, y):
    """Train, and return the two velocities."""
    before = kernels()
    for _ in range(EVERY):
        chosen = torch.randint(len(x), (30,))
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return [kernel_velocity(a, b, EVERY) for a, b in zip(before, kernels(), strict=True)]


print("optimiser  iterations to the loss  last velocity  first of the new task  the same two of the kernel seen")
for name, make in OPTIMISERS.items():
    torch.manual_seed(0)
    model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=WIDTH, activation="tanh", seed=0).double()
    optimizer, iterations = make(model.parameters()), 0
    while iterations < 2 * EVERY or cross_entropy(model(tasks[0][0]), tasks[0][1]) > LOSS:
        last, iterations = interval(*tasks[0]), iterations + EVERY
    first = interval(*tasks[1])
    print(f"{name:9} {iterations:23} {last[0]:14.1e} {first[0]:22.1e} {last[1]:20.1e} {first[1]:10.1e}")
