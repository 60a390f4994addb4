"""Doan et al. 2021: forgetting and the overlap of two tasks' tangent kernels.

Published (arXiv 2010.04003), as statements that can be checked:

1. Catastrophic forgetting grows as two tasks align, and the overlap of their tangent kernels measures how far they do.
   Forgetting is there what training on the second task does to the outputs on the first task's samples.
2. In the static-kernel approximation it is `‖Θ_ST (Θ_TT + λI)⁻¹ ỹ‖²`, S the first task, T the second, and ỹ the second
   task's targets minus the outputs with which its training begins.
3. Orthogonal gradient descent, and its variant PCA-OGD, which keeps the leading principal directions of the first
   task's gradients, forget less than plain gradient descent.

Here: squared error on one-hot targets, as in the theory; a network of width 128; ten classes, 10 samples of each; the
second task has the same samples, changed step by step: turned by an angle, or a share of their pixels in another order.
Its labels either stay or are all exchanged, since the statement is about two tasks that want something different: what
is trained again as it was has the largest overlap and forgets nothing. The overlap is
`‖Θ_ST‖² / (‖Θ_SS‖ ‖Θ_TT‖)` of the trace kernels at the boundary, one number in place of the paper's matrix. In the
expression, λ, which stands for how long is trained, is replaced by the training time itself: gradient flow for a time
t = steps · η multiplies the part of ỹ in an eigenvector of `Θ_TT/N` with eigenvalue μ by `(1 − exp(−μt)) / μ`.

The published experiments have wide networks, cross-entropy, fifteen tasks of MNIST or CIFAR-100 and a memory of a
hundred samples for each; here there are two tasks, and OGD and PCA-OGD keep half as many directions as there are
samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_ntk import measures
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks.transformed import Permute, Rotate
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures.intervals import rank_correlation
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import MARKERS, PAGE_INCHES, drawing, look, new_figure, put_legend
from avalanche_ntk.reproduce.drawing import draw_points
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import accuracy, minibatches, samples
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, reported
from avalanche_ntk.strategies.directions import orthonormal, outside
from avalanche_ntk.strategies.orthogonal import PCAOGDPlugin, logit_gradients

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = 10
FAMILIES = {"angle": "images turned", "pixels": "pixels in another order"}
LABELS = {"new": "labels exchanged", "same": "labels kept"}
METHODS = ("SGD", "OGD", "PCA-OGD")


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return one part a kind of change, with its levels."""
    shared = {
        "per_class": context.pick(3, 10, 100),
        "width": context.pick(16, 128, 1024),
        "steps": context.pick(30, 400, 5000),
        "lr": context.pick(0.05, 0.05, 0.01),
        "batch": context.pick(10, 25, 100),
    }
    return {
        "angle": {**shared, "levels": context.pick([0, 90], [0, 15, 30, 45, 60, 90], [0, 15, 30, 45, 60, 90])},
        "pixels": {**shared, "levels": context.pick([0.0, 1.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 0.25, 0.5, 1.0])},
    }


def changed(x: Tensor, family: str, level: float, seed: int) -> Tensor:
    """Return inputs changed to a level.

    Args:
        x: Inputs, shape `(N, channels, side, side)`.
        family: "angle" turns them by `level` degrees; "pixels" puts a share `level` of the pixels in another order, the
            same in every sample.
        level: How far.
        seed: Seed of the order.

    Returns:
        New inputs of the same shape.
    """
    if family == "angle":
        return torch.stack([Rotate(float(level))(one) for one in x])
    positions = x[0, 0].numel()
    generator = np.random.default_rng([seed, 7])
    moved = generator.permutation(positions)[: round(level * positions)]
    order = torch.arange(positions)
    order[torch.from_numpy(np.sort(moved))] = torch.from_numpy(moved)
    return torch.stack([Permute(order)(one) for one in x])


