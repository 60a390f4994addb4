"""Ortiz-Jiménez et al. 2021 (arXiv 2106.06770): what linearised networks say about networks.

Published setting: LeNet, VGG and ResNet on binary tasks made of CIFAR-10, among them the signs of the initial kernel's
own eigenfunctions; networks beside their linearisations. Its statements, as they are checked here:

1. The kernel's alignment with the labels rises in training.
2. The initial kernel's alignment with the labels of a task orders tasks by difficulty, for the linearised network and
   for the network itself: how fast they are learnt, and how well on held-out samples.
3. A network is not always better than its linearisation: on the eigenfunctions of its initial kernel it is worse.

Every task is a labelling with ±1 of the same samples: the signs (about the median) of eigenvectors of the initial
kernel on training and held-out samples together; halves of the classes (odd against even, upper against lower, drawn
ones); the first of these with some labels flipped; labels drawn at random. The loss is the mean of `(f − y)²`; network
and linearisation go to the same training loss by full-batch gradient descent with the same step, the latter in closed
form, `r_t = (1 − 2ηΘ_0/N)^t r_0`. Difficulty is the number of steps to this loss, and the held-out accuracy there.

What differs at the scale "small": 20 samples of each of the digits, one fully connected network with 128 units a
layer, full-batch descent; alignment is the centred one that the package calls kernel alignment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import KernelView, kernel_alignment
from avalanche_ntk.measures.intervals import rank_correlation
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import COLOURS, MARKERS, PAGE_INCHES, drawing, new_figure, put_legend
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import class_labels, samples, sgd_step
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

EIGENVECTORS, CLASSES, RANDOM = "eigenvectors", "halves of the classes", "labels flipped or drawn"
KINDS = (EIGENVECTORS, CLASSES, RANDOM)


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return the one network."""
    return {
        "mlp": {
            "per_class": context.pick(4, 20, 500),
            "held_out_per_class": context.pick(4, 40, 500),
            # From the second on: the first is nearly constant over the samples.
            "eigenvectors": context.pick([2, 5, 10], [2, 3, 5, 10, 20, 50, 100], [2, 5, 10, 20, 50, 100, 200, 500]),
            "flipped": context.pick([0.2], [0.05, 0.15, 0.3], [0.05, 0.15, 0.3]),
            "drawn": context.pick(1, 6, 6),
            "loss": context.pick(0.5, 0.1, 0.1),  # of the labels' variance, 1
            "most_steps": context.pick(60, 2000, 50_000),
            "model": {"width": context.pick(16, 128, 512), "depth": 2},
        }
    }


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    """Learn every task with the network and with its linearisation."""
    a = arguments
    labelled = class_labels(context)
    x, classes = samples(context, labelled, a["per_class"], seed=seed)
    held_out = samples(context, labelled, a["held_out_per_class"], seed=seed, part="test")
    x, x_test = x.to(context.device), held_out[0].to(context.device)
    n = len(x)

    def build() -> nn.Module:
        shape = tuple(x.shape[1:])
        return build_model("mlp", input_shape=shape, n_classes=1, seed=seed, **a["model"]).to(context.device)

    model = build()
    both = empirical_ntk(model, torch.cat([x, x_test]), dtype=torch.float64).cpu().numpy()
    with torch.no_grad():
        start = model(torch.cat([x, x_test]))[:, 0].double().cpu().numpy()
    initial = KernelView(both[:n, :n])
    lr = n / (4 * float(initial.eigh[0][0]))  # a quarter of the limit of stability at initialisation
    done = []
    labels = np.concatenate([classes.numpy(), held_out[1].numpy()])
    for name, (kind, y) in tasks(both, labels, n, a, seed).items():
        y_train, y_test = y[:n], y[n:]
        steps, accuracy = linearised(initial.eigh, both[n:, :n], start, y, lr, a["loss"])
        model = build()
        target = torch.as_tensor(y_train, dtype=x.dtype, device=x.device)
        taken, reached = train(model, x, target, lr, a["loss"], a["most_steps"])
        with torch.no_grad():
            right = np.sign(model(x_test)[:, 0].cpu().numpy()) == y_test
        last = empirical_ntk(model, x).cpu()
        last_test = empirical_ntk(model, x_test).cpu()
        done.append(
            {
                "task": name,
                "kind": kind,
                "alignment": kernel_alignment(initial, y_train),
                "final_alignment": kernel_alignment(last, y_train),
                "held_out_alignment": kernel_alignment(both[n:, n:], y_test),
                "final_held_out_alignment": kernel_alignment(last_test, y_test),
                "linearised_steps": steps,
                "linearised_accuracy": accuracy,
                "network_steps": taken,
                "network_reached": reached,
                "network_accuracy": float(np.mean(right)),
            }
        )
    return {"lr": lr, "tasks": done}


