"""Labels of a probe's samples: classes or numeric targets.

Classes are whole numbers of shape `(N,)`. Numeric targets are real numbers of shape `(N, K)`: several classes at once
(multi-hot rows), soft labels, the targets of a regression. The kernel of the labels, `Y Yᵀ`, is defined for both, with
one-hot rows for classes. Quantities that need classes (accuracy, class blocks) are undefined for numeric targets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from avalanche_ntk.errors import ProbeError

NO_CLASSES = "the labels are numeric targets, not classes"


def are_classes(labels: np.ndarray) -> bool:
    """Return whether labels made by `in_form` are classes; otherwise they are numeric targets."""
    return labels.ndim == 1


def in_form(values: np.ndarray) -> np.ndarray:
    """Return labels as classes, int64 `(N,)`, or numeric targets, float64 `(N, K)`.

    The data type decides. Whole numbers (and booleans) of shape `(N,)` or `(N, 1)` are classes. Floating-point numbers
    are numeric targets, even if their values are whole; `(N,)` is treated as `(N, 1)`. Rows `(N, K)`, K > 1, of zeros
    and ones are multi-hot: numeric targets of either type. One-hot rows, with a single 1 each, are converted to
    classes.

    Args:
        values: One label per sample, samples in dimension 0.

    Returns:
        The labels, as a copy.

    Raises:
        ProbeError: They are not real numbers, have more than two dimensions, or are rows of class numbers.
    """
    if values.dtype.kind not in "biuf":
        raise ProbeError(
            f"labels must be numbers: classes (N,) or numeric targets (N, K); found {_sort(values)}. Number the "
            "classes 0, 1, …, and give those."
        )
    if values.ndim not in (1, 2) or values.size == 0:
        raise ProbeError(
            f"labels must be classes (N,) or numeric targets (N, K); found an array of shape {values.shape}. Give one "
            "class or one row of numbers for each sample."
        )
    if values.dtype.kind == "f":
        rows = values.reshape(len(values), -1).astype(np.float64)
    elif values.ndim == 1 or values.shape[1] == 1:
        return values.reshape(-1).astype(np.int64)
    elif ((values == 0) | (values == 1)).all():
        rows = values.astype(np.float64)
    else:
        raise ProbeError(
            f"labels of shape (N, K) are numeric targets; found whole numbers of shape {values.shape} other than 0 and "
            "1, which look like several class numbers a sample. Give one class a sample, rows of zeros and ones, or "
            "floats where they are numbers to be predicted."
        )
    one_hot = rows.shape[1] > 1 and ((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all()
    return rows.argmax(axis=1).astype(np.int64) if one_hot else rows


def from_json(stored: Any) -> np.ndarray | None:
    """Return the labels stored in a run folder; None if they are invalid.

    >>> from_json([2, 0]), from_json([[0.5, 1.0], [0.0, 2.0]]).shape, from_json(["a"])
    (array([2, 0]), (2, 2), None)
    """
    if not isinstance(stored, list) or not stored:
        return None
    if all(_is_whole(value) for value in stored):
        return np.array(stored, dtype=np.int64)
    if not all(isinstance(row, list) and row and all(isinstance(v, float) for v in row) for row in stored):
        return None
    return np.array(stored, dtype=np.float64) if len({len(row) for row in stored}) == 1 else None


def in_order(labels: np.ndarray) -> np.ndarray:
    """Return the order of samples in figures: by class, or by a single target; unchanged for several targets."""
    if not are_classes(labels) and labels.shape[1] > 1:
        return np.arange(len(labels))
    return np.argsort(labels.reshape(-1), kind="stable")


def order_told(labels: np.ndarray) -> str:
    """Return the label of an axis of samples in the order of `in_order`."""
    if are_classes(labels):
        return "class"
    return "sample, by target" if labels.shape[1] == 1 else "sample"


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _sort(values: np.ndarray) -> str:
    first = values.flat[0] if values.size else None
    return "text" if values.dtype.kind in "US" else f"{type(first).__name__} objects (dtype {values.dtype})"