def expected_change(cross: np.ndarray, own: np.ndarray, residual: np.ndarray, time: float, n: int) -> np.ndarray:
    """Return what gradient flow with a static kernel does to outputs elsewhere: `Θ_ST (1 − exp(−Θ_TT t/N)) Θ_TT⁻¹ ỹ`.

    Args:
        cross: `Θ_ST` as a matrix, `(M·C, N·C)`.
        own: `Θ_TT` as a matrix, `(N·C, N·C)`.
        residual: ỹ, targets minus outputs, `(N·C,)`.
        time: t, steps times step size.
        n: N, over which the loss `½‖f − y‖²` is averaged.

    Returns:
        The change of the outputs, `(M·C,)`.

    Source: Doan et al. 2021, theorem 1, with the time of training in place of its ridge.
    """
    values, vectors = np.linalg.eigh(own)
    rates = np.maximum(values, 0.0) / n
    # (1 − exp(−μt)) / μ, which is t where μ is 0.
    weights = np.where(rates * time > 1e-12, -np.expm1(-rates * time) / np.maximum(rates, 1e-300), time)
    return np.asarray(cross @ (vectors @ (weights / n * (vectors.T @ residual))))


def train(
    model: nn.Module, x: Tensor, y: Tensor, arguments: Mapping[str, Any], seed: int, basis: Tensor | None = None
) -> None:
    """Train by plain gradient descent on the squared error, in directions that are orthogonal to a basis.

    Args:
        model: The model.
        x: Inputs.
        y: Labels.
        arguments: `steps`, `lr`, `batch`.
        seed: Seed of the minibatches.
        basis: Orthonormal columns, `(P, R)`; None for none.
    """
    parameters = list(model.parameters())
    targets = nn.functional.one_hot(y, CLASSES).to(x.dtype)
    generator = torch.Generator("cpu").manual_seed(seed)
    for indices in minibatches(len(x), arguments["batch"], arguments["steps"], generator):
        loss = 0.5 * (model(x[indices]) - targets[indices]).square().sum(1).mean()
        step = nn.utils.parameters_to_vector(torch.autograd.grad(loss, parameters))
        if basis is not None:
            step = outside(step[:, None], basis)[:, 0]
        with torch.no_grad():
            nn.utils.vector_to_parameters(
                nn.utils.parameters_to_vector(parameters) - arguments["lr"] * step, parameters
            )


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train the first task once, then the second at each level from there."""
    family = "angle" if isinstance(arguments["levels"][-1], int) else "pixels"
    x, y = samples(context, range(CLASSES), arguments["per_class"], seed=seed)
    x_test, y_test = samples(context, range(CLASSES), 2 * arguments["per_class"], seed=seed, part="test")
    x, x_test = x.double(), x_test.double()
    labels = {"same": y, "new": (y + 1) % CLASSES}
    first = build_model("mlp", input_shape=x.shape[1:], n_classes=CLASSES, width=arguments["width"], seed=seed).double()
    train(first, x, y, arguments, seed)
    before, score = first(x).detach(), accuracy(first, x_test, y_test)
    own = empirical_ntk(first, x, reduction="full").numpy()

    def forgetting(inputs: Tensor, wanted: Tensor, basis: Tensor | None = None) -> dict[str, float]:
        model = copy.deepcopy(first)
        train(model, inputs, wanted, arguments, seed + 1, basis)
        change = (model(x).detach() - before).square().sum(1).mean()
        lost = score - accuracy(model, x_test, y_test)
        return {"change": float(change), "lost": lost, "learned": accuracy(model, inputs, wanted)}

    levels = []
    for level in arguments["levels"]:
        inputs = changed(x, family, level, seed)
        cross, theirs = (empirical_ntk(first, a, inputs, reduction="full").numpy() for a in (x, inputs))
        traces = [measures.reduce_full(kernel, "trace") for kernel in (cross, own, theirs)]
        matrices = measures.as_matrix(cross), measures.as_matrix(theirs)
        one: dict[str, Any] = {"level": level, "overlap": measures.task_overlap(*traces)}
        for name, wanted in labels.items():
            residual = nn.functional.one_hot(wanted, CLASSES) - first(inputs).detach()
            time = arguments["steps"] * arguments["lr"]
            change = expected_change(*matrices, residual.numpy().ravel(), time, len(x))
            expected = float(np.square(change).sum() / len(x))
            one[name] = {**forgetting(inputs, wanted), "expected": expected, "residual": float(residual.norm())}
        levels.append(one)
    kept = len(x) // 2
    probe = Probe(x, y, torch.zeros_like(y))
    columns = logit_gradients(first, probe)
    some = torch.randperm(len(x), generator=torch.Generator("cpu").manual_seed(seed))[:kept]
    bases = {
        "SGD": None,
        "OGD": orthonormal(columns[:, some]),
        "PCA-OGD": PCAOGDPlugin(n_components=kept).reduce(columns),
    }
    held = {name: forgetting(inputs, labels["same"], basis) for name, basis in bases.items()}
    return {"accuracy": score, "fitted": accuracy(first, x, y), "levels": levels, "held": held}


def shared_order(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> list[float]:
    """Return, for each seed, the rank correlation over levels of two numbers.

    Args:
        a: For each seed a number a level.
        b: The same for the other number.

    Returns:
        A correlation a seed, as `verdicts.rank_correlation` defines it.

    >>> shared_order([[0.9, 0.5, 0.1]], [[3.0, 2.0, 1.0]])
    [1.0]
    """
    return [rank_correlation(*pair) for pair in zip(a, b, strict=True)]


def judge(results: Results) -> list[Claim]:
    """Compare the order of levels by overlap, and by the theory's expression, with that by forgetting."""
    measured = {family: results.measured(family) for family in FAMILIES}
    return [
        Claim(
            "aligned-forget-more",
            "Where the second task wants other labels, more is forgotten the more the two kernels overlap",
            _follows_overlap(measured, "new"),
            "The overlap alone orders forgetting only where the residual ỹ is about the same at every level, as it is "
            "when every label is exchanged.",
        ),
        Claim(
            "aligned-same-labels",
            "Where the second task wants the same labels, more is forgotten the more the two kernels overlap",
            _follows_overlap(measured, "same"),
            "The sentence without that condition. Here overlap and residual go against each other: a second task that "
            "is the first has the largest overlap, and its residual is what the first's training has left.",
        ),
        Claim(
            "expression",
            "Overlap and residual together, as in the theory's expression, give the order of forgetting",
            _expression(measured),
            "The kernel is that of the boundary; where the network leaves its tangent plane, the size differs though "
            "the order may not: 1 in the reported logarithms is a factor of two.",
        ),
        Claim(
            "overlap-falls",
            "The overlap falls as the inputs are changed",
            tuple(
                found(
                    what,
                    "rank correlation of the level with the overlap",
                    shared_order(_series(measured[family], "level"), _series(measured[family], "overlap")),
                    0.0,
                    above=False,
                )
                for family, what in FAMILIES.items()
            ),
            "The premise of the two statements above.",
        ),
        Claim(
            "projection-forgets-less",
            "OGD and PCA-OGD forget less than plain gradient descent",
            _projections(measured),
            "At the largest change, labels kept. Both keep as many directions, half of the samples' number, of each "
            "sample's own logit; what they do not keep, and what is of second order, is forgotten all the same.",
        ),
    ]


