"""Reactivation at the boundary at which an experience begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, get_args, get_type_hints

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.measures.reactivation import NO_BOUNDARY
from avalanche_ntk.recorder.frames import COUNT_OR_NONE, TEXT, TRUTH_OR_NONE
from avalanche_ntk.recorder.measurement import Measurement

_PEAK_WINDOW = 3
_NEW = "there is no earlier measurement since the model was replaced or reinitialised"
# Tolerance between an interval and the requested one.
_TOLERANCE = 1.5
# Fields that depend on the interval of a velocity.
_FROM_VELOCITIES = (
    *(
        "base",
        "base_in_onset",
        "peak",
        "spike",
        "ratio",
        "at_floor",
        "z",
        "rank",
        "windows",
        "onset",
        "onset_ratio",
        "time_to_peak",
    ),
    *("half_life", "half_life_censored", "cadence", "floor"),
)


class Series(Protocol):
    """The measurements of one probe."""

    measurements: list[Measurement]
    reactivations: dict[int, measures.Reactivation]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the samples."""

    @property
    def kernel_dtype(self) -> str:
        """Precision of the kernels."""

    def kernel(self, index: int) -> np.ndarray:
        """Return a stored kernel; raise RunFolderError if it was not kept."""


def reactivation_types(number: str) -> dict[str, str]:
    """Return the columns of `reactivation_row`, for `frames.make_frame`.

    Args:
        number: Type of the numbers.

    Returns:
        Type of each column.
    """
    hints = get_type_hints(measures.Reactivation)
    kinds = {float: number, bool: TRUTH_OR_NONE, int: COUNT_OR_NONE}
    plain = [f.name for f in fields(measures.Reactivation) if f.name not in ("cadence", "reasons")]
    types = {name: kinds[next(iter(get_args(hints[name])), hints[name])] for name in plain}
    return {**types, "cadence_before": number, "cadence_after": number, "reasons": TEXT}


def reactivation_row(found: measures.Reactivation) -> dict[str, Any]:
    """Return a reactivation as a row of a table, one column per field."""
    values = found.as_dict()
    del values["reasons"]
    before, after = values.pop("cadence") or (None, None)
    return {**values, "cadence_before": before, "cadence_after": after, "reasons": found.missing}


def reactivation_at(trajectory: Series, experience: int) -> measures.Reactivation | None:
    """Compute the reactivation at the boundary at which an experience began.

    A velocity depends on the interval that it is taken over (a distance grows quadratically along a straight path). If
    the schedule is denser after the boundary than before, the velocities after it are recomputed from the stored
    kernels over the interval used before it. The same holds for the onset velocity of the first experience.

    Args:
        trajectory: The series.
        experience: Number of the experience in the order of training.

    Returns:
        The reactivation; for the first experience, and for the first after the model was reinitialised, only the onset
        velocity has a value. None when the experience was not measured.
    """
    good = [m for m in trajectory.measurements if m.failure is None]
    starts = [i for i, m in enumerate(good) if m.clock.experience == experience and m.clock.event == "experience_start"]
    if not starts:
        return None
    at = starts[-1]
    earlier = [m for m in good[:at] if m.segment == good[at].segment]
    mine = [m for m in good[at:] if m.clock.experience == experience]
    before = [m for m in earlier if m.clock.experience < experience]
    previous = [m for m in before if m.clock.experience == before[-1].clock.experience]
    first = good[0].clock.experience
    onset = trajectory.reactivations[first].onset if first in trajectory.reactivations and first != experience else None
    found = _measure(trajectory, earlier, mine, previous, onset)
    if not previous and experience != first:
        told = {name: _NEW if reason == NO_BOUNDARY else reason for name, reason in found.reasons.items()}
        return replace(found, reasons=told)
    if not found.mixed_cadence or found.cadence is None:
        return found
    interval = found.cadence[0]
    coarse = _at_interval(trajectory, mine, interval)
    if len(coarse) < 2:
        return found
    start = [m for m in good if m.clock.experience == first and m.segment == good[0].segment]
    onsets = [v for _, v in _at_interval(trajectory, start, interval) if v is not None]
    matched = _measure(
        trajectory, earlier, mine, previous, max(onsets[:_PEAK_WINDOW]) if onsets else None, after=coarse
    )
    reasons = {name: reason for name, reason in found.reasons.items() if name not in _FROM_VELOCITIES}
    reasons |= {name: reason for name, reason in matched.reasons.items() if name in _FROM_VELOCITIES}
    return replace(found, **{name: getattr(matched, name) for name in _FROM_VELOCITIES}, reasons=reasons)


def _measure(
    trajectory: Series,
    earlier: Sequence[Measurement],
    mine: Sequence[Measurement],
    previous: Sequence[Measurement],
    onset: float | None,
    after: Sequence[tuple[int, float | None]] | None = None,
) -> measures.Reactivation:
    """Pass the series to the measure; `after` replaces the velocities from the boundary on."""
    points = [(m.clock.iteration, m.values.get("velocity_per_iteration")) for m in earlier]
    dense = after is None
    points += [(m.clock.iteration, m.values.get("velocity_per_iteration")) for m in mine] if after is None else after
    everything = [*earlier, *mine]
    return measures.reactivation(
        times=[time for time, _ in points],
        velocities=[velocity for _, velocity in points],
        boundary=mine[0].clock.iteration,
        end=mine[-1].clock.iteration,
        start=min(m.clock.iteration for m in previous) if previous else None,
        lambda_max=[m.values.get("spectral_norm") for m in everything] if dense else None,
        alignment=[m.values.get("alignment") for m in everything] if dense else None,
        moved=mine[-1].values.get("distance_experience_start"),
        onset=onset,
        first=not previous,
        floor=measures.distance_floor(len(trajectory.labels), trajectory.kernel_dtype),
    )


def _at_interval(
    trajectory: Series, measurements: Sequence[Measurement], interval: float
) -> list[tuple[int, float | None]]:
    """Compute velocities over intervals of about the given length from the stored kernels.

    The first point is the boundary itself, without a velocity. The series ends where measurements are sparser than that
    or a kernel was not kept.
    """  # noqa: DOC201  (the first line says what is returned)
    points: list[tuple[int, float | None]] = [(measurements[0].clock.iteration, None)]
    here = measurements[0]
    try:
        view = measures.KernelView(trajectory.kernel(here.index))
        for m in measurements[1:]:
            elapsed = m.clock.iteration - here.clock.iteration
            if elapsed < interval / _TOLERANCE or (elapsed < interval and m is not measurements[-1]):
                continue
            if elapsed > interval * _TOLERANCE:
                break
            other = measures.KernelView(trajectory.kernel(m.index))
            velocity = measures.summary(other, previous=view, elapsed=elapsed).values.get("velocity")
            points.append((m.clock.iteration, velocity))
            here, view = m, other
    except RunFolderError:
        pass
    return points
