"""Blocks of a kernel by class."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avalanche_ntk.measures._arrays import Array, as_labels
from avalanche_ntk.measures._undefined import Undefined, warn_undefined
from avalanche_ntk.measures.alignment import one_hot
from avalanche_ntk.measures.view import KernelView, view_of


@dataclass(frozen=True)
class ClassBlocks:
    """A self-kernel by class.

    Attributes:
        classes: The classes that occur, ascending, shape `(C,)`.
        counts: Samples of each, shape `(C,)`.
        means: Mean entry of the block of classes (a, b), shape `(C, C)`; blocks (a, a) include the diagonal.
        norms: Frobenius norm of each class's own block, shape `(C,)`.
        within: Mean entry over all pairs of samples of the same class, including the diagonal.
        between: Mean entry over all pairs of samples of different classes; NaN with a single class.
    """

    classes: NDArray[np.generic]
    counts: NDArray[np.int64]
    means: Array
    norms: Array
    within: float
    between: float


def class_block_means(k: ArrayLike | KernelView, labels: ArrayLike) -> ClassBlocks:
    """Class blocks: `mean of Θ[n, m] over n in class a, m in class b`, `= (YᵀΘY)_ab / (N_a N_b)` with one-hot Y.

    Args:
        k: Self-kernel `(N, N)`.
        labels: Class of each sample, shape `(N,)`.

    Returns:
        A `ClassBlocks`. With a warning: all numbers NaN if an entry is not finite, `between` NaN with a single class.

    Raises:
        ArgumentError: Not a square matrix, or not one label per sample.

    Source: the block structure of Seleznova et al. 2023, "Neural (Tangent Kernel) Collapse".

    >>> blocks = class_block_means([[4.0, 2.0, 1.0], [2.0, 4.0, 0.0], [1.0, 0.0, 5.0]], [7, 7, 9])
    >>> blocks.means
    array([[3. , 0.5],
           [0.5, 5. ]])
    >>> blocks.within, blocks.between
    (3.4, 0.5)
    """
    view = view_of(k)
    y = as_labels(labels, view.require_square("class_block_means"))
    classes, counts = np.unique(y, return_counts=True)
    size = len(classes)
    try:
        view.require_finite()
    except Undefined as reason:
        warn_undefined("class_block_means", reason)
        nothing = np.full(size, np.nan)
        return ClassBlocks(classes, counts, np.full((size, size), np.nan), nothing, math.nan, math.nan)
    member = one_hot(y, classes)
    sums = member.T @ view.matrix @ member
    pairs = np.outer(counts, counts)
    norms = np.array([np.linalg.norm(view.matrix[np.ix_(y == c, y == c)]) for c in classes])
    own = np.eye(size, dtype=bool)
    if size == 1:
        warn_undefined("class_block_means", "all samples have the same label, so that no entry is between classes")
    between = float(sums[~own].sum() / pairs[~own].sum()) if size > 1 else math.nan
    return ClassBlocks(classes, counts, sums / pairs, norms, float(sums[own].sum() / pairs[own].sum()), between)
