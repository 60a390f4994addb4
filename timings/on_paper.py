"""Estimated cost of kernels: multiply-adds counted layer by layer, divided by a rate.

    python timings/on_paper.py [--rate 5e10] [--h200 1.65e13] [--a100 4.9e12] [--doubling 1.7]

The count includes a forward pass, a pass for the signals of each combination of outputs (as many multiply-adds as a
forward pass, except for the first layer), and the cheaper form of contraction for each layer, as in the engine's
README. The rates are float32 multiply-adds per second: of this machine's matrix products (measured by default) and of
two GPUs, half of the makers' figures without TF32 (67 and 19.5 TFLOP/s). `--doubling` is the speed-up by twice as many
devices. If the explicit gradients of all samples for one combination of outputs take more than half of a device's
memory, passes are counted twice.
"""

import argparse
import time

import torch
import torchvision
from torch import nn

PROJECTIONS = 8
MEMORY = {"one core": 16e9, "A100 80 GB": 80e9, "H200": 141e9}


def layers(model, shape):
    """Return (A, B, T, channels of a pixel or None) of every layer with a weight, and its parameters' number."""
    found = []

    def note(m, inputs, out):
        b = m.weight.shape[0]
        if isinstance(m, nn.Conv2d):
            channels = m.in_channels if m.stride == (1, 1) else None
            found.append((m.weight[0].numel(), b, out.shape[2] * out.shape[3], channels))
        else:
            found.append((m.weight.shape[1], b, 1, m.weight.shape[1]))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model(torch.empty(1, *shape, device="meta"))
    for h in hooks:
        h.remove()
    return found


def multiply_adds(found, n, r):
    """Return the multiply-adds of the passes and of the contraction, for N samples and R combinations of outputs."""
    forward = sum(a * b * t for a, b, t, _ in found)
    first = found[0][0] * found[0][1] * found[0][2]  # no signal is needed below the first layer
    passes = n * (forward + r * (forward - first))
    contraction = 0.0
    for a, b, t, channels in found:
        ghost = (0.6 if t > 1 else 1) * n * n * t * t * ((channels or a) + r * b)
        explicit = r * a * b * (n * t + 0.75 * n * n)
        contraction += ghost if t == 1 else min(ghost, explicit)
    return passes, contraction


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def resnet18(outputs):
    model = torchvision.models.resnet18(num_classes=outputs)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def resnet50(outputs):
    return torchvision.models.resnet50(num_classes=outputs)


CASES = {
    "MLP 3072-256-256-10": (mlp, (3, 32, 32), 10, (64, 1000, 10_000)),
    "ResNet-18, 32²": (lambda: resnet18(10), (3, 32, 32), 10, (64, 1000)),
    "ResNet-18, 32², 100 classes": (lambda: resnet18(100), (3, 32, 32), 100, (64, 1000)),
    "ResNet-50, 224², 100 classes": (lambda: resnet50(100), (3, 224, 224), 100, (64, 1000)),
}


def matrix_rate():
    a = torch.randn(1500, 1500)
    found = []
    for _ in range(8):
        begin = time.process_time()
        a @ a
        found.append(time.process_time() - begin)
    return 1500**3 / min(found)


def told(seconds):
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.2g} h"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, help="of one core of this machine")
    parser.add_argument("--h200", type=float, default=67e12 / 2 / 2)
    parser.add_argument("--a100", type=float, default=19.5e12 / 2 / 2)
    parser.add_argument("--doubling", type=float, default=1.7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    core = arguments.rate or matrix_rate()
    rates = {"one core": core, "A100 80 GB": arguments.a100, "H200": arguments.h200}
    print(f"one core: {core:.2g} multiply-adds a second")
    head = ["model", "C", "P", "N", "reduction", "passes, contraction (10^12)", *rates, "8 × H200"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name, (make, shape, c, sizes) in CASES.items():
        with torch.device("meta"):
            model = make().eval()
        found = layers(model, shape)
        p = sum(t.numel() for t in model.parameters())
        for n in sizes:
            for reduction, r in (("trace", c), (f"projected, r = {PROJECTIONS}", PROJECTIONS), ("sum_logits", 1)):
                passes, contraction = multiply_adds(found, n, r)
                cells = []
                for device, rate in rates.items():
                    twice = 4 * n * p > MEMORY[device] / 2 and any(t > 1 for _, _, t, _ in found)
                    cells.append((passes * (2 if twice else 1) + contraction) / rate)
                cells.append(cells[-1] / arguments.doubling**3)
                work = f"{passes / 1e12:.3g}, {contraction / 1e12:.3g}"
                row = [name, str(c), f"{p / 1e6:.1f} M", f"{n:,}", reduction, work, *map(told, cells)]
                print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
