"""Forgetting is low-rank and known beforehand: Hidekel & Raviv 2026, beside networks that leave the theory behind.

A network learns five classes of the data, then five with a given overlap, by minibatches of the cross-entropy. Before
the second task's first step, `Θ(X_old, X_new)` and `Θ(X_new, X_new)` say how each output of the old samples will
change: to convergence (squared loss, in closed form), and after the steps that are going to be made (the function-space
iteration of the cross-entropy). The old samples are training samples of the first task; the new ones are all of the
second. `CentredScaled` with α and step size η/α² makes the same network lazier as α grows. A frozen backbone with a
linear head, trained by full batches, is where the forecast must be exact.

Controls: at the overlap 1 the second task has fresh samples of the first's classes; the order of samples that the size
of the kernel alone, `√tr Θ(x, x)`, gives without any residual; and the share `k/(N·C)` of a change without preference.

Choices of this study, where the paper leaves room or a CPU forbids its networks: α of 1 and 10, widths, the step sizes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from avalanche_ntk import measures
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.lab.regimes import CentredScaled
from avalanche_ntk.measures.intervals import rank_correlation
from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import MARKERS, PAGE_INCHES, drawing, look, new_figure, put_legend
from avalanche_ntk.reproduce.drawing import draw_points
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context, Study
from avalanche_ntk.reproduce.training import accuracy, minibatches, samples, sgd_step
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES, TASK = 10, 5
MODES = 5
LIMIT, STEPS = "to convergence", "after the steps made"


def parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    """Return one part a network, and one for the frozen backbone."""
    shared = {
        "per_class": context.pick(3, 12, 50),
        "old": context.pick(5, 8, 20),
        "steps": context.pick(20, 300, 2000),
        "batch": context.pick(5, 20, 50),
        "lr": 0.05,
        "overlaps": context.pick([0, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
    }
    widths = context.pick([8], [32, 128], [256, 1024, 4096])
    made = {
        f"mlp-{width}-{alpha}": {**shared, "model": "mlp", "width": width, "alpha": alpha}
        for width in widths
        for alpha in (1, 10)
    }
    made["cnn"] = {**shared, "model": "cnn", "width": context.pick(2, 8, 64), "alpha": 1}
    return {**made, "frozen": {**shared, "model": "frozen", "width": widths[-1], "alpha": 1}}


def case(arguments: Mapping[str, Any]) -> str:
    """Return a network's name as cases have it."""
    if arguments["model"] == "frozen":
        return "frozen backbone"
    return f"{arguments['model'].upper()}, width {arguments['width']}, α = {arguments['alpha']}"


class FrozenBackbone(nn.Module):
    """A network whose last layer alone is trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model.requires_grad_(False)
        self.head = nn.Linear(CLASSES, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return torch.as_tensor(self.head(torch.tanh(self.backbone(x))))


def network(arguments: Mapping[str, Any], shape: Sequence[int], seed: int) -> nn.Module:
    """Build a part's network, in float64."""
    kind = "mlp" if arguments["model"] == "frozen" else arguments["model"]
    model = build_model(kind, input_shape=shape, n_classes=CLASSES, width=arguments["width"], seed=seed).double()
    if arguments["model"] == "frozen":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return FrozenBackbone(model)
    return CentredScaled(model, arguments["alpha"])


def train(model: nn.Module, x: Tensor, y: Tensor, arguments: Mapping[str, Any], seed: int) -> None:
    """Descend the cross-entropy by minibatches with the step size η/α²."""
    generator = torch.Generator("cpu").manual_seed(seed)
    for chosen in minibatches(len(x), arguments["batch"], arguments["steps"], generator):
        sgd_step(model, cross_entropy(model(x[chosen]), y[chosen]), arguments["lr"] / arguments["alpha"] ** 2)


def after_steps(
    old_on_new: np.ndarray, new_on_new: np.ndarray, f: np.ndarray, y: np.ndarray, lr: float, steps: int
) -> np.ndarray:
    """Return the change of the old outputs by full-batch steps on the cross-entropy in function space.

    Args:
        old_on_new: `Θ(X_old, X_new)` as a matrix, `(N·C, M·C)`.
        new_on_new: `Θ(X_new, X_new)`, `(M·C, M·C)`.
        f: New outputs at the boundary, `(M, C)`.
        y: New labels.
        lr: Step size η.
        steps: Number of steps.

    Returns:
        Shape `(N·C,)`.
    """
    target = np.eye(f.shape[1])[y]
    total = np.zeros_like(f)
    for _ in range(steps):
        shifted = np.exp(f - f.max(axis=1, keepdims=True))
        step = -lr / len(f) * (shifted / shifted.sum(axis=1, keepdims=True) - target)
        total += step
        f = f + (new_on_new @ step.ravel()).reshape(f.shape)
    return np.asarray(old_on_new @ total.ravel())


