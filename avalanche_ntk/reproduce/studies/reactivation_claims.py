"""The Reactivation paper's statements, judged from the runs of `reactivation`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from avalanche_ntk.reproduce.around import VELOCITY, learnt, number_of, reactivation_of, series_around
from avalanche_ntk.reproduce.results import DoneRun, Results, per_seed
from avalanche_ntk.reproduce.verdicts import Claim, Finding, found, minus, reported, trend

DROP = 0.9  # λ_max falls "sharply" where it loses a tenth
DEFLECTION = 0.02  # the alignment deflects "sharply" where it falls by a fiftieth of its scale
RECOVERED = 0.5  # it "recovers" where it regains half of what it lost
MONOTONE = -0.8  # of six levels; two neighbours that change places leave −0.94
SMOOTH = 0.1  # a frequency shift is "smooth" where it adds less than a tenth of a class shift's spike
FIRST = 3  # measurements of "the first steps", the window of the peak
TWICE = 1.0  # margin of log₂ of two peaks, which differ by orders of magnitude: a factor of two

BEYOND = "log₂(peak/control's peak)"
AS_BEYOND = (
    "Both have the same first task, so the larger peak is the larger spike. Peaks are compared by "
    "their ratio, since they differ by orders of magnitude; a factor of less than two does not matter."
)

At = Mapping[str, Any]


def cells(results: Results, plan: str, control: bool, at: At = {}) -> list[DoneRun]:  # noqa: B006  (never changed)
    """Return the runs of a plan with these values by dotted key."""
    return results.runs(plan, at, control=control)


def levels(results: Results, plan: str, key: str) -> list[Any]:
    """Return the values that a key has in the shifted runs of a plan, in order."""
    return sorted({run.value(key) for run in results.runs(plan, control=False)})


def numbers(
    results: Results, plan: str, number: Callable[[DoneRun], float], at: At, *, control: bool = False
) -> list[float]:
    """Return a number a seed; NaN for a run that died before its second task had been measured."""
    return per_seed(
        cells(results, plan, control, at), lambda run: number(run) if survived(run) else math.nan, results.context.seeds
    )


def survived(run: DoneRun) -> bool:
    """Tell whether a run was measured in its second task: one whose training diverges is not."""
    return 1 in run.trajectory().reactivations


def excess(
    results: Results, plan: str, number: Callable[[DoneRun], float], at: At, control_at: At | None = None
) -> list[float]:
    """Return a number of the shifted run minus that of its control, a seed each."""
    shifted = numbers(results, plan, number, at)
    control = numbers(results, plan, number, at if control_at is None else control_at, control=True)
    return minus(shifted, control)


def above_the_controls_peak(
    results: Results, plan: str, peak: Callable[[DoneRun], float], at: At, control_at: At | None = None
) -> list[float]:
    """Return `log₂(peak/control's peak)`, a seed each; NaN where a peak is not positive."""

    def logarithm(run: DoneRun) -> float:
        value = peak(run)
        return math.log2(value) if value > 0 else math.nan

    return excess(results, plan, logarithm, at, control_at)


def at_boundary(name: str, boundary: int = 1) -> Callable[[DoneRun], float]:
    """Return the function that reads a number of `measures.Reactivation`."""
    return lambda run: run.reactivation(name, boundary)


# --- series behind a boundary ------------------------------------------------------------------------------------


def around(run: DoneRun, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return iterations since the first switch, 0 among them, and a column of a run of two tasks; shapes `(n,)`."""
    times, values = series_around(run.trajectory(), column)
    return np.array(times), np.array(values)


def norm_change(run: DoneRun) -> float:
    """Return `max |λ_max/λ_max(b) − 1|` over the measurements behind the first boundary."""
    times, norms = around(run, "spectral_norm")
    return float(np.max(np.abs(norms[times > 0] / norms[times == 0] - 1)))


def recovered_share(run: DoneRun) -> float:
    """Return `(λ_max(end) − min λ_max)/(λ_max(b) − min λ_max)`; NaN where λ_max never fell below λ_max(b)."""
    dip, end = run.reactivation("norm_dip"), run.reactivation("norm_recovery")
    return (end - dip) / (1 - dip) if dip < 1 else math.nan