def _series(seeds: Sequence[Mapping[str, Any]], *path: str) -> list[list[float]]:
    """Return a number at each level, seed by seed."""
    found_at = []
    for one in seeds:
        values = []
        for at in one["levels"]:
            for key in path:
                at = at[key]
            values.append(float(at))
        found_at.append(values)
    return found_at


def _follows_overlap(measured: Mapping[str, list[dict[str, Any]]], labels: str) -> tuple[Finding, ...]:
    return tuple(
        found(
            f"{what}, {LABELS[labels]}",
            f"rank correlation of the overlap with {told}",
            shared_order(_series(measured[family], "overlap"), _series(measured[family], labels, kind)),
            0.0,
        )
        for family, what in FAMILIES.items()
        for kind, told in (
            ("change", "the change of the first task's outputs"),
            ("lost", "the accuracy lost on it"),
        )
    )


def _expression(measured: Mapping[str, list[dict[str, Any]]]) -> tuple[Finding, ...]:
    judged, told = [], []
    for family, what in FAMILIES.items():
        for labels, words in LABELS.items():
            expected = _series(measured[family], labels, "expected")
            change = _series(measured[family], labels, "change")
            statistic = "rank correlation of the expression with the change of the first task's outputs"
            judged.append(found(f"{what}, {words}", statistic, shared_order(expected, change), 0.0))
            off = [float(np.median(np.log2(np.divide(a, b)))) for a, b in zip(expected, change, strict=True)]
            told.append(reported(f"{what}, {words}", "median over levels of log₂(expression / change)", off))
    return (*judged, *told)


