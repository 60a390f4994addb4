"""What the plugin adds to the training time of a ten-epoch task, with the default schedule.

Each case trains the same model on the same data with and without the plugin, alternating, and compares the medians.
Run it on a machine that does nothing else: python timings/overhead.py
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from avalanche_ntk import NTKPlugin, ProbeSpec, ntk_metrics
from avalanche_ntk.benchmarks import split_digits
from avalanche_ntk.models import MLP

warnings.simplefilter("ignore")


class Silent:
    """A logger that writes nothing."""

    def log_metrics(self, values):
        """Drop the values."""


def digits():
    return split_digits(1), lambda: MLP(64, 10, width=256, depth=3), 64, "trace"


def cifar_resnet(samples: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, 32, 32, generator=generator)
    dataset = TensorDataset(x, torch.arange(samples) % 10)
    dataset.targets = (torch.arange(samples) % 10).tolist()

    def model() -> nn.Module:
        net = resnet18(num_classes=10)
        net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
        return net

    return nc_benchmark(dataset, dataset, n_experiences=1, task_labels=False), model, 64, "sum_logits"


def seconds(benchmark, make_model: Callable[[], nn.Module], batch: int, reduction: str, epochs: int, measured: bool):
    torch.manual_seed(0)
    model = make_model()
    ntk = NTKPlugin(ProbeSpec(size=64), reduction=reduction)
    evaluator = EvaluationPlugin(*([ntk_metrics(ntk)] if measured else []), loggers=[Silent()])
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=batch,
        train_epochs=epochs,
        plugins=[ntk] if measured else [],
        evaluator=evaluator,
    )
    begin = time.perf_counter()
    strategy.train(benchmark.train_stream[0])
    spent = time.perf_counter() - begin
    return spent, (len(ntk.trajectory), ntk.measuring_seconds) if measured else (0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--resnet-samples", type=int, default=2560, help="samples of the ResNet's task")
    parser.add_argument("--only", choices=["mlp", "resnet"])
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; median of {arguments.repeats} alternating runs")
    print(f"{'case':<34}{'plain':>10}{'measured':>10}{'added':>9}{'measurements':>14}{'in hooks':>10}")
    cases = {
        "mlp": ("MLP 3x256, digits, trace", digits),
        "resnet": ("ResNet-18 (CIFAR), sum_logits", lambda: cifar_resnet(arguments.resnet_samples)),
    }
    for key, (name, make) in cases.items():
        if arguments.only not in (None, key):
            continue
        case = make()
        plain, measured, taken = [], [], (0, 0.0)
        for _ in range(arguments.repeats):
            plain.append(seconds(*case, arguments.epochs, False)[0])
            spent, taken = seconds(*case, arguments.epochs, True)
            measured.append(spent)
        a, b = statistics.median(plain), statistics.median(measured)
        print(f"{name:<34}{a:>9.2f}s{b:>9.2f}s{100 * (b / a - 1):>8.1f}%{taken[0]:>14}{taken[1]:>9.2f}s")


if __name__ == "__main__":
    main()
