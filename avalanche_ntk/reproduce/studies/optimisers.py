"""Reactivation under SGD, SGD with momentum and Adam, and in the kernel that the optimiser sees.

Nobody has published an answer: what is known of reactivation (arXiv 2507.16039) is of SGD. An optimiser with step sizes
P of its own for each parameter moves the outputs by `J P Jᵀ` and not by `J Jᵀ` (Malladi et al. 2023 for Adam's limit):
for Adam `P = 1/(√v̂ + ε)`, for SGD and momentum P = 1. Asked here, as statements that can fail:

1. `matched`: each optimiser is trained on the first task until the same training loss, so that they differ in their
   path and not in how well that task is learnt: the losses are within a quarter of SGD's;
2. `spike`: with each, the plain kernel spikes at the boundary more than without a shift;
3. `adam`: Adam's spikes more than SGD's;
4. `seen`: the kernel that Adam sees spikes more than without a shift, too;
5. `order`: the kernel that each sees orders the optimisers as the plain kernel does.

The velocity of `J P Jᵀ` has two parts, since P changes too. `as it is` compares kernels with the P of their own time;
`P held` gives both kernels of an interval the P of its beginning, so that only the weights have moved.

Two tasks of five classes in one head, none in common; the optimiser's state goes on over the boundary as it is. The
loss on all training samples and the kernel of 40 of them are measured every 10 iterations, and the boundary comes at
the first measurement at which the loss is reached. Spike and ratio are those of `docs/definitions.md`.

Control: fresh samples of the same classes in place of new classes; every number is compared with it, seed by seed.

Choices of this study: small networks in float64, a loss of 0.02, and step sizes chosen on seed 0 for one thing, that
the optimisers need about as many iterations to that loss; Adam's β and ε are torch's. A velocity grows with the step
size: another choice of them is another comparison. A unit of ReLU that is seldom or never on in a task has v̂ ≈ 0 and
P up to 1/ε = 10⁸; a few such units can be most of the kernel that Adam sees. The network of tanh, which has none, came
in after a first look, when the two others had been measured every 5 iterations; 10 is for the time it takes. At 5 the
spike of Adam's plain kernel was smaller than SGD's in both (`adam` did not hold), at 10 that is open. The scale "paper"
has no published setting to follow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from avalanche_ntk import measures
from avalanche_ntk.kernels import adam_preconditioner, empirical_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.measures.intervals import rank_correlation
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import PAGE_INCHES, add_legend, drawing, new_figure
from avalanche_ntk.reproduce.around import number_of
from avalanche_ntk.reproduce.drawing import draw_curve
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.settings import CLASSES, paper_per_class
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import accuracy, minibatches, optimizer_step, samples
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS = {"mlp": "MLP, ReLU", "tanh": "MLP, tanh", "cnn": "CNN, ReLU"}
SGD, MOMENTUM, ADAM = OPTIMISERS = ("SGD", "momentum", "Adam")
NEW, FRESH = "new", "fresh"
PLAIN, SEEN, HELD = "plain", "seen", "held"
KERNELS = {PLAIN: "plain kernel", SEEN: "kernel seen, as it is", HELD: "kernel seen, P held"}
NUMBERS = {"spike": "spike", "ratio": "log₁₀ of the ratio"}
MATCHED = math.log10(1.25)

Series = dict[str, list[float]]


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return one part a network, with the optimisers' step sizes."""
    shared = {
        "per_class": context.pick(6, 60, paper_per_class(context)),
        "test": context.pick(10, 50, 1000),
        "probe": context.pick(8, 40, 256),
        "batch": context.pick(5, 30, 128),
        "every": context.pick(2, 10, 10),
        "loss": context.pick(0.5, 0.02, 0.02),
        "most_steps": context.pick(200, 3000, 50_000),
        "watched": context.pick(10, 100, 1000),
    }
    faster = context.pick(4, 1, 1)
    of_adam = {"mlp": 3e-4, "tanh": 3.7e-4, "cnn": 5.5e-4}
    mlp = {"name": "mlp", "width": context.pick(16, 128, 1024)}
    models = {
        "mlp": mlp,
        "tanh": {**mlp, "activation": "tanh"},
        "cnn": {"name": "cnn", "width": context.pick(4, 16, 64), "flatten": True, "pools": 1},
    }
    return {
        part: {
            **shared,
            "model": models[part],
            "lr": {SGD: 0.05 * faster, MOMENTUM: 0.005 * faster, ADAM: of_adam[part] * faster},
        }
        for part in NETWORKS
    }