def _projections(measured: Mapping[str, list[dict[str, Any]]]) -> tuple[Finding, ...]:
    findings = []
    for family, what in FAMILIES.items():
        held = [one["held"] for one in measured[family]]
        for method in METHODS[1:]:
            for kind, told in (("change", "change of the first task's outputs"), ("lost", "accuracy lost on it")):
                values = [one[method][kind] - one["SGD"][kind] for one in held]
                findings.append(found(f"{method}, {what}", f"{told} − plain descent's", values, 0.0, above=False))
        findings += [
            reported(
                f"{method}, {what}",
                "accuracy on the second task's training samples",
                [one[method]["learned"] for one in held],
            )
            for method in METHODS
        ]
    return tuple(findings)


def draw(results: Results) -> dict[str, Figure]:
    """Overlap, forgetting and the expression by level; and forgetting against the expression."""
    with drawing():
        figure = new_figure(PAGE_INCHES, 4.4)
        axes = figure.subplots(2, 3)
        units = {"angle": "angle (degrees)", "pixels": "share of pixels moved"}
        for row, (family, what) in zip(axes, FAMILIES.items(), strict=True):
            measured = results.measured(family)
            levels = [float(at["level"]) for at in measured[0]["levels"]]
            at_level = list(zip(*(one["levels"] for one in measured), strict=True))
            draw_points(row[0], levels, [[one["overlap"] for one in at] for at in at_level], 6)
            row[0].set(xlabel=units[family], ylabel="overlap with the first task", ylim=(0, 1.05), title=what)
            for position, (labels, told) in enumerate(LABELS.items()):
                by_level = [[one[labels]["change"] for one in at] for at in at_level]
                draw_points(row[1], levels, by_level, position, told)
                expected = [[one[labels]["expected"] for one in at] for at in at_level]
                style = {"marker": MARKERS[position], "color": look(position)["color"], "linestyle": "None"}
                row[2].plot(np.ravel(expected), np.ravel(by_level), markersize=3, alpha=0.6, **style)
            row[1].set(xlabel=units[family], ylabel="change of the\nfirst task's outputs")
            low, high = _range(
                [one[k][v] for at in at_level for one in at for k in LABELS for v in ("change", "expected")]
            )
            row[2].plot([low, high], [low, high], color="black", linewidth=0.6)
            row[2].set(xlabel="expected of a static kernel", ylabel="change found")
            log_scale(row[2], "x")
            log_scale(row[2], "y")
        put_legend(figure, *axes[0][1].get_legend_handles_labels())
    return {"overlap-and-forgetting": figure}


def _range(values: Sequence[float]) -> tuple[float, float]:
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    return (min(positive), max(positive)) if positive else (0.1, 1.0)


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
