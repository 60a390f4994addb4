"""Kernels written to a file: seconds and peak memory beyond the forward pass, each in its own process.

    python timings/disk.py [mlp|resnet18]

A ResNet-18 has a larger budget: five of its gradients fill 256 MiB, and the passes of all other samples run again for
each band of samples whose gradients are held.

The rise is the peak resident size of a process that computes the kernel, minus that of one that only runs the forward
and backward pass of 64 samples. It has to stay below 1.25 times the budget.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

CASES = {
    "mlp": ("MLP 3072-256-256-10, N = 10,000, trace", 10_000, 2**28, {}),
    "resnet18": ("ResNet-18, N = 2,000, sum_logits", 2_000, 2**32, {"reduction": "sum_logits"}),
}


def build(kind, n):
    """Return a model in eval mode and its inputs."""
    torch.manual_seed(0)
    x = torch.randn(n, 3, 32, 32)
    if kind == "mlp":
        layers = [nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
        return nn.Sequential(*layers).eval(), x
    import torchvision

    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model.eval(), x


def work(kind, what):
    """Compute in this process and print seconds and peak bytes."""
    from avalanche_ntk.kernels import empirical_ntk, top_eigenvalues

    _, n, budget, options = CASES[kind]
    model, x = build(kind, n)
    start = time.perf_counter()
    found = {}
    if what == "forward":
        torch.autograd.grad(model(x[:64]).sum(), list(model.parameters()))
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.npy"
            empirical_ntk(model, x, out=path, memory_budget=budget, **options)
            found["seconds"] = time.perf_counter() - start
            start = time.perf_counter()
            found["eigenvalues"] = top_eigenvalues(path, 3).tolist()
            found["eigenvalue seconds"] = time.perf_counter() - start
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


def main():
    """Print one line per case."""
    if len(sys.argv) == 3:
        work(*sys.argv[1:])
        return
    for kind in sys.argv[1:] or CASES:
        found = {
            what: json.loads(
                subprocess.run(
                    [sys.executable, __file__, kind, what], capture_output=True, text=True, check=True
                ).stdout.splitlines()[-1]
            )
            for what in ("forward", "kernel")
        }
        rise, k = found["kernel"]["peak"] - found["forward"]["peak"], found["kernel"]
        name, _, budget, _ = CASES[kind]
        print(
            f"{name:40} {k['seconds']:8.1f} s, budget {budget // 2**20} MiB,"
            f" rise {rise / 2**20:6.0f} MiB = {rise / budget:.2f} x the budget;"
            f" 3 eigenvalues in {k['eigenvalue seconds']:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
