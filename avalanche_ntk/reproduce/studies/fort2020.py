"""Fort et al. 2020, "Deep learning versus kernel learning" (arXiv 2010.15110): an early chaotic phase, then a calm one.

Published setting: ResNets and other convolutional networks on CIFAR-10 and CIFAR-100, SGD with momentum, 200 epochs.
Its statements, as they are checked here:

1. Learning with the kernel `Θ_t` taken during training overtakes learning with `Θ_0` within the first few epochs, on
   samples that neither has seen.
2. The kernel's velocity, `1 − cos(Θ_t, Θ_{t+1})` without centring, is high in the first epochs, then low and about
   constant.
3. Two children that share their training up to epoch t and then see the samples in different orders end on two sides
   of an error barrier for small t. Beyond the early epochs at which the kernel calms down, there is none.

What differs at the scale "small": 30 samples of each of the digits, networks of 3,130 to 85,002 parameters, plain SGD
with a constant step, 40 epochs of 15 steps, where an epoch of CIFAR-10 has some 400. Learning with the kernel is ridge
regression with the trace kernel of the training samples, not SGD on the linearised network. At the scale "paper" the
residual network has group in place of batch normalisation: weights between two children have no batch statistics.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import kernel_distance, kernel_regression
from avalanche_ntk.measures.intervals import rank_correlation
from avalanche_ntk.report.style import PAGE_INCHES, drawing, legend_above, new_figure
from avalanche_ntk.reproduce.drawing import draw_curve, draw_points
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import accuracy, class_labels, minibatches, samples, sgd_step
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, reported, trend_by_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Frankle et al. 2020 call two children linearly connected when the path's error is less than this above their mean.
CONNECTED = 0.02
# Halving per doubling of the time is what a kernel does that merely settles, 1/t; half of that is nearer to constant.
CALM = 0.5
NAMES = {"mlp": "MLP", "cnn": "CNN", "resnet": "ResNet"}
PATH = tuple(i / 10 for i in range(11))


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return the networks: a fully connected and a small convolutional one; a residual one at the scale "paper"."""
    shared = {
        "per_class": context.pick(6, 30, 4500),
        "kernel_per_class": context.pick(6, 30, 100),  # of the training samples
        "held_out_per_class": context.pick(6, 40, 100),
        "mb_size": context.pick(15, 20, 128),
        "epochs": context.pick(4, 40, 200),
        "early": context.pick(1, 4, 4),
        "measured": context.pick(
            [0, 1, 2, 4], [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40], [0, 1, 2, 3, 4, 8, 16, 50, 200]
        ),
        "spawned": context.pick([0, 1, 2], [0, 1, 2, 4, 8, 16, 32], [0, 1, 2, 4, 8, 16, 32, 64, 128]),
    }
    mlp = {"name": "mlp", "width": context.pick(16, 256, 1024), "depth": 2}
    cnn = {"name": "cnn", "width": context.pick(4, 16, 64), "depth": 2, "flatten": True}
    # Steps with which the training samples are learnt by heart within the epochs: with 0.1 the CNN learns 96 % of them,
    # and its velocity is still high at the end.
    networks = {"mlp": (mlp, 0.1), "cnn": (cnn, context.pick(0.3, 0.3, 0.1))}
    if context.scale == "paper":
        networks["resnet"] = ({"name": "resnet18", "width": 64, "norm": "group"}, 0.1)
    return {name: {**shared, "model": model, "lr": lr} for name, (model, lr) in networks.items()}


