"""Does a strategy that forgets less move the kernel of the first task less? A few strategies side by side."""

import argparse

from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk.strategies import build

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.lab.benchmarks import load_data, permuted
from avalanche_ntk.lab.models import build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="as small as possible, to check that it runs")
tiny = parser.parse_args().tiny

# All strategies of `strategies.build` can be compared; arguments are those of the strategy's class.
STRATEGIES = {"Naive": {}, "Replay": {"mem_size": 40}, "LwF": {"alpha": 1.0}, "OGD": {"n_samples": 40}}
data = load_data("digits", standardise=True)
benchmark = permuted(data, n_tasks=2, per_class=5 if tiny else 30, seed=0)


def accuracy(strategy):
    """Return the accuracy on the first task's test samples."""
    return strategy.eval(benchmark.test_stream[:1])["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


print(f"{'strategy':10} {'forgetting':>10} {'moved':>9} {'spike':>9} {'ratio':>7}")
for name, arguments in STRATEGIES.items():
    ntk = NTKPlugin(ProbeSpec(size=20, from_experience=0), Schedule.every_iterations(1 if tiny else 10))
    model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=16 if tiny else 128, seed=0)
    strategy = build(
        name,
        benchmark=benchmark,
        model=model,
        epochs=2 if tiny else 12,
        mb_size=25 if tiny else 30,
        plugins=[ntk],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
        seed=0,
        **arguments,
    )
    strategy.train(benchmark.train_stream[0])
    before = accuracy(strategy)
    strategy.train(benchmark.train_stream[1])
    there = ntk.trajectory.reactivations[1]
    lost = before - accuracy(strategy)
    print(f"{name:10} {lost:10.3f} {there.moved:9.2e} {there.spike:9.2e} {there.ratio:7.2f}")
