"""Peak memory of a measurement beyond the forward pass, each in a process of its own.

    python timings/memory.py            # all cases, a table
    python timings/memory.py mlp        # one

The rise is the peak resident size of a process that measures a kernel, minus the peak of one that only runs the forward
pass of the same batch under autograd. It has to stay below 1.25 times the budget.
"""

import json
import resource
import subprocess
import sys
import time

import torch
from torch import nn

CASES = {
    "mlp 3072-4096-4096-10, N=2048": ("mlp", 2048, 256),
    "resnet18 (CIFAR stem), N=256": ("resnet18", 256, 256),
    "resnet18 (CIFAR stem), N=64": ("resnet18", 64, 256),
    "embedding 50000x32, N=16": ("embedding", 16, 256),
    "weights behind functions 300x300, N=256": ("functions", 256, 256),
    "a weight without a rule 300x300, N=64": ("no rule", 64, 256),
}


class Weights(nn.Module):
    """Two weights behind functions of them, or one that is used by an operator without a rule."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.w, self.v = (nn.Parameter(torch.randn(300, 300) / 17) for _ in range(2))
        self.head = nn.Linear(300, 10)

    def forward(self, x):
        """Return the logits of x, (N, 10)."""
        if self.kind == "functions":
            return self.head(torch.tanh(x @ torch.tanh(self.w) + 0.1 * x @ self.v.cumsum(0)))
        pairs = torch.addcmul(x[:, :1, None].expand(-1, 300, 300), x[:, :, None], self.w)
        return self.head(torch.tanh(pairs).mean(1))


def build(kind, n):
    """Return a model in eval mode and its inputs."""
    torch.manual_seed(0)
    if kind == "mlp":
        layers = [nn.Linear(3072, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)]
        return nn.Sequential(*layers).eval(), torch.randn(n, 3072)
    if kind == "embedding":
        model = nn.Sequential(nn.Embedding(50000, 32), nn.Flatten(), nn.Linear(32 * 64, 10))
        return model.eval(), torch.randint(50000, (n, 64))
    if kind in ("functions", "no rule"):
        return Weights(kind).eval(), torch.randn(n, 300)
    import torchvision

    model = torchvision.models.resnet18(num_classes=10)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model.eval(), torch.randn(n, 3, 32, 32)


def worker(kind, n, budget, what):
    """Do one thing and print the peak resident size in MiB."""
    from avalanche_ntk.kernels import empirical_ntk

    torch.set_num_threads(1)
    model, x = build(kind, n)
    start = time.perf_counter()
    if what == "forward":
        model(x)
    else:
        empirical_ntk(model, x, memory_budget=budget * 2**20)
        if what == "twice":
            empirical_ntk(model, x, memory_budget=budget * 2**20)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak, "seconds": seconds}))


def growth(times=50):
    """Resident size after the 5th and after the last of many small measurements, MiB."""
    from avalanche_ntk.kernels import empirical_ntk

    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    x = torch.randn(64, 64)
    sizes = []
    for _ in range(times):
        empirical_ntk(model, x)
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps({"after 5": sizes[4], f"after {times}": sizes[-1]}))


def run(*args):
    """Run this file in a fresh process and return what it printed."""
    done = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(wanted):
    print("| case | budget MiB | forward peak MiB | kernel peak MiB | rise MiB | rise / budget | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, (kind, n, budget) in CASES.items():
        if wanted and wanted not in name:
            continue
        base = run("worker", kind, n, budget, "forward")
        peak = run("worker", kind, n, budget, "kernel")
        rise = peak["peak"] - base["peak"]
        print(
            f"| {name} | {budget} | {base['peak']:.0f} | {peak['peak']:.0f} | {rise:.0f} | {rise / budget:.2f} |"
            f" {peak['seconds']:.1f} |",
            flush=True,
        )
    print("growth over 50 small measurements (MiB):", run("growth"))


if __name__ == "__main__":
    if len(sys.argv) == 6:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    elif sys.argv[1:] == ["growth"]:
        growth()
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "")
