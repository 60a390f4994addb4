"""Adversarial training moves the kernel differently from standard training: effective rank, distance, alignment.

Every minibatch is perturbed by signed gradient steps of the loss within ±ε (in standard deviations of the pixels).
"""

import argparse

import torch
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import effective_rank, kernel_alignment, kernel_distance

parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true", help="fewer iterations")
steps, every = (60, 20) if parser.parse_args().tiny else (480, 80)
epsilon = 0.3

digits = load_data("digits", standardise=True)
x = torch.stack([digits.train[i][0] for i in range(600)])
y = torch.as_tensor(digits.train_labels[:600])
probe = torch.stack([digits.test[i][0] for i in range(100)])
labels = torch.as_tensor(digits.test_labels[:100])


def perturbed(model, x, y, ascents=5):
    moved = x.clone()
    for _ in range(ascents):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(model(moved), y), moved)
        moved = x + (moved.detach() + epsilon / 2 * gradient.sign() - x).clamp(-epsilon, epsilon)
    return moved


print("training     iteration  effective rank  alignment  from the start  accuracy, perturbed")
for adversarial in (False, True):
    torch.manual_seed(0)
    model = MLP(64, 10, width=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = empirical_ntk(model, probe).numpy()
    for step in range(steps + 1):
        if step % every == 0:
            kernel = empirical_ntk(model, probe).numpy()
            robust = float((model(perturbed(model, probe, labels)).argmax(1) == labels).double().mean())
            numbers = effective_rank(kernel), kernel_alignment(kernel, labels.numpy()), kernel_distance(start, kernel)
            row = "{:15.2f} {:10.3f} {:15.3f}".format(*numbers)
            print(f"{'adversarial' if adversarial else 'standard':12s} {step:9d} {row} {robust:20.2f}")
        batch = torch.randperm(len(x))[:50]
        shown = perturbed(model, x[batch], y[batch]) if adversarial else x[batch]
        optimizer.zero_grad()
        cross_entropy(model(shown), y[batch]).backward()
        optimizer.step()
