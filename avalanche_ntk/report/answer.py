"""The report's opening sentences on what happened at the boundaries."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from avalanche_ntk import measures
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report.boundaries import accuracies_since_learnt, lost
from avalanche_ntk.report.figures import starts_of
from avalanche_ntk.report.groups import matching, verdicts
from avalanche_ntk.report.runs import Run
from avalanche_ntk.report.text import counted, listed, number, share, span_of


def boundaries_of(trajectory: Trajectory) -> dict[int, measures.Reactivation]:
    """Return the reactivations at boundaries after the first experience."""
    first = next((e for e, _ in starts_of(trajectory)), None)
    return {e: r for e, r in trajectory.reactivations.items() if e != first}


def answer(run: Run, probe: str | None = None, controls: Sequence[Run] = ()) -> str:
    """Summarise in a few sentences what happened at a run's boundaries.

    Args:
        run: The run.
        probe: Name of the probe; None for the folder's first.
        controls: Runs in which no task changed.

    Returns:
        Plain text.

    Raises:
        RunFolderError: The run has no such probe.
    """
    trajectory = run.trajectory(probe)
    good = [m for m in trajectory if m.failure is None]
    if not trajectory.measurements:
        return f"{run.name}: nothing was measured on probe {trajectory.probe}."
    if not good:
        return (
            f"{run.name}: {'the only measurement' if len(trajectory) == 1 else f'all {len(trajectory)} measurements'} "
            "failed, so nothing is known of the kernel."
        )
    found = boundaries_of(trajectory)
    if not found:
        begun = len(starts_of(trajectory))
        why = (
            "it has one experience and no boundary"
            if begun < 2
            else "no experience after the first was measured to its end"
        )
        return f"{run.name}: {why}; the kernel is followed below."
    sentences = [_velocity(found), _norm(found), _alignment(found), _accuracy(run, trajectory)]
    if controls:
        sentences.append(_verdict(trajectory, controls))
    return f"{run.name}: " + " ".join(s for s in sentences if s)


def cautions(runs: Sequence[Run], probe: str | None, controls: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return warnings about trusting or comparing the numbers.

    Args:
        runs: The runs.
        probe: Name of the probe; None for each folder's first.
        controls: By a run's name, its controls, in which no task changed.

    Returns:
        Sentences; empty if there are none.
    """
    trajectories = [run.trajectory(probe) for run in runs]
    found = []
    if any(boundaries_of(t) and not controls.get(run.name) for run, t in zip(runs, trajectories, strict=True)):
        found.append(
            "No verdict without a control: fresh samples of the same classes alone make the kernel move faster (a "
            "ratio near 5 in a simulation), so these numbers prove a reactivation only in comparison with runs in "
            "which no task changes. Give such runs as --control."
        )
    cadences = {t.cadence for t in trajectories}
    if len(cadences) > 1:
        found.append(
            f"The runs were measured at different times ({listed(sorted(map(repr, cadences)), 4)}): velocities, "
            "spikes and ratios depend on the time between measurements and must not be compared between runs."
        )
    hashes = {str(run.described(t.probe).get("hash")) for run, t in zip(runs, trajectories, strict=True)}
    if len(hashes) > 1:
        found.append(
            "The runs were measured on different probes (their hashes differ): numbers of kernels are comparable "
            "within a run only."
        )
    mixed = [
        f"{run.name} at boundary {e} → {e + 1}"
        for run, t in zip(runs, trajectories, strict=True)
        for e, r in boundaries_of(t).items()
        if r.mixed_cadence
    ]
    if mixed:
        found.append(
            "Measured more densely on one side of the boundary than on the other, so peak and base are not "
            f"comparable: {listed(mixed, 4)}."
        )
    floors = [
        f"{run.name} at boundary {e} → {e + 1}"
        for run, t in zip(runs, trajectories, strict=True)
        for e, r in boundaries_of(t).items()
        if r.at_floor
    ]
    if floors:
        found.append(f"The velocity before is below the noise, so the ratio is a lower bound: {listed(floors, 4)}.")
    return found


