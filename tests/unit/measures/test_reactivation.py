"""Reactivation at a boundary: every number by hand, and what is missing says why."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import Reactivation, compare_ratios, reactivation, verdict

# Before b = 100: twelve velocities each 10 iterations, the first two of which the base must not see.
BEFORE = [9e-3, 9e-3, 1e-3, 2e-3, 1e-3, 2e-3, 1e-3, 2e-3, 3e-3, 2e-3, 1e-3, 2e-3]
AFTER = [6e-3, 1e-2, 4e-3, 7e-3, 5e-3, 1e-3]
TIMES = [10.0 * i for i in range(-2, 17)]
VELOCITIES = [None, *BEFORE, *AFTER]
B = 100
# Sorted, the base's ten are 1 1 1 1 2 2 2 2 2 3 (times 1e-3): median 2, deviations 1 1 1 1 0 0 0 0 0 1, MAD 0.5.
BASE, PEAK, MAD = 2e-3, 1e-2, 0.5e-3


def test_velocity_numbers_by_hand():
    found = reactivation(TIMES, VELOCITIES, B, onset=5e-2, moved=0.2)
    assert found.base == pytest.approx(BASE)
    assert found.peak == PEAK
    assert found.spike == pytest.approx(8e-3)
    assert found.ratio == pytest.approx(5.0)
    assert found.at_floor is False
    assert found.z == pytest.approx(8e-3 / (1.4826 * MAD))
    # All 8 windows of three among the ten velocities stay below the peak.
    assert (found.rank, found.windows) == (1.0, 8)
    assert found.onset == 5e-2
    assert found.onset_ratio == pytest.approx(0.2)
    assert found.moved == 0.2
    assert found.path == pytest.approx(10 * sum(AFTER))
    assert found.time_to_peak == 20.0
    # v − base ≤ 4e-3 first holds for v = 4e-3, one interval after the peak.
    assert found.half_life == 10.0
    assert found.half_life_censored is False
    assert found.cadence == (10.0, 10.0)
    assert found.mixed_cadence is False
    assert (found.boundary, found.end) == (100.0, 160.0)
    assert found.reasons == {
        "base_in_onset": "the start of the experience before the boundary was not given",
        "norm_dip": "no lambda_max series was given",
        "norm_recovery": "no lambda_max series was given",
        "alignment_drop": "no alignment series was given",
    }


def test_rank_counts_the_windows_below_the_peak():
    # Windows of 3 among 3 1 1 1 5 1: their maxima are 3 1 5 5, two of which are below 4.
    times = list(range(8))
    velocities = [None, 3.0, 1.0, 1.0, 1.0, 5.0, 1.0, 4.0]
    found = reactivation(times, velocities, 6)
    assert (found.rank, found.windows) == (0.5, 4)
    # A window that equals the peak is not below it.
    assert reactivation(times, [*velocities[:-1], 3.0], 6).rank == 0.25


def test_m_and_w():
    found = reactivation(TIMES, VELOCITIES, B, m=2, w=1)
    assert found.base == pytest.approx(1.5e-3)
    assert found.peak == 6e-3
    assert found.time_to_peak == 10.0
    assert found.windows == 2
    assert reactivation(TIMES, VELOCITIES, B, m=12).base == pytest.approx(2e-3)


def test_end_cuts_what_belongs_to_the_next_experience():
    found = reactivation(TIMES, VELOCITIES, B, end=120)
    assert found.path == pytest.approx(10 * (6e-3 + 1e-2))
    assert found.half_life is None and found.half_life_censored is True
    assert found.reasons["half_life"] == "not reached within 0 iterations after the peak"
    assert found.end == 120.0


def test_the_base_is_at_rest_and_never_in_the_onset():
    """The task before began at 0: its velocities from iteration 50 on count, and none of the onset's."""
    found = reactivation(TIMES, VELOCITIES, B, start=0)
    assert found.base == pytest.approx(np.median(BEFORE[-5:]))
    assert found.base_in_onset is False
    # A task that began earlier has more of them, up to m.
    assert reactivation(TIMES, VELOCITIES, B, start=-100).base == pytest.approx(np.median(BEFORE[-10:]))
    # An interval that reaches over the middle has a part in the onset.
    assert reactivation([0, 4, 6, 8, 10, 12], [None, 9.0, 8.0, 1.0, 3.0, 5.0], 10, start=0).base == 2.0