def recovery_time(run: DoneRun) -> float:
    """Return the iterations from the boundary until λ_max, after its minimum, is at λ_max(b) again.

    0 where it never fell; the length of the task where it does not come back in it.
    """
    times, norms = around(run, "spectral_norm")
    after, ratio = times[times > 0], norms[times > 0] / norms[times == 0]
    if ratio.min() >= 1:
        return 0.0
    back = np.flatnonzero((np.arange(len(ratio)) > ratio.argmin()) & (ratio >= 1))
    return float(after[back[0]] if len(back) else after[-1])


def early_share(run: DoneRun) -> float:
    """Return the share of the path `Σ v Δt` behind the boundary that lies in its first three measurements."""
    times, velocities = around(run, VELOCITY)
    after = times > 0
    steps = velocities[after] * np.diff(times[times >= 0])
    return float(np.sum(steps[:FIRST]) / np.sum(steps))


def uncentred(name: str) -> Callable[[DoneRun], float]:
    """Return the function that reads a number of the reactivation of uncentred distances."""
    return lambda run: number_of(reactivation_of(run.trajectory(), f"{VELOCITY}_uncentred"), name)


# --- the statements ----------------------------------------------------------------------------------------------


def judge(results: Results) -> list[Claim]:
    """Judge the seven statements, as published and beyond their controls, and show what the first depends on.

    Args:
        results: The runs.

    Returns:
        The claims.
    """
    return [
        _spikes(results),
        _richer(results),
        _spikes_more(results),
        _drops(results),
        _recovers(results),
        _drops_more(results),
        *_deflects(results),
        _monotone(results),
        _first_class(results),
        _smooth(results),
        *_rates(results),
        *_every_boundary(results),
        *_depends(results),
    ]


def _networks(results: Results) -> list[tuple[str, str, dict[str, Any]]]:
    """Return name, plan and values of every network and regime."""
    return [
        (f"{name}, width {width}, {regime}", plan, {"model.width": width, "regime.name": regime})
        for name, plan in (("MLP", "widths"), ("CNN", "convolutional"))
        for regime in ("lazy", "rich")
        for width in levels(results, plan, "model.width")
    ]


def _spikes(results: Results) -> Claim:
    findings: list[Finding] = []
    for case, plan, at in _networks(results):
        spike = at_boundary("spike")
        findings.append(found(case, "spike", numbers(results, plan, spike, at), 0.0))
        findings.append(reported(case, "ratio peak/base", numbers(results, plan, at_boundary("ratio"), at)))
        tested = numbers(results, plan, learnt, at)
        findings.append(reported(case, "test accuracy on the first task at the switch", tested))
    return Claim(
        "1a",
        "Kernel velocity spikes at the switch, in the lazy and in the rich regime.",
        tuple(findings),
        "As published, without a control: the spike is the peak behind the switch minus the velocity before it.",
    )


def _spikes_more(results: Results) -> Claim:
    findings: list[Finding] = []
    for case, plan, at in _networks(results):
        above = above_the_controls_peak(results, plan, at_boundary("peak"), at)
        findings.append(found(case, BEYOND, above, 0.0, margin=TWICE))
        ratios = numbers(results, plan, at_boundary("ratio"), at, control=True)
        findings.append(reported(case, "control's ratio peak/base", ratios))
    return Claim(
        "1c",
        "The spike is larger than that of fresh samples of the same classes.",
        tuple(findings),
        f"Not in the paper. {AS_BEYOND} A network that has learnt its samples by heart and does not "
        "generalise meets as large a loss on fresh samples of its classes as on new classes.",
    )


def _richer(results: Results) -> Claim:
    findings = []
    for case, plan, at in _networks(results):
        if at["regime.name"] == "rich":
            lazy = numbers(results, plan, at_boundary("spike"), {**at, "regime.name": "lazy"})
            rich = numbers(results, plan, at_boundary("spike"), at)
            findings.append(found(case, "spike(rich) − spike(lazy)", minus(rich, lazy), 0.0))
    remark = (
        "The lazy learning rate falls as 1/width from the base width on, as in the paper, and is the larger one below: "
        "the regimes differ in learning rate and initialisation, not in initialisation alone."
    )
    return Claim("1b", "The spike is larger in the rich regime than in the lazy one.", tuple(findings), remark)