def _velocity(found: dict[int, measures.Reactivation]) -> str:
    ratios = {e: r.ratio for e, r in found.items() if r.ratio is not None}
    spikes = {e: r.spike for e, r in found.items() if r.spike is not None}
    if not ratios or not spikes:
        reason = next((r.reasons["spike"] for r in found.values() if "spike" in r.reasons), "no velocity is defined")
        return f"No spike can be given at {_count(len(found))}: {reason}."
    faster = [e for e, spike in spikes.items() if spike > 0]
    where = (
        _count(len(found), every=True)
        if len(faster) == len(found)
        else f"{len(faster)} of {_count(len(found))}"
        if faster
        else f"none of {_count(len(found))}"
    )
    middle = f" (median {number(statistics.median(ratios.values()), 2)})" if len(ratios) > 1 else ""
    missing = len(found) - len(spikes)
    unknown = f" At {_count(missing)} it is undefined." if missing else ""
    return (
        f"at {where} the kernel then moved faster than before: its peak velocity was {span_of(list(ratios.values()))} "
        f"times the velocity before{middle}, a spike of {span_of(list(spikes.values()))} per iteration.{unknown}"
    )


def _count(boundaries: int, every: bool = False) -> str:
    if every:
        return "the one boundary" if boundaries == 1 else f"all {boundaries} boundaries"
    return counted(boundaries, "boundary", "boundaries")


def _norm(found: dict[int, measures.Reactivation]) -> str:
    dips = [r.norm_dip for r in found.values() if r.norm_dip is not None]
    ends = [r.norm_recovery for r in found.values() if r.norm_recovery is not None]
    if not dips or not ends:
        return ""
    verb = "fell to" if max(dips) < 1 else "was lowest at" if min(dips) < 1 else "never fell: its lowest was"
    return (
        f"λ_max {verb} {span_of(dips)} of its value at the boundary and was {span_of(ends)} times that value when the "
        "new task ended."
    )


def _alignment(found: dict[int, measures.Reactivation]) -> str:
    drops = [r.alignment_drop for r in found.values() if r.alignment_drop is not None]
    if not drops:
        return ""
    largest = max(drops)
    if largest <= 0:
        return "Alignment with the labels never fell."
    return f"Alignment with the labels dropped by up to {number(largest, 2)}."


def _accuracy(run: Run, trajectory: Trajectory) -> str:
    experience = run.experience_of(trajectory.probe)
    after = accuracies_since_learnt(run, trajectory.probe)
    overall = run.stream_accuracies()
    ended = f" On the whole test stream it ended at {share(overall[-1][2])}." if overall else ""
    if not after:
        return f"Accuracy on task {experience + 1} was not recorded.{ended}"
    last = max(after)
    first = next(iter(after))
    if first == last:
        return f"Accuracy on task {experience + 1} was {share(after[last])}.{ended}"
    _, forgetting = lost(run, trajectory.probe, last)
    return (
        f"Accuracy on task {experience + 1} went from {share(after[first])} to {share(after[last])} "
        f"(forgetting {share(forgetting)}).{ended}"
    )


def _verdict(trajectory: Trajectory, controls: Sequence[Run]) -> str:
    found = verdicts(trajectory, controls)
    if isinstance(found, str):
        return f"No verdict: {found}"
    enough = any(v.verdict == "reactivated" for v in found.values())
    yes = sum(v.verdict in ("reactivated", "above the controls") for v in found.values())
    many = len(matching(trajectory, controls)[0])
    word = "reactivated" if enough else "above all of them" if many > 1 else "above it"
    undefined = sum(v.verdict == "undefined" for v in found.values())
    more = f" ({undefined} undefined)" if undefined else ""
    beside = counted(many, "control") if many == len(controls) else f"the {many} of {len(controls)} controls that match"
    return f"Verdict beside {beside}: {word} at {yes} of {_count(len(found))}{more}."