@pytest.mark.parametrize(
    ("times", "at_rest"),
    [([0, 10, 34, 44], 0), ([0, 10, 20, 34, 44], 1)],  # the middle is at 17
)
def test_where_only_the_onset_was_measured_there_is_no_ratio(times, at_rest):
    velocities = [None, 9e-3, 4e-3, *[1e-3] * (len(times) - 4), 5e-3]
    found = reactivation(times, velocities, 34, start=0, lambda_max=[1.0] * len(times))
    assert found.base_in_onset is True
    reason = (
        f"of {len(times) - 2} velocities before the boundary {at_rest} lie in the second half of the previous task, "
        "and the others in its onset, which gives no base: measure more often before the boundary, or train that task "
        "longer"
    )
    for name in ("base", "spike", "ratio", "at_floor", "z", "rank", "half_life", "cadence", "floor"):
        assert getattr(found, name) is None
        assert found.reasons[name] == reason
    assert found.peak == 5e-3 and found.norm_dip == 1.0  # what needs no base is there
    judged = verdict(found, replace(found, spike=1.0, ratio=1.0))
    assert (judged.verdict, judged.reason) == ("undefined", f"the boundary has no spike: {reason}")


def test_start_keeps_the_experience_before_the_last_out_of_the_base():
    times = [0, 10, 20, 30, 40, 50, 60, 70]
    velocities = [None, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 5.0]
    assert reactivation(times, velocities, 60, start=20).base == pytest.approx(2.5)  # the middle is at 40
    assert reactivation(times, velocities, 60).base == pytest.approx(6.0)


def test_a_censored_half_life_is_never_zero():
    times, velocities = [0, 1, 2, 3, 4, 5], [None, 1e-3, 1e-3, 9e-3, 8e-3, 8e-3]
    found = reactivation(times, velocities, 2)
    assert found.half_life is None
    assert found.half_life_censored is True
    assert found.reasons["half_life"] == "not reached within 2 iterations after the peak"


def test_no_spike_has_no_half_life():
    found = reactivation([0, 1, 2, 3], [None, 2e-3, 2e-3, 1e-3], 2)
    assert found.spike == pytest.approx(-1e-3)
    assert found.ratio == pytest.approx(0.5)
    assert found.half_life is None and found.half_life_censored is None
    assert found.reasons["half_life"] == "there is no spike: the peak does not exceed the base"


def test_several_measurements_at_the_boundary_the_last_counts():
    times = [0, 10, 20, 20, 30]
    velocities = [None, 1e-3, 1e-3, None, 5e-3]
    found = reactivation(times, velocities, 20, lambda_max=[1, 1, 8.0, 4.0, 2.0], alignment=[0, 0, 0.9, 0.5, 0.4])
    assert found.peak == 5e-3
    assert found.path == pytest.approx(5e-2)
    assert found.norm_dip == 0.5
    assert found.alignment_drop == pytest.approx(0.1)


def test_norm_and_alignment_by_hand():
    lambda_max = [5.0] * 12 + [4.0, 3.0, 1.0, np.nan, 2.0, 6.0, 5.0]
    alignment = [0.1] * 12 + [0.8, 0.7, 0.3, None, 0.5, 0.6, 0.9]
    found = reactivation(TIMES, VELOCITIES, B, lambda_max=lambda_max, alignment=alignment)
    assert found.norm_dip == 0.25
    assert found.norm_recovery == 1.25
    assert found.alignment_drop == pytest.approx(0.5)
    found = reactivation(TIMES, VELOCITIES, B, end=110, lambda_max=lambda_max, alignment=alignment)
    assert found.norm_dip == found.norm_recovery == 0.75


def test_a_rise_is_reported_as_one():
    found = reactivation([0, 1, 2, 3], [None, 1, 1, 1], 2, lambda_max=[1, 1, 2, 3], alignment=[0, 0, 0.2, 0.3])
    assert found.norm_dip == 1.5
    assert found.alignment_drop == pytest.approx(-0.1)


def test_floor():
    # The shortest interval used is 1 iteration: a velocity is noise below 1e-9.
    times = [0, 10, 20, 21, 22]
    velocities = [None, 1e-12, 3e-12, 4e-9, 1e-12]
    found = reactivation(times, velocities, 20, floor=1e-9)
    assert found.floor == pytest.approx(1e-9)
    assert found.at_floor is True
    assert found.ratio == pytest.approx(4.0)
    assert found.z == pytest.approx((4e-9 - 2e-12) / 1e-9)
    assert found.cadence == (10.0, 1.0)
    assert found.mixed_cadence is True


def test_a_still_kernel_gives_no_infinite_ratio():
    found = reactivation([0, 1, 2, 3], [None, 0.0, 0.0, 1e-3], 2)
    assert found.at_floor is True
    assert found.ratio == pytest.approx(1e-3 / found.floor)
    assert math.isfinite(found.z)