def new_optimiser(name: str, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Return an optimiser by its name here."""
    if name == ADAM:
        return torch.optim.Adam(model.parameters(), lr=lr)
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9 if name == MOMENTUM else 0.0)


class Watch:
    """Trains a network and takes the velocities of its kernels.

    Args:
        model: The network.
        optimizer: Its optimizer.
        probe: Inputs of which the kernels are.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, probe: Tensor) -> None:
        self.model, self.optimizer, self.probe = model, optimizer, probe
        self.weights: dict[str, Tensor] | None = None  # P, None before Adam's first step
        self.plain = self.kernel()
        self.seen: measures.KernelView | None = None

    def kernel(self, weights: dict[str, Tensor] | None = None) -> measures.KernelView:
        """Return the kernel of the probe, `J P Jᵀ` where P is given."""
        return measures.KernelView(empirical_ntk(self.model, self.probe, preconditioner=weights).cpu())

    def interval(self, x: Tensor, y: Tensor, batches: Iterator[Tensor], steps: int) -> dict[str, float]:
        """Make some steps, and return the velocities of the kernels over them; NaN before P is there."""
        for _ in range(steps):
            chosen = next(batches)
            optimizer_step(self.optimizer, cross_entropy(self.model(x[chosen]), y[chosen]))
        before, self.plain = self.plain, self.kernel()
        velocity = measures.kernel_velocity(before, self.plain, steps)
        if not isinstance(self.optimizer, torch.optim.Adam):
            return {PLAIN: velocity, SEEN: velocity, HELD: velocity}
        old, weights = self.seen, self.weights
        self.weights = adam_preconditioner(self.optimizer, self.model)
        self.seen = self.kernel(self.weights)
        if old is None:
            return {PLAIN: velocity, SEEN: math.nan, HELD: math.nan}
        seen = measures.kernel_velocity(old, self.seen, steps)
        return {PLAIN: velocity, SEEN: seen, HELD: measures.kernel_velocity(old, self.kernel(weights), steps)}

    def run(
        self, x: Tensor, y: Tensor, batch: int, every: int, most: int, generator: torch.Generator, goal: float = 0.0
    ) -> tuple[Series, float]:
        """Train until the loss is reached.

        Args:
            x: Inputs.
            y: Labels.
            batch: Samples of a minibatch.
            every: Iterations between two measurements.
            most: At most so many iterations.
            generator: Where the order of the samples comes from.
            goal: The loss on all samples at which to stop.

        Returns:
            `time` of each measurement, in iterations, and the velocities that end there; and the last loss.
        """
        series: Series = {"time": [], **{kind: [] for kind in KERNELS}}
        batches = minibatches(len(x), batch, most, generator)
        for done in range(every, most + 1, every):
            series["time"].append(done)
            for kind, velocity in self.interval(x, y, batches, every).items():
                series[kind].append(velocity)
            with torch.no_grad():
                loss = float(cross_entropy(self.model(x), y))
            if loss <= goal:
                break
        return series, loss


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train the first task with each optimiser, then both second ones from there."""
    a = arguments
    old, other, each = range(CLASSES), range(CLASSES, 2 * CLASSES), a["per_class"]
    more, places = samples(context, other, each, seed=seed)
    tasks = {
        "first": samples(context, old, each, seed=seed),
        "test": samples(context, old, a["test"], seed=seed, part="test"),
        NEW: (more, places + CLASSES),
        FRESH: samples(context, old, each, seed=seed, skip=each),
    }
    tasks = {name: (x.double().to(context.device), y.to(context.device)) for name, (x, y) in tasks.items()}
    return {name: one_optimiser(name, tasks, arguments, seed) for name in OPTIMISERS}


def one_optimiser(
    name: str, tasks: Mapping[str, tuple[Tensor, Tensor]], arguments: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Train with one optimiser.

    Args:
        name: Its name.
        tasks: Inputs and labels of the "first" task and of its "test", of `NEW` and of `FRESH`.
        arguments: Those of the part.
        seed: Seed of the weights, of the probe and of the minibatches.

    Returns:
        `loss` and `accuracy` on the old test samples at the boundary; the series of the first task, of `NEW` and of
        `FRESH`; and the accuracy `lost` by the end of each of the two.
    """
    a, (x, y) = arguments, tasks["first"]
    settings = dict(a["model"])
    kind = settings.pop("name")
    model = build_model(kind, input_shape=x.shape[1:], n_classes=2 * CLASSES, seed=seed, **settings).to(x)
    generators = [torch.Generator("cpu").manual_seed(s) for s in (seed, seed + 1, seed + 1)]
    probe = x[torch.randperm(len(x), generator=torch.Generator("cpu").manual_seed(seed))[: a["probe"]]]
    watch = Watch(model, new_optimiser(name, model, a["lr"][name]), probe)
    first, loss = watch.run(x, y, a["batch"], a["every"], a["most_steps"], generators[0], a["loss"])
    made: dict[str, Any] = {"loss": loss, "accuracy": accuracy(model, *tasks["test"]), "first": first, "lost": {}}
    for arm, generator in zip((NEW, FRESH), generators[1:], strict=True):
        copied = copy.deepcopy(watch)
        made[arm], _ = copied.run(*tasks[arm], a["batch"], a["every"], a["watched"], generator)
        made["lost"][arm] = made["accuracy"] - accuracy(copied.model, *tasks["test"])
    return made


