"""The stability gap: is the kernel fastest at the moment when the old task's accuracy is lowest?

Published (De Lange, van de Ven & Tuytelaars 2023, arXiv 2205.13452, "Continual evaluation for lifelong learning:
identifying the stability gap"): evaluated after every iteration, a network that learns a new task loses much of its
accuracy on the old one just after the boundary and then gets it back, with replay and with other methods that forget
little by the end. What the kernel does meanwhile is this study's own question. As statements that can fail:

1. `gap`: with replay the least accuracy on the old task in the first quarter of the new one lies below that at its end,
   by more than without a shift;
2. `no-shift`: without a shift it lies no more than 0.05 below;
3. `order`: the kernel is fastest before the accuracy is lowest, or in the same iteration;
4. `moment`: the two are no more than three iterations apart;
5. `together`: over the iterations of that quarter, the faster the kernel, the more accuracy is lost, and the more it
   changes; by more than with the accuracies of other seeds, which fall and rise over the same iterations too;
6. `fastest`: the velocity of the first three iterations exceeds all of the last three quarters, and the control's.

Two tasks of five classes in one head, none in common; the test accuracy on all old test samples, and the velocity of 40
old training samples that are not remembered, are measured at every iteration. The velocity of iteration t is that of
its step, the accuracy that after it. With replay a step descends the mean of two losses, of a minibatch of new samples
and of one as large of a memory. The optimizer goes on over the boundary as it is. The accuracy at the end is the mean
over the last tenth of the task: each new minibatch moves it.

Controls: fresh samples of the same classes in place of new classes, with replay and without; and training without
replay, where nothing comes back.

Choices of this study, where a CPU forbids the published networks and benchmarks: digits, small networks and a memory of
100 samples; step sizes at which the first task is learnt. Those of the MLPs were chosen on seeds 0 and 1, whose curves
were seen before the thresholds 0.05 and three iterations were set; that of the CNN is the study `architectures`'s.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from avalanche_ntk import measures
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import PAGE_INCHES, add_legend, drawing, new_figure
from avalanche_ntk.reproduce.drawing import draw_curve
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.settings import CLASSES, paper_per_class
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import accuracy, minibatches, optimizer_step, samples
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported, with_own_and_others

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS = {"mlp": "MLP, SGD", "mlp-momentum": "MLP, momentum 0.9", "cnn": "CNN, momentum 0.9"}
REPLAY, NAIVE, REPLAY_FRESH, NAIVE_FRESH = "replay", "naive", "replay-fresh", "naive-fresh"
ARMS = {
    REPLAY: "new classes, replay",
    NAIVE: "new classes, no replay",
    REPLAY_FRESH: "fresh samples, replay",
    NAIVE_FRESH: "fresh samples, no replay",
}
NO_GAP, NEAR = 0.05, 3

Arm = Mapping[str, Sequence[float]]


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return one part a network and optimizer."""
    shared = {
        "per_class": context.pick(6, 60, paper_per_class(context)),
        "test": context.pick(10, 50, 1000),
        "probe": context.pick(8, 40, 256),
        "memory": context.pick(10, 100, 1000),
        "batch": context.pick(5, 30, 128),
        "steps": context.pick(24, 300, 4000),  # of the first task
        "watched": context.pick(24, 200, 1000),
    }
    mlp = {"name": "mlp", "width": context.pick(8, 128, 400)}
    cnn = {"name": "cnn", "width": context.pick(4, 16, 64), "flatten": True, "pools": 1}
    return {
        "mlp": {**shared, "model": mlp, "lr": 0.1, "momentum": 0.0},
        "mlp-momentum": {**shared, "model": mlp, "lr": 0.02, "momentum": 0.9},
        "cnn": {**shared, "model": cnn, "lr": 0.02, "momentum": 0.9},
    }


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train the first task once, then watch each of the second ones from there."""
    a = arguments
    old, fresh = range(CLASSES), range(CLASSES, 2 * CLASSES)
    x, y = samples(context, old, a["per_class"], seed=seed)
    test = samples(context, old, a["test"], seed=seed, part="test")
    more, places = samples(context, fresh, a["per_class"], seed=seed)
    seconds = {
        REPLAY: (more, places + CLASSES),
        REPLAY_FRESH: samples(context, old, a["per_class"], seed=seed, skip=a["per_class"]),
    }
    settings = dict(a["model"])
    name = settings.pop("name")
    model = build_model(name, input_shape=x.shape[1:], n_classes=2 * CLASSES, seed=seed, **settings)
    model, x, y = model.to(context.device), x.to(context.device), y.to(context.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=a["lr"], momentum=a["momentum"])
    generator = torch.Generator("cpu").manual_seed(seed)
    for chosen in minibatches(len(x), a["batch"], a["steps"], generator):
        optimizer_step(optimizer, cross_entropy(model(x[chosen]), y[chosen]))
    order = np.random.default_rng(seed).permutation(len(x))
    memory, probe = order[: a["memory"]], order[a["memory"] : a["memory"] + a["probe"]]
    arms = {}
    for arm, twin in ((REPLAY, NAIVE), (REPLAY_FRESH, NAIVE_FRESH)):
        new = seconds[arm]
        arms[arm] = watch(model, optimizer, new, (x[memory], y[memory]), x[probe], test, arguments, seed)
        arms[twin] = watch(model, optimizer, new, None, x[probe], test, arguments, seed)
    return {"fitted": accuracy(model, x, y), "arms": arms}


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    new: tuple[Tensor, Tensor],
    memory: tuple[Tensor, Tensor] | None,
    probe: Tensor,
    test: tuple[Tensor, Tensor],
    arguments: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Train a copy on a second task, and measure at every iteration.

    Args:
        model: The network at the boundary, which is left as it is.
        optimizer: Its optimizer.
        new: Samples of the second task.
        memory: Samples of the first that are replayed; None for no replay.
        probe: Old inputs of which the kernel is.
        test: Old samples of which the accuracy is.
        arguments: `batch` of new and as many of remembered samples, `watched` iterations.
        seed: Seed of the minibatches.

    Returns:
        `accuracy` at the boundary and after each of T steps, `velocity` of each step; accuracy `learned` on the new
        samples.
    """
    model, optimizer = copy.deepcopy((model, optimizer))
    (x, y), (x_test, y_test) = ([t.to(probe.device) for t in pair] for pair in (new, test))
    size, steps = arguments["batch"], arguments["watched"]
    generators = [torch.Generator("cpu").manual_seed(s) for s in (seed + 1, seed + 1000)]
    again = minibatches(len(memory[0]), size, steps, generators[1]) if memory else iter(())
    kernel = measures.KernelView(empirical_ntk(model, probe).cpu())
    accuracies, velocities = [accuracy(model, x_test, y_test)], []
    for chosen in minibatches(len(x), size, steps, generators[0]):
        loss = cross_entropy(model(x[chosen]), y[chosen])
        if memory:
            remembered = next(again)
            loss = (loss + cross_entropy(model(memory[0][remembered]), memory[1][remembered])) / 2
        optimizer_step(optimizer, loss)
        before, kernel = kernel, measures.KernelView(empirical_ntk(model, probe).cpu())
        velocities.append(measures.kernel_distance(before, kernel))
        accuracies.append(accuracy(model, x_test, y_test))
    return {"accuracy": accuracies, "velocity": velocities, "learned": accuracy(model, x, y)}