def measure(context: Context, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Train the first task, then forecast and train the second at each overlap."""
    x, y = samples(context, range(TASK), arguments["per_class"], seed=seed)
    x = x.double()
    model = network(arguments, x.shape[1:], seed)
    frozen = arguments["model"] == "frozen"
    if not frozen:
        train(model, x, y, arguments, seed)
    chosen = np.random.default_rng(seed).permutation(len(x))[: arguments["old"] * TASK]
    old, labels = x[chosen], y[chosen]
    with torch.no_grad():
        before = model(old).numpy()
    full = empirical_ntk(model, old, reduction="full").numpy()
    own = measures.KernelView(measures.as_matrix(full))
    size = np.sqrt(np.einsum("nncc->n", full))
    levels = []
    for overlap in arguments["overlaps"]:
        new, wanted = second_task(context, arguments, seed, overlap)
        levels.append(one_level(model, arguments, seed, old, before, labels, own, size, new, wanted))
    return {"accuracy": accuracy(model, x, y), "random_share": MODES / before.size, "levels": levels}


def second_task(context: Context, arguments: Mapping[str, Any], seed: int, overlap: int) -> tuple[Tensor, Tensor]:
    """Return a second task's samples, none of which the first had; `overlap` of its five classes are the first's."""
    classes = [*range(overlap), *range(TASK, CLASSES - overlap)]
    n = arguments["per_class"]
    new, places = samples(context, classes, n, seed=seed, skip=n)
    return new.double(), torch.tensor(classes)[places]


def one_level(
    model: nn.Module,
    arguments: Mapping[str, Any],
    seed: int,
    old: Tensor,
    before: np.ndarray,
    labels: Tensor,
    own: measures.KernelView,
    size: np.ndarray,
    new: Tensor,
    wanted: Tensor,
) -> dict[str, Any]:
    """Forecast what the old outputs will change by, train the second task, and compare."""
    cross, theirs = (measures.as_matrix(empirical_ntk(model, a, new, reduction="full")) for a in (old, new))
    with torch.no_grad():
        f = model(new)
    residual = (one_hot(wanted, CLASSES) - f).numpy().ravel()
    lr = arguments["lr"] / arguments["alpha"] ** 2
    trained = copy.deepcopy(model)
    if arguments["model"] == "frozen":
        targets = one_hot(wanted, CLASSES).double()
        for _ in range(arguments["steps"]):
            sgd_step(trained, mse_loss(trained(new), targets), lr)
        samples_ = f.numel() / 2
        steps = measures.forgetting_forecast(
            cross, theirs, residual, steps=arguments["steps"], step_size=lr, samples=samples_
        )
    else:
        train(trained, new, wanted, arguments, seed + 1)
        steps = after_steps(cross, theirs, f.numpy(), wanted.numpy(), lr, arguments["steps"])
    with torch.no_grad():
        after = trained(old).numpy()
    change = (after - before).ravel()
    y = labels.numpy()
    found_here: dict[str, Any] = {
        "learned": accuracy(trained, new, wanted),
        "change": _size(change, before),
        "drop": _accuracy(before, y) - _accuracy(after, y),
        "share": measures.mode_share(own, change, MODES),
        "kernel_rank": rank_correlation(size, _each(change, before)),
    }
    for name, told in (("limit", measures.forgetting_forecast(cross, theirs, residual)), ("steps", steps)):
        found_here[name] = {
            "change": _size(told, before),
            "drop": _accuracy(before, y) - _accuracy(before + told.reshape(before.shape), y),
            "error": measures.forecast_error(told, change),
            "rank": rank_correlation(_each(told, before), _each(change, before)),
            "share": measures.mode_share(own, told, MODES),
        }
    return found_here


def _each(change: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(change.reshape(like.shape), axis=1))


def _size(change: np.ndarray, like: np.ndarray) -> float:
    return float(np.sqrt(np.square(_each(change, like)).mean()))


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(outputs.argmax(axis=1) == labels))


def judge(results: Results) -> list[Claim]:
    """Compare forecasts with what happened."""
    networks = {name: arguments for name, arguments in parts(results.context).items() if name != "frozen"}
    measured = {name: results.measured(name) for name in networks}
    return [
        _exact(results.measured("frozen")),
        _tasks(networks, measured),
        _samples(networks, measured),
        _modes(networks, measured),
        _lazy(networks, measured),
    ]


def _exact(frozen: Sequence[Mapping[str, Any]]) -> Claim:
    errors = [max(level["steps"]["error"] for level in one["levels"]) for one in frozen]
    return Claim(
        "exact",
        "With a frozen backbone and a linear head the forecast is exact",
        (found("frozen backbone", "largest relative error over the overlaps", errors, 1e-8, above=False),),
        "Squared loss, full batches: as many steps forecast as were made.",
    )


def _tasks(networks: Mapping[str, Any], measured: Mapping[str, Any]) -> Claim:
    def findings(name: str, arguments: Mapping[str, Any]) -> list[Finding]:
        made = []
        for kind, told in (("limit", LIMIT), ("steps", STEPS)):
            for what, words in (("change", "the change of the old outputs"), ("drop", "the drop of accuracy")):
                values = [
                    rank_correlation([lv[kind][what] for lv in one["levels"]], [lv[what] for lv in one["levels"]])
                    for one in measured[name]
                ]
                statistic = f"rank correlation over overlaps of {words} forecast {told} with what happened"
                made.append(found(case(arguments), statistic, values, 0.0))
        return made

    return Claim(
        "ranks-tasks",
        "The forecast ranks tasks by what they make the network forget",
        tuple(f for name, arguments in networks.items() for f in findings(name, arguments)),
        "The second tasks differ in how many of their five classes are the first's.",
    )


def _samples(networks: Mapping[str, Any], measured: Mapping[str, Any]) -> Claim:
    findings = []
    for name, arguments in networks.items():
        first = [one["levels"][0] for one in measured[name]]
        steps = [level["steps"]["rank"] for level in first]
        statistic = "rank correlation over old samples of ‖Δf(x)‖ forecast and found"
        findings.append(found(case(arguments), statistic, steps, 0.0))
        control = [level["kernel_rank"] for level in first]
        above = f"{statistic}, minus that of √tr Θ(x, x) and found"
        findings.append(found(case(arguments), above, minus(steps, control), 0.0))
        limit = [level["limit"]["rank"] for level in first]
        findings.append(reported(case(arguments), f"{statistic}, {LIMIT}", limit))
    return Claim(
        "ranks-samples",
        "The forecast ranks samples by what they lose, better than the size of the kernel does",
        tuple(findings),
        "At new classes only (overlap 0).",
    )


def _modes(networks: Mapping[str, Any], measured: Mapping[str, Any]) -> Claim:
    findings = []
    for name, arguments in networks.items():
        first = [one["levels"][0] for one in measured[name]]
        words = f"share of the change in the {MODES} leading eigenvectors of Θ(X_old, X_old)"
        findings.append(found(case(arguments), words, [level["share"] for level in first], 0.5))
        findings.append(reported(case(arguments), f"{words}, forecast", [level["steps"]["share"] for level in first]))
        random = [one["random_share"] for one in measured[name]]
        findings.append(reported(case(arguments), "share of a change without preference", random))
    return Claim(
        "first-modes",
        f"More than half of the change lies in the {MODES} leading eigenvectors of the old task's kernel",
        tuple(findings),
        "A half is this study's threshold, chosen before the first run at this scale.",
    )


def _lazy(networks: Mapping[str, Any], measured: Mapping[str, Any]) -> Claim:
    def errors(name: str) -> list[float]:
        return [math.log10(one["levels"][0]["steps"]["error"]) for one in measured[name]]

    findings = [reported(case(a), "log₁₀ of the relative error", errors(name)) for name, a in networks.items()]
    widths = sorted({a["width"] for a in networks.values() if a["model"] == "mlp"})
    for width in widths:
        values = minus(errors(f"mlp-{width}-10"), errors(f"mlp-{width}-1"))
        findings.append(found(f"MLP, width {width}", "log₁₀ error at α = 10 minus at α = 1", values, 0.0, above=False))
    return Claim(
        "lazy",
        "The lazier the network, the smaller the error of the forecast",
        tuple(findings),
        "At new classes only; 0 is the error of a forecast that foresees nothing.",
    )


def draw(results: Results) -> dict[str, Figure]:
    """Change found against forecast, error and share by network."""
    networks = {name: a for name, a in parts(results.context).items() if name != "frozen"}
    with drawing():
        figure = new_figure(PAGE_INCHES, 3.0)
        left, middle, right = figure.subplots(1, 3)
        every: list[float] = []
        for position, (name, arguments) in enumerate(networks.items()):
            measured = results.measured(name)
            pairs = [(lv["steps"]["change"], lv["change"]) for one in measured for lv in one["levels"]]
            every += [value for pair in pairs for value in pair]
            style = {"color": look(position)["color"], "marker": MARKERS[position % len(MARKERS)], "linestyle": "None"}
            left.plot(*zip(*pairs, strict=True), markersize=3, alpha=0.7, label=case(arguments), **style)
            levels = list(zip(*(one["levels"] for one in measured), strict=True))
            overlaps = [overlap / TASK for overlap in arguments["overlaps"]]
            draw_points(middle, overlaps, [[lv["steps"]["error"] for lv in at] for at in levels], position)
            draw_points(right, overlaps, [[lv["share"] for lv in at] for at in levels], position)
        low, high = min(every), max(every)
        left.plot([low, high], [low, high], color="black", linewidth=0.6)
        left.set(xlabel="change forecast", ylabel="change found")
        for axis in ("x", "y"):
            log_scale(left, axis)
        middle.set(xlabel="overlap of classes", ylabel="relative error")
        log_scale(middle)
        right.set(xlabel="overlap of classes", ylabel=f"share in {MODES} modes", ylim=(0, 1.05))
        put_legend(figure, *left.get_legend_handles_labels())
    return {"forecast": figure}


STUDY = Study(judge=judge, draw=draw, parts=parts, measure=measure)
