"""The strategies of this package compared with Naive, EWC and Replay on Split-Digits: the table of docs/strategies.md.

Five tasks of two classes, five seeds (of the stream and of the training). For each strategy: mean accuracy on the test
sets of all tasks at the end, forgetting (accuracy on a task just after its training, minus that at the end, mean over
the first four tasks), and the movement of the first task's kernel after its task (kernel distance between the first
boundary and the end, and the mean over the four later tasks of the distance from start to end). Run it as

    python timings/strategies.py
    python timings/strategies.py --setting domain
    python timings/strategies.py --setting task
    python timings/strategies.py --tangent
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import time
import warnings

import numpy as np
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import MTSimpleMLP, avalanche_forward
from avalanche_ntk.strategies import build
from avalanche_ntk.strategies.memory import remember

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import kernel_distance

SETTINGS = {
    "class": "class-incremental: one head of ten outputs",
    "domain": "domain-incremental: one head of two outputs, the lower and the higher class of each task",
    "task": "task-incremental: a head for each task, and the task's label is given",
}

# Each stores 40 samples or directions per task: 200 in total.
STRATEGIES = {
    "Naive": {},
    "EWC": {"ewc_lambda": 10.0},
    "Replay": {"mem_size": 200},
    "OGD": {"n_samples": 40},
    "OGD, all logits": {"n_samples": 20, "logits": "all"},
    "OGDPlus": {"n_samples": 40},
    "OGDPlus, all logits": {"n_samples": 20, "logits": "all"},
    "PCAOGD": {"n_samples": 200, "n_components": 40},
    "PCAOGD, all logits": {"n_samples": 200, "n_components": 40, "logits": "all"},
    "Linearised": {},
    "KernelDrift": {"n_samples": 40},
    "SpectralDrift": {"n_samples": 40, "n_modes": 40, "weight": 0.04},
    "SpectralDrift, 10 modes": {"n_samples": 40, "n_modes": 10, "weight": 0.01},
    "ReactivationAwareLR": {},
    "ReactivationReplay": {"mem_size": 200},
}


def stream(setting: str, seed: int):
    benchmark = split_digits(5, seed=seed, task_labels=setting == "task")
    if setting != "domain":
        return benchmark
    halves = []
    for part in (benchmark.train_stream, benchmark.test_stream):
        tasks = []
        for experience in part:
            dataset = experience.dataset.eval()
            x = torch.stack([dataset[i][0] for i in range(len(dataset))])
            y = torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
            tasks.append((x, (y == y.max()).long()))
        halves.append(tasks)
    return tensors_benchmark(train_tensors=halves[0], test_tensors=halves[1], task_labels=[0] * 5)


def accuracies(model, benchmark) -> list[float]:
    """Accuracy on each task's test set, in percent."""
    found = []
    training = model.training
    model.eval()
    with torch.no_grad():
        for experience in benchmark.test_stream:
            dataset = experience.dataset.eval()
            x = torch.stack([dataset[i][0] for i in range(len(dataset))])
            y = torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
            tasks = torch.tensor([int(dataset[i][-1]) for i in range(len(dataset))])
            known = getattr(model, "known_train_tasks_labels", None)
            if known is not None and int(tasks[0]) not in known:
                found.append(float("nan"))
                continue
            found.append(100 * float((avalanche_forward(model, x, tasks).argmax(1) == y).double().mean()))
    model.train(training)
    return found


