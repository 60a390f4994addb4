"""Jiang, Cohen & Li 2025 (arXiv 2507.12837): the kernel's eigenvectors at the edge of stability.

Published setting: full-batch gradient descent with the squared loss, fully connected networks, convolutional ones and
transformers on subsets of image data. Its statements, as they are checked here:

1. Of trainings with several step sizes η to about the same loss, those with larger steps end with a kernel that is
   aligned better with the labels: its leading eigenvectors, and the kernel as a whole.
2. The largest eigenvalue of the loss rises during the training (progressive sharpening) up to about 2/η and stays there
   (Cohen et al. 2021).

The loss is `1/(2N) Σ ‖f(x_n) − y_n‖²` with one-hot y, so that the largest eigenvalue λ of its Gauss–Newton matrix is
that of the full kernel over N, and 2/η its limit of stability. Step sizes are multiples of 2/λ at initialisation, a
factor of 2 apart; every training goes to the same loss, not to the same number of steps.

What differs at the scale "small": 15 samples of each of the digits, two fully connected networks (tanh and ReLU) of 128
units a layer; the Gauss–Newton matrix in place of the Hessian. Alignment is with the centred labels, as everywhere in
this package: a leading eigenvector that is nearly constant over the samples has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import one_hot

from avalanche_ntk.kernels import empirical_ntk, ntk_operator
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures import (
    KernelView,
    eigenvector_alignment,
    kernel_alignment,
    sharpness_ratio,
    uncentred_alignment,
)
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import PAGE_INCHES, drawing, legend_above, look, new_figure, put_legend
from avalanche_ntk.reproduce.drawing import draw_points
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import class_labels, samples, sgd_step
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, reported, trend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of 2/λ at initialisation. The first is small enough to reach the loss before the edge: what the others compare with.
STEPS = (0.2, 0.4, 0.8, 1.6)
RANKS = (1, 5, 20)
# The step sizes are a factor of 2 apart: within half of that a run is at its own 2/η, and not at a neighbour's.
AT_ITS_OWN = 0.5
NAMES = {"tanh": "MLP, tanh", "relu": "MLP, ReLU"}


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return the networks; at every scale the same four step sizes."""
    shared = {
        "per_class": context.pick(3, 15, 100),
        "loss": context.pick(0.35, 0.015, 0.01),
        "most_steps": context.pick(400, 40_000, 400_000),
        "steps": STEPS,
    }
    network = {"width": context.pick(16, 128, 200), "depth": 2}
    # Steps between measurements with the largest η; with a smaller one proportionally more. ReLU needs fewer in all.
    every = {"tanh": context.pick(2, 20, 20), "relu": context.pick(2, 5, 5)}
    return {
        activation: {**shared, "every": every[activation], "model": {**network, "activation": activation}}
        for activation in NAMES
    }


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    """Train one network with each step size to the same loss."""
    a = arguments
    classes = class_labels(context)
    x, y = (t.to(context.device) for t in samples(context, classes, a["per_class"], seed=seed))
    size: dict[str, Any] = {"input_shape": x.shape[1:], "n_classes": len(classes)}
    runs = []
    for multiple in a["steps"]:
        model = build_model("mlp", seed=seed, **size, **a["model"]).to(context.device)
        lr = multiple * 2 / sharpness(model, x)
        every = round(a["every"] * max(a["steps"]) / multiple)
        runs.append({"lr": lr, **train(model, x, y, lr, a["loss"], a["most_steps"], every)})
    return {"runs": runs}


def sharpness(model: nn.Module, x: Tensor) -> float:
    """Return the largest eigenvalue of the Gauss–Newton matrix of the mean squared loss: λ_max of the kernel over N."""
    largest = ntk_operator(model, x, reduction="full").top_eigenvalues(1, tol=1e-3)
    return float(largest[0]) / len(x)


