"""A measurement shared by several processes, compared with a single one, each with one thread.

    python timings/processes.py [--processes 2] [--device cpu]

All are measured in one run by the same processes, one after the other: a kernel by rank 0 alone (the others wait), one
shared by all, and one whole kernel per process at the same time. The last shows how much the machine can gain, because
its cores share memory and clock. On CUDA each process uses the device of its rank, and nccl computes the sums.
"""

import argparse
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from avalanche_ntk.kernels import empirical_ntk


def resnet18(outputs):
    """Return a ResNet-18 for small images."""
    import torchvision

    model = torchvision.models.resnet18(num_classes=outputs)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model.eval()


def mlp(outputs):
    """Return an MLP for small images."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, outputs)
    )


CASES = {
    "ResNet-18, C = 10, N = 16, trace": (resnet18, 10, 16, {}),
    "ResNet-18, C = 100, N = 16, projected, r = 8": (resnet18, 100, 16, {"reduction": "projected", "n_projections": 8}),
    "MLP 3072-1024-1024-10, N = 512, trace": (mlp, 10, 512, {}),
    "MLP 3072-1024-1024-10, N = 2,048, sum_logits": (mlp, 10, 2048, {"reduction": "sum_logits"}),
}


def seconds(function, device, repeats):
    """Return the median time of a call, including the device's work."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def work(rank, size, meeting, kind, repeats):
    """Measure every case."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
    for name, (make, outputs, n, options) in CASES.items():
        torch.manual_seed(0)
        model, x = make(outputs).to(device), torch.randn(n, 3, 32, 32).to(device)
        alone = seconds(lambda m=model, x=x, o=options: empirical_ntk(m, x, **o), device, repeats) if not rank else 0.0
        dist.barrier()
        together = {**options, "process_group": dist.group.WORLD}
        shared = seconds(lambda m=model, x=x, o=together: empirical_ntk(m, x, **o), device, repeats)
        dist.barrier()
        beside = seconds(lambda m=model, x=x, o=options: empirical_ntk(m, x, **o), device, repeats)
        dist.barrier()
        if not rank:
            print(
                f"{name:50} {alone:8.3f} s alone, {shared:8.3f} s by {size}: {alone / shared:.2f} x; "
                f"{beside:8.3f} s each at the same time: {size * alone / beside:.2f} x at most",
                flush=True,
            )
    dist.destroy_process_group()


def main():
    """Start the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(
            work,
            args=(given.processes, f"{folder}/meeting", given.device, given.repeats),
            nprocs=given.processes,
        )


if __name__ == "__main__":
    main()
