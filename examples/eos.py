"""Gradient descent at the edge of stability: do larger steps at the same loss align the kernel better with the labels?

After Jiang, Cohen & Li 2025 (arXiv 2507.12837) and Cohen et al. 2021. Full-batch gradient descent with the squared
loss: its sharpness λ, the largest eigenvalue of the full kernel over N, rises until it reaches 2/η. Change the steps,
the loss at which to stop, or the network.
"""

import argparse

import torch
from torch.nn.functional import one_hot

from avalanche_ntk.kernels import empirical_ntk, ntk_operator
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import eigenvector_alignment, kernel_alignment

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds only")
tiny = parser.parse_args().tiny
N, WIDTH, LOSS, STEPS = (30, 16, 0.35, (0.4, 0.8)) if tiny else (150, 128, 0.03, (0.2, 0.4, 0.8, 1.6))

digits = load_data("digits", standardise=True)
x = torch.stack([digits.train[i][0] for i in range(N)])
y = torch.tensor([digits.train[i][1] for i in range(N)])
targets = one_hot(y, 10).float()


def sharpness(model):
    # The operator multiplies by the kernel of all outputs, (N·10) × (N·10), without forming it.
    return float(ntk_operator(model, x, reduction="full").top_eigenvalues(1, tol=1e-3)[0]) / N


print("η · λ_0 / 2    steps  λ at the start  at the end     2/η  kernel alignment  k = 5  k = 20")
for step in STEPS:
    model = build_model("mlp", input_shape=digits.input_shape, n_classes=10, width=WIDTH, activation="tanh", seed=0)
    first = sharpness(model)
    lr = step * 2 / first
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    count = 0
    while (loss := ((model(x) - targets) ** 2).sum(1).mean() / 2).item() > LOSS:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count += 1
    kernel = empirical_ntk(model, x)
    five, twenty = (eigenvector_alignment(kernel, y, k) for k in (5, 20))
    whole = kernel_alignment(kernel, y)
    print(f"{step:11g}  {count:7d}  {first:14.2f}  {sharpness(model):10.2f}  {2 / lr:6.2f}", end="")
    print(f"  {whole:16.3f}  {five:5.3f}  {twenty:6.3f}")
