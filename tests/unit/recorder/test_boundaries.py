"""Velocities on both sides of a boundary are taken over the same interval, whatever the schedule."""

import numpy as np
import pytest

from avalanche_ntk import measures
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.trajectory import Trajectory

RNG = np.random.default_rng(0)
A, B, C = (m @ m.T for m in RNG.normal(size=(3, 8, 12)))
LABELS = [0, 0, 0, 0, 1, 1, 1, 1]


def path(t):
    """A kernel that drifts slowly along one line until iteration 100 and faster along another one after it."""
    return A + 0.001 * min(t, 100) * B + 0.004 * max(t - 100, 0) * C


def add(trajectory, event, iteration, experience):
    start = 100 * experience
    trajectory.add(
        TrainingClock(event, iteration, experience, iteration - start, 0, 0, iteration),
        path(iteration).astype(np.float64),
    )


def trajectory(after, keep_kernels=True, before=range(10, 100, 10)):
    made = Trajectory("probe", LABELS, keep_kernels=keep_kernels)
    add(made, "experience_start", 0, 0)
    for t in before:
        add(made, "iteration", t, 0)
    add(made, "experience_end", 100, 0)
    made._close_experience(0)
    add(made, "experience_start", 100, 1)
    for t in after:
        add(made, "iteration", t, 1)
    add(made, "experience_end", 200, 1)
    made._close_experience(1)
    return made


def velocity(s, t):
    return measures.kernel_velocity(path(s), path(t), t - s)


def test_constant_cadence_is_taken_as_it_is():
    found = trajectory(range(110, 200, 10)).reactivations[1]
    assert found.cadence == (10, 10)
    assert found.base == pytest.approx(np.median([velocity(t, t + 10) for t in range(50, 100, 10)]))  # at rest
    assert found.base_in_onset is False
    assert found.peak == pytest.approx(max(velocity(100, 110), velocity(110, 120), velocity(120, 130)))


def test_dense_after_the_boundary_gives_the_same_numbers():
    dense = trajectory([101, 102, 103, 105, 108, *range(110, 200, 10)]).reactivations[1]
    even = trajectory(range(110, 200, 10)).reactivations[1]
    for name in ("base", "peak", "spike", "ratio", "z", "rank", "cadence", "time_to_peak"):
        assert getattr(dense, name) == pytest.approx(getattr(even, name)), name
    # Taken as it comes, the peak would be that of single iterations: along a straight path ten times smaller.
    assert velocity(100, 101) < 0.2 * velocity(100, 110)
    # What does not depend on the interval is read from every measurement.
    assert dense.path == pytest.approx(
        sum(
            measures.kernel_distance(path(s), path(t))
            for s, t in zip(
                [100, 101, 102, 103, 105, 108, *range(110, 200, 10)],
                [101, 102, 103, 105, 108, *range(110, 210, 10)],
                strict=True,
            )
        )
    )
    assert dense.moved == pytest.approx(measures.kernel_distance(path(100), path(200)))
    assert dense.norm_dip == pytest.approx(even.norm_dip, rel=0.1)


def test_the_onset_is_taken_over_the_same_interval():
    found = trajectory([101, 103, *range(110, 200, 10)], before=[1, 2, *range(10, 100, 10)]).reactivations[1]
    onset = max(velocity(0, 10), velocity(10, 20), velocity(20, 30))
    assert found.onset == pytest.approx(onset)
    assert found.onset_ratio == pytest.approx(found.peak / onset)


def test_without_kernels_the_mixture_is_flagged():
    found = trajectory([101, 102, 103, *range(110, 200, 10)], keep_kernels=False).reactivations[1]
    assert found.mixed_cadence is True
    assert found.peak == pytest.approx(max(velocity(100, 101), velocity(101, 102), velocity(102, 103)))


def test_a_boundary_that_was_measured_in_the_onset_only_is_flagged():
    found = trajectory(range(110, 200, 10), before=[10, 20, 30, 40]).reactivations[1]
    assert found.base_in_onset is True
    assert found.ratio is None
    assert found.peak == pytest.approx(max(velocity(100, 110), velocity(110, 120), velocity(120, 130)))
    row = trajectory(range(110, 200, 10), before=[10, 20, 30, 40]).summary().iloc[1]
    assert row["base_in_onset"] and np.isnan(row["ratio"])


def test_sparser_after_the_boundary_is_left_and_flagged():
    found = trajectory([130, 160]).reactivations[1]
    assert found.mixed_cadence is True
    assert found.peak == pytest.approx(max(velocity(100, 130), velocity(130, 160), velocity(160, 200)))