def test_first_experience_has_an_onset_and_nothing_else():
    found = reactivation([0, 1, 2, 3, 4], [None, 1e-3, 7e-3, 5e-3, 9e-3], 0, first=True, lambda_max=[1] * 5)
    assert found.onset == 7e-3
    reason = "the first experience has no boundary before it; its onset velocity is reported instead"
    undefined = (
        "base base_in_onset peak spike ratio at_floor z rank onset_ratio moved path time_to_peak half_life norm_dip "
        "norm_recovery alignment_drop cadence"
    ).split()
    assert found.reasons == dict.fromkeys(undefined, reason)
    assert all(getattr(found, name) is None for name in undefined)
    # An interval that began before the experience is not part of its onset.
    assert reactivation([0, 4, 6], [None, 9e-3, 1e-3], 2, first=True).onset == 1e-3
    nothing = reactivation([0], [None], 0, first=True)
    assert nothing.onset is None
    assert nothing.reasons["onset"] == "no velocity was measured after the start of the first experience"


def test_every_missing_number_has_its_reason():
    cases = [
        reactivation([0], [None], 0),
        reactivation([0, 1], [None, 1.0], 0),
        reactivation([0, 1], [None, 1.0], 1),
        reactivation([0, 1, 2], [None, 1.0, 1.0], 2),
        reactivation([0, 1, 2, 3], [None, np.nan, np.nan, np.nan], 2),
        reactivation([0, 1, 2, 3], [None, 1.0, 1.0, np.nan], 2, onset=0.0, moved=math.nan),
        reactivation([0, 1, 2, 3], [None, 1, 1, 1], 2, lambda_max=[1, 1, 0, 1], alignment=[1, 1, np.nan, 1]),
        reactivation([0, 1, 2, 3], [None, 1, 1, 1], 2, lambda_max=[1, 1, 1, np.nan]),
        reactivation([0, 5, 10], [None, 1.0, 1.0], 7),
    ]
    for found in cases:
        missing = {f.name for f in fields(found) if getattr(found, f.name) is None}
        assert missing - {"half_life_censored", "windows", "floor"} <= set(found.reasons)
        assert all(getattr(found, name) is None for name in found.reasons)
        assert not any(isinstance(v, float) and math.isnan(v) for v in found.as_dict().values())


