"""Overhead of the plugin in training time for a ten-epoch task, with the default schedule and others.

Each case trains the same model on the same data with and without the plugin, alternating, twice in a row: the first
task includes the kernel's plan and the spot check, the second shows the permanent overhead. Medians are compared. Run
it on an idle machine: python timings/overhead.py [--device cuda]
"""

import argparse
import statistics
import warnings
from collections.abc import Callable

import clock
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.lab.models import MLP

warnings.simplefilter("ignore")


class Silent:
    """A logger without output."""

    def log_metrics(self, values):
        """Drop the values."""


def digits():
    return split_digits(1), lambda: MLP(64, 10, width=256, depth=3), 64


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

    return nc_benchmark(dataset, dataset, n_experiences=1, task_labels=False), model, 64


def schedules() -> dict[str, Callable[[], Schedule]]:
    return {
        "around_boundaries() (default)": Schedule.around_boundaries,
        "around_boundaries(2, every_epochs=5)": lambda: Schedule.around_boundaries(2, every_epochs=5),
        "share_of_training(0.05)": lambda: Schedule.share_of_training(0.05),
        "boundaries_only()": Schedule.boundaries_only,
    }


def train(benchmark, make_model: Callable[[], nn.Module], batch: int, epochs: int, ntk: NTKPlugin | None, device):
    """Train two tasks of the same data.

    Returns:
        For each, `(seconds, measurements, seconds in the plugin's hooks)`.
    """
    torch.manual_seed(0)
    model = make_model().to(device)
    evaluator = EvaluationPlugin(*([] if ntk is None else [ntk_metrics(ntk)]), loggers=[Silent()])
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=batch,
        train_epochs=epochs,
        plugins=[] if ntk is None else [ntk],
        evaluator=evaluator,
        device=device,
    )
    found = []
    for _ in range(2):
        count, hooks = (0, 0.0) if ntk is None else (ntk.recorded, ntk.measuring_seconds)
        spent = clock.seconds(lambda: strategy.train(benchmark.train_stream[0]), device)
        if ntk is not None:
            count, hooks = ntk.recorded - count, ntk.measuring_seconds - hooks
        found.append((spent, count, hooks))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--resnet-samples", type=int, default=2560, help="samples of the ResNet's task")
    parser.add_argument("--only", choices=["mlp", "resnet"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default="cpu", help="such as cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(clock.name(arguments.device))
    print(f"{arguments.threads} threads; median of {arguments.repeats} alternating runs; s = seconds")
    default = dict(list(schedules().items())[:1])
    cases = {
        "mlp": ("MLP 3x256, digits", digits, [("trace", schedules()), ("sum_logits", schedules())]),
        "resnet": (
            "ResNet-18 (CIFAR)",
            lambda: cifar_resnet(arguments.resnet_samples),
            [("sum_logits", default)],
        ),
    }
    for key, (name, make, settings) in cases.items():
        if arguments.only not in (None, key):
            continue
        case = make()
        ways = {"plain": None} | {f"{r}, {n}": (r, s) for r, chosen in settings for n, s in chosen.items()}
        seen: dict[str, list] = {way: [] for way in ways}
        for _ in range(arguments.repeats):
            for way, setting in ways.items():
                ntk = None
                if setting is not None:
                    ntk = NTKPlugin(ProbeSpec(size=64), reduction=setting[0], schedule=setting[1]())
                seen[way].append(train(*case, arguments.epochs, ntk, arguments.device))
        print(f"\n| {name} | first task s | added | later task s | added | measurements | in hooks s |")
        print("|---|---|---|---|---|---|---|")
        plain = [statistics.median(run[task][0] for run in seen["plain"]) for task in (0, 1)]
        for way, runs in seen.items():
            spent = [statistics.median(run[task][0] for run in runs) for task in (0, 1)]
            added = [f"{100 * (a / b - 1):.0f} %" for a, b in zip(spent, plain, strict=True)]
            counts = " and ".join(str(runs[-1][task][1]) for task in (0, 1))
            hooks = " and ".join(f"{statistics.median(run[task][2] for run in runs):.3f}" for task in (0, 1))
            print(f"| {way} | {spent[0]:.2f} | {added[0]} | {spent[1]:.2f} | {added[1]} | {counts} | {hooks} |")


if __name__ == "__main__":
    main()
