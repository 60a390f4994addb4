"""Does more width bring the linearised network closer to the real one? The change of test outputs, foretold and found.

After Wenger, Dangel & Kristiadi 2023 (arXiv 2310.00137). Change the parametrisation, the step size or the loss.
"""

import argparse
import copy

import torch
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import empirical_ntk, jvp_prediction
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="as small as possible, to check that it runs")
tiny = parser.parse_args().tiny
WIDTHS, SAMPLES, STEPS = ((8, 16), 10, 5) if tiny else ((16, 64, 256, 1024), 60, 200)

digits = load_data("digits", standardise=True)
x = torch.stack([digits.train[i][0] for i in range(SAMPLES)])
y = digits.train_labels[:SAMPLES]
x_test = torch.stack([digits.test[i][0] for i in range(SAMPLES)])

print("width   loss  error of the linearised network")
for width in WIDTHS:
    model = build_model("mlp", input_shape=digits.input_shape, n_classes=10, width=width, parametrisation="ntk", seed=0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    untrained = copy.deepcopy(model)
    largest = torch.linalg.eigvalsh(empirical_ntk(model, x).double())[-1]  # of the trace kernel, a bound
    optimizer = torch.optim.SGD(model.parameters(), lr=float(5 * len(x) / largest))
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    moved = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    foretold = jvp_prediction(untrained, x_test, start, moved)  # the change of the outputs, by the first derivative
    change = (model(x_test) - untrained(x_test)).detach()
    error = (change - foretold).norm() / change.norm()
    print(f"{width:5}  {float(loss.detach()):5.3f}  {float(error):.3f}")
