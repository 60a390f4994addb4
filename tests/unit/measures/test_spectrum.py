"""Spectral measures: by hand, against scipy, and by property."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import (
    KernelView,
    condition_number,
    effective_rank,
    eigenspace_rotation,
    eigenvalues,
    label_signed_kernel,
    mode_response,
    sharpness_ratio,
    spectral_norm,
)

SEEDS = st.integers(0, 2**32 - 1)


def with_spectrum(values, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (q * np.asarray(values, dtype=float)) @ q.T


def centred_with_spectrum(values, seed=0):
    """A kernel that centring leaves as it is, with `values` and one 0 as eigenvalues."""
    n = len(values) + 1
    basis = np.random.default_rng(seed).normal(size=(n, n))
    basis[:, 0] = 1.0
    q = np.linalg.qr(basis)[0][:, 1:]
    return (q * np.asarray(values, dtype=float)) @ q.T


def warned(function, *args, **kwargs):
    with pytest.warns(UndefinedMeasureWarning) as caught:
        value = function(*args, **kwargs)
    assert len(caught) == 1
    return value, str(caught[0].message)


def test_eigenvalues_descend_and_are_those_of_the_symmetric_part():
    assert eigenvalues([[2.0, 0.0], [2.0, 2.0]]) == pytest.approx([3.0, 1.0], rel=1e-14)
    np.testing.assert_allclose(eigenvalues(with_spectrum([1, 5, 3])), [5, 3, 1], rtol=1e-12)
    assert spectral_norm([[2.0, 0.0], [2.0, 2.0]]) == pytest.approx(3.0, rel=1e-14)


def test_non_finite_kernels():
    bad = np.full((2, 2), np.nan)
    reason = "the kernel has 4 non-finite entries of 4"
    values, message = warned(eigenvalues, bad)
    assert np.isnan(values).all() and values.shape == (2,)
    assert message == f"eigenvalues is undefined (NaN): {reason}"
    for measure in (spectral_norm, effective_rank, condition_number):
        value, message = warned(measure, bad)
        assert math.isnan(value)
        assert message == f"{measure.__name__} is undefined (NaN): {reason}"


@pytest.mark.parametrize("measure", [eigenvalues, spectral_norm, effective_rank, condition_number])
def test_cross_kernels_are_refused(measure):
    with pytest.raises(ArgumentError) as error:
        measure(np.zeros((2, 3)))
    assert str(error.value) == (
        f"{measure.__name__} needs a square kernel of one probe with itself, found shape (2, 3). "
        "Pass a self-kernel (x2=None)."
    )


class TestSharpness:
    def test_by_hand(self):
        assert sharpness_ratio(20.0, 0.1) == 1.0
        assert sharpness_ratio(20.0, 0.1, samples=10) == 0.1
        assert sharpness_ratio(20.0, 0.0) == 0.0

    @pytest.mark.parametrize("factor", [0.98, 1.02])
    def test_is_where_gradient_descent_on_the_kernel_diverges(self, factor):
        k = with_spectrum([4.0, 1.0, 0.5])
        rate = factor * 2 / 4.0
        residual = np.ones(3)
        for _ in range(2000):
            residual = residual - rate * k @ residual
        diverged = np.linalg.norm(residual) > 1
        assert diverged == (sharpness_ratio(spectral_norm(k), rate) > 1)

    def test_undefined_and_refused(self):
        value, message = warned(sharpness_ratio, math.nan, 0.1)
        assert math.isnan(value)
        assert message == "sharpness_ratio is undefined (NaN): λ_max is nan"
        with pytest.raises(ArgumentError) as error:
            sharpness_ratio(1.0, -0.1)
        assert str(error.value) == "learning_rate must be a finite number, 0 or more, found -0.1."
        with pytest.raises(ArgumentError) as error:
            sharpness_ratio(1.0, 0.1, samples=0)
        assert str(error.value) == "samples must be 1 or more, found 0. Pass 1 for a loss that is a sum."


class TestEffectiveRank:
    def test_agrees_with_entropy_of_scipy(self):
        values = [5.0, 3.0, 1.0, 0.25]
        assert effective_rank(centred_with_spectrum(values)) == pytest.approx(
            math.exp(scipy.stats.entropy(values)), rel=1e-12
        )

    def test_by_hand(self):
        assert effective_rank(centred_with_spectrum([2.0, 2.0])) == pytest.approx(2.0, rel=1e-13)
        assert effective_rank(centred_with_spectrum([1.0, 0, 0])) == pytest.approx(1.0, abs=1e-12)
        assert effective_rank(np.eye(2)) == pytest.approx(1.0, abs=1e-14)
        # p = (2/3, 1/3): exp(H) = 3 / 2^(2/3)
        assert effective_rank(centred_with_spectrum([2.0, 1.0])) == pytest.approx(3 / 2 ** (2 / 3), rel=1e-13)

    def test_a_mean_does_not_count(self):
        k = centred_with_spectrum([2.0, 1.0, 1.0])
        assert effective_rank(k + 100) == pytest.approx(effective_rank(k), rel=1e-10)

    @pytest.mark.parametrize(
        ("k", "reason"),
        [
            (np.zeros((1, 1)), "the kernel has one sample: nothing is left of it after centring"),
            (np.zeros((2, 2)), "the centred kernel has no positive eigenvalue above working precision"),
            (np.full((2, 2), 0.3), "the centred kernel has no positive eigenvalue above working precision"),
            (np.zeros((3, 3)), "the kernel is exactly zero, as for a dead network"),
            (
                np.full((3, 3), 0.3),
                "the kernel is constant to working precision: nothing is left of it after centring",
            ),
            (-np.eye(4), "the centred kernel has no positive eigenvalue above working precision"),
        ],
    )
    def test_undefined(self, k, reason):
        value, message = warned(effective_rank, k)
        assert math.isnan(value)
        assert message == f"effective_rank is undefined (NaN): {reason}"

    @settings(deadline=None)
    @given(SEEDS, st.integers(2, 8), st.integers(1, 8), st.floats(1e-6, 1e6))
    def test_bounds_scale_and_order(self, seed, n, rank, scale):
        x = np.random.default_rng(seed).normal(size=(n, rank))
        found = effective_rank(x @ x.T)
        assert 1 - 1e-9 <= found <= min(n - 1, rank) + 1e-9
        assert effective_rank(scale * x @ x.T) == pytest.approx(found, rel=1e-8)
        turned = x[::-1]
        assert effective_rank(turned @ turned.T) == pytest.approx(found, rel=1e-8)


class TestConditionNumber:
    def test_by_hand(self):
        assert condition_number(with_spectrum([8.0, 4.0, 2.0])) == pytest.approx(4.0, rel=1e-12)

    def test_rounding_does_not_count_as_spectrum(self):
        x = np.random.default_rng(0).normal(size=(6, 2))
        assert condition_number(x @ x.T) == pytest.approx(np.linalg.cond(x) ** 2, rel=1e-10)
        k = (x @ x.T).astype(np.float32)
        assert condition_number(k) == pytest.approx(np.linalg.cond(x) ** 2, rel=1e-4)

    def test_precision_of_a_view_decides_what_is_rounding(self):
        k = np.diag([1.0, 0.1, 1e-9])
        assert condition_number(k) == pytest.approx(1e9, rel=1e-9)
        assert condition_number(KernelView(k, epsilon=2.0**-23)) == pytest.approx(10.0, rel=1e-12)
        assert condition_number(k, tolerance=1e-3) == pytest.approx(10.0, rel=1e-12)

    def test_undefined_and_refused(self):
        value, message = warned(condition_number, np.zeros((2, 2)))
        assert math.isnan(value)
        assert message == "condition_number is undefined (NaN): the kernel has no positive eigenvalue"
        with pytest.raises(ArgumentError) as error:
            condition_number(np.eye(2), tolerance=1.0)
        assert str(error.value) == "tolerance must be a share of λ_max, from 0 to below 1, found 1.0."


class TestEigenspaceRotation:
    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_agrees_with_subspace_angles_of_scipy(self, rank):
        a, b = with_spectrum([6, 5, 4, 3, 2, 1], seed=1), with_spectrum([9, 7, 4, 3, 2, 1], seed=2)
        u, v = (np.linalg.eigh(k)[1][:, ::-1][:, :rank] for k in (a, b))
        expected = np.mean(np.cos(scipy.linalg.subspace_angles(u, v)) ** 2)
        found = eigenspace_rotation(a, b, rank)
        assert found.value == pytest.approx(expected, rel=1e-12)
        assert not found.degenerate
        assert found.gap == pytest.approx(
            min(1 / np.linalg.norm(a), (eigenvalues(b)[rank - 1] - eigenvalues(b)[rank]) / np.linalg.norm(b)), rel=1e-9
        )

    def test_by_hand(self):
        c = math.cos(0.3)
        turn = np.array([[c, -math.sin(0.3), 0], [math.sin(0.3), c, 0], [0, 0, 1]])
        k = np.diag([3.0, 2.0, 1.0])
        assert eigenspace_rotation(turn @ k @ turn.T, k, 1).value == pytest.approx(c**2, rel=1e-13)
        # The two leading directions turn within their plane, which stays.
        assert eigenspace_rotation(turn @ k @ turn.T, k, 2).value == pytest.approx(1.0, rel=1e-13)

    def test_a_degenerate_gap_is_flagged(self):
        # Within the pair of equal eigenvalues the leading eigenvector is arbitrary; the pair's plane is not.
        assert eigenspace_rotation(np.diag([3.0, 2.0, 1.0]), with_spectrum([2, 2, 1]), 1).degenerate
        assert not eigenspace_rotation(np.diag([3.0, 2.0, 1.0]), with_spectrum([2, 2, 1]), 2).degenerate
        near = np.diag([2.0 + 1e-7, 2.0, 1.0])
        assert not eigenspace_rotation(near, near, 1).degenerate
        assert eigenspace_rotation(near.astype(np.float32), near.astype(np.float32), 1).degenerate

    @pytest.mark.parametrize(
        ("k", "reference", "rank", "reason"),
        [
            (np.eye(3), np.eye(3), 3, "the 3 leading eigenvectors of a 3×3 kernel span the whole space"),
            (np.eye(1), np.eye(1), 1, "the 1 leading eigenvectors of a 1×1 kernel span the whole space"),
            (np.zeros((3, 3)), np.eye(3), 1, "the first kernel is exactly zero, as for a dead network"),
            (np.eye(3), np.full((3, 3), np.inf), 1, "the second kernel has 9 non-finite entries of 9"),
        ],
    )
    def test_undefined(self, k, reference, rank, reason):
        found, message = warned(eigenspace_rotation, k, reference, rank)
        assert math.isnan(found.value) and math.isnan(found.gap) and not found.degenerate
        assert message == f"eigenspace_rotation is undefined (NaN): {reason}"

    def test_refused(self):
        with pytest.raises(ArgumentError) as error:
            eigenspace_rotation(np.eye(3), np.eye(4), 1)
        assert str(error.value) == (
            "eigenspace_rotation needs two kernels of the same shape, found (3, 3) and (4, 4). "
            "Compare kernels only on the same probe, in the same order."
        )
        with pytest.raises(ArgumentError) as error:
            eigenspace_rotation(np.eye(3), np.eye(3), 0)
        assert str(error.value) == "rank must be a number of eigenvectors, 1 or more, found 0."

    @settings(deadline=None)
    @given(SEEDS, SEEDS, st.integers(1, 4))
    def test_bounds_symmetry_scale(self, first, second, rank):
        a, b = with_spectrum([5, 4, 3, 2, 1], first), with_spectrum([5, 4, 3, 2, 1], second)
        found = eigenspace_rotation(a, b, rank).value
        assert -1e-12 <= found <= 1
        assert eigenspace_rotation(b, 7 * a, rank).value == pytest.approx(found, rel=1e-8, abs=1e-12)
        # Two k-dimensional spaces in N < 2k dimensions must share 2k − N directions.
        assert found >= max(0, 2 * rank - 5) / rank - 1e-9


class TestModeResponse:
    def test_by_hand(self):
        response = mode_response([[1.0, 0.0], [0.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]])
        np.testing.assert_allclose(response.eigenvalues, [2, 1])
        np.testing.assert_allclose(response.power, [25, 5])

    def test_predicts_gradient_flow(self):
        k, r = with_spectrum([3.0, 1.0, 0.2]), np.array([1.0, -2.0, 0.5])
        response = mode_response(k, r)
        later = scipy.linalg.expm(-k * 0.7) @ r
        expected = np.sum(np.exp(-2 * 0.7 * response.eigenvalues) * response.power)
        assert later @ later == pytest.approx(expected, rel=1e-12)

    @settings(deadline=None)
    @given(SEEDS)
    def test_power_sums_to_the_residual(self, seed):
        rng = np.random.default_rng(seed)
        x, r = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
        assert mode_response(x @ x.T, r).power.sum() == pytest.approx(np.sum(r**2), rel=1e-10)

    def test_undefined_and_refused(self):
        response, message = warned(mode_response, np.eye(2), [1.0, np.nan])
        assert np.isnan(response.power).all() and np.isnan(response.eigenvalues).all()
        assert message == "mode_response is undefined (NaN): the residual has 1 non-finite entries of 2"
        with pytest.raises(ArgumentError) as error:
            mode_response(np.eye(2), [1.0, 2.0, 3.0])
        assert str(error.value) == (
            "the residual must have shape (2,) or (2, C) for a kernel of 2 samples, found (3,). "
            "Pass f(X) − y of the same probe."
        )


class TestLabelSignedKernel:
    def test_by_hand(self):
        k = np.arange(9.0).reshape(3, 3)
        np.testing.assert_array_equal(label_signed_kernel(k, [5, 2, 5]), [[0, -1, 2], [-3, 4, -5], [6, -7, 8]])

    def test_has_the_spectrum_of_the_kernel(self):
        k = with_spectrum([3, 2, 1])
        np.testing.assert_allclose(eigenvalues(label_signed_kernel(k, [0, 1, 1])), [3, 2, 1], rtol=1e-12)

    def test_undefined_and_refused(self):
        signed, message = warned(label_signed_kernel, np.eye(2), [1, 1])
        assert np.isnan(signed).all()
        assert message == "label_signed_kernel is undefined (NaN): all samples have the same label"
        with pytest.raises(ArgumentError) as error:
            label_signed_kernel(np.eye(3), [0, 1, 2])
        assert str(error.value) == (
            "label_signed_kernel needs two classes, found 3. Restrict kernel and labels to two of them."
        )
