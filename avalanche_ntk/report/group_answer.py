"""A paragraph on the boundaries of runs that differ only in the seed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from avalanche_ntk.measures import interval
from avalanche_ntk.numerals import written
from avalanche_ntk.report.groups import Group, verdicts_over_seeds
from avalanche_ntk.report.runs import Run
from avalanche_ntk.report.seeds import boundaries, number_at
from avalanche_ntk.report.text import counted


def called(group: Group) -> str:
    """Return the beginning of a group's paragraph."""
    return f"{group.name} ({counted(len(group.runs), 'seed')})"


def answer_over_seeds(group: Group, probe: str | None, controls: Mapping[str, Sequence[Run]]) -> str:
    """Summarise in a few sentences what happened at a group's boundaries: means over boundaries, then over seeds.

    Args:
        group: The runs.
        probe: Name of the probe; None for each folder's first.
        controls: The controls of each run, by its name.

    Returns:
        Plain text.

    Raises:
        RunFolderError: A run has no such probe.
    """
    measured = [run for run in group.runs if boundaries(run, probe)]
    if not measured:
        return f"{called(group)}: no boundary was measured to its end."
    most = max(len(boundaries(run, probe)) for run in measured)

    def told(column: str) -> str:
        return written(*_over_seeds(measured, column, probe))

    over = f"over {counted(most, 'boundary', 'boundaries')}"
    reason = _why_no_spike(measured, probe)
    sentences = [
        f"{over} no spike can be given: {reason}."
        if reason
        else f"{over} the spike is {told('spike')} per iteration, {told('ratio')} times the velocity before.",
        f"λ_max falls to {told('norm_dip')} of its value at the boundary and is at {told('norm_recovery')} of it when "
        "the new task ends.",
        f"Alignment with the labels drops by {told('alignment_drop')}.",
    ]
    last = _last(measured, probe)
    if last is not None:
        sentences.append(f"At the end, accuracy on the probe's task is {last[0]} (forgetting {last[1]}).")
    if not reason:
        sentences.append(_verdict(group, probe, controls))
    return f"{called(group)}: " + " ".join(sentence for sentence in sentences if sentence)


def _why_no_spike(runs: Sequence[Run], probe: str | None) -> str:
    """Return the reason if no boundary of any run has a spike; otherwise an empty string."""
    found = [run.trajectory(probe).reactivations[e] for run in runs for e in boundaries(run, probe)]
    if any(one.spike is not None for one in found):
        return ""
    return next((one.reasons["spike"] for one in found if "spike" in one.reasons), "no velocity is defined")


def _over_seeds(runs: Sequence[Run], column: str, probe: str | None) -> tuple[float, float]:
    """Return the mean over seeds of a number's mean over boundaries, and half of its interval."""
    by_seed = []
    for run in runs:
        values = [number_at(run, column, experience, probe) for experience in boundaries(run, probe)]
        defined = [value for value in values if math.isfinite(value)]
        if defined:
            by_seed.append(sum(defined) / len(defined))
    mean, low, high = interval(by_seed)
    return mean, (high - low) / 2


def _last(runs: Sequence[Run], probe: str | None) -> tuple[str, str] | None:
    ends = [(run, boundaries(run, probe)[-1]) for run in runs]
    found = []
    for column in ("accuracy", "forgetting"):
        values = [number_at(run, column, end, probe) for run, end in ends]
        mean, low, high = interval([value for value in values if math.isfinite(value)])
        if math.isnan(mean):
            return None
        found.append(written(mean, (high - low) / 2))
    return found[0], found[1]


def _verdict(group: Group, probe: str | None, controls: Mapping[str, Sequence[Run]]) -> str:
    judged = verdicts_over_seeds(group, controls, probe)
    if not judged:
        return ""
    words = Counter(v.verdict for v in judged.values())
    pairs = max(v.seeds for v in judged.values())
    boundaries_told = counted(len(judged), "boundary", "boundaries")
    if words["undefined"] == len(judged):
        return f"No verdict: {next(iter(judged.values())).reason}."
    undefined = f" ({words['undefined']} undefined)" if words["undefined"] else ""
    return (
        f"Verdict over {counted(pairs, 'seed')}, each beside its own control: reactivated at {words['reactivated']} of "
        f"{boundaries_told}{undefined}."
    )
