"""Does the kernel learn in the first epochs? Ridge regression with the kernel taken during training, and its velocity.

After Fort et al. 2020, "Deep learning versus kernel learning" (arXiv 2010.15110). Change the network, the step or the
number of samples and see when the kernel settles.
"""

import argparse

import torch
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import kernel_distance, kernel_regression

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds only")
tiny = parser.parse_args().tiny
EPOCHS, TRAINING, HELD_OUT, WIDTH = (3, 60, 60, 16) if tiny else (20, 300, 400, 256)

torch.manual_seed(0)
digits = load_data("digits", standardise=True)


def first(dataset, count):
    x, y = zip(*(dataset[i] for i in range(count)), strict=True)
    return torch.stack(x), torch.tensor(y)


x, y = first(digits.train, TRAINING)
x_held, y_held = first(digits.test, HELD_OUT)
model = build_model("mlp", input_shape=digits.input_shape, n_classes=10, width=WIDTH, depth=2, seed=0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

print("epoch  regression  network  velocity (1/epoch)")
previous = None
for epoch in range(EPOCHS + 1):
    kernel = empirical_ntk(model, x)
    regression = kernel_regression(kernel, y, empirical_ntk(model, x_held, x), y_held)
    with torch.no_grad():
        network = (model(x_held).argmax(1) == y_held).float().mean()
    # Without centring, as in the paper.
    velocity = "" if previous is None else f"{kernel_distance(previous, kernel, centred=False):.2e}"
    print(f"{epoch:5d}  {regression.accuracy:10.3f}  {network:7.3f}  {velocity}")
    previous = kernel
    for batch in torch.randperm(len(x)).split(20):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
