"""Kernel ridge regression and its error on held-out samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, as_labels, count_non_finite
from avalanche_ntk.measures._undefined import Undefined, undefined, warn_undefined
from avalanche_ntk.measures.alignment import are_targets, label_matrix, one_hot
from avalanche_ntk.measures.view import KernelView, view_of

#: Ridges tried, in units of the mean diagonal entry of the training kernel.
RIDGES = tuple(10.0**power for power in range(-6, 2))


def kernel_ridge(
    k_train: ArrayLike | KernelView, y_train: ArrayLike, k_test: ArrayLike | KernelView, ridge: float
) -> Array:
    """Predictions of kernel ridge regression, `Θ(X', X) (Θ(X, X) + ridge·I)⁻¹ Y`, without an intercept.

    It is solved in the eigenbasis of the symmetrised training kernel. Negative eigenvalues, due to rounding, count as
    zero; with `ridge = 0`, directions of eigenvalue zero are left out (the pseudo-inverse).

    Args:
        k_train: `Θ(X, X)`, `(N, N)`.
        y_train: Targets, `(N,)` or `(N, C)`.
        k_test: `Θ(X', X)`, `(M, N)`.
        ridge: Number added to the diagonal, in the units of the kernel; 0 or more.

    Returns:
        Predictions, `(M,)` or `(M, C)`; all NaN, with a warning, if a number is not finite.

    Raises:
        ArgumentError: Shapes that do not fit together, or a ridge that is negative or not finite.

    Source: Saunders et al. 1998; with the empirical NTK, Fort et al. 2020.

    >>> kernel_ridge([[2.0, 0.0], [0.0, 2.0]], [4.0, 8.0], [[1.0, 1.0]], ridge=2.0)
    array([3.])
    """
    train, test = view_of(k_train), view_of(k_test)
    n = train.require_square("kernel_ridge")
    y = as_float64(y_train, "y_train")
    if y.ndim not in (1, 2) or len(y) != n or test.shape[1] != n:
        raise ArgumentError(
            f"kernel_ridge needs k_train ({n}, {n}), y_train ({n},) or ({n}, C) and k_test (M, {n}), "
            f"found y_train {y.shape} and k_test {test.shape}. The columns of k_test are the training samples."
        )
    if not 0 <= ridge < math.inf:
        raise ArgumentError(f"ridge must be a finite number, 0 or more, found {ridge!r}.")
    try:
        for name, view in (("k_train", train), ("k_test", test)):
            if view.non_finite:
                undefined(f"{name} has {view.non_finite} non-finite entries of {view.matrix.size}")
        if bad := count_non_finite(y):
            undefined(f"y_train has {bad} non-finite entries of {y.size}")
    except Undefined as reason:
        warn_undefined("kernel_ridge", reason)
        return np.full((test.shape[0], *y.shape[1:]), np.nan)
    predicted: Array = test.matrix @ _dual(train, y, ridge)
    return predicted


def _dual(train: KernelView, y: Array, ridge: float) -> Array:
    values, vectors = train.eigh
    shifted = np.clip(values, 0.0, None) + ridge
    keep = shifted > len(values) * np.finfo(float).eps * shifted.max()
    inverse = np.divide(1.0, shifted, out=np.zeros_like(shifted), where=keep)
    projected = vectors.T @ y
    dual: Array = vectors @ (inverse.reshape(-1, *([1] * (y.ndim - 1))) * projected)
    return dual


@dataclass(frozen=True)
class KernelRegression:
    """Held-out result of a regression with one kernel.

    Attributes:
        accuracy: Share of held-out samples whose largest predicted output is their class; NaN if undefined, as for
            numeric targets.
        loss: Mean over held-out samples of `Σ_c (ŷ_c − y_c)²` with one-hot y for classes; NaN if undefined.
        ridge: The chosen ridge, in units of the mean diagonal entry of the training kernel; NaN if undefined.
        validation_losses: The loss on the validation split for each ridge tried, in the order given.
    """

    accuracy: float
    loss: float
    ridge: float
    validation_losses: tuple[float, ...] = ()


def kernel_regression(
    k_train_train: ArrayLike | KernelView,
    labels: ArrayLike,
    k_test_train: ArrayLike | KernelView,
    labels_test: ArrayLike,
    *,
    ridges: Sequence[float] = RIDGES,
    validation_share: float = 0.25,
    seed: int = 0,
) -> KernelRegression:
    """Kernel regression: held-out accuracy and loss of ridge regression with a kernel, on one-hot rows for classes.

    The mean of the training targets is subtracted before and added after, instead of an intercept. The ridge is the one
    with the smallest loss on a validation split of the training samples (the largest of equal ones). The split is drawn
    with `seed`, class by class if there are classes. The final regression uses all training samples.

    Args:
        k_train_train: `Θ(X, X)` of the probe, `(N, N)`.
        labels: Its classes, `(N,)`, or numeric targets, floating-point numbers `(N,)` or `(N, K)`.
        k_test_train: `Θ(X', X)` between held-out samples and the probe, `(M, N)`.
        labels_test: Their labels, of the same kind; a class not among `labels` is always predicted wrongly.
        ridges: Ridges to choose from, in units of the mean diagonal entry of `k_train_train`, so independent of its
            scale.
        validation_share: Share of each class in the validation split, above 0 and below 1; at least one sample of a
            class that has two.
        seed: Seed of the split.

    Returns:
        A `KernelRegression`; NaN with a warning if all labels are equal, no class has two samples, the kernel is zero,
        or a number is not finite.

    Raises:
        ArgumentError: Shapes or kinds of labels that do not fit together, no ridge or a negative one, or a share
            outside (0, 1).

    Source: Fort et al. 2020, "Deep learning versus kernel learning".

    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> kernel_regression(x @ x.T, [0, 0, 1, 1], x[[0, 2]] @ x.T, [0, 1]).accuracy
    1.0
    """
    train, test = view_of(k_train_train), view_of(k_test_train)
    n = train.require_square("kernel_regression")
    classes, targets, targets_test = _targets(labels, labels_test, n)
    if test.shape != (len(targets_test), n):
        raise ArgumentError(
            f"kernel_regression needs k_test_train of shape ({len(targets_test)}, {n}), one row per held-out label and "
            f"one column per training sample, found {test.shape}. Pass Θ(X', X)."
        )
    if len(ridges) == 0 or not all(0 <= r < math.inf for r in ridges):
        raise ArgumentError(f"ridges must be one or more finite numbers, 0 or more, found {list(ridges)}.")
    if not 0 < validation_share < 1:
        raise ArgumentError(f"validation_share must lie between 0 and 1, found {validation_share!r}.")
    try:
        for name, rows in (("labels", targets), ("labels_test", targets_test)):
            if bad := count_non_finite(rows):
                undefined(f"{name} has {bad} non-finite entries of {rows.size}")
        groups = np.zeros(n, dtype=np.intp) if classes is None else targets.argmax(axis=1)
        fit, held = _check_and_split(train, test, targets, groups, validation_share, seed)
    except Undefined as reason:
        warn_undefined("kernel_regression", reason)
        return KernelRegression(math.nan, math.nan, math.nan)

    scale = float(np.trace(train.matrix)) / n
    part = KernelView(train.matrix[np.ix_(fit, fit)], epsilon=train.epsilon)
    across = train.matrix[np.ix_(held, fit)]
    losses = tuple(_loss(_predict(part, targets[fit], across, scale * ridge), targets[held]) for ridge in ridges)
    best = min(range(len(ridges)), key=lambda i: (losses[i], -ridges[i]))
    predicted = _predict(train, targets, test.matrix, scale * ridges[best])
    right = np.argmax(predicted, axis=1) == np.argmax(targets_test, axis=1)
    accuracy = math.nan if classes is None else float(np.mean(right))
    return KernelRegression(accuracy, _loss(predicted, targets_test), float(ridges[best]), losses)


def _targets(labels: ArrayLike, labels_test: ArrayLike, n: int) -> tuple[NDArray[np.generic] | None, Array, Array]:
    """Return the classes (None for numeric targets) and both matrices of targets, in the same columns."""
    if are_targets(labels) != are_targets(labels_test):
        raise ArgumentError(
            "labels and labels_test must both be classes or both be numeric targets, found one of each. Pass the same "
            "kind of labels for both."
        )
    if not are_targets(labels):
        y, y_test = as_labels(labels, n), as_labels(labels_test)
        classes = np.union1d(y, y_test)
        return classes, one_hot(y, classes), one_hot(y_test, classes)
    rows, rows_test = label_matrix(labels, n), label_matrix(labels_test)
    if rows.shape[1] != rows_test.shape[1]:
        raise ArgumentError(
            f"labels and labels_test must have the same number of targets per sample, found {rows.shape[1]} and "
            f"{rows_test.shape[1]}. Pass the same targets for both."
        )
    return None, rows, rows_test


def _predict(train: KernelView, targets: Array, k_test: Array, ridge: float) -> Array:
    mean = targets.mean(axis=0)
    predicted: Array = k_test @ _dual(train, targets - mean, ridge) + mean
    return predicted


def _loss(predicted: Array, targets: Array) -> float:
    return float(np.mean(np.sum((predicted - targets) ** 2, axis=1)))


def _check_and_split(
    train: KernelView, test: KernelView, targets: Array, groups: NDArray[np.intp], share: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    for name, view in (("k_train_train", train), ("k_test_train", test)):
        if view.non_finite:
            undefined(f"{name} has {view.non_finite} non-finite entries of {view.matrix.size}")
    if not np.trace(train.matrix) > 0:
        undefined("k_train_train has no positive diagonal entry, as for a dead network")
    if (targets == targets[0]).all():
        undefined("all samples have the same label")
    classes, counts = np.unique(groups, return_counts=True)
    if counts.max() < 2:
        undefined("no class has two samples, so none can be held out to choose the ridge")
    generator = np.random.default_rng(seed)
    held = []
    for c, count in zip(classes, counts, strict=True):
        members = generator.permutation(np.flatnonzero(groups == c))
        held.append(members[: min(count - 1, max(1, round(share * count)))])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(groups)), chosen), chosen