def window(arm: Arm) -> int:
    """Return the iterations of the first quarter of a task."""
    return len(arm["velocity"]) // 4


def at_end(arm: Arm) -> float:
    """Return the accuracy at the end: the mean over the last tenth of the iterations."""
    return float(np.mean(arm["accuracy"][-max(1, len(arm["velocity"]) // 10) :]))


def lowest(arm: Arm) -> int:
    """Return after how many steps the accuracy is lowest in the first quarter: the first time.

    >>> lowest({"accuracy": [0.9, 0.5, 0.4, 0.4, 0.9, 0.1], "velocity": [0.0] * 16})
    2
    """
    return int(np.argmin(arm["accuracy"][1 : window(arm) + 1])) + 1


def fastest(arm: Arm) -> int:
    """Return the number of the step, from 1 on, in which the kernel is fastest."""
    return int(np.argmax(arm["velocity"])) + 1


def gap(arm: Arm) -> float:
    """Return the accuracy at the end minus the least in the first quarter."""
    return at_end(arm) - arm["accuracy"][lowest(arm)]


def lost(arm: Arm) -> list[float]:
    """Return by how much the accuracy lies below that at the boundary, after each step of the first quarter."""
    return [arm["accuracy"][0] - value for value in arm["accuracy"][1 : window(arm) + 1]]


def changed(arm: Arm) -> list[float]:
    """Return by how much each step of the first quarter changes the accuracy, without the sign."""
    return [float(v) for v in np.abs(np.diff(arm["accuracy"][: window(arm) + 1]))]


def first_over_later(arm: Arm) -> float:
    """Return log₁₀ of the largest of the first three velocities over the largest after the first quarter."""
    velocity = arm["velocity"]
    return math.log10(max(velocity[:NEAR]) / max(velocity[window(arm) :]))


def in_first_quarter(arms: Sequence[Arm], number: Any) -> tuple[list[float], list[float]]:
    """Return rank correlations over the first quarter's iterations of the velocity with a number of the accuracy.

    Args:
        arms: One a seed.
        number: `lost` or `changed`.

    Returns:
        For each seed that of its own, and the mean of those with the other seeds' accuracies; NaN for a single seed.
    """
    return with_own_and_others([one["velocity"][: window(one)] for one in arms], [number(one) for one in arms])


def judge(results: Results) -> list[Claim]:
    """Judge the six statements."""
    by_network = {name: [one["arms"] for one in results.measured(part)] for part, name in NETWORKS.items()}
    fitted = {name: [one["fitted"] for one in results.measured(part)] for part, name in NETWORKS.items()}
    return [
        _gap(by_network, fitted),
        _no_shift(by_network),
        *_timing(by_network),
        _together(by_network),
        _fastest(by_network),
    ]


def _gap(by_network: Mapping[str, Any], fitted: Mapping[str, list[float]]) -> Claim:
    findings = []
    for name, seeds in by_network.items():
        gaps = {arm: [gap(one[arm]) for one in seeds] for arm in ARMS}
        told = "accuracy at the end minus the least in the first quarter, with replay"
        findings += [
            found(name, told, gaps[REPLAY], 0.0),
            found(name, f"{told}, minus the control's", minus(gaps[REPLAY], gaps[REPLAY_FRESH]), 0.0),
            reported(name, "accuracy at the boundary", [one[REPLAY]["accuracy"][0] for one in seeds]),
            reported(name, "least accuracy with replay", [min(one[REPLAY]["accuracy"]) for one in seeds]),
            reported(name, "accuracy at the end with replay", [at_end(one[REPLAY]) for one in seeds]),
            reported(name, "accuracy at the end without replay", [at_end(one[NAIVE]) for one in seeds]),
            reported(name, "accuracy on the first task's training samples at the boundary", fitted[name]),
            reported(
                name,
                "accuracy on the second task's training samples, with replay",
                [one[REPLAY]["learned"] for one in seeds],
            ),
        ]
    return Claim(
        "gap",
        "With replay the accuracy on the old task falls just after the boundary and comes back",
        tuple(findings),
        "The least of noisy numbers lies below their mean anyway: the control has as many of them.",
    )


def _no_shift(by_network: Mapping[str, Any]) -> Claim:
    return Claim(
        "no-shift",
        "Without a shift there is no such gap",
        tuple(
            found(
                f"{name}, {ARMS[arm]}",
                "accuracy at the end minus the least in the first quarter",
                [gap(one[arm]) for one in seeds],
                NO_GAP,
                above=False,
            )
            for name, seeds in by_network.items()
            for arm in (REPLAY_FRESH, NAIVE_FRESH)
        ),
        "Below 0.05: about eleven of the old test samples of the digits.",
    )


def _timing(by_network: Mapping[str, Any]) -> list[Claim]:
    order: list[Finding] = []
    moment: list[Finding] = []
    for name, seeds in by_network.items():
        lags = {arm: [float(lowest(one[arm]) - fastest(one[arm])) for one in seeds] for arm in (REPLAY, NAIVE)}
        told = "iterations from the largest velocity to the least accuracy"
        # Whole iterations: −0.5 is what the same iteration lies above and one too late below.
        order += [
            found(name, f"{told}, with replay", lags[REPLAY], -0.5),
            reported(name, f"{told}, without replay", lags[NAIVE]),
            reported(name, "iteration of the largest velocity, with replay", [fastest(one[REPLAY]) for one in seeds]),
            reported(name, "iteration of the least accuracy, with replay", [lowest(one[REPLAY]) for one in seeds]),
        ]
        moment.append(
            found(name, "iterations between the two, with replay", [*map(abs, lags[REPLAY])], NEAR + 0.5, above=False)
        )
    return [
        Claim(
            "order",
            "The kernel is fastest before the old task's accuracy is lowest, or in the same iteration",
            tuple(order),
            "A kernel that is fastest in the first iterations is before nearly any other moment; how long before is "
            "the next statement.",
        ),
        Claim(
            "moment",
            "The accuracy is lowest within three iterations of the kernel's fastest step",
            tuple(moment),
            "The accuracy depends on where the weights are, the velocity on how far a step takes them. Where what "
            "comes back is lost again slowly, the least of the quarter may be of that.",
        ),
    ]


def _together(by_network: Mapping[str, Any]) -> Claim:
    findings = []
    for name, seeds in by_network.items():
        for number, words in ((lost, "the accuracy lost"), (changed, "the change of accuracy")):
            own, others = in_first_quarter([one[REPLAY] for one in seeds], number)
            told = f"rank correlation over iterations of the velocity with {words}, with replay"
            fresh, _ = in_first_quarter([one[REPLAY_FRESH] for one in seeds], number)
            findings += [
                found(name, told, own, 0.0),
                found(name, f"{told}, minus that of other seeds' accuracies", minus(own, others), 0.0),
                reported(name, f"{told}, without a shift", fresh),
            ]
    return Claim(
        "together",
        "The faster the kernel is in an iteration, the more of the old accuracy is lost",
        tuple(findings),
        "What two curves have in common because both begin at a boundary, they have in common with other seeds' curves "
        "too; only what exceeds that ties velocity and accuracy of the same network.",
    )


def _fastest(by_network: Mapping[str, Any]) -> Claim:
    findings = []
    for name, seeds in by_network.items():
        ratios = {arm: [first_over_later(one[arm]) for one in seeds] for arm in ARMS}
        peaks = {arm: [math.log10(max(one[arm]["velocity"])) for one in seeds] for arm in ARMS}
        told = "log₁₀ of the largest of the first three velocities over the largest after the first quarter"
        findings += [
            found(f"{name}, {ARMS[arm]}", f"{told}{ending}", values, 0.0)
            for arm, control in ((REPLAY, REPLAY_FRESH), (NAIVE, NAIVE_FRESH))
            for ending, values in (
                ("", ratios[arm]),
                (", minus the control's", minus(ratios[arm], ratios[control])),
            )
        ]
        findings += [
            reported(
                name,
                "log₁₀ of the largest velocity over the control's, with replay",
                minus(peaks[REPLAY], peaks[REPLAY_FRESH]),
            ),
            reported(
                name, "log₁₀ of the largest velocity with replay over that without", minus(peaks[REPLAY], peaks[NAIVE])
            ),
        ]
    return Claim(
        "fastest",
        "The kernel is faster just after the boundary than later in the task",
        tuple(findings),
        "In the control the network meets nothing new: its velocity has no reason to be largest at first.",
    )


def draw(results: Results) -> dict[str, Figure]:
    """Draw accuracy and velocity over the first half of the task, by network."""
    with drawing():
        figure = new_figure(PAGE_INCHES, 4.2)
        grid = figure.subplots(2, len(NETWORKS), sharex=True, sharey="row", squeeze=False)
        for (above, below), (part, name) in zip(grid.T, NETWORKS.items(), strict=True):
            measured = [one["arms"] for one in results.measured(part)]
            shown = 2 * window(measured[0][REPLAY])
            for position, arm in enumerate(ARMS):
                accuracies = [one[arm]["accuracy"][: shown + 1] for one in measured]
                draw_curve(above, range(shown + 1), accuracies, position)
                velocities = [one[arm]["velocity"][:shown] for one in measured]
                draw_curve(below, range(1, shown + 1), velocities, position, geometric=True)
            above.set(title=name, ylim=(-0.03, 1.03))
            log_scale(below)
        grid[0, 0].set_ylabel("old task's test accuracy")
        grid[1, 0].set_ylabel("velocity of its kernel\n(distance per iteration)")
        figure.supxlabel("iterations since the boundary", fontsize=8)
        add_legend(figure, list(ARMS.values()))
    return {"stability-gap": figure}


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