class Training:
    """Plain SGD on one set of samples, an epoch at a time."""

    def __init__(self, x: Tensor, y: Tensor, mb_size: int, lr: float) -> None:
        self.x, self.y, self.mb_size, self.lr = x, y, mb_size, lr

    def epochs(self, model: nn.Module, count: int, generator: torch.Generator) -> None:
        """Train for a number of epochs, each in an order that the generator draws."""
        for indices in minibatches(len(self.x), self.mb_size, count * -(-len(self.x) // self.mb_size), generator):
            sgd_step(model, cross_entropy(model(self.x[indices]), self.y[indices]), self.lr)


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    """Train a parent and its children, and measure kernels, regressions with them, and barriers."""
    a = arguments
    classes = class_labels(context)
    x, y = (t.to(context.device) for t in samples(context, classes, a["per_class"], seed=seed))
    held_out = samples(context, classes, a["held_out_per_class"], seed=seed, part="test")
    x_test, y_test = (t.to(context.device) for t in held_out)
    probe = torch.cat([torch.nonzero(y == c)[: a["kernel_per_class"], 0] for c in range(len(classes))])
    x_probe, y_probe = x[probe], y[probe]
    model = build_model(input_shape=x.shape[1:], n_classes=len(classes), seed=seed, **_named(a["model"]))
    model.to(context.device)
    training = Training(x, y, a["mb_size"], a["lr"])
    orders = torch.Generator("cpu").manual_seed(1000 * seed)
    kernels: list[Any] = []
    regressions, network, parents = [], [], {}
    for epoch in range(a["epochs"] + 1):
        if epoch:
            training.epochs(model, 1, orders)
        kernels.append(empirical_ntk(model, x_probe).cpu())
        if epoch in a["measured"]:
            across = empirical_ntk(model, x_test, x_probe).cpu()
            regressions.append(kernel_regression(kernels[-1], y_probe.cpu(), across, y_test.cpu(), seed=seed))
            network.append(accuracy(model, x_test, y_test))
        if epoch in a["spawned"]:
            parents[epoch] = copy.deepcopy(model)
    with torch.no_grad():
        loss = float(cross_entropy(model(x), y))
    errors, losses, apart = [], [], []
    for epoch, parent in parents.items():
        children = (copy.deepcopy(parent), copy.deepcopy(parent))
        for number, child in enumerate(children, 1):
            training.epochs(child, a["epochs"] - epoch, torch.Generator("cpu").manual_seed(1000 * seed + number))
        path = [between(*children, share) for share in PATH]
        errors.append([1 - accuracy(point, x_test, y_test) for point in path])
        with torch.no_grad():
            losses.append([float(cross_entropy(point(x_test), y_test)) for point in path])
        first, second = (empirical_ntk(child, x_probe).cpu() for child in children)
        apart.append(kernel_distance(first, second, centred=False))
    return {
        "velocity": [kernel_distance(old, new, centred=False) for old, new in itertools.pairwise(kernels)],
        "regression_accuracy": [regression.accuracy for regression in regressions],
        "regression_loss": [regression.loss for regression in regressions],
        "network_accuracy": network,
        "train_accuracy": accuracy(model, x, y),
        "train_loss": loss,
        "path_errors": errors,
        "path_losses": losses,
        "children_apart": apart,
    }


def _named(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model["name"], **{key: value for key, value in model.items() if key != "name"}}


def between(first: nn.Module, second: nn.Module, share: float) -> nn.Module:
    """Return the network with weights `(1 − share) θ_1 + share θ_2`."""
    made = copy.deepcopy(first)
    with torch.no_grad():
        for weight, other in zip(made.parameters(), second.parameters(), strict=True):
            weight.lerp_(other, share)
    return made


def barrier(path: Sequence[float]) -> float:
    """Return how far the largest value of a path lies above the mean of its two ends (Frankle et al. 2020)."""
    return max(path) - (path[0] + path[-1]) / 2


def overtakes_at(epochs: Sequence[int], values: Sequence[float]) -> float:
    """Return the first epoch from which on all values are above the first one; NaN where the last one is not."""
    ahead = [value > values[0] for value in values]
    if not ahead[-1]:
        return math.nan
    last_behind = max(i for i, above in enumerate(ahead) if not above)
    return float(epochs[last_behind + 1])


def still_falling(velocity: Sequence[float]) -> float:
    """Return by how many powers of 2 the mean falls from the second quarter of the training to its second half.

    It is 0 for a constant velocity and 1 for one that falls as 1/t.
    """
    n = len(velocity)
    return float(np.log2(np.mean(velocity[n // 4 : n // 2]) / np.mean(velocity[n // 2 :])))


def high_early(velocity: Sequence[float]) -> float:
    """Return by how many powers of 10 the first epoch's velocity lies above the median of the second half."""
    return float(np.log10(velocity[0] / np.median(velocity[len(velocity) // 2 :])))


def follows(barriers: Sequence[float], velocity: Sequence[float], spawned: Sequence[int]) -> float:
    """Return the rank correlation of the barrier with the velocity in the epoch that follows the parting."""
    return rank_correlation(barriers, [velocity[epoch] for epoch in spawned])


def judge(results: Results) -> Sequence[Claim]:
    """Judge the three statements."""
    networks = {NAMES[part]: (a, results.measured(part)) for part, a in parts(results.context).items()}
    few = next(iter(networks.values()))[0]["early"]
    return (
        Claim(
            "kernel-learning",
            "Regression with the kernel taken in training overtakes that with the initial one in the first few epochs",
            tuple(finding for case, (a, measured) in networks.items() for finding in _learning(case, a, measured)),
            f'"The first few" are {few} epochs here, which are far fewer steps than those of CIFAR-10. Where the '
            "initial kernel is already right about most samples, as it is about digits, there is next to nothing to "
            "overtake: then the squared loss tells more than the accuracy, and a regression may do better than the "
            "network itself.",
        ),
        Claim(
            "velocity",
            "The kernel's velocity is high in the first epochs, then low and about constant",
            tuple(finding for case, (a, measured) in networks.items() for finding in _moving(case, a, measured)),
            "Few samples are learnt by heart: the gradient's noise, which keeps the published networks moving, dies "
            "out with the loss, and the velocity with it. An epoch of 300 samples has 15 steps, and a network may only "
            "begin to learn after several.",
        ),
        Claim(
            "barrier",
            "Children that part at the start end behind an error barrier, those that part after a few epochs do not",
            tuple(finding for case, (a, measured) in networks.items() for finding in _parting(case, a, measured)),
            "Frankle et al. (2020) found a LeNet on MNIST to have no barrier even from initialisation: on easy data "
            "and in small networks there may be none that could vanish. The loss tells what the error is too coarse "
            "for.",
        ),
    )


Measured = Sequence[Mapping[str, Any]]


def _learning(case: str, a: Mapping[str, Any], measured: Measured) -> list[Finding]:
    early, at = a["early"], a["measured"].index(a["early"])
    accuracies = [one["regression_accuracy"] for one in measured]
    losses = [one["regression_loss"] for one in measured]
    last = [seed[-1] - one["network_accuracy"][-1] for seed, one in zip(accuracies, measured, strict=True)]
    return [
        found(
            case,
            f"held-out accuracy with Θ of epoch {early}, less that with Θ_0",
            [seed[at] - seed[0] for seed in accuracies],
            0,
        ),
        found(
            case,
            f"held-out squared loss with Θ of epoch {early}, less that with Θ_0",
            [seed[at] - seed[0] for seed in losses],
            0,
            above=False,
        ),
        reported(case, "held-out accuracy with Θ_0", [seed[0] for seed in accuracies]),
        reported(
            case,
            "held-out accuracy with the last Θ, less that with Θ_0",
            [seed[-1] - seed[0] for seed in accuracies],
        ),
        reported(
            case,
            "epoch from which on the accuracy stays above that with Θ_0",
            [overtakes_at(a["measured"], seed) for seed in accuracies],
        ),
        reported(case, "accuracy with the last Θ, less the network's own", last),
        reported(case, "the network's accuracy on its training samples", [one["train_accuracy"] for one in measured]),
    ]


def _moving(case: str, a: Mapping[str, Any], measured: Measured) -> list[Finding]:
    velocities, early = [one["velocity"] for one in measured], a["early"]
    return [
        # 0: no higher than later. By how many powers of ten it is higher, the mean tells.
        found(
            case,
            "log10 of the first epoch's velocity over the median of the second half",
            [high_early(seed) for seed in velocities],
            0,
        ),
        found(
            case,
            "log2 of the mean velocity of the second quarter over that of the second half (constant: 0, 1/t: 1)",
            [still_falling(seed) for seed in velocities],
            CALM,
            above=False,
        ),
        reported(
            case,
            f"log10 of the first epoch's velocity over that after epoch {early}",
            [math.log10(seed[0] / seed[early]) for seed in velocities],
        ),
    ]


def _parting(case: str, a: Mapping[str, Any], measured: Measured) -> list[Finding]:
    early, spawned = a["early"], a["spawned"]
    at = spawned.index(early)
    errors = [[barrier(path) for path in one["path_errors"]] for one in measured]
    losses = [[barrier(path) for path in one["path_losses"]] for one in measured]
    tied = [follows(seed, one["velocity"], spawned) for seed, one in zip(losses, measured, strict=True)]
    apart = [one["children_apart"] for one in measured]
    return [
        found(
            case,
            "held-out error barrier of children that part at initialisation",
            [seed[0] for seed in errors],
            CONNECTED,
        ),
        found(
            case,
            f"the same of children that part after epoch {early}",
            [seed[at] for seed in errors],
            CONNECTED,
            above=False,
        ),
        found(
            case,
            "rank correlation of the barrier in the held-out loss with the epoch of parting",
            trend_by_seed(spawned, losses),
            0,
            above=False,
        ),
        found(case, "rank correlation of that barrier with the kernel's velocity at the parting", tied, 0),
        reported(case, "held-out loss barrier of children that part at initialisation", [seed[0] for seed in losses]),
        reported(case, f"held-out loss barrier after epoch {early}", [seed[at] for seed in losses]),
        reported(
            case,
            "rank correlation of the distance of the children's kernels with the epoch of parting",
            trend_by_seed(spawned, apart),
        ),
    ]


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw for each network accuracies, velocity and barriers side by side."""
    figures = {}
    for part, arguments in parts(results.context).items():
        measured, epochs, spawned = results.measured(part), arguments["measured"], arguments["spawned"]
        with drawing():
            figure = new_figure(PAGE_INCHES, 2.6)
            left, middle, right = figure.subplots(1, 3)
            draw_curve(left, epochs, [one["regression_accuracy"] for one in measured], 0, "regression with $Θ_t$")
            draw_curve(left, epochs, [one["network_accuracy"] for one in measured], 1, "network")
            initial = float(np.mean([one["regression_accuracy"][0] for one in measured]))
            left.axhline(initial, color="0.5", linewidth=0.8, linestyle=":", label="regression with $Θ_0$")
            left.set(xlabel="epoch t", ylabel="held-out accuracy", ylim=(max(0.0, initial - 0.4), 1.0))
            legend_above(left)
            # In logarithms, so that the band is an interval of what is drawn.
            draw_curve(middle, range(arguments["epochs"]), [np.log10(one["velocity"]).tolist() for one in measured], 0)
            middle.set(xlabel="epoch t", ylabel="log₁₀ of kernel velocity\n(1/epoch)")
            places = list(range(len(spawned)))
            for position, (key, label) in enumerate((("path_errors", "error"), ("path_losses", "loss (nats)"))):
                barriers = [[barrier(path) for path in one[key]] for one in measured]
                draw_points(right, places, list(zip(*barriers, strict=True)), position, f"held-out {label}")
            right.axhline(CONNECTED, color="0.5", linewidth=0.8, linestyle=":", label="connected below (error)")
            right.set_xticks(places, [str(epoch) for epoch in spawned])
            right.set(xlabel="epoch of parting", ylabel="barrier between children")
            legend_above(right)
        figures[part] = figure
    return figures


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