def run(name: str, seed: int, setting: str, epochs: int, lr: float, **arguments) -> dict[str, float]:
    benchmark = stream(setting, seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    outputs = 2 if setting == "domain" else 10
    model = MTSimpleMLP(input_size=64, hidden_size=64) if setting == "task" else MLP(64, outputs, width=64, depth=2)
    ntk = NTKPlugin(ProbeSpec(size=64), Schedule.boundaries_only(), spot_check_every=0)
    begin = time.perf_counter()
    strategy = build(
        name.split(",")[0],
        benchmark=benchmark,
        model=model,
        lr=lr,
        epochs=epochs,
        mb_size=16,
        plugins=[ntk],
        **arguments,
    )
    table = []
    for experience in benchmark.train_stream:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # Avalanche's plugins use functions deprecated in Avalanche
            strategy.train(experience)
        table.append(accuracies(strategy.model, benchmark))
    # A diverged run has no kernel: its cells are empty, its accuracy counts.
    good = [m for m in ntk.trajectory if m.failure is None]
    whole = len(good) == len(ntk.trajectory)
    boundaries = [m.index for m in good if m.clock.event == "experience_start"]
    first, last = (ntk.trajectory.kernel(i) for i in (boundaries[1], good[-1].index))
    moved = [ntk.trajectory.reactivations[e].moved for e in range(1, 5)] if whole else [np.nan]
    found = {
        "accuracy": float(np.mean(table[-1])),
        "forgetting": float(np.mean([table[i][i] - table[-1][i] for i in range(4)])),
        "learned": float(np.mean([table[i][i] for i in range(5)])),
        "moved_in_all": kernel_distance(first, last) if whole else np.nan,
        "moved_a_task": float(np.mean(np.array(moved, dtype=float))),
        "diverged": float(not whole),
        "seconds": time.perf_counter() - begin,
    }
    for plugin in strategy.plugins:
        if hasattr(plugin, "replayed"):
            found["replayed"] = sum(plugin.replayed) / (strategy.clock.train_iterations / 5 * 4)
        if hasattr(plugin, "added"):
            found["directions"] = len(plugin.directions)
    return found


def tangent() -> None:
    """Print how well OGD preserves the stored logits of the first of two tasks, by step size (one seed)."""
    print(
        "| step size | epochs | strategy | stored logits moved by | accuracy % on task 1, before, after | on task 2 |"
    )
    print("|---|---|---|---|---|---|")
    for lr, epochs in ((0.1, 5), (0.02, 25), (0.004, 40)):
        for title, name, arguments in (
            ("Naive", "Naive", {}),
            ("OGD, 40 samples", "OGD", {"n_samples": 40}),
            ("OGD, 200 samples, all logits", "OGD", {"n_samples": 200, "logits": "all"}),
        ):
            benchmark = stream("domain", 0)
            torch.manual_seed(0)
            model = MLP(64, 2, width=64, depth=2)
            strategy = build(name, benchmark=benchmark, model=model, lr=lr, epochs=epochs, mb_size=16, **arguments)
            with contextlib.redirect_stdout(io.StringIO()):
                strategy.train(benchmark.train_stream[0])
            strategy.experience = benchmark.train_stream[0]
            stored = remember(strategy, 40, 0)
            rows = torch.arange(40)
            before, accuracy = model(stored.x).detach()[rows, stored.y], accuracies(model, benchmark)[0]
            with contextlib.redirect_stdout(io.StringIO()):
                strategy.train(benchmark.train_stream[1])
            moved = 100 * float((model(stored.x).detach()[rows, stored.y] - before).norm() / before.norm())
            first, second = accuracies(model, benchmark)[:2]
            print(
                f"| {lr} | {epochs} | {title} | {moved:.0f} % | {accuracy:.1f}, {first:.1f} | {second:.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=list(SETTINGS), default="class", help="; ".join(SETTINGS.values()))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--tangent", action="store_true", help="movement of the outputs preserved by OGD")
    parser.add_argument("--only", nargs="*", choices=list(STRATEGIES))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="replace arguments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.tangent:
        tangent()
        return
    overrides = {
        name: float(value) if "." in value else int(value) for name, value in (o.split("=") for o in arguments.set)
    }
    print("| strategy | accuracy % | forgetting % | learned % | moved in all | moved a task | s a run |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.only or STRATEGIES:
        runs = [
            run(name, seed, arguments.setting, arguments.epochs, arguments.lr, **{**STRATEGIES[name], **overrides})
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        ]
        columns = {column: np.array([r[column] for r in runs]) for column in runs[0]}
        spread = {column: f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" for column, v in columns.items()}
        small = {column: f"{v.mean():.3f} ± {v.std(ddof=1):.3f}" for column, v in columns.items()}
        cells = [name, spread["accuracy"], spread["forgetting"], spread["learned"]]
        cells += [small["moved_in_all"], small["moved_a_task"], f"{columns['seconds'].mean():.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
        for extra in [e for e in ("replayed", "directions", "diverged") if e in columns and columns[e].any()]:
            print(f"<!-- {name}: {extra} {small[extra]} -->", flush=True)


if __name__ == "__main__":
    main()
