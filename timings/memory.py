"""Peak memory of a measurement beyond the forward pass, each in a separate process.

    python timings/memory.py            # all cases, a table python timings/memory.py mlp        # one python
    timings/memory.py --device cuda [mlp]    # torch's allocations on the GPU, instead of resident sizes

The rise is the peak resident size of a process that measures a kernel, minus the peak of one that only runs the forward
pass of the same batch under autograd. It has to stay below 1.25 times the budget.
"""

import json
import resource
import subprocess
import sys

import clock
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
    """Two weights used through functions, or one used by an operator without a rule."""

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


def high_water(device):
    """Return the peak memory in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def worker(kind, n, budget, what, device):
    """Run one step and print the peak size in MiB."""
    from avalanche_ntk.kernels import empirical_ntk

    torch.set_num_threads(1)
    device = torch.device(device)
    model, x = build(kind, n)
    model, x = model.to(device), x.to(device)

    def act():
        if what == "forward":
            return model(x)
        return [empirical_ntk(model, x, memory_budget=budget * 2**20) for _ in range(2 if what == "twice" else 1)]

    seconds = clock.seconds(act, device)
    print(json.dumps({"peak": high_water(device), "seconds": seconds}))


def growth(device, times=50):
    """Return the peak memory after the 5th and after the last of many small measurements, in MiB."""
    from avalanche_ntk.kernels import empirical_ntk

    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    device = torch.device(device)
    model, x = model.to(device), torch.randn(64, 64, device=device)
    sizes = []
    for _ in range(times):
        empirical_ntk(model, x)
        sizes.append(high_water(device))
    print(json.dumps({"after 5": sizes[4], f"after {times}": sizes[-1]}))


def run(*args):
    """Run this file in a fresh process and return what it printed."""
    done = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(wanted, device):
    print(clock.name(device))
    print("| case | budget MiB | forward peak MiB | kernel peak MiB | rise MiB | rise / budget | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name, (kind, n, budget) in CASES.items():
        if wanted and wanted not in name:
            continue
        base = run("worker", kind, n, budget, "forward", device)
        peak = run("worker", kind, n, budget, "kernel", device)
        rise = peak["peak"] - base["peak"]
        print(
            f"| {name} | {budget} | {base['peak']:.0f} | {peak['peak']:.0f} | {rise:.0f} | {rise / budget:.2f} |"
            f" {peak['seconds']:.1f} |",
            flush=True,
        )
    print("growth over 50 small measurements (MiB):", run("growth", device))


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["worker"]:
        worker(words[1], int(words[2]), int(words[3]), *words[4:])
    elif words[:1] == ["growth"]:
        growth(words[1])
    else:
        on = words.pop(words.index("--device") + 1) if "--device" in words else "cpu"
        main(next((word for word in words if word != "--device"), ""), on)
