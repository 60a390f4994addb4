"""Reactivation at a task boundary: the kernel's change when a new task begins.

It takes plain series, so it can be computed during a run, from a run folder, or from published numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avalanche_ntk.errors import ArgumentError, unknown_name
from avalanche_ntk.frozen import frozen
from avalanche_ntk.measures._arrays import Array, as_float64
from avalanche_ntk.measures.similarity import distance_floor

#: Default floor of S: float32 kernels of many samples.
DEFAULT_FLOOR = distance_floor(1000, "float32")


@dataclass(frozen=True, repr=False)
class Reactivation:
    """The reactivation at one boundary. An undefined field is None, with its reason in `reasons`.

    Velocities are in distance per iteration, times in iterations.

    Attributes:
        boundary: Iteration `b`.
        end: Iteration of the last measurement used.
        onset: Peak velocity at the start of the first experience.
        base: Median of the last m velocities before b in the second half of the previous task.
        base_in_onset: True if fewer than 2 velocities lie in that half although more were measured. The others belong
            to the onset of the previous task and give no base, so fields that need one are None. None if it is unknown
            when that task began.
        peak: Largest of the first w velocities after b, or of fewer if there are not w yet.
        spike: `peak − base`.
        ratio: `peak / max(base, floor)`; a lower bound if `at_floor`.
        at_floor: True if the base is below the noise, so that `ratio` is only a lower bound.
        z: `(peak − base) / max(1.4826·MAD, floor)`, MAD the median absolute deviation of the m velocities.
        rank: Share of the pre-boundary windows of width w whose largest velocity is below `peak`.
        windows: Number of those windows; a rank of 1 means little with few windows.
        onset_ratio: `peak / onset`.
        moved: `S(Θ_b, Θ_end)`.
        path: `Σ v·Δt` from b to the end.
        time_to_peak: Iterations from b to the end of the peak's interval.
        half_life: Iterations from the peak until `v − base ≤ ½·spike`.
        half_life_censored: True if that was not reached by the end; the reason gives the number of iterations observed.
        norm_dip: `min λ_max / λ_max(b)` over the measurements after b; above 1 if λ_max never fell below `λ_max(b)`.
        norm_recovery: `λ_max(end) / λ_max(b)`.
        alignment_drop: `A(b) − min A` over the measurements after b; negative if the alignment only rose.
        cadence: Median iterations between measurements, for the m velocities before b and the w after it.
        floor: Noise of a velocity: the floor of S over the shortest interval used.
        reasons: Why a field is None, by name.
    """

    boundary: float
    end: float
    onset: float | None = None
    base: float | None = None
    base_in_onset: bool | None = None
    peak: float | None = None
    spike: float | None = None
    ratio: float | None = None
    at_floor: bool | None = None
    z: float | None = None
    rank: float | None = None
    windows: int | None = None
    onset_ratio: float | None = None
    moved: float | None = None
    path: float | None = None
    time_to_peak: float | None = None
    half_life: float | None = None
    half_life_censored: bool | None = None
    norm_dip: float | None = None
    norm_recovery: float | None = None
    alignment_drop: float | None = None
    cadence: tuple[float, float] | None = None
    floor: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", frozen(self.reasons))

    @property
    def mixed_cadence(self) -> bool | None:
        """True if the measurements before and after b are not equally dense, None if there is no cadence.

        A distance does not grow linearly with the interval (quadratically along a straight path, more slowly once it
        bends), so a velocity depends on its interval, and the ratio of a dense peak to a sparse base mixes two
        quantities.
        """
        return None if self.cadence is None else self.cadence[0] != self.cadence[1]

    @property
    def missing(self) -> str:
        """Reasons of undefined fields: each reason once, after the names of its fields."""
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            by_reason.setdefault(reason, []).append(name)
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())

    def __repr__(self) -> str:
        """Return the defined fields, numbers with four digits, and each reason once."""
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("cadence", "reasons")}
        told = [
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in shown.items()
            if value is not None
        ]
        if self.cadence is not None:
            told.append("cadence={:g} iterations before and {:g} after the boundary".format(*self.cadence))
        if self.reasons:
            told.append(f"undefined: {self.missing}")
        return f"Reactivation({', '.join(told)})"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-compatible dictionary."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["reasons"] = dict(self.reasons)
        values["cadence"] = None if self.cadence is None else list(self.cadence)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Reactivation":
        """Return a reactivation from the result of `as_dict`.

        Args:
            values: Its fields; absent ones are None.

        Returns:
            The reactivation.

        Raises:
            ArgumentError: A field is unknown, or boundary or end is missing.
        """  # noqa: DOC501
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("field of a reactivation", name, known)
        if values.get("boundary") is None or values.get("end") is None:
            raise ArgumentError(f"a reactivation needs a boundary and an end, found the fields {sorted(values)}.")
        cadence = values.get("cadence")
        return cls(**{**values, "cadence": None if cadence is None else (cadence[0], cadence[1])})


# Fields that are undefined for the first experience, which has no boundary before it.
_NEEDS_BOUNDARY = tuple(
    f.name
    for f in fields(Reactivation)
    if f.name not in ("boundary", "end", "onset", "half_life_censored", "windows", "floor", "reasons")
)
NO_BOUNDARY = "the first experience has no boundary before it; its onset velocity is reported instead"
_NO_ONSET = "no onset velocity of the first experience was given"


class _Builder:
    """Collects values, and reasons of missing ones."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def missing(self, reason: str, *names: str) -> None:
        for name in names:
            if self.values.get(name) is None:
                self.reasons.setdefault(name, reason)


