"""Curves over seeds show the mean and its interval."""

import math

import pytest

from avalanche_ntk.measures.intervals import interval
from avalanche_ntk.report.style import new_figure
from avalanche_ntk.reproduce.drawing import draw_curve, draw_points


def test_a_curve_is_the_mean_with_its_interval():
    axis = new_figure(3, 2).subplots()
    draw_curve(axis, [0, 1], [[1.0, 5.0], [2.0, math.nan], [3.0, 7.0]], 0, "name")
    [line] = axis.lines
    assert line.get_ydata().tolist() == [2.0, 6.0]
    assert line.get_label() == "name"
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((min(interval([1, 2, 3])[1], interval([5, 7])[1]),
                                                      max(interval([1, 2, 3])[2], interval([5, 7])[2])))  # fmt: skip


def test_on_a_logarithmic_axis_the_mean_is_geometric():
    axis = new_figure(3, 2).subplots()
    draw_curve(axis, [0], [[1.0], [10.0], [100.0], [-5.0]], 0, geometric=True)
    assert axis.lines[0].get_ydata().tolist() == pytest.approx([10.0])
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    _, low, high = interval([0.0, math.log(10), math.log(100)])
    assert (band.min(), band.max()) == pytest.approx((math.exp(low), math.exp(high)))


def test_points_show_every_seed():
    axis = new_figure(3, 2).subplots()
    draw_points(axis, [0, 1], [[1.0, 3.0], [2.0, math.nan]], 1, "name")
    dots = [line.get_ydata() for line in axis.lines if line.get_marker() == "."]
    assert [list(d) for d in dots] == [[1.0, 3.0], [2.0]]