def reactivation_in(one: Mapping[str, Any], arm: str, kind: str, n: int) -> measures.Reactivation:
    """Return the reactivation of one optimiser's kernel.

    Args:
        one: What `one_optimiser` returned.
        arm: `NEW` or `FRESH`.
        kind: Which kernel.
        n: Samples of the probe.

    Returns:
        The reactivation.
    """
    first, after = one["first"], one[arm]
    boundary = first["time"][-1]
    return measures.reactivation(
        times=[0, *first["time"], *(boundary + t for t in after["time"])],
        velocities=[None, *first[kind], *after[kind]],
        boundary=boundary,
        start=0,
        floor=measures.distance_floor(n, "float64"),
    )


def above_fresh(one: Mapping[str, Any], kind: str, number: str, n: int) -> float:
    """Return spike, or log₁₀ of the ratio, minus that of the control."""

    def of(arm: str) -> float:
        value = number_of(reactivation_in(one, arm, kind, n), number)
        return math.log10(value) if number == "ratio" else value

    return of(NEW) - of(FRESH)


def judge(results: Results) -> list[Claim]:
    """Judge the five statements."""
    made = parts(results.context)
    measured = {name: results.measured(part) for part, name in NETWORKS.items()}
    # For each network, optimiser, kernel and number, one value a seed.
    table = {
        (name, optimiser, kind, number): [
            above_fresh(one[optimiser], kind, number, made[part]["probe"]) for one in seeds
        ]
        for (part, name), seeds in zip(NETWORKS.items(), measured.values(), strict=True)
        for optimiser in OPTIMISERS
        for kind in KERNELS
        for number in NUMBERS
    }
    return [_matched(measured), _spike(table, measured), _adam(table), _seen(table), _order(table)]


Table = Mapping[tuple[str, str, str, str], list[float]]