def _series(values: Sequence[float | None] | ArrayLike | None, what: str, length: int) -> Array | None:
    if values is None:
        return None
    if isinstance(values, Sequence):
        values = [math.nan if v is None else v for v in values]
    array = as_float64(values, what)
    if array.shape != (length,):
        raise ArgumentError(
            f"{what} must have one value per measurement: there are {length} times, found shape {array.shape}. "
            "Use None where a measurement has no value."
        )
    return array


def reactivation(
    times: Sequence[float] | ArrayLike,
    velocities: Sequence[float | None] | ArrayLike,
    boundary: float,
    *,
    end: float | None = None,
    start: float | None = None,
    lambda_max: Sequence[float | None] | ArrayLike | None = None,
    alignment: Sequence[float | None] | ArrayLike | None = None,
    moved: float | None = None,
    onset: float | None = None,
    first: bool = False,
    m: int = 10,
    w: int = 3,
    floor: float = DEFAULT_FLOOR,
) -> Reactivation:
    """Measure the reactivation at a boundary b.

    With `base` the median of the last m velocities before b (at least 2) and `peak` the largest of the first w after b,

        spike = peak − base,   ratio = peak / max(base, floor),   z = (peak − base) / max(1.4826·MAD, floor),

    The base is the velocity after the kernel has settled, without the onset of the previous task: if the task's `start`
    is given, only velocities count whose interval lies in its second half. If fewer than 2 are left, there is no base
    and no ratio, and `base_in_onset` is True. The other numbers are as in `Reactivation`. No interval may cross the
    boundary: there must be a measurement exactly at b. Of several measurements at iteration b (after the old
    experience, before the new one) the last counts. A fixed threshold on these numbers is not valid; see `verdict`.

    Args:
        times: Iteration of each measurement, non-decreasing.
        velocities: `velocities[i]` is the velocity from `times[i−1]` to `times[i]`, per iteration; None or NaN if
            undefined, like the first.
        boundary: Iteration b: the number of iterations completed when the new task begins.
        end: Last iteration of the experience that begins at b; by default the last time.
        start: Iteration at which the previous experience began: the base excludes velocities before the midpoint
            between it and b. None if unknown; then nothing is excluded.
        lambda_max: `λ_max` at each measurement.
        alignment: Kernel alignment at each measurement.
        moved: `S(Θ_b, Θ_end)`, which is not in any of the series.
        onset: Peak velocity at the start of the first experience, the `onset` of the reactivation with `first=True`.
        first: True for the first experience, which has no boundary before it: only `onset` is then measured, from the
            first w velocities after b.
        m: Velocities in the base.
        w: Velocities in the peak's window.
        floor: Noise of S at the working precision (`distance_floor`). Divided by the shortest interval used it is
            the floor of a velocity.

    Returns:
        A `Reactivation`. Missing or degenerate data give None with a reason, not an exception.

    Raises:
        ArgumentError: Series of different lengths, times that decrease, m < 2, w < 1, a floor that is not positive, or
            `end` before `boundary`.

    Source: "Reactivation: Empirical NTK Dynamics Under Task Shifts" (arXiv 2507.16039); `docs/definitions.md`.

    >>> times = [0, 10, 20, 30, 40, 50, 60]
    >>> velocities = [None, 1e-3, 1e-3, 1e-3, 8e-3, 4e-3, 1e-3]
    >>> found = reactivation(times, velocities, boundary=30, onset=1e-3)
    >>> round(found.spike, 6), round(found.ratio, 6), found.time_to_peak, found.half_life
    (0.007, 8.0, 10.0, 10.0)
    """
    t = as_float64(times, "times")
    if t.ndim != 1 or t.size == 0 or not np.isfinite(t).all() or (np.diff(t) < 0).any():
        raise ArgumentError(
            f"times must be a non-empty, non-decreasing series of iterations, found shape {t.shape}"
            f"{', values ' + str(t.tolist()) if t.size < 10 else ''}. Sort the measurements by iteration."
        )
    if m < 2:
        raise ArgumentError(f"m must be 2 or more velocities before the boundary, found {m!r}.")
    if w < 1:
        raise ArgumentError(f"w must be 1 or more velocities after the boundary, found {w!r}.")
    if not 0 < floor < math.inf:
        raise ArgumentError(f"floor must be a positive distance, found {floor!r}. Use distance_floor(n, dtype).")
    last = float(t[-1]) if end is None else float(end)
    if last < boundary:
        raise ArgumentError(
            f"end must be at or after the boundary at iteration {boundary}, found {last}. "
            "Pass the last iteration of the experience that begins there."
        )
    v = _series(velocities, "velocities", t.size)
    assert v is not None
    series = {"lambda_max": _series(lambda_max, "lambda_max", t.size)}
    series["alignment"] = _series(alignment, "alignment", t.size)

    build = _Builder()
    build.values["onset"] = _number(onset)
    ends, spans, v = t[1:], np.diff(t), v[1:]
    # There is no training between two measurements at one iteration.
    proper = spans > 0
    ends, spans, v = ends[proper], spans[proper], v[proper]
    after = (ends - spans >= boundary) & (ends <= last)
    before = ends <= boundary
    rest = before.copy()
    if start is not None:
        before &= ends - spans >= start
        rest &= ends - spans >= (start + boundary) / 2

    if first:
        window = v[after][:w]
        window = window[np.isfinite(window)]
        build.values["onset"] = float(window.max()) if window.size else None
        build.missing("no velocity was measured after the start of the first experience", "onset")
        build.missing(NO_BOUNDARY, *_NEEDS_BOUNDARY)
        return Reactivation(boundary=float(boundary), end=last, **build.values, reasons=build.reasons)

    if boundary not in t:
        reason = f"there is no measurement exactly at the boundary, iteration {boundary}"
        build.missing(reason, *_NEEDS_BOUNDARY)
        build.missing(_NO_ONSET, "onset")
        return Reactivation(boundary=float(boundary), end=last, **build.values, reasons=build.reasons)

    known = np.flatnonzero(rest & np.isfinite(v))[-m:]
    _base(build, v, known, int(np.count_nonzero(before & np.isfinite(v))), start)
    _velocity_numbers(build, ends, spans, v, known, after, float(boundary), last, w, floor)
    _series_numbers(build, t, series, float(boundary), last)
    build.values["moved"] = _number(moved)
    build.missing("the distance from the boundary to the end was not given or is undefined", "moved")
    build.missing(_NO_ONSET, "onset")
    return Reactivation(boundary=float(boundary), end=last, **build.values, reasons=build.reasons)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _base(build: _Builder, v: Array, known: NDArray[np.intp], before: int, start: float | None) -> None:
    """Set the base, the median of the velocities at rest, or the reason why it is undefined."""
    if start is None:
        build.missing("the start of the experience before the boundary was not given", "base_in_onset")
    else:
        build.values["base_in_onset"] = known.size < 2 <= before
    if known.size >= 2:
        build.values["base"] = float(np.median(v[known]))
    elif build.values.get("base_in_onset"):
        build.missing(
            f"of {before} velocities before the boundary {known.size} lie in the second half of the previous task, "
            "and the others in its onset, which gives no base: measure more often before the boundary, or train that "
            "task longer",
            "base",
        )
    else:
        build.missing(f"fewer than 2 velocities are defined before the boundary, found {before}", "base")


