"""How much will the old task lose? Forecast it before the first step of the new task, then compare."""

import argparse

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import class_incremental, load_data
from avalanche_ntk.lab.models import build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="as small as possible, to check that it runs")
tiny = parser.parse_args().tiny

torch.manual_seed(0)
data = load_data("digits", standardise=True)
benchmark = class_incremental(data, 5, per_class=10 if tiny else 60, seed=0)
model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=16 if tiny else 256, seed=0)
ntk = NTKPlugin(ProbeSpec(size=10 if tiny else 60), Schedule.boundaries_only(), outputs="all")
strategy = Naive(
    model=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
    criterion=torch.nn.CrossEntropyLoss(),
    train_mb_size=30,
    train_epochs=1 if tiny else 20,
    plugins=[ntk],
    evaluator=EvaluationPlugin(ntk_metrics(ntk, forgetting_forecast=True)),
)
for experience in benchmark.train_stream:
    strategy.train(experience)

start, end = [m.values for m in ntk.trajectory if m.clock.experience == 1]
print("before the second task's first step")
print(f"  drop of accuracy, learnt to convergence:  {start['forgetting_forecast_drop']:.2f}")
print(f"  share of the change in the 5 first modes: {start['forgetting_forecast_share_5']:.2f}")
print("after it")
print(f"  drop of accuracy: {end['forgetting_drop']:.2f}; foreseen for these steps: {end['forgetting_steps_drop']:.2f}")
print(f"  share of the change in the 5 first modes: {end['forgetting_share_5']:.2f}")
print(f"  relative error of the forecast for these steps: {end['forgetting_steps_error']:.2f}")
print(f"  its rank correlation with the change over samples: {end['forgetting_steps_rank']:.2f}")
