"""Plasticity over 40 tasks: which number at a boundary foretells how well the next task is learnt?

Published, as far as it could be read (abstracts and summaries; no paper's whole text):

- C-CHAIN (Tang et al. 2025, arXiv 2506.00592): loss of plasticity comes with a falling rank of the NTK matrix and with
  growing churn;
- Lyle et al. 2022 (capacity, a rank of the features), 2023 (arXiv 2303.01486: neither saturated units nor gradient
  norms are its cause; gradients of all samples become alike; layer norm helps), 2024 (arXiv 2402.18762: several causes,
  among them growing weights; layer norm with weight decay helps);
- Sokar et al. 2023 (arXiv 2302.12902): ever more units are dormant, and that goes with worse learning;
- Wang et al. 2026 (arXiv 2605.09044): by counterexamples, ranks of features and of the NTK need not foretell
  trainability; gradient strength and reliability on the task that is to come do. Their formula could not be read: the
  norm of the mean gradient on a fresh task, which has both, stands in for it.

Most of these are of reinforcement learning; none of this study's networks is theirs. As statements that can fail:

1. `loses`: the last quarter of the tasks is learnt worse than by the network as it was before any training, and than
   the first quarter was in the same comparison; and a fresh task is learnt worse than after as much training on one
   task;
2. `kernel-rank`, `feature-rank`: the lower the approximate rank of the kernel (srank of the features), the worse the
   next task is learnt;
3. `dormant`, `churn`, `weights`, `cosine`: the larger this, the worse;
4. `gradient`: the larger the norm of the mean gradient on a fresh task, the better;
5. `trial`: the worse a copy learns that fresh task, the worse the next task is learnt;
6. `better-than-rank`: the gradient foretells better than either rank;
7. `remedies`: with replay, weight decay, layer norm, shrink-and-perturb the last quarter is learnt better than without;
8. `change`: a remedy changes which numbers foretell.

How badly a task is learnt is `log₁₀` of the mean training loss after each epoch over that of the same network before
any training, on the same task with the same minibatches: tasks differ, and this takes out by how much. The numbers are
those of `observables.Plasticity` just before the task's first step (after shrinking and perturbing), on samples that
are in no task, in an order of pixels of their own, with random labels: a fresh task, the same at each boundary. Churn
is that of the last epoch before. Foretelling is Spearman's correlation over boundaries of a number with the learning of
the task that begins there (ahead by one), and of that four tasks later (ahead by five).

Controls: everything trends over tasks, so each correlation is also judged minus the mean of those with other seeds'
learning of the same place in the stream; the correlation with the number of the boundary is told; the same task 40
times; and the untrained network in every comparison. Differences of correlations below 0.2 do not matter (4 % of the
variance of ranks); nor do differences of log₁₀ losses below 0.05 (12 %).

Two streams of ten digits, 12 samples each, always the same samples: *permuted*, another order of pixels and of the
classes in each task; *relabelled*, another order of pixels, and a random label for each sample. Adam goes on over the
boundaries. Its step size, 0.003, was chosen among five optimizers on seed 100, which is none of the study's, so that
learning gets worse over tasks in both streams; no number that foretells was looked at. The remedies' strengths were not
tuned.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from avalanche_ntk import measures
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.observables.base import Moment
from avalanche_ntk.observables.plasticity import Plasticity
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.reproduce.studies import plasticity_claims
from avalanche_ntk.reproduce.studies.plasticity_claims import (
    COLUMNS,
    DECAY,
    FRESH,
    FRESH_NORM,
    NAIVE,
    NORM,
    PERTURBED,
    RELABELLED,
    REPEATED,
    REPLAY,
    STREAMS,
)
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import class_labels, minibatches, optimizer_step, samples

Pair = tuple[Tensor, Tensor]


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return one part a stream."""
    shared = {
        "tasks": context.pick(9, 40, 200),
        "per_class": context.pick(2, 12, 100),
        "probe": context.pick(1, 4, 10),  # of each class
        "width": context.pick(8, 64, 256),
        "epochs": context.pick(2, 20, 50),
        "batch": context.pick(10, 24, 64),
        "memory": context.pick(10, 60, 1000),
        "trial": context.pick(3, 50, 200),
        "lr": 0.003,
        "decay": 0.3,
        "shrink": 0.6,
    }
    return {stream: {**shared, "stream": stream} for stream in STREAMS}