def _velocity_numbers(
    build: _Builder,
    ends: Array,
    spans: Array,
    v: Array,
    known: NDArray[np.intp],
    after: NDArray[np.bool_],
    boundary: float,
    last: float,
    w: int,
    floor: float,
) -> None:
    values = build.values
    later = np.flatnonzero(after)
    window = later[:w][np.isfinite(v[later[:w]])]
    base, peak = values.get("base"), None
    if window.size:
        best = window[np.argmax(v[window])]
        peak = values["peak"] = float(v[best])
        values["time_to_peak"] = float(ends[best]) - boundary
    _path(build, spans, v, later)

    few = build.reasons.get("base", "")
    none = (
        f"none of the first {w} velocities after the boundary is defined"
        if later.size
        else "no velocity was measured after the boundary"
    )
    build.missing(none, "peak", "time_to_peak")
    if peak is not None:
        first_peak = values["onset"]
        if first_peak is not None and first_peak > 0:
            values["onset_ratio"] = peak / first_peak
        elif first_peak is not None:
            build.missing("the onset velocity of the first experience is zero", "onset_ratio")
        else:
            build.missing(_NO_ONSET, "onset_ratio")
    needs_both = ("spike", "ratio", "at_floor", "z", "rank", "half_life", "cadence", "floor")
    if base is None or peak is None:
        build.missing(few if base is None else none, *needs_both, "windows", "half_life_censored")
        build.missing(none, "onset_ratio")
        return

    used = np.concatenate([known, window])
    noise = values["floor"] = floor / float(spans[used].min())
    spike = values["spike"] = peak - base
    values["at_floor"] = base < noise
    values["ratio"] = peak / max(base, noise)
    mad = float(np.median(np.abs(v[known] - base)))
    values["z"] = spike / max(1.4826 * mad, noise)
    values["cadence"] = (float(np.median(spans[known])), float(np.median(spans[window])))
    if known.size >= w:
        maxima = np.lib.stride_tricks.sliding_window_view(v[known], w).max(axis=1)
        values["rank"] = float(np.mean(maxima < peak))
        values["windows"] = int(maxima.size)
    build.missing(f"fewer than {w} velocities before the boundary make no window of that width", "rank", "windows")
    _half_life(build, ends, v, later, int(best), base, spike, last)


