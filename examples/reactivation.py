"""Reactivation: the first task's kernel moves abruptly when the task changes, more than when only the samples change.

Two networks of each width learn five digits and then the other five, or five digits and then fresh samples of the same
five.
"""

import argparse

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import class_overlap_shift, load_data, no_shift
from avalanche_ntk.lab.models import build_model

parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true", help="a few steps only")
tiny = parser.parse_args().tiny
widths, epochs = ((16,), 2) if tiny else ((64, 256, 1024), 20)

digits = load_data("digits", standardise=True)
settings = {"classes_per_task": 5, "per_class": 60, "seed": 0}
streams = {
    "new classes": class_overlap_shift(digits, similarity=0, **settings),
    "no shift": no_shift(digits, **settings),
}
print("width  second task      spike      ratio  min λ_max/λ_max(b)  alignment drop")
for width in widths:
    for name, benchmark in streams.items():
        model = build_model("mlp", input_shape=digits.input_shape, n_classes=10, width=width, depth=2, seed=0)
        torch.manual_seed(0)
        ntk = NTKPlugin(ProbeSpec(size=50, from_experience=0), Schedule.every_iterations(5))
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
            train_mb_size=30,
            train_epochs=epochs,
            plugins=[ntk],
            evaluator=EvaluationPlugin(ntk_metrics(ntk), loggers=[]),
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
        found = ntk.trajectory.reactivations[1]
        numbers = f"{found.spike:9.5f}  {found.ratio:9.2f}  {found.norm_dip:18.3f}  {found.alignment_drop:14.3f}"
        print(f"{width:5}  {name:11}  {numbers}")
