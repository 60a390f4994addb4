"""Reactivation of a recurrent classifier of token sequences: three tasks of three classes, and a control.

Change the cell ("gru", "rnn", "lstm"), the noise or the length of the sequences; `--tiny` is a quick try.
"""

import argparse

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.lab.benchmarks import class_incremental, load_data, no_shift
from avalanche_ntk.lab.models import build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds, without meaningful numbers")
tiny = parser.parse_args().tiny

# Each class has its own Markov chain over the same tokens: classes differ only in the order of tokens.
sequences = load_data("markov", n_classes=10, per_class=200, length=16, vocabulary=16, noise=0.1)
per_class, epochs, every = (10, 4, 2) if tiny else (50, 40, 10)
print("stream     boundary   spike   ratio  λ_max dip  alignment drop")
for stream, shift in {"shift": class_incremental, "no shift": no_shift}.items():
    benchmark = shift(sequences, n_tasks=3, classes_per_task=3, per_class=per_class)
    model = build_model("gru", input_shape=sequences.input_shape, n_classes=10, width=24, vocabulary=16, seed=0)
    torch.manual_seed(0)
    ntk = NTKPlugin(ProbeSpec(size=30), Schedule.every_iterations(every))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_mb_size=10 if tiny else 30,
        train_epochs=epochs,
        plugins=[ntk],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    for boundary in (1, 2):
        found = ntk.trajectory.reactivations[boundary]
        dip, drop = found.norm_dip, found.alignment_drop
        print(f"{stream:9} {boundary:9} {found.spike:7.1e} {found.ratio:7.1f} {dip:10.2f} {drop:15.3f}")
