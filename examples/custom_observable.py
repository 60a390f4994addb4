"""Your own number beside the kernel: in TensorBoard, the tables, the run folder and the report."""

from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.optim import SGD

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.observables import Metric, Moment, Observable, Observation, register
from avalanche_ntk.report import write_report


@register
class LargestWeight(Observable):
    """The largest weight."""

    name = "largest_weight"
    flag = "largest_weight"
    metrics = (Metric("NTK_LargestWeight", "largest_weight"),)

    def observe(self, moment: Moment) -> Observation:
        """Find it."""
        return Observation({"largest_weight": max(float(p.detach().abs().max()) for p in moment.model.parameters())})


model = MLP(64, 10, width=32)
ntk = NTKPlugin(ProbeSpec(size=32), Schedule.every_iterations(10), run_folder="runs/custom", overwrite=True)
loggers = [TensorboardLogger("tb")]
evaluator = EvaluationPlugin(accuracy_metrics(experience=True), ntk_metrics(ntk, largest_weight=True), loggers=loggers)
sgd = SGD(model.parameters(), lr=0.1)
strategy = Naive(model=model, optimizer=sgd, evaluator=evaluator, plugins=[ntk])
for experience in split_digits(2).train_stream:
    strategy.train(experience)
print(ntk.trajectory.to_pandas()[["iteration", "largest_weight"]])
write_report("runs/custom", "runs/custom/report")
