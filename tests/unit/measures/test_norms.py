"""Norm and trace."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import kernel_norm, kernel_trace


def test_by_hand():
    k = [[1.0, 2.0], [2.0, 4.0]]
    assert kernel_norm(k) == 5.0
    assert kernel_trace(k) == 5.0
    assert kernel_norm([[3.0, 4.0, 12.0]]) == 13.0  # a cross kernel has a norm, too


def test_zero_is_a_value_here():
    """The size of a dead network's kernel is 0; only its direction is undefined."""
    assert kernel_norm(np.zeros((3, 3))) == 0.0
    assert kernel_trace(np.zeros((3, 3))) == 0.0


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200])
def test_no_overflow_or_underflow_on_the_way(scale):
    assert kernel_norm(np.array([[3.0, 0], [0, 4]]) * scale) == pytest.approx(5 * scale, rel=1e-12)


@pytest.mark.parametrize("measure", [kernel_norm, kernel_trace])
def test_non_finite(measure):
    with pytest.warns(UndefinedMeasureWarning) as caught:
        assert math.isnan(measure([[1.0, np.nan], [np.inf, 1.0]]))
    assert str(caught[0].message) == (
        f"{measure.__name__} is undefined (NaN): the kernel has 2 non-finite entries of 4"
    )


def test_trace_refuses_a_cross_kernel():
    with pytest.raises(ArgumentError) as error:
        kernel_trace(np.zeros((2, 3)))
    assert str(error.value) == (
        "kernel_trace needs a square kernel of one probe with itself, found shape (2, 3). Pass a self-kernel (x2=None)."
    )


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_homogeneous_and_invariant_to_orthogonal_change(seed, s):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(5, 3))
    k, q = x @ x.T, np.linalg.qr(rng.normal(size=(5, 5)))[0]
    for measure in (kernel_norm, kernel_trace):
        assert measure(s * k) == pytest.approx(s * measure(k), rel=1e-12)
        assert measure(q @ k @ q.T) == pytest.approx(measure(k), rel=1e-12)
