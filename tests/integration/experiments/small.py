"""The smallest runs that have all that a run has."""

import math

from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.runfolder import RunFolder

TINY = {
    "benchmark": {"name": "class_incremental", "classes_per_task": 2, "n_tasks": 3, "per_class": 20},
    "model": {"width": 16, "depth": 1},
    "optimizer": {"lr": 0.05, "momentum": 0.9},
    "epochs": 2,
    "mb_size": 10,
    "probe": 8,
    "schedule": "every_iterations:2",
    "spot_check_every": 0,
}

TIMES = ("measurement_seconds", "measuring_share")


def talkative(input_shape, n_classes, width, depth):
    """A network that prints letters which few terminals lack."""
    print("θ ∈ ℝ")
    return MLP(math.prod(input_shape), n_classes, width=width, depth=depth)


def numbers(path):
    """Everything a run recorded that does not depend on the clock on the wall."""
    found = []
    for record in RunFolder.open(path).records():
        kind = record["kind"]
        if kind == "measurement":
            values = {name: value for name, value in record["values"].items() if name not in TIMES}
            found.append((kind, record["probe"], record["index"], record["clock"], values, record["failure"]))
        elif kind == "evaluation":
            found.append((kind, record["experience"], record["iteration"], record["values"]))
        elif kind == "reactivation":
            found.append((kind, record["probe"], record["experience"], record["reactivation"]))
        elif kind == "state":
            found.append((kind, record["experience"], record["counts"], record["parameters"]))
    return found
