"""Series around a boundary, on a trajectory made by hand."""

import math

import pytest

from avalanche_ntk.measures.intervals import log_intervals
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.trajectory import Measurement, Trajectory
from avalanche_ntk.reproduce import around


def made(rows):
    """A trajectory of rows `(event, iteration, experience, velocity or None)`."""
    trajectory = Trajectory("probe", [0, 1])
    for index, (event, iteration, experience, velocity) in enumerate(rows):
        values = {} if velocity is None else {around.VELOCITY: velocity, "double": 2 * velocity}
        clock = TrainingClock(event, iteration, experience, 0, 0, 0, iteration)
        trajectory.measurements.append(Measurement(index, clock, values=values))
    return trajectory


TWO_TASKS = [
    ("experience_start", 0, 0, None),
    ("iteration", 10, 0, 9.0),
    ("iteration", 20, 0, 3.0),
    ("iteration", 30, 0, 1.0),
    ("experience_end", 30, 0, None),
    ("experience_start", 30, 1, None),
    ("iteration", 40, 1, 2.0),
    ("iteration", 50, 1, 6.0),
    ("experience_end", 50, 1, None),
    ("experience_start", 50, 2, None),
    ("iteration", 60, 2, 50.0),
]


def test_a_series_around_a_boundary_has_each_iteration_once():
    assert around.series_around(made(TWO_TASKS), around.VELOCITY, before=10, after=20) == (
        [-10, 0, 10, 20],
        [3.0, 1.0, 2.0, 6.0],
    )


def test_what_was_never_measured_is_nan():
    times, values = around.series_around(made(TWO_TASKS), "nothing", before=0, after=10)
    assert times == [0, 10]
    assert all(map(math.isnan, values))


def test_the_reactivation_of_a_column_uses_the_experience_before_the_boundary_and_no_later_one():
    velocities = ([9.0, 8.0, 3.0, 1.0], [2.0, 6.0, 4.0, 2.0], [50.0])
    rows = []
    for experience, series in enumerate(velocities):
        rows.append(("experience_start", 40 * experience, experience, None))
        rows += [("iteration", 40 * experience + 10 * i, experience, v) for i, v in enumerate(series, start=1)]
    found = around.reactivation_of(made(rows), "double")
    # The base is the median of the second half of the task before, twice 3 and 1.
    assert (found.base, found.peak, found.spike) == (4.0, 12.0, 8.0)
    second = around.reactivation_of(made(rows), "double", experience=2)
    assert (second.base, second.peak) == (6.0, 100.0)
    assert around.number_of(found, "ratio") == pytest.approx(3.0)
    assert math.isnan(around.number_of(found, "moved"))


def test_a_boundary_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"^the series of probe has no start of experience 3\.$"):
        around.boundary_at(made(TWO_TASKS), 3)


class Run:
    def __init__(self, seed, control, value):
        self.seed, self.control, self.value = seed, control, value


def test_a_difference_to_the_control_is_taken_within_each_seed():
    runs = [Run(0, False, 5.0), Run(1, False, 7.0), Run(1, True, 3.0), Run(0, True, 4.0), Run(2, False, 1.0)]
    differences = around.above_control(runs, lambda run: run.value, (0, 1, 2))
    assert differences[:2] == [1.0, 4.0]
    assert math.isnan(differences[2])


def test_the_mean_leaves_out_what_is_undefined():
    assert around.mean([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(around.mean([math.nan]))


def test_intervals_of_velocities_are_those_of_their_logarithm():
    mean, low, high = log_intervals([[1.0, 0.0], [100.0, 5.0], [10.0, math.nan]])
    # Student's t of two degrees of freedom is 4.303 and the logarithms' standard error log(10)/√3.
    assert mean == pytest.approx([10.0, 5.0])
    assert high[0] == pytest.approx(10 ** (1 + 4.302653 / math.sqrt(3)))
    assert low[0] == pytest.approx(10 ** (1 - 4.302653 / math.sqrt(3)))
    assert math.isnan(low[1])
