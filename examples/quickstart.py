"""The kernel of the first task, measured while Naive learns Split-Digits: one plugin and one line of metrics."""

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

ntk = NTKPlugin(ProbeSpec(size=64, from_experience=0), Schedule.every_iterations(5), run_folder="runs/naive")
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
    train_epochs=10,  # until the task is learnt: the kernel must settle before a boundary
    eval_mb_size=256,
    plugins=[ntk],
    evaluator=evaluator,
)
for experience in benchmark.train_stream:
    strategy.train(experience)
    strategy.eval(benchmark.test_stream)

columns = ["experience", "base", "peak", "spike", "ratio", "norm_dip", "alignment_drop", "moved"]
print("What the kernel of task 1 did at each boundary, velocities per iteration:")
print(ntk.trajectory.summary()[columns].iloc[1:].to_string(index=False))
