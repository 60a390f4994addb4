"""Class blocks, task overlap, linearisation error."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import class_block_means, linearisation_error, overlap_matrix, task_overlap

SEEDS = st.integers(0, 2**32 - 1)


def warned(function, *args):
    with pytest.warns(UndefinedMeasureWarning) as caught:
        value = function(*args)
    return value, [str(w.message) for w in caught]


class TestClassBlocks:
    def test_by_hand(self):
        # Classes interleaved: samples 0 and 2 are of class 9, sample 1 of class 4.
        k = [[1.0, 2.0, 3.0], [2.0, 10.0, 4.0], [3.0, 4.0, 5.0]]
        blocks = class_block_means(k, [9, 4, 9])
        assert blocks.classes.tolist() == [4, 9]
        assert blocks.counts.tolist() == [1, 2]
        np.testing.assert_allclose(blocks.means, [[10, 3], [3, 3]])
        np.testing.assert_allclose(blocks.norms, [10, math.sqrt(1 + 9 + 9 + 25)])
        assert blocks.within == pytest.approx((10 + 1 + 3 + 3 + 5) / 5)
        assert blocks.between == pytest.approx(3.0)

    @settings(deadline=None)
    @given(SEEDS, st.lists(st.integers(0, 3), min_size=2, max_size=9).filter(lambda y: len(set(y)) > 1))
    def test_blocks_account_for_the_whole_kernel(self, seed, labels):
        x = np.random.default_rng(seed).normal(size=(len(labels), 3))
        k = x @ x.T
        blocks = class_block_means(k, labels)
        assert blocks.counts @ blocks.means @ blocks.counts == pytest.approx(k.sum(), rel=1e-9, abs=1e-9)
        pairs_within = np.sum(blocks.counts**2)
        total = blocks.within * pairs_within + blocks.between * (len(labels) ** 2 - pairs_within)
        assert total == pytest.approx(k.sum(), rel=1e-9, abs=1e-9)
        np.testing.assert_allclose(blocks.means, blocks.means.T, atol=1e-12)

    def test_one_class_has_nothing_between(self):
        blocks, messages = warned(class_block_means, [[1.0, 2.0], [2.0, 3.0]], [5, 5])
        assert blocks.within == 2.0 and math.isnan(blocks.between)
        assert messages == [
            "class_block_means is undefined (NaN): all samples have the same label, so that no entry is between classes"
        ]

    def test_non_finite(self):
        blocks, messages = warned(class_block_means, [[1.0, np.nan], [2.0, 3.0]], [5, 6])
        assert np.isnan(blocks.means).all() and np.isnan(blocks.norms).all() and math.isnan(blocks.within)
        assert messages == ["class_block_means is undefined (NaN): the kernel has 1 non-finite entries of 4"]


class TestTaskOverlap:
    @settings(deadline=None)
    @given(SEEDS, st.integers(1, 6), st.integers(1, 6), st.floats(1e-3, 1e3))
    def test_is_the_cosine_of_second_moments(self, seed, n, m, scale):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(n, 4)), rng.normal(size=(m, 4))
        first, second = a.T @ a, b.T @ b
        expected = np.sum(first * second) / (np.linalg.norm(first) * np.linalg.norm(second))
        found = task_overlap(a @ b.T, a @ a.T, b @ b.T)
        assert found == pytest.approx(expected, rel=1e-9)
        assert 0 <= found <= 1 + 1e-12
        assert task_overlap(b @ a.T, b @ b.T, a @ a.T) == pytest.approx(found, rel=1e-12)
        assert task_overlap(scale * a @ b.T, scale**2 * a @ a.T, b @ b.T) == pytest.approx(found, rel=1e-9)

    def test_matrix_by_hand_takes_either_order_of_a_pair(self):
        tasks = [np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]]), np.array([[3.0, 4.0]])]
        selfs = [t @ t.T for t in tasks]
        cross = {(0, 1): tasks[0] @ tasks[1].T, (2, 0): tasks[2] @ tasks[0].T, (1, 2): tasks[1] @ tasks[2].T}
        # One gradient a task: the squared cosine of the angle between them.
        np.testing.assert_allclose(
            overlap_matrix(selfs, cross), [[1, 0, 0.36], [0, 1, 0.64], [0.36, 0.64, 1]], rtol=1e-14
        )

    @pytest.mark.parametrize(
        ("cross", "first", "second", "reason"),
        [
            ([[0.0]], [[0.0]], [[1.0]], "the first self-kernel is exactly zero, as for a dead network"),
            ([[0.0]], [[1.0]], [[0.0]], "the second self-kernel is exactly zero, as for a dead network"),
            ([[np.nan]], [[1.0]], [[1.0]], "the cross kernel has 1 non-finite entries of 1"),
            ([[1.0]], [[1.0]], [[np.inf]], "the second self-kernel has 1 non-finite entries of 1"),
        ],
    )
    def test_undefined(self, cross, first, second, reason):
        value, messages = warned(task_overlap, cross, first, second)
        assert math.isnan(value)
        assert messages == [f"task_overlap is undefined (NaN): {reason}"]

    def test_refused(self):
        with pytest.raises(ArgumentError) as error:
            task_overlap(np.zeros((3, 2)), np.eye(2), np.eye(3))
        assert str(error.value) == (
            "task_overlap needs a cross kernel of shape (2, 3), one row per sample of the first self-kernel and one "
            "column per sample of the second, found (3, 2). Pass Θ(X_i, X_j), Θ(X_i, X_i), Θ(X_j, X_j)."
        )
        with pytest.raises(ArgumentError) as error:
            overlap_matrix([np.eye(2)] * 3, {(0, 1): np.eye(2), (2, 1): np.eye(2)})
        assert str(error.value) == (
            "overlap_matrix needs a cross kernel for every pair of 3 tasks, found none for (0, 2). "
            "Add Θ(X_0, X_2) under that key."
        )


class TestLinearisationError:
    def test_of_a_linear_model_is_zero_and_of_a_quadratic_one_is_known(self):
        """f(x; θ) = (θx)²: from θ_b to θ_b + d the change is x²(2θ_b d + d²), of which the jvp gives the first term."""
        x = np.array([1.0, 2.0, 3.0])
        base, step = 2.0, 0.5
        jvp = 2 * base * x**2 * step
        expected = step**2 / (2 * base * step + step**2)
        found = linearisation_error(((base + step) * x) ** 2, (base * x) ** 2, jvp)
        assert found == pytest.approx(expected, rel=1e-13)
        assert linearisation_error((base + step) * x, base * x, x * step) == pytest.approx(0.0, abs=1e-15)

    def test_no_prediction_at_all_is_one(self):
        assert linearisation_error([[1.0, 2.0]], [[0.0, 5.0]], [[0.0, 0.0]]) == 1.0

    @pytest.mark.parametrize(
        ("arrays", "reason"),
        [
            (([1.0], [1.0], [0.5]), "the outputs have not changed since the base"),
            (([np.nan, 1.0], [1.0, 1.0], [0.5, 0.5]), "f_now has 1 non-finite entries of 2"),
            (([0.0], [1.0], [np.inf]), "jvp has 1 non-finite entries of 1"),
        ],
    )
    def test_undefined(self, arrays, reason):
        value, messages = warned(linearisation_error, *arrays)
        assert math.isnan(value)
        assert messages == [f"linearisation_error is undefined (NaN): {reason}"]

    def test_refused(self):
        with pytest.raises(ArgumentError) as error:
            linearisation_error(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 1)))
        assert str(error.value) == (
            "linearisation_error needs three non-empty arrays of the same shape, found (2, 3) (f_now), (2, 3) (f_base) "
            "and (2, 1) (jvp). Evaluate all three on the same samples and outputs."
        )
