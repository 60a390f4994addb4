"""Similarity of kernels: by hand, against scikit-learn and mpmath, and by property."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import KernelCenterer

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import (
    KernelView,
    centre,
    centred_kernel_alignment,
    distance_floor,
    drift_at_rest,
    kernel_distance,
    kernel_velocity,
    uncentred_alignment,
)

SEEDS = st.integers(0, 2**32 - 1)


def psd(seed, n=6, rank=4):
    x = np.random.default_rng(seed).normal(size=(n, rank))
    return x @ x.T


def exact_distance(a, b, centred):
    """`1 − CKA` straight from its definition in 60 digits: there the cancellation does no harm."""
    with mpmath.workdps(60):
        a, b = mpmath.matrix(a.tolist()), mpmath.matrix(b.tolist())
        n, m = a.rows, a.cols
        if centred:
            left = mpmath.eye(n) - mpmath.ones(n) / n
            right = mpmath.eye(m) - mpmath.ones(m) / m
            a, b = left * a * right, left * b * right

        def product(x, y):
            return mpmath.fsum(x[i, j] * y[i, j] for i in range(n) for j in range(m))

        return 1 - product(a, b) / mpmath.sqrt(product(a, a) * product(b, b))


def test_centred_alignment_by_hand():
    # diag(1, 0, 0) centred is uuᵀ with u = (2, −1, −1)/3, diag(0, 1, 0) is vvᵀ with v = (−1, 2, −1)/3;
    # ‖u‖² = 6/9 and u·v = −3/9, so CKA = (u·v)² / (‖u‖² ‖v‖²) = 1/4.
    assert centred_kernel_alignment(np.diag([1.0, 0, 0]), np.diag([0, 1.0, 0])) == pytest.approx(0.25, rel=1e-14)
    assert kernel_distance(np.diag([1.0, 0, 0]), np.diag([0, 1.0, 0])) == pytest.approx(0.75, rel=1e-14)


def test_uncentred_alignment_by_hand():
    assert uncentred_alignment(np.diag([1.0, 0]), np.diag([0, 1.0])) == 0.0
    assert uncentred_alignment([[1, 1], [1, 1]], np.eye(2)) == pytest.approx(2 / (2 * math.sqrt(2)), rel=1e-14)
    assert kernel_distance(np.diag([1.0, 0]), np.diag([0, 1.0]), centred=False) == 1.0


def test_velocity_by_hand():
    a, b = np.diag([1.0, 0, 0]), np.diag([0, 1.0, 0])
    assert kernel_velocity(a, b, 30) == pytest.approx(0.025, rel=1e-14)
    assert kernel_velocity(a, b, 0.5, centred=False) == 2.0


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_centre_agrees_with_scikit_learn(n):
    k = psd(0, n)
    np.testing.assert_allclose(centre(k), KernelCenterer().fit_transform(k), atol=1e-13)


def test_centre_of_cross_kernel_is_both_sided():
    k = np.random.default_rng(0).normal(size=(4, 3))
    left, right = np.eye(4) - np.ones((4, 4)) / 4, np.eye(3) - np.ones((3, 3)) / 3
    np.testing.assert_allclose(centre(k), left @ k @ right, atol=1e-14)


def test_centred_alignment_is_uncentred_alignment_of_centred_features():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 3)) + 5, rng.normal(size=(9, 4)) - 2
    xc, yc = x - x.mean(0), y - y.mean(0)
    # Linear CKA from features, Kornblith et al. 2019, equation 4.
    expected = np.linalg.norm(yc.T @ xc) ** 2 / (np.linalg.norm(xc.T @ xc) * np.linalg.norm(yc.T @ yc))
    assert centred_kernel_alignment(x @ x.T, y @ y.T) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6, 1e-7])
def test_small_distances_are_right_to_one_percent(size, centred):
    """Distances from about 1e-6 to 1e-14; 1 − CKA in float64 has no correct digit below 1e-15."""
    rng = np.random.default_rng(2)
    x, step = rng.normal(size=(8, 5)), rng.normal(size=(8, 5))
    a, b = x @ x.T, (x + size * step) @ (x + size * step).T
    expected = exact_distance(a, b, centred)
    assert size**2 / 10 < expected < 10 * size**2
    assert abs(kernel_distance(a, b, centred=centred) / expected - 1) < 1e-2


def test_distance_of_1e_minus_12_with_a_large_mean():
    """Centring removes a mean a thousand times larger than the rest and leaves the distance right to 1 %."""
    rng = np.random.default_rng(3)
    x, step = rng.normal(size=(8, 5)), rng.normal(size=(8, 5))
    a, b = x @ x.T + 1e3, (x + 1e-6 * step) @ (x + 1e-6 * step).T + 1e3
    expected = exact_distance(a, b, True)
    assert 1e-13 < expected < 1e-11
    assert abs(kernel_distance(a, b) / expected - 1) < 1e-2


@settings(deadline=None)
@given(SEEDS, SEEDS, st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.booleans())
def test_invariant_to_scale(first, second, s, t, centred):
    a, b = psd(first), psd(second)
    assert kernel_distance(s * a, t * b, centred=centred) == pytest.approx(
        kernel_distance(a, b, centred=centred), rel=1e-9, abs=1e-30
    )


@settings(deadline=None)
@given(SEEDS, SEEDS)
def test_invariant_to_orthogonal_change_of_features(first, second):
    rng = np.random.default_rng(first)
    x, y = rng.normal(size=(6, 4)), psd(second)
    q = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turned = x @ q
    assert centred_kernel_alignment(turned @ turned.T, y) == pytest.approx(
        centred_kernel_alignment(x @ x.T, y), rel=1e-10
    )


@settings(deadline=None)
@given(SEEDS, SEEDS)
def test_uncentred_alignment_invariant_to_joint_orthogonal_change(first, second):
    a, b = psd(first), psd(second)
    q = np.linalg.qr(np.random.default_rng(second).normal(size=(6, 6)))[0]
    assert uncentred_alignment(q @ a @ q.T, q @ b @ q.T) == pytest.approx(uncentred_alignment(a, b), rel=1e-10)


@settings(deadline=None)
@given(SEEDS, SEEDS, st.floats(-10, 10))
def test_centred_measures_ignore_a_constant(first, second, c):
    a, b = psd(first), psd(second)
    assert centred_kernel_alignment(a + c, b) == pytest.approx(centred_kernel_alignment(a, b), rel=1e-9)


@settings(deadline=None)
@given(SEEDS, SEEDS, st.permutations(range(6)))
def test_invariant_to_order_of_samples(first, second, order):
    a, b = psd(first), psd(second)
    index = np.ix_(order, order)
    assert kernel_distance(a[index], b[index]) == pytest.approx(kernel_distance(a, b), rel=1e-9, abs=1e-30)


@settings(deadline=None)
@given(SEEDS, SEEDS, st.integers(3, 7), st.integers(1, 5), st.booleans())
def test_symmetric_bounded_and_complementary(first, second, n, rank, centred):
    a, b = psd(first, n, rank), psd(second, n, rank)
    alignment = centred_kernel_alignment if centred else uncentred_alignment
    distance = kernel_distance(a, b, centred=centred)
    assert distance == kernel_distance(b, a, centred=centred)
    assert alignment(a, b) == alignment(b, a)
    assert -1e-12 <= distance <= 1 + 1e-12
    assert -1e-12 <= alignment(a, b) <= 1
    assert distance == pytest.approx(1 - alignment(a, b), abs=1e-13)
    assert kernel_distance(a, a, centred=centred) == 0.0


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e307])
def test_extreme_scales_neither_overflow_nor_vanish(scale):
    a, b = np.diag([1.0, 0, 0]), np.diag([0, 1.0, 0])
    assert kernel_distance(scale * a, b) == pytest.approx(0.75, rel=1e-12)


UNDEFINED = {
    "zero": (np.zeros((3, 3)), True, "is exactly zero, as for a dead network"),
    "zero uncentred": (np.zeros((3, 3)), False, "is exactly zero, as for a dead network"),
    "constant": (
        np.full((3, 3), 0.1),
        True,
        "is constant to working precision: nothing is left of it after centring",
    ),
    "constant float32": (
        np.full((3, 3), 0.1, np.float32) + np.eye(3, dtype=np.float32) * np.float32(1e-8),
        True,
        "is constant to working precision: nothing is left of it after centring",
    ),
    "NaN": (np.array([[1, np.nan, 0], [np.nan, 1, 0], [0, 0, 1]]), True, "has 2 non-finite entries of 9"),
    "infinite": (np.array([[np.inf, 0], [0, 1]]), False, "has 1 non-finite entries of 4"),
    "one sample": (
        np.eye(1),
        True,
        "has shape (1, 1): after centring at most one number is left, which has no direction",
    ),
    "two samples": (
        np.eye(2),
        True,
        "has shape (2, 2): after centring at most one number is left, which has no direction",
    ),
    "one number": (np.eye(1), False, "has a single entry, which has no direction"),
}


@pytest.mark.parametrize(("bad", "centred", "reason"), UNDEFINED.values(), ids=UNDEFINED)
def test_undefined_is_nan_with_the_reason(bad, centred, reason):
    good = np.diag(np.arange(1.0, len(bad) + 1))
    for a, b, which in ((bad, good, "first"), (good, bad, "second")):
        if which == "second" and ("single" in reason or "shape" in reason):
            which = "first"  # too small is a property of the shape, hence of both
        with pytest.warns(UndefinedMeasureWarning) as caught:
            assert math.isnan(kernel_distance(a, b, centred=centred))
        assert [str(w.message) for w in caught] == [f"kernel_distance is undefined (NaN): the {which} kernel {reason}"]
        assert caught[0].filename == __file__
        alignment = centred_kernel_alignment if centred else uncentred_alignment
        with pytest.warns(UndefinedMeasureWarning) as caught:
            assert math.isnan(alignment(a, b))
        assert str(caught[0].message) == f"{alignment.__name__} is undefined (NaN): the {which} kernel {reason}"


def test_smallest_kernels_with_a_direction():
    assert kernel_distance([[1, 0], [0, 0]], [[0, 0], [0, 1]], centred=False) == 1.0
    assert kernel_distance(np.diag([1.0, 0, 0]), np.diag([2.0, 0, 0])) == 0.0
    # A constant kernel has a direction as long as nothing is centred.
    assert uncentred_alignment(np.ones((2, 2)), np.ones((2, 2))) == pytest.approx(1.0, rel=1e-15)


def test_velocity_without_elapsed_time_is_undefined():
    with pytest.warns(UndefinedMeasureWarning) as caught:
        assert math.isnan(kernel_velocity(np.eye(3), np.diag([1.0, 0, 0]), 0))
    assert str(caught[0].message) == (
        "kernel_velocity is undefined (NaN): no training iteration lies between the two kernels"
    )


@pytest.mark.parametrize("elapsed", [-1, math.inf, math.nan])
def test_velocity_refuses_negative_time(elapsed):
    with pytest.raises(ArgumentError) as error:
        kernel_velocity(np.eye(3), np.eye(3), elapsed)
    assert str(error.value) == (
        f"elapsed must be a finite number of iterations, 0 or more, found {elapsed!r}. Pass t_b − t_a."
    )


def test_refuses_different_shapes():
    with pytest.raises(ArgumentError) as error:
        kernel_distance(np.eye(3), np.eye(4))
    assert str(error.value) == (
        "kernel_distance needs two kernels of the same shape, found (3, 3) and (4, 4). "
        "Compare kernels only on the same probe, in the same order."
    )


def test_drift_at_rest():
    a, b = np.diag([1.0, 0, 0]), np.diag([0, 1.0, 0])
    assert drift_at_rest(a, b, [0.10, 0.11, 0.11, 0.10]) == pytest.approx(0.75, rel=1e-14)
    with pytest.warns(UndefinedMeasureWarning) as caught:
        assert math.isnan(drift_at_rest(a, b, [2.0, 2.0, 1.0, 1.0]))
    assert str(caught[0].message) == (
        "drift_at_rest is undefined (NaN): the loss is not flat: its mean goes from 2 to 1"
    )
    # Flatness is relative: a small loss that halves is not at rest.
    with pytest.warns(UndefinedMeasureWarning, match="its mean goes from 0.002 to 0.001$"):
        drift_at_rest(a, b, [2e-3, 1e-3])
    with pytest.warns(UndefinedMeasureWarning) as caught:
        assert math.isnan(drift_at_rest(a, b, [2.0, np.nan]))
    assert str(caught[0].message) == "drift_at_rest is undefined (NaN): a loss is not finite"
    assert drift_at_rest(a, b, [0.0, 0.0]) == pytest.approx(0.75, rel=1e-14)
    with pytest.raises(ArgumentError) as error:
        drift_at_rest(a, b, [1.0])
    assert str(error.value) == (
        "losses must be a series of at least 2 numbers, found shape (1,). "
        "Pass the training losses between the two kernels."
    )
    with pytest.raises(ArgumentError) as error:
        drift_at_rest(a, b, [1.0, 1.0], tolerance=-1.0)
    assert str(error.value) == "tolerance must be 0 or more, found -1.0."


class TestDistanceFloor:
    def test_by_hand(self):
        # d = 3 symmetric dimensions at N = 2.
        assert distance_floor(2, relative_error=1e-3) == pytest.approx(1e-6 * (1 + 3 * math.sqrt(2 / 3)), rel=1e-14)
        assert distance_floor(2, relative_error=1e-3, gain=10) == pytest.approx(
            1e-4 * (1 + 3 * math.sqrt(2 / 3)), rel=1e-14
        )
        assert distance_floor(10**6, "float32") == pytest.approx(2.0**-42, rel=1e-5)
        assert distance_floor(10**6, np.float64) == pytest.approx(2.0**-100, rel=1e-5)

    @pytest.mark.parametrize("n", [4, 16, 64])
    def test_noise_of_that_size_has_the_derived_mean_and_stays_below(self, n):
        rng = np.random.default_rng(n)
        error = 1e-4
        dimensions = n * (n + 1) / 2
        # A symmetric kernel with entries of equal size, on which the derivation's assumption holds.
        a = np.triu(rng.choice([-1.0, 1.0], size=(n, n)))
        a = a + np.triu(a, 1).T
        weight = np.where(np.eye(n, dtype=bool), 1.0, 1 / math.sqrt(2))

        def noisy():
            # Isotropic in the space of symmetric matrices, of expected norm error·‖A‖.
            noise = np.triu(rng.normal(size=(n, n)) * weight)
            noise = noise + np.triu(noise, 1).T
            return a + noise * error * np.linalg.norm(a) / math.sqrt(dimensions)

        distances = np.array([kernel_distance(noisy(), noisy(), centred=False) for _ in range(400)])
        spread = error**2 * math.sqrt(2 / dimensions)
        # Mean of 400 draws: within 5 standard errors.
        assert abs(distances.mean() - error**2 * (1 - 1 / dimensions)) < 5 * spread / 20
        # The chi-square tail beyond 3 standard deviations is below 1.5 % for every number of dimensions here.
        assert np.mean(distances > distance_floor(n, relative_error=error)) < 0.04

    @pytest.mark.parametrize("width", [32, 1024, 8192])
    def test_float32_kernels_of_the_same_features_stay_below(self, width):
        """Summing in another order is what a different block size or device does to a kernel."""
        rng = np.random.default_rng(width)
        x = rng.normal(size=(64, width)).astype(np.float32)
        kernels = [x[:, p] @ x[:, p].T for p in (rng.permutation(width) for _ in range(6))]
        floor = distance_floor(64, "float32")
        distances = [kernel_distance(a, b, centred=False) for a in kernels for b in kernels if a is not b]
        assert 0 < max(distances) < floor

    def test_rounding_to_float32_is_where_the_derivation_puts_it(self):
        k = psd(0, 64, 80)
        scales = (1.0, 1.1, 1.3, 1.7)
        rounded = [(k * s).astype(np.float32) for s in scales]
        # The relative error seen against float64, which is known here.
        errors = [np.linalg.norm(r - k * s) / np.linalg.norm(k * s) for r, s in zip(rounded, scales, strict=True)]
        assert 2.0**-23 / 8 < min(errors) <= max(errors) < 2.0**-23 / 2
        distances = [kernel_distance(a, b, centred=False) for i, a in enumerate(rounded) for b in rounded[:i]]
        assert np.mean(distances) == pytest.approx(np.mean(np.square(errors)), rel=0.2)
        assert max(distances) < distance_floor(64, "float32")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"n": 0}, "n must be the number of samples, 1 or more, found 0."),
            (
                {"n": 3, "relative_error": -1.0},
                "relative_error must be a finite number, 0 or more, found -1.0.",
            ),
            ({"n": 3, "gain": 0.5}, "gain must be ‖A‖/‖HAH‖, finite and 1 or more, found 0.5."),
            (
                {"n": 3, "dtype": "float33"},
                "unknown floating-point dtype 'float33': expected one of 'bfloat16', 'float16', 'float32', 'float64'. "
                "Did you mean 'float32'?",
            ),
        ],
    )
    def test_refusals(self, arguments, message):
        with pytest.raises(ArgumentError) as error:
            distance_floor(**arguments)
        assert str(error.value) == message


def test_views_give_the_same_numbers():
    a, b = psd(4), psd(5)
    first, second = KernelView(a), KernelView(b)
    for _ in range(2):
        assert kernel_distance(first, second) == kernel_distance(a, b)
        assert centred_kernel_alignment(first, b) == centred_kernel_alignment(a, b)
        assert uncentred_alignment(a, second) == uncentred_alignment(a, b)