def _varied(results: Results) -> list[tuple[str, str, dict[str, Any]]]:
    """Return every network, learning rate and duration."""
    others = [
        (f"MLP, width {_width(results, plan)}, rich, {called} {value:g}", plan, {key: value})
        for plan, key, called in (("learning-rates", "optimizer.lr", "η"), ("durations", "epochs", "epochs"))
        for value in levels(results, plan, key)
    ]
    return [*_networks(results), *others]


def _width(results: Results, plan: str) -> Any:
    return levels(results, plan, "model.width")[0]


def _drops(results: Results) -> Claim:
    findings = []
    for case, plan, at in _varied(results):
        dip = numbers(results, plan, at_boundary("norm_dip"), at)
        findings.append(found(case, "min λ_max/λ_max(b)", dip, DROP, above=False))
        control = numbers(results, plan, at_boundary("norm_dip"), at, control=True)
        findings.append(reported(case, "control's min λ_max/λ_max(b)", control))
    return Claim(
        "2a",
        "λ_max drops sharply at the switch, at all widths, learning rates and durations.",
        tuple(findings),
        "“Sharply” is taken as at least a tenth. Above 1, λ_max never fell below its value at the switch.",
    )


def _recovers(results: Results) -> Claim:
    findings = [
        found(
            case,
            "share of the drop that is regained by the end",
            numbers(results, plan, recovered_share, at),
            RECOVERED,
        )
        for case, plan, at in _varied(results)
    ]
    return Claim(
        "2b",
        "After its drop λ_max recovers, at all widths, learning rates and durations.",
        tuple(findings),
        "“Recovers” is taken as regaining half of what was lost; undefined where nothing was lost.",
    )


def _drops_more(results: Results) -> Claim:
    findings = [
        found(case, "control's min λ_max/λ_max(b) − that of the switch", [-v for v in dips], 0.0, margin=1 - DROP)
        for case, plan, at in _varied(results)
        for dips in [excess(results, plan, at_boundary("norm_dip"), at)]
    ]
    return Claim(
        "2c",
        "λ_max drops more than with fresh samples of the same classes.",
        tuple(findings),
        "Not in the paper. Differences below the tenth that makes a drop sharp do not matter.",
    )


def _deflects(results: Results) -> list[Claim]:
    drop = at_boundary("alignment_drop")
    as_published = [
        found(case, "alignment drop", numbers(results, plan, drop, at), DEFLECTION)
        for case, plan, at in _networks(results)
    ]
    beyond = [
        found(case, "alignment drop − control's", excess(results, plan, drop, at), 0.0, margin=DEFLECTION)
        for case, plan, at in _networks(results)
    ]
    return [
        Claim(
            "3a",
            "The kernel's alignment with the first task's labels deflects sharply.",
            tuple(as_published),
            f"“Sharply” is taken as more than {DEFLECTION:g} on the scale from 0 to 1.",
        ),
        Claim(
            "3b",
            "It drops more than with fresh samples of the same classes.",
            tuple(beyond),
            f"Not in the paper. Differences below the {DEFLECTION:g} that makes a drop sharp do not matter.",
        ),
    ]


def _by_overlap(results: Results, number: Callable[[DoneRun], float], regime: str) -> dict[float, list[float]]:
    """Return the numbers at each class overlap; at 1, where all classes stay, they are the control's."""
    at = {"regime.name": regime}
    key = "benchmark.similarity"
    shifted = {
        float(level): numbers(results, "overlaps", number, {**at, key: level})
        for level in levels(results, "overlaps", key)
    }
    return {**shifted, 1.0: numbers(results, "overlaps", number, at, control=True)}


def _monotone(results: Results) -> Claim:
    findings = []
    for regime in ("lazy", "rich"):
        for called, number in (("spike", at_boundary("spike")), ("max |λ_max/λ_max(b) − 1|", norm_change)):
            ranks = trend(_by_overlap(results, number, regime))
            what = f"Spearman's ρ of {called} and class overlap"
            findings.append(
                found(f"MLP, width {_width(results, 'overlaps')}, {regime}", what, ranks, MONOTONE, above=False)
            )
    return Claim(
        "4a",
        "Spike and norm change shrink monotonically with class overlap.",
        tuple(findings),
        f"“Monotonically” is taken as a rank correlation below {MONOTONE:g}; the overlap 1 is the control.",
    )