@pytest.mark.parametrize(
    ("arguments", "name", "reason"),
    [
        (
            {"times": [0, 5, 10], "velocities": [None, 1, 1], "boundary": 7},
            "spike",
            "there is no measurement exactly at the boundary, iteration 7",
        ),
        (
            {"times": [0, 1, 2], "velocities": [None, 1, 1], "boundary": 1},
            "ratio",
            "fewer than 2 velocities are defined before the boundary, found 1",
        ),
        (
            {"times": [0, 1, 2], "velocities": [None, 1, 1], "boundary": 2},
            "peak",
            "no velocity was measured after the boundary",
        ),
        (
            {"times": [0, 1, 2, 3], "velocities": [None, 1, 1, np.nan], "boundary": 2},
            "peak",
            "none of the first 3 velocities after the boundary is defined",
        ),
        (
            {"times": [0, 1, 2, 3], "velocities": [None, 1, 1, np.nan], "boundary": 2},
            "path",
            "1 of 1 velocities after the boundary are undefined",
        ),
        (
            {"times": [0, 1, 2, 3], "velocities": [None, 1, 1, 1], "boundary": 2, "onset": 0.0},
            "onset_ratio",
            "the onset velocity of the first experience is zero",
        ),
        (
            {"times": [0, 1, 2, 3], "velocities": [None, 1, 1, 1], "boundary": 2},
            "onset_ratio",
            "no onset velocity of the first experience was given",
        ),
        (
            {"times": [0, 1, 2, 3], "velocities": [None, 1, 1, 1], "boundary": 2},
            "moved",
            "the distance from the boundary to the end was not given or is undefined",
        ),
        (
            {"times": [0, 1, 2, 3], "velocities": [None, 1, 1, 1], "boundary": 2, "lambda_max": [1, 1, 0, 1]},
            "norm_dip",
            "lambda_max is not positive at the boundary",
        ),
        (
            {"times": [0, 1, 2, 3], "velocities": [None, 1, 1, 1], "boundary": 2, "alignment": [1, 1, None, 1]},
            "alignment_drop",
            "alignment is undefined at the boundary",
        ),
        (
            {"times": [0, 1, 2, 3], "velocities": [None, 1, 1, 1], "boundary": 2, "alignment": [1, 1, 1, None]},
            "alignment_drop",
            "alignment is undefined at every measurement after the boundary",
        ),
    ],
)
def test_reasons(arguments, name, reason):
    found = reactivation(**arguments)
    assert getattr(found, name) is None
    assert found.reasons[name] == reason


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"times": [0, 2, 1]},
            "times must be a non-empty, non-decreasing series of iterations, found shape (3,), values [0.0, 2.0, 1.0]. "
            "Sort the measurements by iteration.",
        ),
        (
            {"velocities": [None, 1.0]},
            "velocities must have one value per measurement: there are 3 times, found shape (2,). "
            "Use None where a measurement has no value.",
        ),
        (
            {"lambda_max": [1.0]},
            "lambda_max must have one value per measurement: there are 3 times, found shape (1,). "
            "Use None where a measurement has no value.",
        ),
        ({"m": 1}, "m must be 2 or more velocities before the boundary, found 1."),
        ({"w": 0}, "w must be 1 or more velocities after the boundary, found 0."),
        ({"floor": 0.0}, "floor must be a positive distance, found 0.0. Use distance_floor(n, dtype)."),
        (
            {"end": 0},
            "end must be at or after the boundary at iteration 1, found 0.0. "
            "Pass the last iteration of the experience that begins there.",
        ),
    ],
)
def test_refused(changed, message):
    arguments = {"times": [0, 1, 2], "velocities": [None, 1.0, 1.0], "boundary": 1}
    with pytest.raises(ArgumentError) as error:
        reactivation(**{**arguments, **changed})
    assert str(error.value) == message


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=15),
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8),
    st.sampled_from([2.0**-6, 0.5, 4.0, 2.0**10]),
)
def test_properties(before, after, scale):
    """Ratio, rank, times and z do not depend on the unit of velocity; the windows never count a mixed interval."""
    times = np.arange(len(before) + len(after) + 1.0)
    found = reactivation(times, [None, *before, *after], len(before))
    scaled = reactivation(times, [None, *(scale * v for v in (*before, *after))], len(before), floor=scale * 1e-14)
    plain = reactivation(times, [None, *before, *after], len(before), floor=1e-14)
    assert scaled.ratio == plain.ratio
    assert scaled.z == plain.z
    assert (scaled.rank, scaled.half_life, scaled.time_to_peak) == (plain.rank, plain.half_life, plain.time_to_peak)
    assert scaled.spike == scale * plain.spike
    assert found.peak == max(after[:3])
    assert found.base == np.median(before[-10:])
    assert found.path == pytest.approx(sum(after))
    assert found.half_life is None or found.half_life > 0


def test_what_is_printed_says_each_reason_once_and_what_a_cadence_is():
    first = reactivation([0, 1, 2], [None, 1e-3, 7e-3], 0, first=True)
    assert repr(first).count("the first experience has no boundary before it") == 1
    assert repr(first).startswith("Reactivation(boundary=0, end=2, onset=0.007, undefined: base, base_in_onset, peak, ")
    told = repr(Reactivation(30.0, 60.0, spike=0.00123456, at_floor=False, cadence=(18.0, 25.0)))
    assert told == (
        "Reactivation(boundary=30, end=60, spike=0.001235, at_floor=False, cadence=18 iterations before and 25 after "
        "the boundary)"
    )


def test_survives_json():
    found = reactivation(TIMES, VELOCITIES, B, onset=5e-2)
    assert Reactivation.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    first = reactivation([0, 1], [None, 1.0], 0, first=True)
    assert Reactivation.from_dict(json.loads(json.dumps(first.as_dict()))) == first
    with pytest.raises(ArgumentError) as error:
        Reactivation.from_dict({"boundary": 1, "end": 2, "spice": 3})
    assert str(error.value).startswith("unknown field of a reactivation 'spice': expected one of 'alignment_drop', ")
    assert str(error.value).endswith("'z'. Did you mean 'spike'?")
    with pytest.raises(ArgumentError) as error:
        Reactivation.from_dict({"end": 2})
    assert str(error.value) == "a reactivation needs a boundary and an end, found the fields ['end']."


def found_with(spike, ratio, **changes):
    plain = Reactivation(100, 200, spike=spike, ratio=ratio, at_floor=False, cadence=(10.0, 10.0))
    return replace(plain, **changes)


