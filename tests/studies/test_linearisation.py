"""The study `linearisation`: an end-to-end run, recomputed by hand from its files, and its statistics by hand."""

import math

import pytest

from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.trajectory import Measurement, Trajectory
from avalanche_ntk.reproduce.studies import linearisation
from tests.studies.by_hand import run_of, series_of


def test_the_study_at_its_smallest(smallest, tmp_path):
    outcome = smallest("linearisation")

    together, jumps, anchored, regime = outcome.claims
    assert [len(claim.findings) for claim in outcome.claims] == [4 * 2, 4, 4 * 3, 3]
    plan = tmp_path / "sweeps" / "boundary"

    def largest_error(start, seed):
        boundaries, series = series_of(run_of(plan, start, seed), "linearisation_error_boundary")
        return max([error for t, error in series if t > boundaries[1]][:3])

    shifted = {
        case: [largest_error(f"regime={case}", seed) for seed in (0, 1)] for case in ("lazy_width=8", "rich_width=8")
    }
    control = [largest_error("control_regime=lazy_width=8", seed) for seed in (0, 1)]
    assert anchored.findings[1].values == pytest.approx(shifted["lazy_width=8"])
    assert anchored.findings[0].values == pytest.approx(
        [a - b for a, b in zip(shifted["lazy_width=8"], control, strict=True)]
    )
    assert regime.findings[0].values == pytest.approx(
        [a - b for a, b in zip(shifted["rich_width=8"], shifted["lazy_width=8"], strict=True)]
    )
    assert all(-1 <= value <= 1 for finding in together.findings for value in finding.values)
    assert {finding.threshold for finding in jumps.findings} == {0.0}
    assert (tmp_path / "figures" / "linearisation.svg").is_file()


def made(errors, velocities, anchored):
    """Five measurements ten iterations apart in each of two tasks."""
    trajectory = Trajectory("probe", [0, 1])

    def add(event, iteration, experience, position, with_velocity=True):
        values = {"linearisation_error_init": errors[position], "linearisation_error_boundary": anchored[position]}
        if with_velocity:
            values["velocity_per_iteration"] = velocities[position]
        clock = TrainingClock(event, iteration, experience, 0, 0, 0, iteration)
        trajectory.measurements.append(Measurement(len(trajectory), clock, values=values))

    add("experience_start", 0, 0, 0, with_velocity=False)
    for position in range(1, 5):
        add("iteration", 10 * position, 0, position)
    add("experience_start", 40, 1, 4, with_velocity=False)
    for position in range(5, 9):
        add("iteration", 10 * position, 1, position)
    return trajectory


#           0    10   20   30   40 | 50   60   70   80
ERRORS = (0.00, 0.10, 0.15, 0.17, 0.18, 0.58, 0.47, 0.53, 0.545)
VELOCITIES = (math.nan, 0.7, 0.5, 0.2, 0.1, 0.9, 0.8, 0.6, 0.15)
ANCHORED = (0.0, 0.1, 0.1, 0.1, 0.1, 0.3, 0.2, 0.4, 0.9)


def test_changes_are_per_iteration_and_without_sign():
    assert linearisation.changes([0, 10, 30], [0.5, 0.25, 0.75])[1:] == pytest.approx([0.025, 0.025])
    assert math.isnan(linearisation.changes([0, 10, 30], [0.5, 0.25, 0.75])[0])


def test_velocity_and_error_that_go_together_correlate_perfectly():
    # The changes are 0.10 0.05 0.02 0.01 0.40 0.11 0.06 0.015, in the order of the velocities.
    assert linearisation.together(made(ERRORS, VELOCITIES, ANCHORED), 10) == pytest.approx(1.0)
    opposite = tuple(-v for v in VELOCITIES)
    assert linearisation.together(made(ERRORS, opposite, ANCHORED), 10) == pytest.approx(-1.0)


def test_a_correlation_needs_three_pairs_and_two_values():
    assert math.isnan(linearisation.rank_correlation([1.0, 2.0], [1.0, 2.0]))
    assert math.isnan(linearisation.rank_correlation([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]))
    assert linearisation.rank_correlation([1.0, 2.0, 3.0, math.nan], [5.0, 4.0, 3.0, 9.0]) == pytest.approx(-1.0)


def test_the_jump_is_the_largest_change_after_the_boundary_minus_the_median_before():
    # Before: 0.010, 0.005, 0.002, 0.001, median 0.0035; the largest of the first three after: 0.040.
    assert linearisation.jump(made(ERRORS, VELOCITIES, ANCHORED)) == pytest.approx(0.0365)


def test_the_error_soon_after_the_boundary_is_that_of_three_measurements():
    assert linearisation.soon(made(ERRORS, VELOCITIES, ANCHORED), 10) == 0.4


def test_differences_within_seeds():
    assert linearisation.minus([3.0, 5.0], [1.0, 7.0]) == [2.0, -2.0]