def task(x: Tensor, y: Tensor, relabelled: bool, seed: Sequence[int]) -> Pair:
    """Return a task: all inputs with their pixels in one new order, and new labels.

    Args:
        x: Inputs, `(n, …)`.
        y: Classes, 0 to the largest.
        relabelled: Whether each sample has a label drawn by itself; else the classes change places.
        seed: Seed of the orders and labels.

    Returns:
        Inputs and labels.
    """
    draw = np.random.default_rng(seed)
    pixels = torch.from_numpy(draw.permutation(x[0].numel()))
    classes = int(y.max()) + 1
    labels = torch.from_numpy(draw.integers(classes, size=len(y)) if relabelled else draw.permutation(classes)[y])
    return x.flatten(1)[:, pixels].view_as(x), labels


def network(arguments: Mapping[str, Any], shape: Sequence[int], classes: int, seed: int, norm: bool) -> nn.Module:
    """Return an MLP of two hidden layers; `norm` puts a layer norm before each activation."""
    model = build_model("mlp", input_shape=shape, n_classes=classes, width=arguments["width"], depth=2, seed=seed)
    if norm:
        layers = list(model.get_submodule("features").children())
        made = [[one, nn.LayerNorm(arguments["width"])] if isinstance(one, nn.Linear) else [one] for one in layers]
        model.features = nn.Sequential(*(part for group in made for part in group))
    return model


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    new: Pair,
    memory: Pair | None,
    probe: Tensor,
    arguments: Mapping[str, Any],
    seed: int,
) -> tuple[float, float]:
    """Train on a task; with a memory each step descends the mean of two losses.

    Args:
        model: The network, trained in place.
        optimizer: Its optimizer.
        new: Inputs and labels of the task.
        memory: Remembered ones; None for no replay.
        probe: Inputs that are in no task.
        arguments: `epochs`, `batch`.
        seed: Seed of the minibatches.

    Returns:
        The mean over epochs of the loss on the whole task after each, and the churn of the last epoch.
    """
    x, y = new
    size = arguments["batch"]
    each = math.ceil(len(x) / size)
    generators = [torch.Generator("cpu").manual_seed(s) for s in (seed, seed + 1)]
    steps = arguments["epochs"] * each
    again = minibatches(len(memory[0]), size, steps, generators[1]) if memory else iter(())
    losses, outputs = [], [_outputs(model, probe)]
    for done, chosen in enumerate(minibatches(len(x), size, steps, generators[0]), 1):
        loss = cross_entropy(model(x[chosen]), y[chosen])
        if memory:
            old = next(again)
            loss = (loss + cross_entropy(model(memory[0][old]), memory[1][old])) / 2
        optimizer_step(optimizer, loss)
        if done % each == 0:
            with torch.no_grad():
                losses.append(float(cross_entropy(model(x), y)))
            outputs = [outputs[-1], _outputs(model, probe)]
    return float(np.mean(losses)), measures.churn(outputs[1], outputs[0])


def _outputs(model: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(x).double().cpu())


def numbers(observable: Plasticity, model: nn.Module, probe: Probe, at: int) -> dict[str, float]:
    """Return the columns of `observables.Plasticity` before a task's first step.

    Args:
        observable: The observable, which remembers the first kernel.
        model: The network, left as it is.
        probe: The fresh task.
        at: Number of the task.

    Returns:
        Numbers by column; what is undefined is missing.
    """
    kernel = empirical_ntk(model, probe.x).cpu().numpy()
    clock = TrainingClock("experience_start", at, at, 0, at, 0, at)
    moment = Moment(model, probe, {probe.name: probe}, kernel, clock, {}, "trace")
    return dict(observable.observe(moment).values)


