"""Polynomial networks (Π-nets) and the order in which frequencies are learnt.

Published (Choraria et al. 2022, "The Spectral Bias of Polynomial Neural Networks", arXiv 2202.13473): networks learn
low frequencies first; the analysis of the kernel of Π-nets, whose layers multiply functions of the input, finds that

1. the eigenvalues of the kernel fall more slowly with the frequency than those of standard networks, and
2. Π-nets learn the higher frequencies faster, also in experiments with networks of finite width.

The abstract (spectral analysis of the kernel; the Π-net family speeds up the learning of higher frequencies;
experiments) was read again for this study; the exponents of the theorems were not, and nothing is judged by them.

Here: regression on the unit circle, inputs `(cos θ, sin θ, 1)` at N equal steps, with networks in NTK
parametrisation: a multilayer perceptron with one and with two hidden layers, and products `φ(A_1 x) ∘ … ∘ φ(A_n x)`
of n = 2 and 3 ReLU layers of the same width under a linear head. The eigenvalue at the frequency k is the mean over
cosine and sine of `uᵀ Θ_0 u / N`, with u of norm 1: on the circle these are the eigenvectors of the kernel in the
limit of infinite width. Then each network is trained by full-batch gradient descent on the sum of all frequencies up
to K with amplitude 1 and random phases, with η a fifth of N/λ_max of its own kernel. t_k is the first iteration at
which the residual's amplitude at k is below half of what it was.

Differs from the published setting: a circle in place of spheres of higher dimension and of images; the constant third
input in training, without which the kernel of a perceptron with one hidden layer has no odd frequencies above 1 (but
for its small biases); small width; few frequencies; no skip connections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import MLP, NTKLinear
from avalanche_ntk.measures import mode_response, spectral_norm
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import PAGE_INCHES, add_legend, drawing, legend_height, new_figure
from avalanche_ntk.reproduce.drawing import draw_points
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import sgd_step
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported

NETWORKS = {
    "mlp-1": "MLP, 1 hidden layer",
    "mlp-2": "MLP, 2 hidden layers",
    "pi-2": "Π-net, degree 2",
    "pi-3": "Π-net, degree 3",
}
PAIRS = (("pi-2", "mlp-1"), ("pi-2", "mlp-2"), ("pi-3", "mlp-2"))  # the last two with equally many layers or more

RATE = 0.2  # η in units of N/λ_max, of which 2 is the limit of stability: room for a kernel that grows
INPUTS = {"eigenvalues": "with the constant input", "eigenvalues_without": "without it"}

Array = NDArray[np.float64]


class PiNet(nn.Module):
    """A product of ReLU layers that all read the input, and a linear head, in NTK parametrisation.

    `f(x) = vᵀ(φ(A_1 x) ∘ … ∘ φ(A_n x)) · 2^{n/2}/√width`; the factor keeps the scale, as `E[φ(z)²] = ½`.

    Args:
        in_features: Numbers read.
        n_classes: Outputs.
        width: Units of each layer.
        degree: Number of layers n that are multiplied; 1 is a perceptron with one hidden layer.

    Source: Chrysos et al. 2020, "Π-nets", without skip connections; Choraria et al. 2022.
    """

    def __init__(self, in_features: int, n_classes: int = 1, *, width: int = 256, degree: int = 2) -> None:
        super().__init__()
        self.factors = nn.ModuleList(NTKLinear(in_features, width) for _ in range(degree))
        self.classifier = NTKLinear(width, n_classes, sigma_w=2 ** (degree / 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, n_classes)` for `(N, in_features)`."""
        product = torch.relu(self.factors[0](x))
        for factor in self.factors[1:]:
            product = product * torch.relu(factor(x))
        logits: Tensor = self.classifier(product)
        return logits


def build(name: str, width: int) -> nn.Module:
    """Return a network of `NETWORKS`, with three inputs and one output."""
    kind, number = name.split("-")
    if kind == "mlp":
        return MLP(3, 1, width=width, depth=int(number), parametrisation="ntk")
    return PiNet(3, width=width, degree=int(number))


