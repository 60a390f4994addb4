"""What the study `practical-width` says of its errors: statements, and the figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from avalanche_ntk.report.scales import log_scale
from avalanche_ntk.report.style import PAGE_INCHES, drawing, new_figure, put_legend
from avalanche_ntk.reproduce.drawing import draw_points
from avalanche_ntk.reproduce.results import Results
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"standard": "MLP", "ntk": "MLP in NTK parametrisation", "cnn": "CNN"}
HEAD, LAZY = "head", "lazy"
LOSSES, HEAD_LOSSES = (0.5, 0.1), (1.2, 1.0)
ALPHA = 10.0
EXACT, CLOSE, FEW = 1e-8, 0.1, 0.02
MATCHED, ALIKE = 0.1, 0.05  # of log₁₀
FLAT, THEORY = 0.1, -0.4  # powers of the width


def widths(context: Context, kind: str) -> list[int]:
    """Return the widths of a kind of network: units or channels."""
    if kind == "cnn":
        return list(context.pick([4, 6], [4, 12, 36], [16, 64, 256]))
    return list(context.pick([4, 8], [16, 64, 256, 1024], [64, 256, 1024, 4096]))


def middle_width(context: Context) -> int:
    """Return the width of the network whose outputs are scaled."""
    return widths(context, "standard")[-2]


def losses_of(context: Context, head: bool = False) -> list[float]:
    """Return the training losses at which predictions are compared, the largest first.

    Args:
        context: Which scale.
        head: Whether a linear head alone is trained, which reaches less.

    Returns:
        Two losses.
    """
    if head:
        return list(context.pick((1.5, 1.45), HEAD_LOSSES, HEAD_LOSSES))
    return list(context.pick((1.4, 1.2), LOSSES, LOSSES))


Network = Mapping[int, Sequence[Mapping[str, Any]]]
"""For each width what was measured with each seed."""


def power(network: Network, number: Any) -> list[float]:
    """Return with which power of the width a number goes: the slope of the logarithms, for each seed.

    >>> power({10: [1.0], 100: [0.1]}, lambda one: one)
    [-1.0]
    """
    at = np.log10(np.array(list(network), dtype=float))
    by_width = np.log10([[number(one) for one in seeds] for seeds in network.values()])
    centred = at - at.mean()
    return [float(v) for v in centred @ by_width / (centred @ centred)]


def ends(network: Network, number: Any) -> list[float]:
    """Return a number of the widest network minus that of the narrowest, for each seed."""
    narrow, *_, wide = network.values()
    return minus([number(one) for one in wide], [number(one) for one in narrow])


def _at(task: str, place: int, what: str) -> Any:
    return lambda one: one[task][place][what]


def _off(place: int) -> Any:
    """By how much the forecast drop of accuracy is off."""
    return lambda one: abs(one["second"][place]["drop_told"] - one["second"][place]["drop"])


def _rise_error(place: int) -> Any:
    """Relative error of the forecast rise of the loss."""
    return lambda one: abs(one["second"][place]["rise_told"] / one["second"][place]["rise"] - 1)


def judge(results: Results) -> list[Claim]:
    """Judge the ten statements."""
    context = results.context

    def of(kind: str) -> Network:
        return {width: results.measured(f"{kind}-{width}") for width in widths(context, kind)}

    networks = {name: of(kind) for kind, name in KINDS.items()}
    losses = losses_of(context)
    return [
        _exact(of(HEAD)),
        _matched(networks, losses),
        _closer(networks, losses, "first", "from-start"),
        _closer(networks, losses, "second", "from-boundary"),
        _forgetting(networks, losses),
        _as_theory(networks, losses),
        _close(networks, losses),
        _forgets_less(networks, losses),
        _later(networks),
        _lazier(
            results.measured(LAZY), networks[KINDS["standard"]][middle_width(context)], middle_width(context), losses
        ),
    ]


TASKS = {"first": "the first task, from the start", "second": "the second task, from the boundary"}


def _cases(networks: Mapping[str, Network], losses: Sequence[float]) -> list[tuple[str, int, Network]]:
    return [(f"{name}, loss {loss:g}", i, n) for name, n in networks.items() for i, loss in enumerate(losses)]


def _exact(heads: Network) -> Claim:
    def worst(one: Mapping[str, Any]) -> float:
        return max(float(reached["error"]) for task in TASKS for reached in one[task])

    return Claim(
        "exact",
        "Where a linear head alone is trained, the predictions are exact",
        tuple(
            found(f"width {width}", "largest relative error", [worst(one) for one in seeds], EXACT, above=False)
            for width, seeds in heads.items()
        ),
        "The same code and the same steps, on a network that is linear in what is trained.",
    )


def _matched(networks: Mapping[str, Network], losses: Sequence[float]) -> Claim:
    def worst(at_seed: Sequence[Mapping[str, Any]]) -> float:
        off = [
            math.log10(one[task][i]["loss"] / loss)
            for one in at_seed
            for task in TASKS
            for i, loss in enumerate(losses)
        ]
        return max(map(abs, off))

    findings: list[Finding] = []
    for name, network in networks.items():
        off = [worst(seed) for seed in zip(*network.values(), strict=True)]
        findings.append(
            found(name, "largest |log₁₀| of the training loss over the wanted one", off, MATCHED, above=False)
        )
        for width, seeds in network.items():
            case = f"{name}, width {width}"
            findings += [
                reported(case, "steps of the second task", [_at("second", -1, "steps")(one) for one in seeds]),
                reported(case, "test accuracy after the first task", [one["learned"] for one in seeds]),
            ]
    return Claim("matched", "Every network stops at the same training loss", tuple(findings), "Over widths and tasks.")


def _closer(networks: Mapping[str, Network], losses: Sequence[float], task: str, key: str) -> Claim:
    findings: list[Finding] = []
    for case, i, network in _cases(networks, losses):
        told = "relative error of the change of the outputs"
        findings.append(
            found(
                case,
                f"power of the width of the {told}",
                power(network, _at(task, i, "error")),
                0.0,
                above=False,
                margin=FLAT,
            )
        )
        findings += [
            reported(case, f"{told}, width {width}", [_at(task, i, "error")(one) for one in seeds])
            for width, seeds in network.items()
        ]
    return Claim(
        key,
        f"The wider a network, the closer what its linearisation predicts of {TASKS[task]}",
        tuple(findings),
        "An error of 1 is that of predicting no change.",
    )


def _forgetting(networks: Mapping[str, Network], losses: Sequence[float]) -> Claim:
    findings: list[Finding] = []
    for case, i, network in _cases(networks, losses):
        findings += [
            found(
                case,
                "power of the width of the relative error of the old loss's rise",
                power(network, _rise_error(i)),
                0.0,
                above=False,
                margin=FLAT,
            ),
            found(
                case,
                "error of the drop of accuracy, widest minus narrowest",
                ends(network, _off(i)),
                0.0,
                above=False,
                margin=FEW,
            ),
        ]
        for width, seeds in network.items():
            findings += [
                reported(case, f"relative error of the rise, width {width}", [_rise_error(i)(one) for one in seeds]),
                reported(case, f"drop, width {width}", [_at("second", i, "drop")(one) for one in seeds]),
                reported(case, f"drop forecast, width {width}", [_at("second", i, "drop_told")(one) for one in seeds]),
            ]
    return Claim("forgetting", "The wider a network, the closer the forecast of what it forgets", tuple(findings))


def _as_theory(networks: Mapping[str, Network], losses: Sequence[float]) -> Claim:
    return Claim(
        "as-theory",
        "The errors fall nearly as the root of the width, as the theory says",
        tuple(
            found(
                f"{case}, {told}",
                "power of the width of the relative error",
                power(network, _at(task, i, "error")),
                THEORY,
                above=False,
            )
            for task, told in TASKS.items()
            for case, i, network in _cases(networks, losses)
        ),
        "−0.5 in the limit; that the power is below −0.4 is asked.",
    )


def _close(networks: Mapping[str, Network], losses: Sequence[float]) -> Claim:
    findings: list[Finding] = []
    for case, i, network in _cases(networks, losses):
        width, seeds = list(network.items())[-1]
        findings += [
            found(
                f"{case}, width {width}",
                f"relative error, {told}",
                [_at(task, i, "error")(one) for one in seeds],
                CLOSE,
                above=False,
            )
            for task, told in TASKS.items()
        ]
        findings.append(
            found(
                f"{case}, width {width}",
                "error of the drop of accuracy",
                [_off(i)(one) for one in seeds],
                FEW,
                above=False,
            )
        )
    return Claim("close", "At the largest width the predictions are close", tuple(findings), "0.1; 0.02 of accuracy.")


def _forgets_less(networks: Mapping[str, Network], losses: Sequence[float]) -> Claim:
    return Claim(
        "forgets-less",
        "The wider a network, the less it forgets",
        tuple(
            found(
                case,
                "drop of the old accuracy, widest minus narrowest",
                ends(network, _at("second", i, "drop")),
                0.0,
                above=False,
                margin=FEW,
            )
            for case, i, network in _cases(networks, losses)
        ),
        "At the same training loss. What their linearisations forget is told with the forecasts.",
    )


def _later(networks: Mapping[str, Network]) -> Claim:
    def grown(network: Network, task: str) -> list[float]:
        logs = [[math.log10(one[task][1]["error"] / one[task][0]["error"]) for one in s] for s in network.values()]
        return [float(v) for v in np.mean(logs, axis=0)]

    return Claim(
        "later",
        "The further a network is trained, the larger the errors of its linearisation",
        tuple(
            found(
                f"{name}, {told}",
                "log₁₀ error at the later loss minus at the earlier, mean over widths",
                grown(network, task),
                0.0,
                margin=ALIKE,
            )
            for name, network in networks.items()
            for task, told in TASKS.items()
        ),
    )


def _lazier(
    lazy: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], width: int, losses: Sequence[float]
) -> Claim:
    def logs(seeds: Sequence[Mapping[str, Any]], task: str, i: int) -> list[float]:
        return [math.log10(one[task][i]["error"]) for one in seeds]

    return Claim(
        "lazier",
        f"With outputs scaled by {ALPHA:g} the same network's predictions are closer",
        tuple(
            found(
                f"MLP, width {width}, loss {loss:g}, {told}",
                "log₁₀ error, minus that without",
                minus(logs(lazy, task, i), logs(plain, task, i)),
                0.0,
                above=False,
                margin=ALIKE,
            )
            for task, told in TASKS.items()
            for i, loss in enumerate(losses)
        ),
        "That the comparison can come out close, where the theory's other way into the kernel regime is taken.",
    )


def draw(results: Results) -> dict[str, Figure]:
    """Draw errors by width, at the last loss: of both tasks' outputs, and of the drop of accuracy."""
    with drawing():
        figure = new_figure(PAGE_INCHES, 2.9)
        left, middle, right = figure.subplots(1, 3)
        for position, (kind, name) in enumerate(KINDS.items()):
            network = {width: results.measured(f"{kind}-{width}") for width in widths(results.context, kind)}
            for axis, task in ((left, "first"), (middle, "second")):
                values = [[_at(task, -1, "error")(one) for one in seeds] for seeds in network.values()]
                draw_points(axis, list(network), values, position, name)
            drops = [
                [minus([s["drop_told"]], [s["drop"]])[0] for s in (one["second"][-1] for one in seeds)]
                for seeds in network.values()
            ]
            draw_points(right, list(network), drops, position)
        lazy = results.measured(LAZY)
        at = middle_width(results.context)
        for axis, task in ((left, "first"), (middle, "second")):
            draw_points(axis, [at], [[_at(task, -1, "error")(one) for one in lazy]], 3, "MLP, α = 10")
            axis.set_title(f"{task} task")
            log_scale(axis)
        right.axhline(0, color="black", linewidth=0.6)
        right.set_title("forgetting")
        left.set_ylabel("relative error of the outputs' change")
        right.set_ylabel("drop of accuracy, forecast − found")
        for axis in (left, middle, right):
            axis.set_xlabel("width")
            log_scale(axis, "x")
        put_legend(figure, *left.get_legend_handles_labels())
    return {"practical-width": figure}
