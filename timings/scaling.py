"""Seconds of a kernel against the number of samples N, and the exponent of a fitted power law.

    python timings/scaling.py [--threads 1] [--cases mlp,cnn] [--most 4096]

N doubles from 64 on. The fit is a straight line through the logarithms, over all N and over the last three.
"""

import argparse
import time

import numpy as np
import torch
from torch import nn

from avalanche_ntk.kernels import empirical_ntk


def mlp():
    """3072-256-256-10, up to N = 4,096."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    return model, 4096


def cnn():
    """Two convolutions and a linear layer, up to N = 2,048."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip
    return model, 2048


CASES = {"mlp": mlp, "cnn": cnn}


def seconds(model, x, repeats=3):
    """Return the minimum time of several calls after one that plans."""
    found = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        empirical_ntk(model, x)
        found.append(time.perf_counter() - begin)
    return min(found[1:])


def main():
    """Print one line per N, and the exponents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", default="mlp,cnn")
    parser.add_argument("--most", type=int, default=4096)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.cases.split(","):
        torch.manual_seed(0)
        model, most = CASES[name]()
        sizes = [n for n in (64 * 2**k for k in range(7)) if n <= min(most, arguments.most)]
        x = torch.randn(sizes[-1], 3, 32, 32)
        found = []
        for n in sizes:
            found.append(seconds(model, x[:n]))
            print(f"{name:4} N = {n:5} {found[-1]:9.4f} s", flush=True)
        slopes = [np.polyfit(np.log(sizes[-k:]), np.log(found[-k:]), 1)[0] for k in (len(sizes), 3)]
        print(f"{name:4} exponent {slopes[0]:.2f} over all N, {slopes[1]:.2f} over the last three")


if __name__ == "__main__":
    main()
