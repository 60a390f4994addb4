"""Alignment with the labels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import centred_kernel_alignment, eigenvector_alignment, kernel_alignment, one_hot

SEEDS = st.integers(0, 2**32 - 1)


def warned(function, *args):
    with pytest.warns(UndefinedMeasureWarning) as caught:
        value = function(*args)
    assert len(caught) == 1
    return value, str(caught[0].message)


def test_one_hot():
    np.testing.assert_array_equal(one_hot([4, 2, 4]), [[0, 1], [1, 0], [0, 1]])
    np.testing.assert_array_equal(one_hot([4, 2], [1, 2, 4]), [[0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(one_hot(["b", "a"]), [[0, 1], [1, 0]])
    with pytest.raises(ArgumentError) as error:
        one_hot([4, 2, 3], [1, 2])
    assert str(error.value) == (
        "labels hold [3, 4], which are not among the classes [1, 2]. Pass every class that occurs."
    )
    with pytest.raises(ArgumentError) as error:
        one_hot(np.eye(3))
    assert str(error.value) == (
        "labels must be one class index per sample, shape (N,), found shape (3, 3). "
        "Turn one-hot rows into indices with argmax."
    )


def test_kernel_alignment_by_hand():
    # Four samples, two classes: HY Yᵀ H = ½ ssᵀ with s = (1, 1, −1, −1). K = I has HKH = H, ‖H‖ = √3,
    # <H, ½ ssᵀ> = ½·4 = 2 and ‖½ ssᵀ‖ = 2, so A = 2 / (√3·2).
    assert kernel_alignment(np.eye(4), [0, 0, 1, 1]) == pytest.approx(1 / math.sqrt(3), rel=1e-14)


@settings(deadline=None)
@given(SEEDS, st.lists(st.integers(0, 3), min_size=4, max_size=9).filter(lambda y: len(set(y)) > 1))
def test_kernel_alignment_is_cka_with_yyt(seed, labels):
    x = np.random.default_rng(seed).normal(size=(len(labels), 3))
    y = one_hot(labels)
    found = kernel_alignment(x @ x.T, labels)
    assert found == pytest.approx(centred_kernel_alignment(x @ x.T, y @ y.T), rel=1e-10, abs=1e-13)
    assert -1e-12 <= found <= 1
    # Names of the classes do not matter.
    assert kernel_alignment(5 * x @ x.T, [7 - c for c in labels]) == pytest.approx(found, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [2, 1, 0, 0]])
def test_kernel_of_the_labels_is_perfectly_aligned(labels):
    y = one_hot(labels)
    assert kernel_alignment(y @ y.T + 3, labels) == pytest.approx(1.0, rel=1e-13)


UNDEFINED = [
    (np.eye(4), [1, 1, 1, 1], "all samples have the same label"),
    (np.eye(1), [1], "all samples have the same label"),
    (
        np.eye(2),
        [0, 1],
        "the kernel has shape (2, 2): after centring at most one number is left, which has no direction",
    ),
    (np.zeros((3, 3)), [0, 1, 1], "the kernel is exactly zero, as for a dead network"),
    (
        np.ones((3, 3)),
        [0, 1, 1],
        "the kernel is constant to working precision: nothing is left of it after centring",
    ),
    (np.full((3, 3), np.nan), [0, 1, 1], "the kernel has 9 non-finite entries of 9"),
]


@pytest.mark.parametrize(("k", "labels", "reason"), UNDEFINED)
def test_kernel_alignment_undefined(k, labels, reason):
    value, message = warned(kernel_alignment, k, labels)
    assert math.isnan(value)
    assert message == f"kernel_alignment is undefined (NaN): {reason}"


def test_wrong_number_of_labels():
    for measure, rest in ((kernel_alignment, ()), (eigenvector_alignment, (1,))):
        with pytest.raises(ArgumentError) as error:
            measure(np.eye(4), [0, 1, 0], *rest)
        assert str(error.value) == (
            "labels must be one per sample: the kernel has 4 samples, found 3 labels. "
            "Pass the labels of the same probe, in the same order."
        )


def test_eigenvector_alignment_by_hand():
    s = np.array([1.0, 1, -1, -1]) / 2
    u = np.array([1.0, -1, 1, -1]) / 2
    # The labels' only centred direction is s: second eigenvector here.
    k = 3 * np.outer(u, u) + 2 * np.outer(s, s)
    assert eigenvector_alignment(k, [0, 0, 1, 1], 1) == pytest.approx(0.0, abs=1e-14)
    assert eigenvector_alignment(k, [0, 0, 1, 1], 2) == pytest.approx(1.0, rel=1e-13)


def test_eigenvector_alignment_of_a_constant_direction_is_nothing():
    one = np.ones(4) / 2
    s = np.array([1.0, 1, -1, -1]) / 2
    k = 9 * np.outer(one, one) + np.outer(s, s)
    assert eigenvector_alignment(k, [0, 0, 1, 1], 1) == pytest.approx(0.0, abs=1e-14)


@settings(deadline=None)
@given(SEEDS, st.floats(1e-3, 1e3))
def test_eigenvector_alignment_grows_with_rank_within_bounds(seed, scale):
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(7, 7)), [0, 1, 2, 0, 1, 2, 2]
    found = [eigenvector_alignment(x @ x.T, labels, rank) for rank in range(1, 7)]
    assert np.all(np.diff([0.0, *found, 1.0]) >= -1e-12)
    assert eigenvector_alignment(scale * x @ x.T, labels, 3) == pytest.approx(found[2], rel=1e-6)


@pytest.mark.parametrize(
    ("k", "labels", "rank", "reason"),
    [
        (np.eye(3), [1, 1, 1], 1, "all samples have the same label"),
        (np.eye(3), [0, 1, 1], 20, "the 20 leading eigenvectors of a 3×3 kernel span the whole space"),
        (np.eye(3), [0, 1, 1], 3, "the 3 leading eigenvectors of a 3×3 kernel span the whole space"),
        (np.zeros((3, 3)), [0, 1, 1], 1, "the kernel is exactly zero, as for a dead network"),
        (np.full((3, 3), np.inf), [0, 1, 1], 1, "the kernel has 9 non-finite entries of 9"),
    ],
)
def test_eigenvector_alignment_undefined(k, labels, rank, reason):
    value, message = warned(eigenvector_alignment, k, labels, rank)
    assert math.isnan(value)
    assert message == f"eigenvector_alignment is undefined (NaN): {reason}"


def test_eigenvector_alignment_refuses_no_eigenvector():
    with pytest.raises(ArgumentError) as error:
        eigenvector_alignment(np.eye(3), [0, 1, 1], 0)
    assert str(error.value) == "rank must be a number of eigenvectors, 1 or more, found 0."


@settings(deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_alignment_with_numeric_targets_is_cka_with_yyt(seed, columns):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, columns))
    expected = centred_kernel_alignment(x @ x.T, y @ y.T)
    assert kernel_alignment(x @ x.T, y) == pytest.approx(expected, rel=1e-10, abs=1e-13)
    if columns == 1:
        assert kernel_alignment(x @ x.T, y[:, 0]) == pytest.approx(expected, rel=1e-10, abs=1e-13)


@settings(deadline=None)
@given(SEEDS, st.lists(st.integers(0, 3), min_size=4, max_size=9).filter(lambda y: len(set(y)) > 1))
def test_classes_are_one_hot_targets(seed, labels):
    x = np.random.default_rng(seed).normal(size=(len(labels), 3))
    k, y = x @ x.T, one_hot(labels)
    assert kernel_alignment(k, y) == kernel_alignment(k, labels)
    assert eigenvector_alignment(k, y, 2) == eigenvector_alignment(k, labels, 2)


def test_numeric_targets_by_hand():
    # Centred, Y is s = (1, 1, −1, −1) and nothing: <H, ssᵀ> = 4, ‖H‖ = √3, ‖ssᵀ‖ = 4.
    y = np.array([[2.0, 5.0], [2.0, 5.0], [0.0, 5.0], [0.0, 5.0]])
    assert kernel_alignment(np.eye(4), y) == pytest.approx(1 / math.sqrt(3), rel=1e-14)
    # Floating-point numbers are targets and not names of classes: 0, 1, 2 are equally far apart.
    s = np.array([-1.0, 0, 1])
    k = np.outer(s, s) + 4
    assert kernel_alignment(k, [0.0, 1.0, 2.0]) == pytest.approx(1.0, rel=1e-13)
    assert kernel_alignment(k, [0, 1, 2]) == pytest.approx(1 / math.sqrt(2), rel=1e-13)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.full((4, 2), 0.1), "all samples have the same label"),
        ([0.5, 0.5, 0.5, 0.5], "all samples have the same label"),
        ([0.5, np.nan, 0.5, 1.0], "the labels have 1 non-finite entries of 4"),
    ],
)
def test_numeric_targets_without_a_direction(labels, reason):
    value, message = warned(kernel_alignment, np.eye(4), labels)
    assert math.isnan(value)
    assert message == f"kernel_alignment is undefined (NaN): {reason}"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.ones((3, 2)),
            "labels must be one per sample: the kernel has 4 samples, found 3 labels. "
            "Pass the labels of the same probe, in the same order.",
        ),
        (
            np.ones((4, 2, 2)),
            "numeric targets must have the shape (N,) or (N, K), found (4, 2, 2). Pass one row per sample.",
        ),
        (1.5, "numeric targets must have the shape (N,) or (N, K), found (). Pass one row per sample."),
    ],
)
def test_numeric_targets_of_another_shape(labels, message):
    with pytest.raises(ArgumentError) as error:
        kernel_alignment(np.eye(4), labels)
    assert str(error.value) == message
