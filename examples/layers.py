"""Which layers' kernels move when the task changes: two tasks of five digits, and the same without a shift.

Change the model, the tasks or the schedule; `--tiny` is a quick try.
"""

import argparse

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, measures, ntk_metrics
from avalanche_ntk.lab.benchmarks import class_overlap_shift, load_data, no_shift
from avalanche_ntk.lab.models import build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds, without meaningful numbers")
tiny = parser.parse_args().tiny

digits = load_data("digits", standardise=True)
per_class, epochs, every = (12, 4, 2) if tiny else (60, 30, 10)
ratios = {}
for name, benchmark in {
    "shift": class_overlap_shift(digits, similarity=0, per_class=per_class),
    "no shift": no_shift(digits, per_class=per_class),
}.items():
    model = build_model("mlp", input_shape=digits.input_shape, n_classes=10, width=64, depth=3, seed=0)
    torch.manual_seed(0)
    ntk = NTKPlugin(ProbeSpec(size=20 if tiny else 64), Schedule.every_iterations(every))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        train_mb_size=30,
        train_epochs=epochs,
        plugins=[ntk],
        evaluator=EvaluationPlugin(ntk_metrics(ntk, per_layer=True), loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    table = ntk.trajectory.to_pandas()
    boundary = table[table.event == "experience_start"].iteration.max()
    for column in table.columns[table.columns.str.match(r"layer\[.*\]\.velocity_per_iteration")]:
        # Ratio of the layer's velocity after the boundary to that before it.
        found = measures.reactivation(table.iteration, table[column], boundary)
        ratios.setdefault(column.split("]")[0] + "]", {})[name] = found.ratio

print("velocity after the boundary over that before\nlayer                    shift  no shift")
for layer, found in ratios.items():
    print(f"{layer:20} {found['shift']:9.1f} {found['no shift']:9.1f}")