def _path(build: _Builder, spans: Array, v: Array, later: NDArray[np.intp]) -> None:
    if later.size == 0:
        build.missing("no velocity was measured after the boundary", "path")
    elif not np.isfinite(v[later]).all():
        count = int(np.count_nonzero(~np.isfinite(v[later])))
        build.missing(f"{count} of {later.size} velocities after the boundary are undefined", "path")
    else:
        build.values["path"] = float(np.sum(v[later] * spans[later]))


def _half_life(
    build: _Builder, ends: Array, v: Array, later: NDArray[np.intp], best: int, base: float, spike: float, last: float
) -> None:
    if spike <= 0:
        build.missing("there is no spike: the peak does not exceed the base", "half_life", "half_life_censored")
        return
    following = later[later > best]
    below = following[v[following] - base <= spike / 2]
    build.values["half_life_censored"] = not below.size
    if below.size:
        build.values["half_life"] = float(ends[below[0]] - ends[best])
    else:
        reached = float(ends[following[-1]] if following.size else ends[best])
        build.missing(f"not reached within {reached - float(ends[best]):g} iterations after the peak", "half_life")


def _series_numbers(build: _Builder, t: Array, series: dict[str, Array | None], boundary: float, last: float) -> None:
    at_boundary = int(np.flatnonzero(t == boundary)[-1])
    after = (t > boundary) & (t <= last)
    for name, targets in (("lambda_max", ("norm_dip", "norm_recovery")), ("alignment", ("alignment_drop",))):
        values = series[name]
        if values is None:
            build.missing(f"no {name} series was given", *targets)
            continue
        reference = float(values[at_boundary])
        later = values[after]
        later = later[np.isfinite(later)]
        if not math.isfinite(reference):
            build.missing(f"{name} is undefined at the boundary", *targets)
        elif not later.size:
            build.missing(f"{name} is undefined at every measurement after the boundary", *targets)
        elif name == "alignment":
            build.values["alignment_drop"] = reference - float(later.min())
        elif reference <= 0:
            build.missing("lambda_max is not positive at the boundary", *targets)
        else:
            build.values["norm_dip"] = float(later.min()) / reference
            build.values["norm_recovery"] = float(later[-1]) / reference