def parts(context: Context) -> dict[str, dict[str, Any]]:
    """Return what is measured: each network."""
    shared = {
        "width": context.pick(32, 256, 8192),
        "points": context.pick(32, 64, 512),
        "highest": context.pick(4, 6, 30),
        "steps": context.pick(50, 6000, 300_000),
    }
    return {name: {"network": name, **shared} for name in NETWORKS}


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Measure the kernel's eigenvalues by frequency, and train."""
    points, highest = arguments["points"], arguments["highest"]
    angles = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    x = circle(angles, 1.0)
    phases = np.random.default_rng(seed).uniform(0, 2 * math.pi, highest)
    target = sum(torch.cos(k * angles + phases[k - 1]) for k in range(1, highest + 1))
    y = torch.as_tensor(target, dtype=torch.float32)
    model = build(arguments["network"], arguments["width"])
    kernel = empirical_ntk(model, x, dtype=torch.float64).numpy()
    without = empirical_ntk(model, circle(angles, 0.0), dtype=torch.float64).numpy()
    eta = RATE * points / spectral_norm(kernel)
    amplitudes: list[Array] = []
    for step in range(arguments["steps"] + 1):
        logit = model(x)[:, 0]
        residual = logit - y
        amplitudes.append(amplitude(residual.detach().double().numpy(), highest))
        if step == 0:
            response = mode_response(kernel, residual.detach().numpy())
        if step < arguments["steps"]:
            sgd_step(model, (residual**2).mean() / 2, eta)
    curves = np.array(amplitudes)
    return {
        "eigenvalues": by_frequency(kernel, highest).tolist(),
        "eigenvalues_without": by_frequency(without, highest).tolist(),
        "top_modes": float(response.power[:10].sum() / response.power.sum()),
        "half": [half_time(curves[:, k]) for k in range(highest)],
        "steps": arguments["steps"],
        "left": (curves[-1] / curves[0]).tolist(),
        "loss": [float((curves[i] ** 2).sum() / 4) for i in (0, -1)],
    }


def circle(angles: Tensor, constant: float) -> Tensor:
    """Return inputs `(cos θ, sin θ, c)`, `(N, 3)`."""
    return torch.stack([angles.cos(), angles.sin(), torch.full_like(angles, constant)], dim=1).float()


def fourier(points: int, frequency: int) -> Array:
    """Return cosine and sine at a frequency on equal steps of the circle, each of norm 1, `(2, N)`."""
    angles = 2 * math.pi * frequency * np.arange(points) / points
    made: Array = np.stack([np.cos(angles), np.sin(angles)]) * math.sqrt(2 / points)
    return made


def by_frequency(kernel: Array, highest: int) -> Array:
    """Return `λ_k`, the mean over cosine and sine of `uᵀ Θ u / N`, for k = 1 … highest."""
    made = []
    for k in range(1, highest + 1):
        modes = fourier(len(kernel), k)
        made.append(float(np.trace(modes @ kernel @ modes.T)) / 2 / len(kernel))
    return np.array(made)


def amplitude(values: Array, highest: int) -> Array:
    """Return the amplitude at each frequency: `cos(k θ + φ)` has 1 at k and 0 elsewhere."""
    made = [np.linalg.norm(fourier(len(values), k) @ values) for k in range(1, highest + 1)]
    return np.array(made) * math.sqrt(2 / len(values))


def half_time(curve: Sequence[float] | Array) -> float:
    """Return the first iteration at which an amplitude is below half of its first value; NaN if none is.

    >>> half_time([1.0, 0.7, 0.4, 0.6])
    2.0
    """
    below = np.flatnonzero(np.asarray(curve) < 0.5 * curve[0])
    return float(below[0]) if len(below) else math.nan


def decay_exponent(eigenvalues: Sequence[float]) -> float:
    """Return the slope of `log λ_k` on `log k`, by least squares.

    >>> round(decay_exponent([1.0, 2.0**-3, 3.0**-3]), 12)
    -3.0
    """
    return float(np.polyfit(np.log(np.arange(1, len(eigenvalues) + 1)), np.log(eigenvalues), 1)[0])


def relative_eigenvalue(eigenvalues: Sequence[float]) -> float:
    """Return the mean of `log(λ_k/λ_1)` over k ≥ 2.

    >>> round(relative_eigenvalue([1.0, math.e**-1, math.e**-3]), 12)
    -2.0
    """
    return float(np.mean(np.log(eigenvalues[1:]))) - math.log(eigenvalues[0])


def slowdown(one: Mapping[str, Any], *, censored_at: float | None = None) -> float:
    """Return `log(t_K/t_1)`: how much later than the lowest the highest frequency is learnt.

    Args:
        one: What was measured.
        censored_at: What stands for a time that was not reached; NaN when None.

    Returns:
        The logarithm.
    """
    low, high = one["half"][0], one["half"][-1]
    if censored_at is not None and not math.isfinite(high):
        high = censored_at
    return math.log(high / low) if math.isfinite(low) and math.isfinite(high) else math.nan


