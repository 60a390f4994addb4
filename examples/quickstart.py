"""The kernel of the first task, watched while Naive learns Split-Digits: one plugin and one line of metrics."""

import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import InteractiveLogger, TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.lab.models import MLP

benchmark = split_digits(n_experiences=5)
model = MLP(in_features=64, n_classes=10)

ntk = NTKPlugin(ProbeSpec(size=64, from_experience=0), Schedule.around_boundaries(), run_folder="runs/naive")
evaluator = EvaluationPlugin(
    accuracy_metrics(experience=True, stream=True),
    forgetting_metrics(experience=True),
    ntk_metrics(ntk),
    loggers=[InteractiveLogger(), TensorboardLogger("tb")],
)
strategy = Naive(
    model=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    train_mb_size=16,
    train_epochs=2,
    plugins=[ntk],
    evaluator=evaluator,
)
for experience in benchmark.train_stream:
    strategy.train(experience)
    strategy.eval(benchmark.test_stream)

columns = ["event", "iteration", "spectral_norm", "distance_init", "alignment", "velocity_per_iteration"]
print(ntk.trajectory.to_pandas()[columns].to_string(index=False))