def shrink_and_perturb(model: nn.Module, drawn: nn.Module, shrink: float) -> None:
    """Set `θ ← λ θ + (1 − λ) θ'` with weights θ' drawn as the network's were.

    Args:
        model: The network, changed in place.
        drawn: A network with the weights θ'.
        shrink: λ.

    Source: Ash & Adams 2020, with the initial distribution as the noise.
    """
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), drawn.parameters(), strict=True):
            parameter.mul_(shrink).add_((1 - shrink) * other)


def remembered(tasks: Sequence[Pair], size: int, seed: int) -> Pair | None:
    """Return samples of all earlier tasks, drawn anew at each boundary; None before the second task."""
    if not tasks:
        return None
    x, y = (torch.cat(tensors) for tensors in zip(*tasks, strict=True))
    chosen = np.random.default_rng(seed).permutation(len(x))[:size]
    return x[chosen], y[chosen]


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train every arm over a stream."""
    a = arguments
    classes = class_labels(context)
    x, y = samples(context, classes, a["per_class"], seed=seed)
    held = samples(context, classes, a["probe"], seed=seed, skip=a["per_class"])
    device = torch.device(context.device)
    fresh = Probe.from_tensors(*task(*held, True, [seed, 0])).to(device)
    made = [task(x, y, a["stream"] == RELABELLED, [seed, number]) for number in range(1, a["tasks"] + 1)]
    stream = [(inputs.to(device), labels.to(device)) for inputs, labels in made]
    found: dict[str, Any] = {
        arm: follow(arm, stream, fresh, arguments, seed, len(classes))
        for arm in (NAIVE, REPLAY, DECAY, NORM, PERTURBED, REPEATED)
    }
    for arm, norm in ((FRESH, False), (FRESH_NORM, True)):
        first = network(a, x.shape[1:], len(classes), seed, norm).to(device)
        losses = []
        for number, new in enumerate(stream):
            model = copy.deepcopy(first)
            optimizer = torch.optim.Adam(model.parameters(), lr=a["lr"])
            losses.append(learn(model, optimizer, new, None, fresh.x, arguments, order(seed, number))[0])
        found[arm] = {"loss": losses}
    return found


def order(seed: int, number: int) -> int:
    """Return the seed of a task's minibatches, the same in every arm."""
    return 10_000 * (seed + 1) + 10 * number


def follow(
    arm: str, stream: Sequence[Pair], fresh: Probe, arguments: Mapping[str, Any], seed: int, classes: int
) -> dict[str, Any]:
    """Train one arm over the stream, and measure before each task.

    Args:
        arm: Which.
        stream: The tasks.
        fresh: The fresh task.
        arguments: Those of the part.
        seed: Seed of everything.
        classes: Number of outputs.

    Returns:
        `loss` of each task, and for each number its values before the second task and each later one.
    """
    a, shape, device = arguments, stream[0][0].shape[1:], stream[0][0].device
    model = network(a, shape, classes, seed, arm == NORM).to(device)
    decay = a["decay"] if arm == DECAY else 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=a["lr"], weight_decay=decay)
    observable = Plasticity(steps=a["trial"], seed=seed)
    losses: list[float] = []
    rows: list[dict[str, float]] = []
    churn = math.nan
    for number, new in enumerate(stream if arm != REPEATED else [stream[0]] * len(stream)):
        if number and arm == PERTURBED:
            drawn = network(a, shape, classes, order(seed, number), False).to(device)
            shrink_and_perturb(model, drawn, a["shrink"])
        if number:
            rows.append({**numbers(observable, model, fresh, number), "churn": churn})
        memory = remembered(stream[:number], a["memory"], order(seed, number)) if arm == REPLAY else None
        loss, churn = learn(model, optimizer, new, memory, fresh.x, arguments, order(seed, number))
        losses.append(loss)
    return {"loss": losses, **{column: [row.get(column, math.nan) for row in rows] for column in COLUMNS}}


STUDY = Study(judge=plasticity_claims.judge, draw=plasticity_claims.draw, parts=parts, measure=measure)
