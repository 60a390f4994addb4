"""Conversion of inputs (numpy arrays, torch tensors on any device, lists) to float64 numpy arrays."""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avalanche_ntk.errors import ArgumentError, unknown_name

Array: TypeAlias = NDArray[np.float64]

# Spacing of the floating-point numbers just above 1. bfloat16 is unknown to numpy.
_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def epsilon(dtype: object) -> float:
    """Return the machine epsilon of a floating-point dtype given by name, numpy dtype or torch dtype.

    >>> epsilon("float32") == 2.0**-23
    True

    Raises:
        ArgumentError: The dtype is not one of float64, float32, float16, bfloat16.
    """  # noqa: DOC501
    name = getattr(dtype, "__name__", str(dtype)).removeprefix("torch.")
    if name not in _EPSILON:
        raise unknown_name("floating-point dtype", name, _EPSILON)
    return _EPSILON[name]


def working_epsilon(values: object) -> float:
    """Return the epsilon of the dtype `values` was computed in; integers and lists count as exact (float64)."""
    name = str(getattr(values, "dtype", "float64")).removeprefix("torch.")
    return _EPSILON.get(name, _EPSILON["float64"])


def as_numpy(values: ArrayLike) -> NDArray[np.generic]:
    """Return `values` as a numpy array of its own dtype; tensors are recognised by their methods, not by torch."""
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        tensor = values.detach().cpu()
        # numpy has no bfloat16, and float64 holds every value of the narrower formats.
        values = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(values)


def as_float64(values: ArrayLike, what: str) -> Array:
    """Return `values` as a float64 array.

    Raises:
        ArgumentError: The values are not real numbers.
    """
    array = as_numpy(values)
    if array.dtype.kind not in "fiub":
        raise ArgumentError(f"{what} must hold real numbers, found dtype {array.dtype}. Pass a float or integer array.")
    return np.asarray(array, dtype=np.float64)


def as_labels(labels: ArrayLike, samples: int | None = None) -> NDArray[np.generic]:
    """Return class labels as a 1-D array, one per sample.

    Raises:
        ArgumentError: Not one-dimensional, empty, or of a length other than `samples`.
    """
    array = as_numpy(labels)
    if array.ndim != 1 or array.size == 0:
        raise ArgumentError(
            f"labels must be one class index per sample, shape (N,), found shape {array.shape}. "
            "Turn one-hot rows into indices with argmax."
        )
    if samples is not None and len(array) != samples:
        raise ArgumentError(
            f"labels must be one per sample: the kernel has {samples} samples, found {len(array)} labels. "
            "Pass the labels of the same probe, in the same order."
        )
    return array


def count_non_finite(array: Array) -> int:
    """Return the number of NaN or infinite entries."""
    return int(array.size - np.count_nonzero(np.isfinite(array)))