def train(
    model: nn.Module, x: Tensor, y: Tensor, lr: float, goal: float, most_steps: int, every: int
) -> dict[str, Any]:
    """Train by full-batch gradient descent until the loss is reached, and measure on the way and at the end.

    Args:
        model: The network, which is trained.
        x: Inputs, `(N, …)`.
        y: Labels, `(N,)`.
        lr: η.
        goal: The loss at which to stop.
        most_steps: After how many steps to give up.
        every: Steps between two measurements.

    Returns:
        For each measurement its step, loss, sharpness and kernel alignment; at the end the eigenvector alignments, NaN
        where the loss was not reached; and the share of steps at which the loss rose.
    """
    targets = one_hot(y).to(x.dtype)
    series: dict[str, list[float]] = {"step": [], "loss": [], "sharpness": [], "alignment": []}
    rises, before = 0, math.inf
    for step in range(most_steps + 1):
        loss = ((model(x) - targets) ** 2).sum(1).mean() / 2
        value = float(loss.detach())
        rises += value > before
        before = value
        ended = value <= goal or not math.isfinite(value) or step == most_steps
        if math.isfinite(value) and (step % every == 0 or ended):
            kernel = KernelView(empirical_ntk(model, x).cpu())
            now = (step, value, sharpness(model, x), kernel_alignment(kernel, y.cpu()))
            for key, number in zip(series, now, strict=True):
                series[key].append(float(number))
        if ended:
            break
        sgd_step(model, loss, lr)
    reached = value <= goal
    ranks = [eigenvector_alignment(kernel, y.cpu(), k) if reached and k < len(y) else math.nan for k in RANKS]
    return {
        **series,
        "steps": step,
        "reached": reached,
        "rises": rises / max(step, 1),
        "final_alignment": series["alignment"][-1] if reached else math.nan,
        "final_uncentred": uncentred_alignment(kernel, (targets @ targets.T).cpu()) if reached else math.nan,
        "eigenvectors": ranks,
    }


def sharpening(run: Mapping[str, Any]) -> float:
    """Return by how many powers of 2 the largest sharpness of a run lies above the first."""
    return math.log2(max(run["sharpness"]) / run["sharpness"][0])


