"""Dependence of a ratio on the schedule: one training, four schedules.

The plugin does not change the training, so the four trainings are the same. Prints the table of `docs/cadence.md`.

    python timings/cadence.py
"""

import torch
from avalanche.training import Naive
from avalanche_ntk.benchmarks import split_digits
from avalanche_ntk.models import MLP

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule

SCHEDULES = ("every_iterations:1", "every_iterations:5", "every_iterations:20", "around_boundaries")
EXPERIENCES, EPOCHS = 3, 10


def trained(schedule: str, seed: int = 0) -> NTKPlugin:
    """Train Naive on the first tasks of Split-Digits, measured on a schedule."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    benchmark = split_digits(n_experiences=5, seed=seed)
    model = MLP(in_features=64, n_classes=10)
    ntk = NTKPlugin(ProbeSpec(size=64, from_experience=0), Schedule.from_name(schedule))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train_mb_size=16,
        train_epochs=EPOCHS,
        plugins=[ntk],
        evaluator=None,
    )
    for experience in benchmark.train_stream[:EXPERIENCES]:
        strategy.train(experience)
    return ntk


def main() -> None:
    """Print the table as Markdown."""
    print("| schedule | boundary | cadence | base | peak | spike | ratio | moved |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for schedule in SCHEDULES:
        for boundary, r in list(trained(schedule).trajectory.reactivations.items())[1:]:
            cadence = "–" if r.cadence is None else f"{r.cadence[0]:g}, {r.cadence[1]:g}"
            told = ["–" if v is None else f"{v:.3g}" for v in (r.base, r.peak, r.spike, r.ratio, r.moved)]
            print(f"| `{schedule}` | {boundary} → {boundary + 1} | {cadence} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
