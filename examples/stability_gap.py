"""The stability gap, iteration by iteration: accuracy on the old task and velocity of its kernel, with replay.

After De Lange et al. 2023 (arXiv 2205.13452). Change the step size or the memory, or remove the replay.
"""

import argparse

import torch
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import kernel_distance

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds only")
tiny = parser.parse_args().tiny
STEPS, WATCHED, MEMORY, PROBE = (20, 6, 10, 8) if tiny else (300, 60, 100, 40)

digits = load_data("digits", standardise=True)


def samples(part, labels, classes):
    chosen = [i for i, label in enumerate(labels.tolist()) if label in classes]
    return torch.stack([part[i][0] for i in chosen]), labels[chosen]


x, y = samples(digits.train, digits.train_labels, range(5))
x_new, y_new = samples(digits.train, digits.train_labels, range(5, 10))
x_test, y_test = samples(digits.test, digits.test_labels, range(5))
model = build_model("mlp", input_shape=digits.input_shape, n_classes=10, width=16 if tiny else 128, seed=0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
torch.manual_seed(0)


def loss(inputs, labels, size=30):
    chosen = torch.randint(len(inputs), (size,))
    return cross_entropy(model(inputs[chosen]), labels[chosen])


def step(value):
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


for _ in range(STEPS):
    step(loss(x, y))
order = torch.randperm(len(x))
memory, probe = order[:MEMORY], x[order[MEMORY : MEMORY + PROBE]]
print("iteration  velocity  old accuracy")
kernel = empirical_ntk(model, probe)
for iteration in range(1, WATCHED + 1):
    step((loss(x_new, y_new) + loss(x[memory], y[memory])) / 2)
    before, kernel = kernel, empirical_ntk(model, probe)
    accuracy = (model(x_test).argmax(1) == y_test).double().mean()
    print(f"{iteration:9}  {kernel_distance(before, kernel):8.1e}  {accuracy:12.3f}")
