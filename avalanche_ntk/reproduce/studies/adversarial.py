"""Kernels under adversarial training: where they go, and whether they are robust by themselves.

Published:

1. Under adversarial training the kernel rapidly converges to a different one than under standard training (Loo et al.
   2022, "Evolution of Neural Tangent Kernels under Benign and Adversarial Training", arXiv 2210.12030), and its
   motion becomes lazy much earlier (Tsilivis & Kempe 2022, arXiv 2210.05577).
2. The new kernel is robust even when non-robust training is performed on top of it (Loo et al.).
3. Its effective rank is higher than that of standard training's kernel, and it has moved further from initialisation.

The first two are in the abstracts, which were read again for this study; the third is said of Loo et al.'s
experiments and could not be read again.

Here: a multilayer perceptron is trained from one initialisation (a) on clean images, (b) again with other
minibatches, the control for how different two kernels of standard training are, and (c) on images perturbed by
projected gradient ascent of the loss (PGD) in the ball `‖x' − x‖_∞ ≤ ε`. Kernels are those of a fixed probe of test
images. For a kernel machine on `Θ_t`, the linear model `f(x) = J_t(x) ω` is fitted to clean one-hot labels by ridge
regression with the full kernel (ridge 1e-3 of the mean diagonal: small against what is fitted, with a stable
inverse). Robust accuracy is that on test images perturbed by PGD against the very predictor that is tested: the
network, or the kernel machine, differentiated through its Jacobian. Nothing is transferred from one to the other.

Differs from the published settings: digits and a perceptron in place of CIFAR-10 and ResNets; a hundred training
images for the kernel machine; ridge regression in place of training on the linearised loss; ε in standard deviations
of the pixels (0.3 of the digits, which is 11 % of their range; 0.125 otherwise, about 8/255), not clipped to the
range.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call, jvp

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import (
    as_matrix,
    effective_rank,
    eigenvector_alignment,
    kernel_distance,
    kernel_ridge,
    one_hot,
)
from avalanche_ntk.report.style import PAGE_INCHES, drawing, legend_above, new_figure
from avalanche_ntk.reproduce.drawing import draw_curve
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import class_labels, minibatches, samples, sgd_step
from avalanche_ntk.reproduce.verdicts import Claim, found, reported

WAYS = ("standard", "again", "adversarial")
RIDGE = 1e-3  # of the kernel machine, in units of the kernel's mean diagonal entry
SETTLED = 0.1  # share of the whole way S(Θ_0, Θ_end) that is left when a kernel counts as settled

Predictor = Callable[[Tensor], Tensor]


def parts(context: Context) -> dict[str, dict[str, Any]]:
    """Return what is measured: one part, whose trainings start from the same network."""
    return {
        "training": {
            "per_class": context.pick(10, 60, 5000),
            "probe_per_class": context.pick(3, 10, 10),
            "test_per_class": context.pick(5, 30, 1000),
            "fitted_per_class": context.pick(3, 10, 50),
            "width": context.pick(16, 128, 1024),
            "batch": context.pick(20, 50, 128),
            "steps": context.pick(20, 480, 40_000),
            "every": context.pick(5, 20, 1000),
            "lr": 0.1,
            "epsilon": 0.3 if context.is_digits else 0.125,
            "ascent": context.pick(2, 5, 10),
            "attack": context.pick(3, 10, 20),
        }
    }


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train in every way, watch the kernels, and attack networks and kernel machines."""
    classes = class_labels(context)
    x, y = samples(context, classes, arguments["per_class"], seed=seed)
    x_test, y_test = samples(context, classes, arguments["test_per_class"], seed=seed, part="test")
    probe, probe_labels = samples(context, classes, arguments["probe_per_class"], seed=seed, part="test")
    fitted, labels = samples(context, classes, arguments["fitted_per_class"], seed=seed)
    epsilon, attack = arguments["epsilon"], arguments["attack"]
    kernels: dict[str, list[Any]] = {}
    made: dict[str, Any] = {"iteration": list(range(0, arguments["steps"] + 1, arguments["every"]))}
    start: nn.Module | None = None
    for way in WAYS:
        torch.manual_seed(seed)
        model = MLP(x[0].numel(), len(classes), width=arguments["width"], depth=2)
        if start is None:
            start = MLP(x[0].numel(), len(classes), width=arguments["width"], depth=2)
            start.load_state_dict(model.state_dict())
        generator = torch.Generator("cpu").manual_seed(seed + (1_000 if way == "again" else 0))
        kernels[way] = [_kernel(model, probe)]
        for step, batch in enumerate(minibatches(len(x), arguments["batch"], arguments["steps"], generator), start=1):
            shown = x[batch]
            if way == "adversarial":
                shown = perturb(model, shown, y[batch], epsilon, arguments["ascent"])
            sgd_step(model, nn.functional.cross_entropy(model(shown), y[batch]), arguments["lr"])
            if step % arguments["every"] == 0:
                kernels[way].append(_kernel(model, probe))
        machine = kernel_machine(model, fitted, labels)
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(model(x), y))
        made[way] = {
            "train_loss": loss,
            "network": _accuracies(model, x_test, y_test, epsilon, attack),
            "machine": _accuracies(machine, x_test, y_test, epsilon, attack),
            "effective_rank": [effective_rank(kernel) for kernel in kernels[way]],
            "alignment": eigenvector_alignment(kernels[way][-1], probe_labels.numpy(), len(classes)),
            "from_init": [kernel_distance(kernels[way][0], kernel) for kernel in kernels[way][1:]],
            "to_end": [kernel_distance(kernel, kernels[way][-1]) for kernel in kernels[way]],
        }
    assert start is not None
    made["initial"] = {"machine": _accuracies(kernel_machine(start, fitted, labels), x_test, y_test, epsilon, attack)}
    made["apart"] = {
        other: [kernel_distance(a, b) for a, b in zip(kernels["standard"], kernels[other], strict=True)][1:]
        for other in ("again", "adversarial")
    }
    return made