def first_class_excess(by_overlap: Mapping[float, Sequence[float]]) -> list[float]:
    """Return what the first new class adds, minus what each further one adds on average.

    Args:
        by_overlap: Numbers a seed by class overlap, 0 and 1 and at least one between.

    Returns:
        With the numbers s_0 … s_m from no new class (overlap 1) to m (overlap 0): `(s_1 − s_0) − (s_m − s_1)/(m−1)`.

    >>> first_class_excess({0.0: [4.0], 0.5: [3.0], 1.0: [0.0]})
    [2.0]
    """
    ordered = [by_overlap[level] for level in sorted(by_overlap, reverse=True)]
    none, first, all_new = ordered[0], ordered[1], ordered[-1]
    further = len(ordered) - 2
    return [b - a - (c - b) / further for a, b, c in zip(none, first, all_new, strict=True)]


def _first_class(results: Results) -> Claim:
    findings = [
        found(
            f"MLP, width {_width(results, 'overlaps')}, {regime}",
            f"{called}: what the first new class adds − what a further one adds on average",
            first_class_excess(_by_overlap(results, number, regime)),
            0.0,
        )
        for regime in ("lazy", "rich")
        for called, number in (("spike", at_boundary("spike")), ("norm change", norm_change))
    ]
    return Claim("4b", "The first new class matters most.", tuple(findings))


def _smooth(results: Results) -> Claim:
    spike = at_boundary("spike")
    none = numbers(results, "frequencies", spike, {}, control=True)
    classes = numbers(results, "overlaps", spike, {"regime.name": "rich", "benchmark.similarity": 0})
    findings = []
    for alpha in levels(results, "frequencies", "benchmark.alpha"):
        shifted = numbers(results, "frequencies", spike, {"benchmark.alpha": alpha})
        case = f"MLP, width {_width(results, 'frequencies')}, rich, α = {alpha:g}"
        findings.append(found(case, "(spike − control's)/control's", relative(shifted, none), SMOOTH, above=False))
        findings.append(reported(case, "spike / spike of a shift to new classes", relative(shifted, classes, 0.0)))
    remark = (
        "The control (α = 0) draws fresh samples with the old frequencies; “smooth” is taken as adding less than a "
        "tenth to its spike. The frequencies are of all ten classes, the shift to new classes is from five to five."
    )
    return Claim("5", "A shift of the classes' frequencies alone stays smooth.", tuple(findings), remark)


def relative(numbers_: Sequence[float], to: Sequence[float], less: float = 1.0) -> list[float]:
    """Return `x/y − less` for each seed; NaN where y is not positive."""
    return [x / y - less if y > 0 else math.nan for x, y in zip(numbers_, to, strict=True)]