def judge(results: Results) -> list[Claim]:
    """Judge the eigenvalues' decay and the order of learning."""
    measured = {name: results.measured(name) for name in NETWORKS}
    exponents = {name: [decay_exponent(one["eigenvalues"]) for one in measured[name]] for name in NETWORKS}
    # Where the perceptron has not reached t_K, the end of training stands for it: the difference is a lower bound.
    slow = {
        name: [slowdown(one, censored_at=one["steps"] if name.startswith("mlp") else None) for one in measured[name]]
        for name in NETWORKS
    }
    highest = len(measured["mlp-1"][0]["eigenvalues"])
    relative = {
        (name, key): [relative_eigenvalue(one[key]) for one in measured[name]] for name in NETWORKS for key in INPUTS
    }
    return [
        Claim(
            "decay",
            "The exponent with which the kernel's eigenvalues fall with the frequency is smaller in a Π-net than in a "
            "multilayer perceptron",
            (
                *(
                    found(
                        f"{NETWORKS[pi]} − {NETWORKS[mlp]}",
                        "slope of log λ_k on log k, difference",
                        minus(exponents[pi], exponents[mlp]),
                        0.0,
                    )
                    for pi, mlp in PAIRS
                ),
                *(reported(NETWORKS[name], "slope of log λ_k on log k", exponents[name]) for name in NETWORKS),
            ),
            f"Over the frequencies 1 to {highest}, with the constant input. Products lift the eigenvalues of the first "
            "few frequencies, behind which the decay is no slower: the kink of a ReLU's kernel at equal inputs sets "
            "the decay at high frequencies, and a product of such kernels has a kink of the same kind.",
        ),
        Claim(
            "higher",
            "Relative to the lowest frequency, the higher ones have larger eigenvalues in a Π-net",
            (
                *(
                    found(
                        f"{NETWORKS[pi]} − {NETWORKS[mlp]}, {words}",
                        f"mean of log(λ_k/λ_1) over k = 2 … {highest}, difference",
                        minus(relative[pi, key], relative[mlp, key]),
                        0.0,
                    )
                    for key, words in INPUTS.items()
                    for pi, mlp in PAIRS
                ),
            ),
            "A weaker reading of the statement before, added after the exponents of one seed had been seen. Without "
            "the constant input, points on a circle around the origin, the perceptron with one hidden layer all but "
            "lacks the odd frequencies from 3 on. A second hidden layer lifts the higher frequencies too.",
        ),
        Claim(
            "order",
            "A Π-net learns high frequencies sooner, relative to low ones",
            _order(measured, results.context, slow),
            "The ratio t_K/t_1 does not depend on the unit of time. It follows from the eigenvalues as far as the "
            "kernel stays what it was; products of layers move theirs more than perceptrons of the same width.",
        ),
    ]


def _order(
    measured: Mapping[str, Sequence[Mapping[str, Any]]], context: Context, slow: Mapping[str, list[float]]
) -> tuple[Finding, ...]:
    highest = len(measured["mlp-1"][0]["eigenvalues"])
    missed = {name: sum(not math.isfinite(one["half"][-1]) for one in measured[name]) for name in NETWORKS}
    losses = [one["loss"][1] / one["loss"][0] for name in NETWORKS for one in measured[name]]
    return (
        *(
            found(
                f"{NETWORKS[mlp]} − {NETWORKS[pi]}",
                f"log(t_{highest}/t_1), difference",
                minus(slow[mlp], slow[pi]),
                0.0,
                note=f"{missed[mlp]} perceptrons had not reached t_{highest}: lower bounds" if missed[mlp] else "",
            )
            for pi, mlp in PAIRS
        ),
        *(reported(NETWORKS[name], f"log(t_{highest}/t_1)", slow[name]) for name in NETWORKS),
        *(
            reported(
                NETWORKS[name],
                "share of the first residual, Σ (u_iᵀ r)²/‖r‖², in the 10 leading modes of Θ_0",
                [one["top_modes"] for one in measured[name]],
            )
            for name in NETWORKS
        ),
        reported(
            "all networks",
            "share of the initial loss left at the end, largest",
            [max(losses[i :: len(context.seeds)]) for i in range(len(context.seeds))],
        ),
    )


def draw(results: Results) -> dict[str, Figure]:
    """Draw eigenvalues and times by frequency."""
    measured = {name: results.measured(name) for name in NETWORKS}
    frequencies = list(range(1, len(measured["mlp-1"][0]["eigenvalues"]) + 1))
    with drawing():
        figure = new_figure(PAGE_INCHES, 2.8 + legend_height(list(NETWORKS.values()), PAGE_INCHES))
        left, right = figure.subplots(1, 2)
        for position, name in enumerate(NETWORKS):
            relative = [
                [one["eigenvalues"][k - 1] / one["eigenvalues"][0] for one in measured[name]] for k in frequencies
            ]
            draw_points(left, frequencies, relative, position)
            times = [[one["half"][k - 1] / one["half"][0] for one in measured[name]] for k in frequencies]
            draw_points(right, frequencies, times, position)
        for axis, label in (
            (left, "eigenvalue $\\lambda_k/\\lambda_1$ of $\\Theta_0$"),
            (right, "time to half, $t_k/t_1$"),
        ):
            axis.set(xscale="log", xlabel="frequency k", ylabel=label)
            axis.set_xticks(frequencies, [str(k) for k in frequencies])
            axis.minorticks_off()
            log_scale(axis)
        add_legend(figure, list(NETWORKS.values()), markers=True)
    return {"pi-nets": figure}


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
