"""Split-Digits, a benchmark without a download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import nc_benchmark
from torch.utils.data import TensorDataset

from avalanche_ntk.errors import ArgumentError, checked_seed

_DIGITS_CLASSES = 10


def split_digits(n_experiences: int = 5, *, seed: int = 0, test_share: float = 0.25, task_labels: bool = False) -> Any:
    """Return Split-Digits: scikit-learn's 8×8 handwritten digits, split into tasks with equally many classes.

    The data (1,797 images of 10 classes; Alpaydin & Kaynak 1998) ships with scikit-learn: nothing is downloaded. Pixels
    are scaled to [0, 1] and images have shape `(1, 8, 8)`. Train and test sets are split class by class.

    Args:
        n_experiences: Number of tasks; a divisor of 10.
        seed: Seed of the split and of the order of the classes.
        test_share: Share of each class for the test stream, between 0 and 1 (both excluded).
        task_labels: Whether each experience has its own task label (task-incremental); otherwise all have 0.

    Returns:
        An Avalanche benchmark with `train_stream` and `test_stream`.

    Raises:
        ArgumentError: `n_experiences` is not a divisor of 10, or `test_share` is out of range.
    """
    divisors = [n for n in range(1, _DIGITS_CLASSES + 1) if _DIGITS_CLASSES % n == 0]
    if n_experiences not in divisors:
        raise ArgumentError(
            f"Split-Digits has 10 classes and needs equally many in each task; found n_experiences={n_experiences}. "
            f"Use one of {', '.join(map(str, divisors))}."
        )
    if not 0 < test_share < 1:
        raise ArgumentError(f"test_share must lie between 0 and 1; found {test_share}. Use 0.25, for example.")
    # scikit-learn takes a second to import, so import it only when needed.
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32, device="cpu").unsqueeze(1) / 16
    y = torch.tensor(digits.target, dtype=torch.int64, device="cpu")
    generator = np.random.default_rng(checked_seed(seed))
    test: list[int] = []
    for c in range(_DIGITS_CLASSES):
        members = generator.permutation(np.flatnonzero(digits.target == c))
        test += members[: round(test_share * len(members))].tolist()
    is_test = torch.zeros(len(y), dtype=torch.bool, device="cpu")
    is_test[test] = True
    return nc_benchmark(
        _labelled(x[~is_test], y[~is_test]),
        _labelled(x[is_test], y[is_test]),
        n_experiences=n_experiences,
        task_labels=task_labels,
        seed=seed,
    )


def _labelled(x: torch.Tensor, y: torch.Tensor) -> TensorDataset:
    dataset = TensorDataset(x, y)
    dataset.targets = y.tolist()  # type: ignore[attr-defined]  # Avalanche finds the labels here
    return dataset
