"""Does a network still learn after many tasks? Ranks, dormant units and a fresh task at every boundary."""

import argparse

import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import load_data, permuted
from avalanche_ntk.lab.models import build_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tiny", action="store_true", help="as small as possible, to check that it runs")
tiny = parser.parse_args().tiny

torch.manual_seed(0)
data = load_data("digits", standardise=True)
benchmark = permuted(data, n_tasks=2 if tiny else 20, per_class=2 if tiny else 12, seed=0)
model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=8 if tiny else 64, seed=0)
ntk = NTKPlugin(ProbeSpec(size=10 if tiny else 40), Schedule.boundaries_only(), outputs="all")
strategy = Naive(
    model=model,
    optimizer=torch.optim.Adam(model.parameters(), lr=0.003),
    criterion=torch.nn.CrossEntropyLoss(),
    train_mb_size=24,
    train_epochs=1 if tiny else 20,
    plugins=[ntk],
    evaluator=EvaluationPlugin(ntk_metrics(ntk, plasticity=True)),
)
for experience in benchmark.train_stream:
    strategy.train(experience)

columns = ("kernel_rank_approximate", "feature_rank_srank", "dormant_share", "weight_norm", "trainability_loss")
print("task", *columns)
for measurement in ntk.trajectory:
    if measurement.clock.event == "experience_start":
        numbers = [f"{measurement.values.get(column, float('nan')):{len(column)}.3g}" for column in columns]
        print(f"{measurement.clock.experience:4}", *numbers)
