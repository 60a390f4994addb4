"""Which task is difficult? The initial kernel's alignment with the labels predicts it before any training.

After Ortiz-Jiménez et al. 2021 (arXiv 2106.06770). Several ways to label the same digits with 0 and 1: alignment of the
initial kernel with the labels, then steps to a training loss, held-out accuracy, and the alignment after training.
Change the labellings, the network or the number of samples.
"""

import argparse

import torch

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import kernel_alignment, spectral_norm

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds only")
tiny = parser.parse_args().tiny
N, HELD_OUT, WIDTH, MOST_STEPS = (60, 60, 16, 100) if tiny else (200, 400, 128, 2000)

digits = load_data("digits", standardise=True)
x, digit = torch.stack([digits.train[i][0] for i in range(N)]), digits.train_labels[:N]
x_held, digit_held = torch.stack([digits.test[i][0] for i in range(HELD_OUT)]), digits.test_labels[:HELD_OUT]
random = torch.Generator().manual_seed(0)

tasks = {
    "is it 0?": lambda d: d == 0,
    "4 or less": lambda d: d <= 4,
    "odd": lambda d: d % 2 == 1,
    "odd, 15% flipped": lambda d: (d % 2 == 1) ^ (torch.rand(len(d), generator=random) < 0.15),
    "random": lambda d: torch.rand(len(d), generator=random) < 0.5,
}

print("task              alignment  steps  held-out accuracy  alignment after")
for name, label in tasks.items():
    y, y_held = label(digit).long(), label(digit_held).long()
    model = build_model("mlp", input_shape=digits.input_shape, n_classes=1, width=WIDTH, depth=2, seed=0)
    before = empirical_ntk(model, x)
    # A quarter of the limit of stability of the mean squared error, whose largest eigenvalue is 2 λ_max / N.
    optimizer = torch.optim.SGD(model.parameters(), lr=N / (4 * spectral_norm(before)))
    step = 0
    while (loss := ((model(x)[:, 0] - (2 * y - 1)) ** 2).mean()).item() > 0.1 and step < MOST_STEPS:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    with torch.no_grad():
        accuracy = ((model(x_held)[:, 0] > 0) == y_held).float().mean()
    after = kernel_alignment(empirical_ntk(model, x), y)
    print(f"{name:16}  {kernel_alignment(before, y):9.3f}  {step:5d}  {accuracy:17.3f}  {after:15.3f}")