def tasks(
    kernel: Array, classes: NDArray[np.int64], n: int, arguments: Mapping[str, Any], seed: int
) -> dict[str, tuple[str, Array]]:
    """Return the tasks: name → kind and a label ±1 for each sample.

    Args:
        kernel: Initial kernel of all samples.
        classes: Their classes, 0 … C−1.
        n: How many of them, from the first on, are for training: only their labels are flipped.
        arguments: Of the part.
        seed: Of what is drawn.

    Returns:
        The tasks.
    """
    generator = np.random.default_rng([seed, 1])
    vectors = KernelView(kernel).eigh[1]
    made: dict[str, tuple[str, Array]] = {}
    for index in arguments["eigenvectors"]:
        vector = vectors[:, index - 1]
        made[f"eigenvector {index}"] = (EIGENVECTORS, _signs(vector > np.median(vector)))
    count = int(classes.max()) + 1
    odd = _signs(classes % 2 == 1)
    made["odd"] = (CLASSES, odd)
    made["upper"] = (CLASSES, _signs(classes >= count // 2))
    for number in range(1, arguments["drawn"] + 1):
        made[f"half {number}"] = (CLASSES, _signs(np.isin(classes, generator.permutation(count)[: count // 2])))
    for share in arguments["flipped"]:
        flipped = odd.copy()
        flipped[generator.permutation(n)[: round(share * n)]] *= -1
        made[f"odd, {share:.0%} flipped"] = (RANDOM, flipped)
    made["random"] = (RANDOM, _signs(generator.random(len(classes)) < 0.5))
    return made


def _signs(up: NDArray[np.bool_]) -> Array:
    return np.where(up, 1.0, -1.0)


def linearised(
    eigh: tuple[Array, Array], across: Array, start: Array, y: Array, lr: float, goal: float
) -> tuple[int, float]:
    """Learn a task with the network's linearisation by gradient descent on the mean of `(f − y)²`, in closed form.

    Args:
        eigh: Eigenvalues and eigenvectors of the initial kernel of the N training samples.
        across: Initial kernel between held-out and training samples, `(M, N)`.
        start: Initial outputs of training and held-out samples, `(N + M,)`.
        y: Their labels.
        lr: η.
        goal: The training loss at which to stop.

    Returns:
        The first step at which the training loss is at most `goal`, and the held-out accuracy there.
    """
    values, vectors = eigh
    n = len(values)
    shrink = np.clip(1 - 2 * lr * values / n, -1, 1)
    residual = vectors.T @ (y[:n] - start[:n])

    def loss(step: int) -> float:
        return float(np.mean((shrink**step * residual) ** 2))

    high = 1
    while loss(high) > goal and high < 2**40:
        high *= 2
    low = 0 if loss(0) > goal else -1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if loss(middle) > goal else (low, middle)
    # Σ_{s<t} (1 − 2ηλ/N)^s = (1 − (1 − 2ηλ/N)^t) / (2ηλ/N): what the residuals have added up to.
    rate = 2 * lr * values / n
    added = np.where(rate > 1e-15, (1 - shrink**high) / np.where(rate > 1e-15, rate, 1), high)
    outputs = start[n:] + across @ (vectors @ (2 * lr / n * added * residual))
    return high, float(np.mean(np.sign(outputs) == y[n:]))


def train(model: nn.Module, x: Tensor, y: Tensor, lr: float, goal: float, most_steps: int) -> tuple[int, bool]:
    """Train a network with one output by full-batch gradient descent on the mean of `(f − y)²`.

    Returns:
        At which step the loss was at most `goal` for the first time, or `most_steps`; and whether it was.
    """
    for step in range(most_steps + 1):
        loss = ((model(x)[:, 0] - y) ** 2).mean()
        if float(loss.detach()) <= goal:
            return step, True
        if step < most_steps:
            sgd_step(model, loss, lr)
    return most_steps, False


Task = Mapping[str, Any]


def tied(done: Sequence[Task], first: str, second: str) -> float:
    """Return Spearman's rank correlation, over tasks, of two of their numbers; NaN where one is the same for all."""
    return rank_correlation([task[first] for task in done], [task[second] for task in done])


def mean_difference(done: Sequence[Task], kind: str, more: str, less: str) -> float:
    """Return the mean over the tasks of a kind of one number less another."""
    return float(np.mean([task[more] - task[less] for task in done if task["kind"] == kind]))


def judge(results: Results) -> Sequence[Claim]:
    """Judge the three statements."""
    seeds: list[Sequence[Task]] = [one["tasks"] for one in results.measured("mlp")]
    apart = "final alignment less the initial one, mean over tasks"
    rising: list[Finding] = [
        found(kind, apart, [mean_difference(done, kind, "final_alignment", "alignment") for done in seeds], 0)
        for kind in KINDS
    ]
    rising += [
        reported(
            kind,
            "the same of the kernel of held-out samples",
            [mean_difference(done, kind, "final_held_out_alignment", "held_out_alignment") for done in seeds],
        )
        for kind in KINDS
    ]
    gaps = {
        kind: [mean_difference(done, kind, "network_accuracy", "linearised_accuracy") for done in seeds]
        for kind in KINDS
    }
    gap = "held-out accuracy of the network less that of its linearisation, mean over tasks"
    most = next(iter(parts(results.context).values()))["most_steps"]
    short = [float(np.mean([not task["network_reached"] for task in done])) for done in seeds]
    return (
        Claim(
            "alignment",
            "The kernel's alignment with the labels rises in training",
            tuple(rising),
            "Training stops at a loss of a tenth of the labels' variance. Where labels mean nothing, alignment rises "
            "on the samples that are learnt by heart, and need not on others.",
        ),
        Claim(
            "order",
            "The initial kernel's alignment with the labels orders tasks by difficulty",
            (
                *_ordering("all tasks", seeds, lambda task: True),
                # Alignment with the kernel's own eigenvectors says much about the kernel, and little about tasks.
                *_ordering("without eigenvectors", seeds, lambda task: task["kind"] != EIGENVECTORS),
                # The hardest case: no labels that are wrong on purpose, and all tasks about equally difficult.
                *_ordering(CLASSES, seeds, lambda task: task["kind"] == CLASSES),
                reported("all tasks", f"share of tasks that the network had not learnt after {most} steps", short),
            ),
            "Difficulty differs most between kinds of tasks. The halves of the classes are about equally difficult, "
            "so that there is little to order, and a rank correlation over so few tasks hangs on which they are. "
            "Flipped labels are wrong for the training samples only; tasks that are not learnt in time share the last "
            "rank. The case of the halves alone was added after a first look at the two others.",
        ),
        Claim(
            "gap",
            "On the eigenvectors of its initial kernel the network is worse than its linearisation",
            (
                found(EIGENVECTORS, gap, gaps[EIGENVECTORS], 0, above=False),
                reported(CLASSES, gap, gaps[CLASSES]),
                reported(RANDOM, gap, gaps[RANDOM]),
            ),
            "Both stop at the same training loss, without any regularisation.",
        ),
    )


def _ordering(case: str, seeds: Sequence[Sequence[Task]], chosen: Callable[[Task], bool]) -> list[Finding]:
    among = [[task for task in done if chosen(task)] for done in seeds]
    findings = []
    for who, name in (("network", "the network's"), ("linearised", "its linearisation's")):
        steps = [tied(done, "alignment", f"{who}_steps") for done in among]
        accuracies = [tied(done, "alignment", f"{who}_accuracy") for done in among]
        findings += [
            found(case, f"rank correlation of initial alignment with {name} steps to the loss", steps, 0, above=False),
            found(case, f"rank correlation of initial alignment with {name} held-out accuracy", accuracies, 0),
        ]
    steps = [tied(done, "linearised_steps", "network_steps") for done in among]
    accuracies = [tied(done, "linearised_accuracy", "network_accuracy") for done in among]
    return [
        *findings,
        reported(case, "rank correlation of the steps of network and linearisation", steps),
        reported(case, "rank correlation of the held-out accuracies of network and linearisation", accuracies),
    ]


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw steps and accuracies against the initial alignment, and the alignment before and after training."""
    every = [task for one in results.measured("mlp") for task in one["tasks"]]
    with drawing():
        figure = new_figure(PAGE_INCHES, 2.7)
        left, middle, right = figure.subplots(1, 3)
        for i, kind in enumerate(KINDS):
            of = [task for task in every if task["kind"] == kind]
            before = [task["alignment"] for task in of]
            full = {"marker": MARKERS[i], "color": COLOURS[i], "linestyle": "none", "markersize": 2.8}
            full["markeredgewidth"] = 0.6
            hollow = {**full, "markerfacecolor": "none"}
            for axis, what in ((left, "steps"), (middle, "accuracy")):
                axis.plot(before, [task[f"linearised_{what}"] for task in of], **hollow)
                axis.plot(before, [task[f"network_{what}"] for task in of], **full)
            right.plot(before, [task["final_alignment"] for task in of], label=kind, **full)
        left.set(xlabel="initial alignment", ylabel="steps to the training loss")
        log_scale(left)
        middle.set(xlabel="initial alignment", ylabel="held-out accuracy")
        middle.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
        ends = (0.0, 1.05 * max(task["alignment"] for task in every))
        right.plot(ends, ends, color="0.5", linewidth=0.8, linestyle=":")
        right.set(xlabel="initial alignment", ylabel="final alignment (dotted: equal)")
        handles, names = right.get_legend_handles_labels()
        for style, name in (({}, "network"), ({"markerfacecolor": "none"}, "linearisation")):
            handles += left.plot([], [], marker="o", color="0.4", linestyle="none", markersize=4, **style)
            names.append(name)
        put_legend(figure, handles, names, handletextpad=0.2)
    return {"tasks": figure}


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
