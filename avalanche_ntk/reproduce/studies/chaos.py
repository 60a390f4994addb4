"""Chaos of training: how fast a network and a minutely perturbed twin move apart.

Published:

1. Early training is a chaotic transient: within the first few epochs it is decided where training ends, and what is
   perturbed later no longer leaves (Fort et al. 2020, arXiv 2010.15110, for children with different minibatches).
2. At unconventionally large learning rates the trajectory of gradient descent depends sensitively on its start, with
   a positive maximum Lyapunov exponent, while the network still learns; at small ones it does not (Jiménez-González
   et al. 2025, arXiv 2506.08523; Danovski et al. 2024, arXiv 2404.05782, found hints of it for a shallow network).

The abstracts of the three were read again for this study.

Here: a multilayer perceptron (tanh, float64, cross-entropy, plain SGD) and a twin whose weights differ by `1e-8 ‖θ‖`
in a random direction see the same minibatches. The finite-time exponent over T iterations from iteration s on is `λ =
(1/T) log(d(s+T)/d(s))`, with d the distance of weights, of outputs on a probe (root mean square), or √S of the
kernels, S being quadratic in a small difference. Twins are made anew at each s, so that none has reached the size of
the attractor. Gradient flow itself moves twins apart where the loss is concave, at a rate that is proportional to η
per iteration: `λ/η`, the rate per unit of training time, tells this from chaos. The largest stable η of a seed is the
largest of the grid at which the mean loss of the last 20 iterations is below half of the first.

Differs from the published settings: twins share their minibatches (Fort's children do not), which leaves the initial
difference as the only cause; finite times in place of a limit; plain SGD with minibatches in place of full batches;
one random direction a seed, which first has to turn to the fastest growing one; tanh in place of ReLU, at whose kinks
twins move apart by jumps that no exponent describes (with ReLU such a jump by a factor of 100 or more occurs now and
then also at small η).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from avalanche_ntk.errors import UndefinedMeasureWarning
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import kernel_distance
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import PAGE_INCHES, drawing, legend_above, new_figure
from avalanche_ntk.reproduce.drawing import draw_curve, draw_points
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import accuracy, class_labels, minibatches, samples, sgd_step
from avalanche_ntk.reproduce.verdicts import Claim, found, minus, reported, trend

SIZE = 1e-8  # of the perturbation, relative to the norm of the weights: in no window may it grow to order 1
RATES = (0.05, 0.1, 0.2, 0.5, 0.7, 1.0, 1.4, 2.0)
DISTANCES = ("weights", "outputs", "kernel")


def rates(context: Context) -> tuple[float, ...]:
    """Return the learning rates."""
    few: tuple[float, ...] = context.pick((0.1, 0.5), RATES, RATES)
    return few


def part_name(rate: float) -> str:
    """Return the name of a learning rate's part.

    >>> part_name(0.5)
    'rate-0.5'
    """
    return f"rate-{rate:g}"


def parts(context: Context) -> dict[str, dict[str, Any]]:
    """Return what is measured: pairs of twins at each learning rate."""
    window = context.pick(10, 40, 200)
    shared = {
        "per_class": context.pick(10, 40, 500),
        "width": context.pick(16, 64, 1024),
        "batch": context.pick(10, 40, 128),
        "steps": context.pick(60, 400, 8000),
        "window": window,
        "spawned": context.pick([0, 40], [0, 40, 120, 360], [0, 200, 1000, 7800]),
        "every": context.pick(5, 10, 50),
        "probe": context.pick(10, 30, 200),
    }
    return {part_name(rate): {"lr": rate, **shared} for rate in rates(context)}


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train a network and its twins at one learning rate."""
    classes = class_labels(context)
    x, y = samples(context, classes, arguments["per_class"], seed=seed)
    probe, probe_labels = samples(context, classes, arguments["probe"] // len(classes), seed=seed, part="test")
    x, probe = x.double(), probe.double()
    order = torch.Generator("cpu").manual_seed(seed)
    batches = list(minibatches(len(x), arguments["batch"], arguments["steps"], order))
    torch.manual_seed(seed)
    model = MLP(x[0].numel(), len(classes), width=arguments["width"], depth=2, activation="tanh").double()
    window, lr, every = arguments["window"], arguments["lr"], arguments["every"]
    whole = perturbed(model, seed)  # lives from the start to the end
    twins: dict[int, nn.Module] = {}
    grown: dict[str, dict[str, float]] = {}
    curve: dict[str, list[float]] = {"iteration": [], **{what: [] for what in DISTANCES}}
    losses: list[float] = []
    starts: dict[int, dict[str, float]] = {}
    for step in range(len(batches) + 1):
        if step in arguments["spawned"]:
            twins[step] = perturbed(model, seed)
            starts[step] = distances(model, twins[step], probe)
        for start in [s for s in twins if step == s + window]:
            end = distances(model, twins.pop(start), probe)
            grown[str(start)] = {what: exponent(starts[start][what], end[what], window) for what in DISTANCES}
        if step % every == 0:
            curve["iteration"].append(step)
            for what, distance in distances(model, whole, probe).items():
                curve[what].append(distance)
        if step == len(batches):
            break
        batch = batches[step]
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(model(x[batch]), y[batch])))
        if not math.isfinite(losses[-1]) or losses[-1] > 1e6:
            break
        for net in (model, whole, *twins.values()):
            sgd_step(net, nn.functional.cross_entropy(net(x[batch]), y[batch]), lr)
    for iteration in range(len(curve["iteration"]) * every, len(batches) + 1, every):  # after divergence
        curve["iteration"].append(iteration)
        for what in DISTANCES:
            curve[what].append(math.nan)
    return {
        "stable": stable(losses, len(batches)),
        "losses": losses,
        "exponents": grown,
        "curve": curve,
        "accuracy": accuracy(model, probe, probe_labels),
    }


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose parameters differ by `SIZE ‖θ‖` in a random direction."""
    generator = torch.Generator("cpu").manual_seed(10_000 + seed)
    twin = copy.deepcopy(model)
    noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in twin.parameters()]
    size = SIZE * _norm(list(model.parameters())) / _norm(noise)
    with torch.no_grad():
        for parameter, direction in zip(twin.parameters(), noise, strict=True):
            parameter.add_(size * direction)
    return twin


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float((t.detach() ** 2).sum()) for t in tensors))


def distances(model: nn.Module, twin: nn.Module, probe: Tensor) -> dict[str, float]:
    """Return how far two networks are apart: weights (relative), outputs (root mean square), kernels (√S).

    NaN where a number is not finite, as after divergence.
    """
    mine, others = list(model.parameters()), list(twin.parameters())
    weights = _norm([a - b for a, b in zip(mine, others, strict=True)]) / _norm(mine)
    with torch.no_grad():
        outputs = float(((model(probe) - twin(probe)) ** 2).mean().sqrt())
    if not (math.isfinite(weights) and math.isfinite(outputs)):
        return dict.fromkeys(DISTANCES, math.nan)
    kernels = [empirical_ntk(net, probe).numpy() for net in (model, twin)]
    with warnings.catch_warnings():  # a saturated network's kernel has no direction: NaN is the answer
        warnings.simplefilter("ignore", UndefinedMeasureWarning)
        return {"weights": weights, "outputs": outputs, "kernel": math.sqrt(kernel_distance(*kernels))}


def exponent(first: float, last: float, steps: int) -> float:
    """Return `log(last/first)/steps`, the finite-time exponent in 1/iteration; NaN unless both are positive.

    >>> round(exponent(1e-6, 1e-2, 4), 3)
    2.303
    """
    return math.log(last / first) / steps if first > 0 and last > 0 else math.nan


def stable(losses: Sequence[float], steps: int) -> bool:
    """Tell whether training went to its end, and with what loss.

    Args:
        losses: Of every minibatch.
        steps: How many there should be.

    Returns:
        Whether all are there and the mean of the last 20 is below half of the first.

    >>> stable([2.0] + [0.5] * 20, 21), stable([2.0] + [1.5] * 20, 21), stable([2.0, 0.1], 3)
    (True, False, False)
    """
    last = losses[-20:]
    return len(losses) == steps and all(map(math.isfinite, last)) and sum(last) / len(last) < losses[0] / 2


def largest_stable(by_rate: Mapping[float, Mapping[str, Any]]) -> float:
    """Return the largest learning rate with stable training; NaN where there is none."""
    return max((rate for rate, one in by_rate.items() if one["stable"]), default=math.nan)


def _per_rate(results: Results) -> list[dict[float, dict[str, Any]]]:
    """What was measured, for each seed by learning rate."""
    known = {rate: results.measured(part_name(rate)) for rate in rates(results.context)}
    return [{rate: known[rate][i] for rate in known} for i in range(len(results.context.seeds))]


def _at(by_rate: Mapping[float, Mapping[str, Any]], rate: float, start: str, what: str) -> float:
    found_there = by_rate[rate]["exponents"].get(start) if rate in by_rate else None
    return math.nan if found_there is None else float(found_there[what])


def judge(results: Results) -> list[Claim]:
    """Judge how the exponents depend on the learning rate and on the time."""
    seeds = _per_rate(results)
    grid = rates(results.context)
    spawned = [str(start) for start in results.measured(part_name(grid[0]))[0]["exponents"]]
    first, last = spawned[0], spawned[-1]
    edges = [largest_stable(one) for one in seeds]
    # Rates at which every seed trains: ranks over others would be ranks of divergence.
    common = [rate for rate in grid if all(one[rate]["stable"] for one in seeds)]
    early = {what: [_at(one, edge, first, what) for one, edge in zip(seeds, edges, strict=True)] for what in DISTANCES}
    late = {what: [_at(one, edge, last, what) for one, edge in zip(seeds, edges, strict=True)] for what in DISTANCES}
    levels = {rate: [_at(one, rate, first, "weights") for one in seeds] for rate in common}
    by_time = {rate: [value / rate for value in values] for rate, values in levels.items()}
    final = {rate: [one[rate]["curve"]["kernel"][-1] ** 2 for one in seeds] for rate in common}
    nothing = [math.nan] * len(seeds)  # where no rate, or a single one, is stable for all seeds
    ranked = [trend(by_rate) if len(common) > 1 else nothing for by_rate in (levels, by_time, final)]
    smallest = [_at(one, grid[0], first, "weights") for one in seeds]
    at_edge = [e / edge - s / grid[0] for e, s, edge in zip(early["weights"], smallest, edges, strict=True)]
    return [
        Claim(
            "rises",
            "The exponent at the start of training rises with the learning rate",
            (
                found("from initialisation", "rank correlation of λ of the weights with η", ranked[0], 0.0),
                found("from initialisation", "the same of λ/η, the rate per training time", ranked[1], 0.0),
                found("from initialisation", "λ/η at the largest stable η − at the smallest", at_edge, 0.0),
                reported("all seeds", "largest stable η", edges),
            ),
            f"Over the learning rates at which all seeds train: {', '.join(f'{rate:g}' for rate in common)}. λ in "
            "1/iteration. A rank correlation of λ alone is also what gradient flow gives; that of λ/η is not.",
        ),
        Claim(
            "positive",
            "At the largest stable learning rate early training is chaotic: twins move apart exponentially",
            tuple(found("largest stable η", f"λ of the {what}", early[what], 0.0) for what in DISTANCES),
            "The distance of kernels is taken as √S, which is linear in a small difference.",
        ),
        Claim(
            "transient",
            "The exponent falls later in training",
            (
                *(
                    found(
                        "largest stable η",
                        f"λ of the {what} from iteration {first} − from {last}",
                        minus(early[what], late[what]),
                        0.0,
                    )
                    for what in DISTANCES
                ),
                reported("largest stable η", f"λ of the weights from iteration {last}", late["weights"]),
            ),
            "Finite windows: a perturbation in a random direction first has to turn to the direction that grows, so "
            "that the exponents are lower bounds of what is possible in the window.",
        ),
        Claim(
            "kernels",
            "The kernels of the twins end further apart at larger learning rates",
            (
                found("end of training", "rank correlation of S(Θ, Θ') with η", ranked[2], 0.0),
                *(
                    reported(f"η = {rate:g}", "S(Θ, Θ') at the end", final[rate])
                    for rate in ([common[0], common[-1]] if common else [])
                ),
            ),
            "The twins differ by 1e-8 of the weights' norm at initialisation and see the same minibatches. Below the "
            "onset of chaos the distance stays near its first value.",
        ),
    ]


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


def draw(results: Results) -> dict[str, Figure]:
    """Draw distances over training, exponents by learning rate and start, and the kernels' distances at the end."""
    seeds = _per_rate(results)
    grid = rates(results.context)
    shown = [rate for rate in grid if all(one[rate]["stable"] for one in seeds)] or [grid[0]]
    picked = sorted({shown[0], shown[len(shown) // 2], shown[-1]})
    spawned = list(seeds[0][shown[0]]["exponents"])
    with drawing():
        figure = new_figure(PAGE_INCHES, 2.8)
        left, middle, right = figure.subplots(1, 3)
        for position, rate in enumerate(picked):
            curves = [one[rate]["curve"] for one in seeds]
            draw_curve(
                left,
                curves[0]["iteration"],
                [[_log10(value) for value in c["weights"]] for c in curves],
                position,
                f"η = {rate:g}",
            )
        left.set(xlabel="iteration", ylabel="log₁₀ of the weights' relative distance")
        legend_above(left)
        for position, start in enumerate(spawned):
            levels = [[_at(one, rate, start, "weights") for one in seeds] for rate in shown]
            draw_points(middle, shown, levels, position, f"from {start}")
        middle.axhline(0.0, color="0.6", linewidth=0.6, zorder=0)
        log_scale(middle, "x")
        middle.set(xlabel="learning rate η", ylabel="exponent λ in 1/iteration")
        legend_above(middle, 2, title="iteration")
        for position, what in enumerate(("start", "end")):
            index = 0 if what == "start" else -1
            levels = [[2 * _log10(one[rate]["curve"]["kernel"][index]) for one in seeds] for rate in shown]
            draw_points(right, shown, levels, position, what)
        log_scale(right, "x")
        right.set(xlabel="learning rate η", ylabel="log₁₀ of the kernels' distance S")
        legend_above(right, title="of training")
    return {"chaos": figure}


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