def _matched(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> Claim:
    findings: list[Finding] = []
    for name, seeds in measured.items():
        for optimiser in OPTIMISERS:
            case = f"{name}, {optimiser}"
            if optimiser != SGD:
                off = [abs(math.log10(one[optimiser]["loss"] / one[SGD]["loss"])) for one in seeds]
                findings.append(found(case, "|log₁₀ of the loss over SGD's|", off, MATCHED, above=False))
            findings += [
                reported(case, "loss at the boundary", [one[optimiser]["loss"] for one in seeds]),
                reported(case, "iterations before it", [one[optimiser]["first"]["time"][-1] for one in seeds]),
                reported(case, "accuracy on old test samples there", [one[optimiser]["accuracy"] for one in seeds]),
            ]
    return Claim(
        "matched",
        "The optimisers come to the boundary with the same training loss",
        tuple(findings),
        "The premise of the others: 0.097 is a quarter more, or a fifth less.",
    )


def _spike(table: Table, measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> Claim:
    findings = [
        found(f"{name}, {optimiser}", f"{told}, minus the control's", table[name, optimiser, PLAIN, number], 0.0)
        for name in measured
        for optimiser in OPTIMISERS
        for number, told in NUMBERS.items()
    ]
    findings += [
        reported(
            f"{name}, {optimiser}",
            "accuracy lost on the old task by the end, minus the control's",
            [one[optimiser]["lost"][NEW] - one[optimiser]["lost"][FRESH] for one in seeds],
        )
        for name, seeds in measured.items()
        for optimiser in OPTIMISERS
    ]
    return Claim(
        "spike",
        "With every optimiser the kernel spikes at the boundary, more than without a shift",
        tuple(findings),
        "The plain kernel. The base is the pace at which the network arrives at the loss, not one at rest.",
    )


def _adam(table: Table) -> Claim:
    def against_sgd(name: str, optimiser: str, number: str) -> list[float]:
        return minus(table[name, optimiser, PLAIN, number], table[name, SGD, PLAIN, number])

    told = {number: f"{words}, minus the control's: minus SGD's" for number, words in NUMBERS.items()}
    return Claim(
        "adam",
        "The kernel spikes more under Adam than under SGD",
        (
            *(found(f"{n}, Adam", told[k], against_sgd(n, ADAM, k), 0.0) for n in NETWORKS.values() for k in NUMBERS),
            *(
                reported(f"{n}, momentum", told[k], against_sgd(n, MOMENTUM, k))
                for n in NETWORKS.values()
                for k in NUMBERS
            ),
        ),
        "SGD's step grows with the gradient, which a boundary makes large; Adam's hardly, being divided by its size. "
        "SGD's spike is over within a few iterations, and the longer the interval the less of it is seen: measured "
        "every 5 iterations, in a first look at both networks of ReLU, Adam's spike was decided smaller than SGD's.",
    )


def _seen(table: Table) -> Claim:
    findings = []
    for name in NETWORKS.values():
        for kind in (SEEN, HELD):
            for number, told in NUMBERS.items():
                case, values = f"{name}, Adam, {KERNELS[kind]}", table[name, ADAM, kind, number]
                findings += [
                    found(case, f"{told}, minus the control's", values, 0.0),
                    reported(
                        case,
                        f"{told}, minus the control's: minus the plain kernel's",
                        minus(values, table[name, ADAM, PLAIN, number]),
                    ),
                ]
    return Claim(
        "seen",
        "The kernel that Adam sees spikes at the boundary, more than without a shift",
        tuple(findings),
        "As it is, the velocity counts the change of Adam's own step sizes; with P held, the weights' alone.",
    )


def _order(table: Table) -> Claim:
    def agreement(name: str, kind: str, number: str) -> list[float]:
        orders = [
            list(zip(*(table[name, optimiser, which, number] for optimiser in OPTIMISERS), strict=True))
            for which in (PLAIN, kind)
        ]
        return [rank_correlation(*pair) for pair in zip(*orders, strict=True)]

    return Claim(
        "order",
        "The kernel that each optimiser sees orders the optimisers as the plain kernel does",
        tuple(
            found(
                f"{name}, {KERNELS[kind]}",
                f"rank correlation over optimisers of the {told}, minus the control's, with the plain kernel's",
                agreement(name, kind, number),
                0.0,
            )
            for name in NETWORKS.values()
            for kind in (SEEN, HELD)
            for number, told in NUMBERS.items()
        ),
        "Of three optimisers only Adam sees another kernel than the plain one: 1 where it keeps its place, 0.5 where "
        "it changes it with a neighbour, −0.5 where it goes from one end to the other.",
    )


def draw(results: Results) -> dict[str, Figure]:
    """Draw the velocities around the boundary, by network and optimiser."""
    shown = 10  # measurements before the boundary
    with drawing():
        figure = new_figure(PAGE_INCHES, 5.6)
        grid = figure.subplots(len(NETWORKS), len(OPTIMISERS), sharex=True, sharey=True, squeeze=False)
        for row, (part, name) in zip(grid, NETWORKS.items(), strict=True):
            measured = results.measured(part)
            for axis, optimiser in zip(row, OPTIMISERS, strict=True):
                axis.axvline(0, color="0.6", linewidth=0.6)
                for position, (arm, kind) in enumerate((arm, kind) for kind in (PLAIN, SEEN) for arm in (NEW, FRESH)):
                    if kind == SEEN and optimiser != ADAM:
                        continue
                    of = [one[optimiser] for one in measured]
                    x = [t - of[0]["first"]["time"][-1] for t in of[0]["first"]["time"][-shown:]] + of[0][arm]["time"]
                    velocities = [[*one["first"][kind][-shown:], *one[arm][kind]] for one in of]
                    draw_curve(axis, x, velocities, position, geometric=True)
                axis.set_title(f"{name}, {optimiser}")
                log_scale(axis)
            row[0].set_ylabel("velocity\n(distance per iteration)")
        figure.supxlabel("iterations since the boundary", fontsize=8)
        names = ("new classes", "fresh samples", "new classes, kernel seen", "fresh samples, kernel seen")
        add_legend(figure, names)
    return {"optimisers": figure}


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
