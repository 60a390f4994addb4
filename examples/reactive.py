"""Strategies that act on reactivation compared with plain ones: accuracy and the kernel's spike on Split-Digits.

Change the strategies, their arguments or the stream; `--tiny` is a quick try.
"""

import argparse

from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk.strategies import build

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.lab.benchmarks import class_incremental, load_data
from avalanche_ntk.lab.models import MLP

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="a few seconds, without meaningful numbers")
tiny = parser.parse_args().tiny

digits = load_data("digits", standardise=True)
benchmark = class_incremental(digits, classes_per_task=2, per_class=10 if tiny else 25)
strategies = {
    "Naive": {},
    "ReactivationAwareLR": {},
    "Replay": {"mem_size": 40},
    "ReactivationReplay": {"mem_size": 40},
    "KernelDrift": {"n_samples": 10},  # of each of four old tasks
}
print("strategy              accuracy  spike, mean over the boundaries")
for name, arguments in strategies.items():
    ntk = NTKPlugin(ProbeSpec(size=20 if tiny else 40), Schedule.every_iterations(2 if tiny else 5))
    strategy = build(
        name,
        benchmark=benchmark,
        model=MLP(64, 10, width=64),
        lr=0.1,
        epochs=2 if tiny else 15,
        mb_size=5 if tiny else 10,
        plugins=[ntk],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
        seed=0,
        **arguments,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    (accuracy,) = strategy.eval(benchmark.test_stream).values()
    spikes = [found.spike for experience, found in ntk.trajectory.reactivations.items() if experience > 0]
    print(f"{name:20} {accuracy:9.2f} {sum(spikes) / len(spikes):10.2e}")