class TestCompareRatios:
    def test_by_hand(self):
        assert compare_ratios(found_with(1, 9.0), found_with(1, 3.0)) == 3.0

    def test_refuses_across_cadences(self):
        with pytest.raises(ArgumentError) as error:
            compare_ratios(found_with(1, 9.0), found_with(1, 3.0, cadence=(10.0, 1.0)))
        assert str(error.value) == (
            "velocities of different cadences are not comparable: expected equal iterations between measurements "
            "(before, after the boundary), found (10.0, 10.0) and (10.0, 1.0). Measure both runs on the same schedule."
        )

    @pytest.mark.parametrize(
        ("second", "reason"),
        [
            (found_with(None, None, reasons={"ratio": "there is none"}), "the second ratio is: there is none"),
            (found_with(1, 3.0, at_floor=True), "the second ratio is only a lower bound (at_floor)"),
            (found_with(1, 0.0), "the second ratio is zero"),
        ],
    )
    def test_undefined(self, second, reason):
        with pytest.warns(UndefinedMeasureWarning) as caught:
            assert math.isnan(compare_ratios(found_with(1, 9.0), second))
        assert [str(w.message) for w in caught] == [f"compare_ratios is undefined (NaN): {reason}"]


class TestVerdict:
    def test_needs_a_control(self):
        for none in (None, []):
            found = verdict(found_with(1.0, 100.0), none)
            assert (found.verdict, found.reason) == ("undefined", "there is no no-shift control to compare with")

    def test_both_numbers_must_exceed_the_control(self):
        control = found_with(0.5, 5.0)
        found = verdict(found_with(0.6, 6.0), control)
        assert found.verdict == "above the controls"
        assert found.reason == (
            "spike 0.6 and ratio 6 against 0.5 and 5 of the control; "
            "without a shift this happens with probability at most 1/2"
        )
        assert (found.control_spike, found.control_ratio, found.rank, found.controls) == (0.5, 5.0, 1.0, 1)
        for weak in (found_with(0.4, 6.0), found_with(0.6, 4.0), found_with(0.5, 5.0)):
            assert verdict(weak, control).verdict == "not distinguishable"
        assert verdict(found_with(0.4, 6.0), control).reason == (
            "spike 0.4 and ratio 6 against 0.5 and 5 of the control"
        )

    def test_a_large_ratio_alone_is_no_reactivation(self):
        """A redraw of samples of the same classes gives a ratio near 5: the same in run and control."""
        assert verdict(found_with(0.5, 5.0), found_with(0.5, 5.2)).verdict == "not distinguishable"

    def test_several_controls(self):
        controls = [found_with(0.1 * i, float(i)) for i in (1, 4, 2, 3)]
        found = verdict(found_with(0.35, 3.5), controls)
        assert found.verdict == "not distinguishable"
        assert found.rank == 0.75
        assert found.controls == 4
        found = verdict(found_with(0.45, 4.5), controls)
        assert found.verdict == "above the controls"
        assert verdict(found_with(0.45, 4.5), controls, alpha=0.2).verdict == "reactivated"
        assert found.reason.endswith(
            "of the largest of 4 controls; without a shift this happens with probability at most 1/5"
        )

    def test_what_is_missing_leaves_it_undefined(self):
        missing = found_with(None, None, reasons={"spike": "no velocity was measured after the boundary"})
        found = verdict(missing, found_with(1, 1))
        assert (found.verdict, found.reason) == (
            "undefined",
            "the boundary has no spike: no velocity was measured after the boundary",
        )
        found = verdict(found_with(1, 1), [found_with(1, 1), missing])
        assert (found.verdict, found.reason) == (
            "undefined",
            "a control has no spike: no velocity was measured after the boundary",
        )

    def test_a_control_that_is_only_a_lower_bound_decides_nothing(self):
        control = found_with(0.5, 5.0, at_floor=True)
        assert verdict(found_with(0.6, 6.0), control).verdict == "undefined"
        assert verdict(found_with(0.6, 4.0), control).verdict == "not distinguishable"
        # Both bases below the noise: the ratios are then both peaks over the same floor.
        assert verdict(found_with(0.6, 6.0, at_floor=True), control).verdict == "above the controls"

    def test_enough_controls_for_the_word(self):
        above = found_with(1.0, 10.0)
        controls = [found_with(0.01 * i, 0.1 * i) for i in range(1, 20)]
        assert verdict(above, controls[:18]).verdict == "above the controls"  # at best 1/19
        assert verdict(above, controls).verdict == "reactivated"  # 1/20

    def test_refuses_a_control_of_another_cadence(self):
        with pytest.raises(ArgumentError, match=r"^velocities of different cadences are not comparable: "):
            verdict(found_with(1, 1), found_with(1, 1, cadence=(5.0, 10.0)))
