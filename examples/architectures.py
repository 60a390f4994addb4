"""Reactivation of four architectures: two tasks of five digits, and the same without a shift.

Change the models or their step sizes, but make sure that the first task is learnt; `--tiny` is a quick try.
"""

import argparse

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.lab.benchmarks import class_overlap_shift, load_data, no_shift
from avalanche_ntk.lab.models import build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds, without meaningful numbers")
tiny = parser.parse_args().tiny

digits = load_data("digits", standardise=True)
per_class, epochs, every, size = (12, 6, 2, 10) if tiny else (60, 30, 10, 64)
benchmarks = {
    "shift": class_overlap_shift(digits, similarity=0, per_class=per_class),
    "no shift": no_shift(digits, per_class=per_class),
}
models = {  # width, learning rate with momentum 0.9, further arguments
    "mlp": (64, 0.01, {"depth": 2}),
    "cnn": (16, 0.02, {"depth": 2, "flatten": True, "pools": 1}),
    "vit": (16, 0.05, {"depth": 1, "heads": 2}),
    "gru": (32, 0.05, {}),
}
print("model  stream     spike   ratio  λ_max dip  alignment drop")
for name, (width, lr, further) in models.items():
    for stream, benchmark in benchmarks.items():
        model = build_model(name, input_shape=digits.input_shape, n_classes=10, width=width, seed=0, **further)
        torch.manual_seed(0)
        ntk = NTKPlugin(ProbeSpec(size=size), Schedule.every_iterations(every))
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
            train_mb_size=30,
            train_epochs=epochs,
            plugins=[ntk],
            evaluator=EvaluationPlugin(loggers=[]),
        )
        for experience in benchmark.train_stream:
            strategy.train(experience)
        found = ntk.trajectory.reactivations[1]
        dip, drop = found.norm_dip, found.alignment_drop
        print(f"{name:5}  {stream:9} {found.spike:7.1e} {found.ratio:6.1f} {dip:10.2f} {drop:15.3f}")
