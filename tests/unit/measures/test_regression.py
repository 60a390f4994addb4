"""Regression with a kernel, against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.kernel_ridge import KernelRidge

from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.measures import kernel_regression, kernel_ridge, one_hot


def warned(function, *args):
    with pytest.warns(UndefinedMeasureWarning) as caught:
        value = function(*args)
    assert len(caught) == 1
    return value, str(caught[0].message)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = x / 16
    return x[:150] @ x[:150].T, y[:150], x[150:250] @ x[:150].T, y[150:250]


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("columns", [None, 3])
def test_kernel_ridge_agrees_with_scikit_learn(ridge, columns):
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(12, 20)), rng.normal(size=(5, 20))
    y = rng.normal(size=12 if columns is None else (12, columns))
    published = KernelRidge(alpha=ridge, kernel="precomputed").fit(x @ x.T, y)
    found = kernel_ridge(x @ x.T, y, x_test @ x.T, ridge)
    np.testing.assert_allclose(found, published.predict(x_test @ x.T), rtol=1e-9, atol=1e-12)


def test_without_ridge_it_is_the_minimum_norm_interpolation():
    rng = np.random.default_rng(1)
    x, x_test, y = rng.normal(size=(9, 4)), rng.normal(size=(3, 4)), rng.normal(size=9)
    # 9 samples of 4 features: the kernel is singular, least squares on the features is the answer.
    expected = x_test @ np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(kernel_ridge(x @ x.T, y, x_test @ x.T, 0.0), expected, rtol=1e-9)


def test_kernel_ridge_of_nothing_finite():
    predicted, message = warned(kernel_ridge, np.eye(2), [1.0, np.nan], np.eye(2), 1.0)
    assert np.isnan(predicted).all() and predicted.shape == (2,)
    assert message == "kernel_ridge is undefined (NaN): y_train has 1 non-finite entries of 2"


def test_kernel_ridge_refuses():
    with pytest.raises(ArgumentError) as error:
        kernel_ridge(np.eye(2), [1.0, 2.0], np.zeros((3, 4)), 1.0)
    assert str(error.value) == (
        "kernel_ridge needs k_train (2, 2), y_train (2,) or (2, C) and k_test (M, 2), "
        "found y_train (2,) and k_test (3, 4). The columns of k_test are the training samples."
    )
    with pytest.raises(ArgumentError) as error:
        kernel_ridge(np.eye(2), [1.0, 2.0], np.eye(2), -1.0)
    assert str(error.value) == "ridge must be a finite number, 0 or more, found -1.0."


def test_regression_with_one_ridge_agrees_with_scikit_learn(digits):
    k, y, k_test, y_test = digits
    ridge = 1e-2
    scale = np.trace(k) / len(k)
    targets, expected = one_hot(y, range(10)), one_hot(y_test, range(10))
    published = KernelRidge(alpha=ridge * scale, kernel="precomputed").fit(k, targets - targets.mean(0))
    predicted = published.predict(k_test) + targets.mean(0)
    found = kernel_regression(k, y, k_test, y_test, ridges=[ridge])
    assert found.accuracy == np.mean(predicted.argmax(1) == y_test)
    assert found.accuracy > 0.8
    assert found.loss == pytest.approx(np.mean(np.sum((predicted - expected) ** 2, axis=1)), rel=1e-9)
    assert found.ridge == ridge


def test_ridge_is_the_best_on_the_split_and_not_on_the_test_set(digits):
    k, y, k_test, y_test = digits
    ridges = [1e-8, 1e-2, 1e4]
    found = kernel_regression(k, y, k_test, y_test, ridges=ridges, seed=3)
    assert found.ridge == ridges[int(np.argmin(found.validation_losses))] == 1e-2
    # Held-out samples have no say: without them in a class of their own, the choice is the same.
    assert kernel_regression(k, y, 0 * k_test, y_test[::-1], ridges=ridges, seed=3).ridge == 1e-2


def test_seed_decides_the_split_and_nothing_else(digits):
    k, y, k_test, y_test = digits
    first = kernel_regression(k, y, k_test, y_test, seed=1)
    assert first == kernel_regression(k, y, k_test, y_test, seed=1)
    assert first.validation_losses != kernel_regression(k, y, k_test, y_test, seed=2).validation_losses


def test_does_not_depend_on_the_scale_of_the_kernel(digits):
    k, y, k_test, y_test = digits
    first, second = kernel_regression(k, y, k_test, y_test), kernel_regression(1e4 * k, y, 1e4 * k_test, y_test)
    assert (first.accuracy, first.ridge) == (second.accuracy, second.ridge)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)


def test_the_largest_of_equal_ridges_wins():
    # The identity says nothing about other samples: every ridge predicts the mean.
    found = kernel_regression(np.eye(4), [0, 0, 1, 1], np.zeros((1, 4)), [0], ridges=[1.0, 10.0, 0.1])
    assert len(set(found.validation_losses)) == 1
    assert found.ridge == 10.0


@pytest.mark.parametrize("share", [0.01, 0.25, 0.99])
def test_every_class_keeps_a_sample_to_fit_and_a_single_one_is_never_held_out(share):
    labels = [0, 0, 1, 1, 2]
    y = one_hot(labels)
    # With a sample of each class the kernel of the labels predicts every held-out one exactly.
    found = kernel_regression(y @ y.T, labels, y @ y.T, labels, ridges=[1e-12], validation_share=share)
    assert found.validation_losses[0] < 1e-20
    assert found.accuracy == 1.0


def test_a_class_that_was_never_seen_is_predicted_wrongly():
    x = np.array([[1.0, 0], [0.9, 0], [0, 1.0], [0, 0.9]])
    found = kernel_regression(x @ x.T, [0, 0, 1, 1], x[[0, 2]] @ x.T, [0, 7])
    assert found.accuracy == 0.5


@pytest.mark.parametrize(
    ("k", "labels", "reason"),
    [
        (np.eye(3), [1, 1, 1], "all samples have the same label"),
        (np.eye(3), [0, 1, 2], "no class has two samples, so none can be held out to choose the ridge"),
        (np.eye(1), [0], "all samples have the same label"),
        (
            np.zeros((3, 3)),
            [0, 1, 1],
            "k_train_train has no positive diagonal entry, as for a dead network",
        ),
        (np.full((3, 3), np.nan), [0, 1, 1], "k_train_train has 9 non-finite entries of 9"),
    ],
)
def test_undefined(k, labels, reason):
    found, message = warned(kernel_regression, k, labels, np.ones((1, len(k))), [0])
    assert math.isnan(found.accuracy) and math.isnan(found.loss) and math.isnan(found.ridge)
    assert message == f"kernel_regression is undefined (NaN): {reason}"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"k_test_train": np.zeros((2, 3))},
            "kernel_regression needs k_test_train of shape (1, 4), one row per held-out label and one column per "
            "training sample, found (2, 3). Pass Θ(X', X).",
        ),
        ({"ridges": []}, "ridges must be one or more finite numbers, 0 or more, found []."),
        ({"ridges": [1.0, -1.0]}, "ridges must be one or more finite numbers, 0 or more, found [1.0, -1.0]."),
        ({"validation_share": 1.0}, "validation_share must lie between 0 and 1, found 1.0."),
    ],
)
def test_refused(changed, message):
    arguments = {
        "k_train_train": np.eye(4),
        "labels": [0, 0, 1, 1],
        "k_test_train": np.zeros((1, 4)),
        "labels_test": [0],
    }
    with pytest.raises(ArgumentError) as error:
        kernel_regression(**{**arguments, **changed})
    assert str(error.value) == message