def _kernel(model: nn.Module, probe: Tensor) -> Any:
    return empirical_ntk(model, probe, dtype=torch.float64).numpy()


def perturb(predictor: Predictor, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """Return inputs moved by projected gradient ascent of the cross-entropy, within `‖x' − x‖_∞ ≤ ε`.

    Args:
        predictor: From inputs to logits, differentiable.
        x: Inputs, `(N, …)`.
        y: Labels.
        epsilon: ε.
        steps: Number of steps, of size 2.5 ε/steps each, from x itself.

    Returns:
        Inputs of the same shape.

    Source: Madry et al. 2018, without the random start.
    """
    moved = x.clone()
    for _ in range(steps):
        moved.requires_grad_(True)
        loss = nn.functional.cross_entropy(predictor(moved), y)
        (gradient,) = torch.autograd.grad(loss, moved)
        with torch.no_grad():
            moved = x + (moved + 2.5 * epsilon / steps * gradient.sign() - x).clamp(-epsilon, epsilon)
    return moved.detach()


def kernel_machine(model: nn.Module, x: Tensor, y: Tensor) -> Predictor:
    """Return the linear model in the network's gradients, fitted to one-hot labels by ridge regression.

    `f(x) = Σ_m Θ(x, x_m) α_m + 1/C` with `α = (Θ + ρ I)⁻¹ (Y − 1/C)` and the full kernel, which is `J(x) ω + 1/C` with
    `ω = J(X)ᵀ α`: as such it can be differentiated in x.

    Args:
        model: The network whose parameters the kernel is taken at.
        x: N inputs to fit.
        y: Their labels, 0 … C−1, each of them present.

    Returns:
        From inputs `(M, …)` to `(M, C)`.
    """
    kernel = as_matrix(empirical_ntk(model, x, reduction="full", dtype=torch.float64).numpy())
    targets = one_hot(y.numpy())
    shift = 1 / targets.shape[1]
    ridge = RIDGE * float(np.trace(kernel)) / len(kernel)
    # With the identity in place of a test kernel the predictions are the coefficients α.
    dual = kernel_ridge(kernel, (targets - shift).reshape(-1), np.eye(len(kernel)), ridge)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    leaves = {name: value.clone().requires_grad_(True) for name, value in weights.items()}
    output = functional_call(model, leaves, (x,))
    coefficients = torch.as_tensor(dual.reshape(targets.shape), dtype=output.dtype)
    gradients = torch.autograd.grad(output, list(leaves.values()), grad_outputs=coefficients)
    omega = dict(zip(leaves, gradients, strict=True))

    def predict(inputs: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")  # torch's own, when it first loads forward mode
            linear: Tensor = jvp(lambda theta: functional_call(model, theta, (inputs,)), (weights,), (omega,))[1]
        predicted: Tensor = linear + shift
        return predicted

    return predict


def _accuracies(predictor: Predictor, x: Tensor, y: Tensor, epsilon: float, steps: int) -> dict[str, float]:
    moved = perturb(predictor, x, y, epsilon, steps)
    with torch.no_grad():
        clean, robust = ((predictor(inputs).argmax(1) == y).double().mean() for inputs in (x, moved))
    return {"clean": float(clean), "robust": float(robust)}


def settled_at(iterations: Sequence[int], to_end: Sequence[float], way: float) -> float:
    """Return the first iteration from which the distance to the last kernel stays below a tenth of the whole way.

    Args:
        iterations: Of the kernels.
        to_end: `S(Θ_t, Θ_end)` at each.
        way: `S(Θ_0, Θ_end)`.

    Returns:
        An iteration; NaN where the kernel did not move.

    >>> settled_at([0, 10, 20, 30], [1.0, 0.3, 0.05, 0.0], 1.0)
    20.0
    """
    if not way > 0:
        return math.nan
    far = [i for i, distance in enumerate(to_end) if distance >= SETTLED * way]
    return float(iterations[far[-1] + 1])


def judge(results: Results) -> list[Claim]:
    """Judge where kernels go and how robust they are."""
    seeds = results.measured("training")
    return [_robust(seeds), _different(seeds), _settles(seeds), _rank(seeds), _moved(seeds)]


def _robust(seeds: Sequence[Mapping[str, Any]]) -> Claim:
    robust = [
        (f"{what}, {word}", [one[way][key]["robust" if word == "perturbed" else "clean"] for one in seeds])
        for what, way, key in (
            ("network, standard", "standard", "network"),
            ("network, adversarial", "adversarial", "network"),
            ("machine on Θ_0", "initial", "machine"),
            ("machine on the standard kernel", "standard", "machine"),
            ("machine on the adversarial kernel", "adversarial", "machine"),
        )
        for word in ("clean", "perturbed")
    ]
    return Claim(
        "robust",
        "The kernel of adversarial training is more robust than that of standard training, fitted to clean images only",
        (
            found(
                "kernel machines",
                "accuracy on perturbed test images, adversarial − standard kernel",
                _difference(seeds, lambda run: run["machine"]["robust"]),
                0.0,
            ),
            found(
                "kernel machines",
                "accuracy on perturbed test images, adversarial kernel − Θ_0",
                [one["adversarial"]["machine"]["robust"] - one["initial"]["machine"]["robust"] for one in seeds],
                0.0,
            ),
            found(
                "networks",
                "accuracy on perturbed test images, adversarial − standard",
                _difference(seeds, lambda run: run["network"]["robust"]),
                0.0,
            ),
            *(reported(case, "accuracy on test images", values) for case, values in robust),
        ),
        "Perturbations are made against the predictor that is tested. The last difference only shows that "
        "adversarial training did what it is for.",
    )


def _different(seeds: Sequence[Mapping[str, Any]]) -> Claim:
    return Claim(
        "different",
        "Adversarial training leads to a different kernel than standard training",
        (
            found(
                "end of training",
                "S(standard, adversarial) − S(standard, standard with other minibatches)",
                [one["apart"]["adversarial"][-1] - one["apart"]["again"][-1] for one in seeds],
                0.0,
            ),
            *(
                reported("end of training", f"S(standard, {words})", [one["apart"][way][-1] for one in seeds])
                for way, words in (("adversarial", "adversarial"), ("again", "standard with other minibatches"))
            ),
        ),
        "All from the same initialisation, on the same probe of clean images.",
    )


def _settles(seeds: Sequence[Mapping[str, Any]]) -> Claim:
    return Claim(
        "settles",
        "Under adversarial training the kernel settles earlier",
        (
            found(
                "training",
                "iteration at which a tenth of S(Θ_0, Θ_end) is left, standard − adversarial",
                [_settled(one, "standard") - _settled(one, "adversarial") for one in seeds],
                0.0,
            ),
            *(
                reported("training", f"that iteration, {way}", [_settled(one, way) for one in seeds])
                for way in ("standard", "adversarial")
            ),
        ),
        f"Of {seeds[0]['iteration'][-1]} iterations, at which standard training has long fitted "
        "all images and adversarial training need not have: what has not ended keeps moving its kernel.",
    )


def _rank(seeds: Sequence[Mapping[str, Any]]) -> Claim:
    return Claim(
        "rank",
        "The kernel of adversarial training has a higher effective rank",
        (
            found(
                "end of training",
                "effective rank, adversarial − standard",
                _difference(seeds, lambda run: run["effective_rank"][-1]),
                0.0,
            ),
            *(
                reported("end of training", f"effective rank, {way}", [one[way]["effective_rank"][-1] for one in seeds])
                for way in ("standard", "adversarial")
            ),
            reported("initialisation", "effective rank", [one["standard"]["effective_rank"][0] for one in seeds]),
            reported(
                "end of training",
                "share of the labels in as many leading eigenvectors as classes, adversarial − standard",
                _difference(seeds, lambda run: run["alignment"]),
            ),
        ),
        "Of the trace kernel of a balanced probe: a kernel of ten well separated classes has an effective rank "
        "near 9. The statement could not be read again in its source.",
    )


def _moved(seeds: Sequence[Mapping[str, Any]]) -> Claim:
    return Claim(
        "moved",
        "Adversarial training moves the kernel further from initialisation",
        (
            found(
                "end of training",
                "S(Θ_0, Θ_end), adversarial − standard",
                _difference(seeds, lambda run: run["from_init"][-1]),
                0.0,
            ),
            *(
                reported("end of training", f"S(Θ_0, Θ_end), {way}", [one[way]["from_init"][-1] for one in seeds])
                for way in ("standard", "adversarial")
            ),
            *(
                reported(
                    "end of training",
                    f"loss on clean training images, {way}",
                    [one[way]["train_loss"] for one in seeds],
                )
                for way in ("standard", "adversarial")
            ),
        ),
        "After equally many steps, at which the adversarial loss is larger. At the scale small the kernel of "
        "adversarial training first goes as far as that of standard training, then part of the way back, while "
        "its effective rank rises again. The statement could not be read again in its source.",
    )


def _difference(seeds: Sequence[Mapping[str, Any]], number: Callable[[Mapping[str, Any]], float]) -> list[float]:
    return [number(one["adversarial"]) - number(one["standard"]) for one in seeds]


def _settled(one: Mapping[str, Any], way: str) -> float:
    return settled_at(one["iteration"], one[way]["to_end"], one[way]["to_end"][0])


def draw(results: Results) -> dict[str, Figure]:
    """Draw the kernels' ways and effective ranks over training, and accuracies on clean and perturbed images."""
    seeds = results.measured("training")
    iterations = seeds[0]["iteration"]
    with drawing():
        figure = new_figure(PAGE_INCHES, 3.0)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
        for position, way in enumerate(("standard", "adversarial")):
            draw_curve(
                left, iterations, [[0.0, *one[way]["from_init"]] for one in seeds], position, f"{way}, from $\\Theta_0$"
            )
            draw_curve(middle, iterations, [one[way]["effective_rank"] for one in seeds], position, way)
        for position, (way, label) in enumerate(
            (("adversarial", "standard to adversarial"), ("again", "standard to standard")), 2
        ):
            draw_curve(left, iterations, [[0.0, *one["apart"][way]] for one in seeds], position, label)
        left.set(xlabel="iteration", ylabel="kernel distance S")
        middle.set(xlabel="iteration", ylabel="effective rank of $\\Theta_t$")
        legend_above(left)
        legend_above(middle)
        bars = (
            ("net\nstand.", "standard", "network"),
            ("net\nadv.", "adversarial", "network"),
            ("kernel\ninitial", "initial", "machine"),
            ("kernel\nstand.", "standard", "machine"),
            ("kernel\nadv.", "adversarial", "machine"),
        )
        for number, word in enumerate(("clean", "robust")):
            heights = [float(np.mean([one[way][key][word] for one in seeds])) for _, way, key in bars]
            places = np.arange(len(bars)) + 0.4 * number - 0.2
            right.bar(places, heights, 0.38, color=("0.75", "0.35")[number], label=("clean", "perturbed")[number])
            for place, (_, way, key) in zip(places, bars, strict=True):
                values = [one[way][key][word] for one in seeds]
                right.plot([place] * len(values), values, ".", color="black", markersize=2.5)
        right.set_xticks(range(len(bars)), [name for name, _, _ in bars], fontsize=6.5)
        right.set(ylabel="accuracy on test images", ylim=(0, 1.05))
        legend_above(right, 2)
    return {"adversarial": figure}


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