def settled(run: Mapping[str, Any]) -> float:
    """Return the geometric mean of λ over the last quarter of the measurements."""
    last = run["sharpness"][-max(1, len(run["sharpness"]) // 4) :]
    return float(np.exp(np.mean(np.log(last))))


def from_the_edge(value: float, run: Mapping[str, Any]) -> float:
    """Return by how many powers of 2 a λ differs from 2/η of a run, without the sign."""
    return abs(math.log2(sharpness_ratio(value, run["lr"])))


def pinned(run: Mapping[str, Any], smallest: Mapping[str, Any]) -> float:
    """Return how much nearer λ ends to 2/η than it does where the step is too small to matter: powers of 2."""
    return from_the_edge(settled(smallest), run) - from_the_edge(settled(run), run)


def judge(results: Results) -> Sequence[Claim]:
    """Judge the two statements."""
    by_network = {NAMES[part]: results.measured(part) for part in parts(results.context)}
    return (
        Claim(
            "alignment",
            "Larger steps, trained to the same loss, end with a kernel that is aligned better with the labels",
            tuple(finding for case, measured in by_network.items() for finding in _alignment(case, measured)),
            "Four step sizes allow only a few values of a rank correlation. The first eigenvector of an uncentred "
            "kernel is nearly constant over the samples, so that the alignment with k = 1 is almost zero for small "
            "steps. For the alignment of the whole kernel the activation matters, and whether the kernel is centred; "
            "the numbers without centring were added after a first look.",
        ),
        Claim(
            "edge",
            "The largest eigenvalue rises in training up to about 2/η and stays there",
            tuple(finding for case, measured in by_network.items() for finding in _edge(case, measured)),
            "With the smallest step the loss is reached before 2/η is. The largest step begins above it, so that the "
            "eigenvalue has to fall first. The Gauss–Newton matrix leaves out a part of the Hessian that vanishes with "
            "the residuals.",
        ),
    )


def _alignment(case: str, measured: Sequence[Mapping[str, Any]]) -> list[Finding]:
    named: list[tuple[str, str, int | None]] = [
        (f"eigenvector alignment, k = {k}", "eigenvectors", i) for i, k in enumerate(RANKS)
    ]
    named += [
        ("kernel alignment", "final_alignment", None),
        ("kernel alignment without centring", "final_uncentred", None),
    ]
    findings = []
    for name, key, position in named:
        by_step = [[_number(one["runs"][i], key, position) for one in measured] for i in range(len(STEPS))]
        tied = trend(list(zip(STEPS, by_step, strict=True)))
        told = f"rank correlation of the final {name} with the step size"
        # Of the whole kernel's two the centred one is judged, which this package calls kernel alignment; the other
        # tells what the result owes to the centring.
        findings.append(reported(case, told, tied) if key == "final_uncentred" else found(case, told, tied, 0))
        rise = [last - first for first, last in zip(by_step[0], by_step[-1], strict=True)]
        findings.append(reported(case, f"final {name}: largest step less smallest", rise))
    return findings


def _number(run: Mapping[str, Any], key: str, position: int | None) -> float:
    return float(run[key] if position is None else run[key][position])


def _edge(case: str, measured: Sequence[Mapping[str, Any]]) -> list[Finding]:
    seeds = [one["runs"] for one in measured]
    worst = [max(from_the_edge(settled(run), run) for run in runs[1:]) for runs in seeds]
    highest = [sharpness_ratio(max(runs[0]["sharpness"]), runs[0]["lr"]) for runs in seeds]
    findings = [
        # 0: no sharpening.
        found(case, "log2 of the largest λ over the initial one, smallest step", [sharpening(r[0]) for r in seeds], 0),
        found(
            case,
            "distance of log2 λ from log2 2/η over the last quarter, the largest of the three larger steps'",
            worst,
            AT_ITS_OWN,
            above=False,
        ),
    ]
    for i, multiple in list(enumerate(STEPS))[1:]:
        findings += [
            # 0: λ ends no nearer to 2/η than it would anyway.
            found(
                case,
                f"how much nearer λ ends to 2/η than with the smallest step, {multiple:g} · 2/λ (powers of 2)",
                [pinned(runs[i], runs[0]) for runs in seeds],
                0,
            ),
            reported(
                case,
                f"λ over 2/η in the last quarter, {multiple:g} · 2/λ",
                [sharpness_ratio(settled(runs[i]), runs[i]["lr"]) for runs in seeds],
            ),
        ]
    return [
        *findings,
        reported(case, "largest λ over 2/η, smallest step", highest),
        reported(case, "share of steps at which the loss rose, smallest step", [runs[0]["rises"] for runs in seeds]),
        reported(case, "share of steps at which the loss rose, largest step", [runs[-1]["rises"] for runs in seeds]),
    ]


def draw(results: Results) -> Mapping[str, Figure]:
    """Draw for each network λ over the training, the alignment against the loss, and the final alignments."""
    figures = {}
    for part in parts(results.context):
        measured = results.measured(part)
        with drawing():
            figure = new_figure(PAGE_INCHES, 2.7)
            left, middle, right = figure.subplots(1, 3)
            for i, (multiple, run) in enumerate(zip(STEPS, measured[0]["runs"], strict=True)):
                time = [run["lr"] * step for step in run["step"]]
                left.plot(time, run["sharpness"], label=f"η = {multiple:g} · 2/λ", **look(i))
                left.axhline(2 / run["lr"], color=look(i)["color"], linewidth=0.7, linestyle=look(i)["linestyle"])
                middle.plot(run["loss"], run["alignment"], **look(i))
            left.set(xlabel="η · steps", ylabel="λ of the loss (thin: 2/η)", ylim=(0, None))
            middle.set(xlabel="training loss", ylabel="kernel alignment")
            log_scale(middle, "x")
            middle.invert_xaxis()
            named = [(f"k = {k}", "eigenvectors", i) for i, k in enumerate(RANKS)]
            whole = [("whole kernel", "final_alignment", None), ("same, uncentred", "final_uncentred", None)]
            for place, (name, key, position) in enumerate([*named, *whole]):
                numbers = [[_number(one["runs"][i], key, position) for one in measured] for i in range(len(STEPS))]
                if np.isfinite(numbers).any():
                    draw_points(right, STEPS, numbers, place, name)
            right.set(
                xlabel="step size (2/λ at initialisation)", ylabel="final alignment", xscale="log", ylim=(0, 1.05)
            )
            right.set_xticks(STEPS, [f"{step:g}" for step in STEPS])
            right.minorticks_off()
            legend_above(right, 2, columnspacing=1, handlelength=2)
            put_legend(figure, *left.get_legend_handles_labels())
        figures[part] = figure
    return figures


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
