"""Drift at rest: the kernel goes on moving when the loss has come to rest, and a boundary must exceed that.

Published (Avidan, Li & Sompolinsky, arXiv 2309.04522, "Connecting NTK and NNGP", where it is also discussed as
representational drift), as statements that can be checked. Learning by gradient descent with a little noise has two
phases:

1. A phase driven by the gradient, in which the loss falls, and then a slow diffusive one, in which the parameters
   wander among solutions: the loss is constant and the kernel changes all the same.
2. The time scale of the second phase is set by the noise: more noise, more drift. Without noise there is none.

For continual learning this is the baseline: what a kernel does at a boundary is news only where it exceeds its
drift at rest.

Here: Langevin descent `θ ← θ − η (∇L + λθ) + √(2ηT) ξ` on half the squared error of one-hot targets, all samples in
each step; five classes; a tanh network with two hidden layers. It is first brought to rest, without noise: by descent
with momentum, and on to the minimum by L-BFGS. Then, for each temperature T, it goes on for a burn-in and is watched:
`S(Θ_t, Θ_{t+τ})` of a probe, mean over all t of the window, by the lag τ. The same with minibatches in place of
Langevin noise, the smaller the noisier: weight decay leaves a residual, so that minibatches disagree at rest. Then the
classes are exchanged for five others, at the same noise.

What differs from the published setting: a finite network of the usual parametrisation and not an ensemble of wide ones
near the limit T → 0; λ is the same at each temperature (there it is T over the prior's variance), so that all begin at
the same point of rest; the times are thousands of steps, in which the slowest directions (time 1/(ηλ)) are not in
equilibrium. The kernel is the tangent kernel; the paper's is a kernel between two times.
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
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.report.style import PAGE_INCHES, drawing, new_figure
from avalanche_ntk.reproduce.drawing import draw_points
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import minibatches, samples
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, reported, trend_by_seed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = 5
FLAT = 0.05  # what `measures.drift_at_rest` calls flat
TEMPERATURES = (0.0, 1e-9, 1e-8, 1e-7, 1e-6)


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return one part: every noise from the same point of rest."""
    per_class = context.pick(4, 10, 200)
    n = CLASSES * per_class
    return {
        "rest": {
            "per_class": per_class,
            "width": context.pick(16, 64, 2048),
            "lr": 0.1,
            "decay": 0.003,
            "to_rest": context.pick(100, 2000, 20_000),
            "refined": context.pick(50, 4000, 20_000),
            "burn_in": context.pick(8, 2048, 10_000),
            "interval": context.pick(4, 16, 100),
            "snapshots": context.pick(9, 65, 129),
            "temperatures": context.pick([0.0, 1e-8, 1e-6], list(TEMPERATURES), list(TEMPERATURES)),
            "batches": context.pick([10, 5], [25, 10, 5], [n // 2, n // 10, n // 50]),
        }
    }


def lags(snapshots: int) -> list[int]:
    """Return the lags, in intervals: powers of two up to half of what is watched.

    >>> lags(9)
    [1, 2, 4]
    """
    return [2**k for k in range(snapshots) if 2**k <= (snapshots - 1) // 2]


def mean_distances(kernels: Sequence[np.ndarray], at: Sequence[int]) -> list[float]:
    """Return `S(Θ_t, Θ_{t+τ})` averaged over t, for each lag.

    Args:
        kernels: Kernels of one probe, at equal intervals.
        at: Lags, in intervals.

    Returns:
        A mean a lag.
    """
    views = [measures.KernelView(kernel) for kernel in kernels]
    return [
        float(np.mean([measures.kernel_distance(a, b) for a, b in zip(views, views[lag:], strict=False)])) for lag in at
    ]


def change_of_loss(losses: Sequence[float]) -> float:
    """Return by how much the mean loss of the second half differs from that of the first, over the larger of them.

    >>> change_of_loss([1.0, 1.0, 2.0, 2.0])
    0.5
    """
    half = len(losses) // 2
    early, late = float(np.mean(losses[:half])), float(np.mean(losses[half:]))
    return abs(early - late) / max(early, late)


class Descent:
    """Descent with weight decay, and with noise of one of two kinds.

    Args:
        model: The model, which is trained.
        arguments: `lr` η, `decay` λ.
        temperature: T of Langevin noise; 0 for none.
        batch: Samples of a minibatch; all when None.
        seed: Seed of the noise.
    """

    def __init__(
        self, model: nn.Module, arguments: Mapping[str, Any], temperature: float, batch: int | None, seed: int
    ) -> None:
        self.model, self.lr, self.decay = model, float(arguments["lr"]), float(arguments["decay"])
        self.temperature, self.batch = temperature, batch
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.velocity: list[Tensor] | None = None

    def fit(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return L, `½ mean ‖f − y‖²`."""
        loss: Tensor = 0.5 * (self.model(x) - targets).square().sum(1).mean()
        return loss

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return `L + ½ λ ‖θ‖²`."""
        return self.fit(x, targets) + 0.5 * self.decay * sum(
            (p.square().sum() for p in self.model.parameters()), torch.zeros(())
        )

    def run(self, x: Tensor, targets: Tensor, steps: int, momentum: float = 0.0) -> None:
        """Make some steps."""
        parameters = list(self.model.parameters())
        noise = math.sqrt(2 * self.lr * self.temperature)
        if self.velocity is None:
            self.velocity = [torch.zeros_like(p) for p in parameters]
        for indices in minibatches(len(x), self.batch or len(x), steps, self.generator):
            # All samples in their own order, where all are taken: sums of another order are noise at the floor.
            chosen = indices if self.batch else slice(None)
            gradients = torch.autograd.grad(self.loss(x[chosen], targets[chosen]), parameters)
            with torch.no_grad():
                for p, v, g in zip(parameters, self.velocity, gradients, strict=True):
                    v.mul_(momentum).add_(g)
                    p.sub_(self.lr * v)
                    if noise:
                        p.add_(noise * torch.randn(p.shape, generator=self.generator, dtype=p.dtype))


def settle(descent: Descent, x: Tensor, targets: Tensor, iterations: int) -> float:
    """Go on to the minimum by L-BFGS, which does not wait for the slowest directions.

    Args:
        descent: Has the model and the loss.
        x: Inputs.
        targets: Their targets.
        iterations: At most so many.

    Returns:
        The norm of the gradient that is left.

    Source: Nocedal 1980.
    """
    parameters = list(descent.model.parameters())
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=iterations,
        history_size=50,
        tolerance_grad=1e-15,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = descent.loss(x, targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    gradients = torch.autograd.grad(descent.loss(x, targets), parameters)
    return float(torch.cat([g.flatten() for g in gradients]).norm())


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Bring a network to rest, and watch it at each noise; then exchange the classes."""
    each = arguments["per_class"]
    tasks = []
    for classes in (range(CLASSES), range(CLASSES, 2 * CLASSES)):
        x, y = samples(context, classes, each, seed=seed)
        tasks.append((x.double(), nn.functional.one_hot(y, CLASSES).double()))
    x, targets = tasks[0]
    probe = x[:: max(1, len(x) // 50)]
    shape, width = x.shape[1:], arguments["width"]
    first = build_model("mlp", input_shape=shape, n_classes=CLASSES, width=width, activation="tanh", seed=seed).double()
    quiet = Descent(first, arguments, 0.0, None, seed)
    start = float(quiet.fit(x, targets).detach())
    quiet.run(x, targets, arguments["to_rest"], momentum=0.9)
    slope = settle(quiet, x, targets, arguments["refined"])
    interval, count = arguments["interval"], arguments["snapshots"]
    at = lags(count)

    def watch(temperature: float, batch: int | None) -> dict[str, Any]:
        model = copy.deepcopy(first)
        descent = Descent(model, arguments, temperature, batch, seed + 1000)
        descent.run(x, targets, arguments["burn_in"])
        kernels, losses = [], []
        for number in range(count):
            if number:
                descent.run(x, targets, interval)
            kernels.append(empirical_ntk(model, probe).numpy())
            losses.append(float(descent.fit(x, targets).detach()))
        boundary = measures.KernelView(kernels[-1])
        after, done = [], 0
        for lag in at:
            descent.run(*tasks[1], (lag - done) * interval)
            done = lag
            after.append(measures.kernel_distance(boundary, empirical_ntk(model, probe).numpy()))
        rest = mean_distances(kernels, at)
        return {"rest": rest, "boundary": after, "loss": float(np.mean(losses)), "change": change_of_loss(losses)}

    return {
        "start": start,
        "slope": slope,
        "lags": [lag * interval for lag in at],
        "floor": measures.distance_floor(len(probe), "float64"),
        "temperatures": {f"{t:.0e}": watch(t, None) for t in arguments["temperatures"]},
        "batches": {str(size): watch(0.0, size) for size in arguments["batches"]},
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of log y over log x by least squares; NaN where a number is not positive.

    >>> round(exponent([1.0, 2.0, 4.0], [3.0, 12.0, 48.0]), 12)
    2.0
    """
    if min(*x, *y) <= 0:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def judge(results: Results) -> list[Claim]:
    """Compare drift over lags and noises, and with what the boundary does."""
    measured = results.measured("rest")
    return [
        _flat(measured),
        *_over_lags(measured),
        _noise(measured),
        _still(measured),
        _boundary(measured),
    ]


def _cases(measured: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Kind, level and name of every noise."""
    return [
        *(("temperatures", t, f"temperature {t}") for t in measured[0]["temperatures"] if float(t) > 0),
        *(("batches", b, f"minibatches of {b}") for b in measured[0]["batches"]),
    ]


def _each(measured: Sequence[Mapping[str, Any]], kind: str, level: str, what: str) -> list[Any]:
    return [one[kind][level][what] for one in measured]


def _log_ratio(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [math.log10(x / y) if x > 0 and y > 0 else math.nan for x, y in zip(a, b, strict=True)]


def _furthest(measured: Sequence[Mapping[str, Any]]) -> str:
    return f"S at a lag of {measured[0]['lags'][-1]} steps"


def _flat(measured: Sequence[Mapping[str, Any]]) -> Claim:
    return Claim(
        "loss-flat",
        "The loss is at rest at every noise",
        tuple(
            found(
                case,
                "relative change of the mean loss, half to half",
                _each(measured, kind, level, "change"),
                FLAT,
                above=False,
            )
            for kind, level, case in _cases(measured)
        ),
        "0.05 is what `measures.drift_at_rest` accepts. It takes slow directions long to get their share of "
        "the noise: a loss that still rises is not at rest, and its drift is then no drift at rest.",
    )


def _over_lags(measured: Sequence[Mapping[str, Any]]) -> list[Claim]:
    steps = measured[0]["lags"]

    def over_lags(kind: str) -> tuple[Finding, ...]:
        mine = [(level, case) for of, level, case in _cases(measured) if of == kind]
        return (
            *(
                found(
                    case,
                    "rank correlation of S with the lag",
                    trend_by_seed(steps, _each(measured, kind, level, "rest")),
                    0.0,
                )
                for level, case in mine
            ),
            *(
                reported(
                    case,
                    "exponent of S over the lag",
                    [exponent(steps, one) for one in _each(measured, kind, level, "rest")],
                )
                for level, case in mine
            ),
        )

    return [
        Claim(
            "grows-with-lag",
            "At rest with Langevin noise, the kernel moves the further the longer one waits",
            over_lags("temperatures"),
            "S is quadratic in the displacement: an exponent of 1 is free diffusion, 0 an equilibrium in which all "
            "that moves has long been forgotten.",
        ),
        Claim(
            "grows-with-lag-minibatches",
            "At rest with minibatches, the kernel moves the further the longer one waits",
            over_lags("batches"),
            "The noise of minibatches lies in the span of the samples' gradients, which is what the loss holds fast. "
            "There it comes to an equilibrium; Langevin noise also pushes where no sample resists.",
        ),
    ]


def _noise(measured: Sequence[Mapping[str, Any]]) -> Claim:
    warm = [t for t in measured[0]["temperatures"] if float(t) > 0]
    sizes = list(measured[0]["batches"])
    furthest = _furthest(measured)
    return Claim(
        "grows-with-noise",
        "At rest the kernel moves the further the more noise there is",
        (
            found(
                "Langevin noise",
                f"rank correlation of {furthest} with the temperature",
                trend_by_seed([float(t) for t in warm], _across(measured, "temperatures", warm)),
                0.0,
            ),
            found(
                "minibatches",
                f"rank correlation of {furthest} with one over their size",
                trend_by_seed([1 / float(b) for b in sizes], _across(measured, "batches", sizes)),
                0.0,
            ),
            *(
                reported(case, furthest, [one[-1] for one in _each(measured, kind, level, "rest")])
                for kind, level, case in _cases(measured)
            ),
        ),
    )


def _still(measured: Sequence[Mapping[str, Any]]) -> Claim:
    steps, furthest = measured[0]["lags"], _furthest(measured)
    still = _each(measured, "temperatures", f"{0:.0e}", "rest")
    warm = [t for t in measured[0]["temperatures"] if float(t) > 0]
    return Claim(
        "no-noise-no-drift",
        "Without noise the kernel moves less than at the lowest temperature",
        (
            found(
                "no noise",
                f"log₁₀({furthest} / that of the lowest temperature)",
                _log_ratio(
                    [one[-1] for one in still], [one[-1] for one in _each(measured, "temperatures", warm[0], "rest")]
                ),
                0.0,
                above=False,
            ),
            reported("no noise", "exponent of S over the lag", [exponent(steps, one) for one in still]),
            reported(
                "no noise",
                f"log₁₀({furthest} / floor of double precision)",
                _log_ratio([one[-1] for one in still], [one["floor"] for one in measured]),
            ),
            reported("no noise", "norm of the gradient at rest", [one["slope"] for one in measured]),
        ),
        "What is left above the floor is descent that is not finished, in the flattest directions. It goes "
        "straight on, with an exponent of 2, and comes to rest; diffusion, with 1, does not.",
    )


def _boundary(measured: Sequence[Mapping[str, Any]]) -> Claim:
    steps = measured[0]["lags"]
    return Claim(
        "boundary-exceeds",
        "A boundary moves the kernel further than its drift at rest",
        tuple(
            found(
                case,
                f"log₁₀(S after the boundary / at rest), {steps[position]} steps",
                _log_ratio(
                    [one[position] for one in _each(measured, kind, level, "boundary")],
                    [one[position] for one in _each(measured, kind, level, "rest")],
                ),
                0.0,
            )
            for kind, level, case in _cases(measured)
            for position in (0, -1)
        ),
        "0: as far as in as many steps at rest, at the same noise. Beyond some noise a boundary would not be seen.",
    )


def _across(measured: Sequence[Mapping[str, Any]], kind: str, levels: Sequence[str]) -> list[list[float]]:
    return [[one[kind][level]["rest"][-1] for level in levels] for one in measured]


def draw(results: Results) -> dict[str, Figure]:
    """Distance by lag: at each temperature, with minibatches of each size, and beside a boundary."""
    measured = results.measured("rest")
    steps = [float(lag) for lag in measured[0]["lags"]]

    def by_lag(kind: str, level: str, what: str = "rest") -> list[list[float]]:
        columns = zip(*(one[kind][level][what] for one in measured), strict=True)
        return [[math.log10(v) if v > 0 else math.nan for v in column] for column in columns]

    with drawing():
        figure = new_figure(PAGE_INCHES, 3.0)
        axes = figure.subplots(1, 3, sharey=True)
        for position, level in enumerate(measured[0]["temperatures"]):
            label = f"T = {_short(level)}" if float(level) else "no noise"
            draw_points(axes[0], steps, by_lag("temperatures", level), position, label)
        for position, size in enumerate(measured[0]["batches"]):
            draw_points(axes[1], steps, by_lag("batches", size), position, f"minibatches of {size}")
        middle = list(measured[0]["temperatures"])[-2]
        size = next(iter(measured[0]["batches"]))
        for position, (kind, level, told) in enumerate(
            [("temperatures", middle, f"T = {_short(middle)}"), ("batches", size, f"minibatches of {size}")]
        ):
            draw_points(axes[2], steps, by_lag(kind, level), 2 * position, f"{told}, at rest")
            draw_points(axes[2], steps, by_lag(kind, level, "boundary"), 2 * position + 1, f"{told}, boundary")
        for axis, title in zip(axes, ("Langevin noise", "minibatches", "rest and boundary"), strict=True):
            axis.set(xscale="log", xlabel="lag (steps)")
            axis.set_xticks(steps, [f"{lag:g}" for lag in steps])
            axis.set_xticks([], minor=True)
            axis.set_title(title)
            handles, names = axis.get_legend_handles_labels()
            axis.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.22))
        axes[0].set_ylabel("log₁₀ distance S")
    return {"drift": figure}


def _short(temperature: str) -> str:
    """Write 1e-07 as 10⁻⁷, in the letters that the figures' font has."""
    mantissa, power = temperature.split("e")
    return f"$10^{{{int(power)}}}$" if mantissa == "1" else f"${mantissa}\\cdot 10^{{{int(power)}}}$"


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