def _rates(results: Results) -> list[Claim]:
    plan, key = "learning-rates", "optimizer.lr"
    rates = levels(results, plan, key)
    low, medium, high = rates[0], rates[len(rates) // 2], rates[-1]
    case = f"MLP, width {_width(results, plan)}, rich"

    def by_rate(number: Callable[[DoneRun], float]) -> dict[float, list[float]]:
        return {rate: numbers(results, plan, number, {key: rate}) for rate in rates}

    dips, times, shares = by_rate(at_boundary("norm_dip")), by_rate(recovery_time), by_rate(early_share)
    told = f"η = {', '.join(f'{rate:g}' for rate in rates)}"
    deeper = found(case, f"Spearman's ρ of min λ_max/λ_max(b) and η ({told})", trend(dips), 0.0, above=False)
    depths = [reported(f"{case}, η = {rate:g}", "min λ_max/λ_max(b)", dips[rate]) for rate in rates]
    what = "iterations until λ_max is back at λ_max(b)"
    slower = [
        found(case, f"{what}: η = {high:g} − η = {medium:g}", minus(times[high], times[medium]), 0.0),
        found(case, f"{what}: η = {low:g} − η = {medium:g}", minus(times[low], times[medium]), 0.0),
    ]
    waits = [reported(f"{case}, η = {rate:g}", what, times[rate]) for rate in rates]
    share = f"share of the path behind the switch in its first {FIRST} measurements"
    early = found(case, f"{share}: η = {low:g} − η = {medium:g}", minus(shares[low], shares[medium]), 0.0)
    paths = [reported(f"{case}, η = {rate:g}", share, shares[rate]) for rate in rates]
    wait = "Where λ_max does not come back within the task, its length is taken; 0 where it never fell."
    return [
        Claim("6a", "The higher the learning rate, the deeper the drop of λ_max.", (deeper, *depths)),
        Claim("6b", "λ_max recovers fastest at a medium learning rate, more slowly at a high and at a low one.",
              (*slower, *waits), wait),
        Claim("6c", "At a low learning rate the kernel changes in the first steps only.", (early, *paths)),
    ]  # fmt: skip


def boundaries_of(results: Results) -> range:
    """Return the boundaries of the plan with several tasks."""
    return range(1, results.runs("boundaries")[0].value("benchmark.n_tasks"))


def _every_boundary(results: Results) -> list[Claim]:
    as_published, beyond = [], []
    for regime in ("lazy", "rich"):
        for boundary in boundaries_of(results):
            case = f"MLP, width {_width(results, 'boundaries')}, {regime}, boundary {boundary}"
            at = {"regime.name": regime}
            spike = numbers(results, "boundaries", at_boundary("spike", boundary), at)
            as_published.append(found(case, "spike", spike, 0.0))
            above = above_the_controls_peak(results, "boundaries", at_boundary("peak", boundary), at)
            beyond.append(found(case, BEYOND, above, 0.0, margin=TWICE))
    return [
        Claim("7a", "The velocity spikes at every boundary of five tasks.", tuple(as_published)),
        Claim(
            "7b",
            "At every boundary it spikes more than with fresh samples of the first classes.",
            tuple(beyond),
            "Not in the paper. Peaks are compared, by their ratio; a factor of less than two does not matter. From the "
            "second boundary on the two networks have learnt different tasks.",
        ),
    ]


def alternatives(
    results: Results, regime: str
) -> dict[str, tuple[str, At, Callable[[str], Callable[[DoneRun], float]]]]:
    """Return, by name, the plan, the values and the reader of each way to measure that the paper leaves open."""
    width = _width(results, "reductions")
    usual = {"regime.name": regime, "model.width": width}
    sizes = {
        size: ("probes", {**usual, "probe.size": size}, at_boundary) for size in levels(results, "probes", "probe.size")
    }
    plan = "widths" if width in levels(results, "widths", "model.width") else "overlaps"
    standing = usual if plan == "widths" else {**usual, "benchmark.similarity": 0}
    return {
        "trace, centred": (plan, standing, at_boundary),
        "trace, uncentred": (plan, standing, uncentred),
        "sum_logits, centred": ("reductions", usual, at_boundary),
        "sum_logits, uncentred": ("reductions", usual, uncentred),
        **{f"trace, centred, probe of {size}": what for size, what in sizes.items()},
    }


def _depends(results: Results) -> list[Claim]:
    as_published, beyond = [], []
    for regime in ("lazy", "rich"):
        for name, (plan, at, reader) in alternatives(results, regime).items():
            control = {k: v for k, v in at.items() if k != "benchmark.similarity"}
            case = f"MLP, width {_width(results, 'reductions')}, {regime}, {name}"
            as_published.append(found(case, "spike", numbers(results, plan, reader("spike"), at), 0.0))
            as_published.append(reported(case, "ratio peak/base", numbers(results, plan, reader("ratio"), at)))
            if reader is at_boundary:
                as_published.append(
                    reported(case, "min λ_max/λ_max(b)", numbers(results, plan, reader("norm_dip"), at))
                )
            above = above_the_controls_peak(results, plan, reader("peak"), at, control)
            beyond.append(found(case, BEYOND, above, 0.0, margin=TWICE))
    remark = "The paper names none of the three. Probes of other sizes hold other samples."
    return [
        Claim(
            "open-a",
            "The velocity spikes however the kernel is reduced and centred, and however large the probe is.",
            tuple(as_published),
            remark,
        ),
        Claim(
            "open-b",
            "So measured, it spikes more than with fresh samples of the same classes.",
            tuple(beyond),
            f"{remark} {AS_BEYOND}",
        ),
    ]
