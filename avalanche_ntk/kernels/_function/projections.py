"""Signed combinations of outputs whose kernels average to the trace kernel.

`reduction="projected"`: `K = (1/r) Σ_j k_{v_j}` with r rows v_j of `H D`, H the Hadamard matrix of the next power of
two R ≥ C (its rows in random order), D random signs of its columns, restricted to the C outputs. Then `E v vᵀ = I`, so
that `E K` is the trace kernel, and `Σ v vᵀ = R·I` over all R rows, so that K is the trace kernel for r = R. The rows
are orthogonal: K has a smaller variance than with independent signs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor

from avalanche_ntk.errors import ArgumentError, checked_seed, is_whole


def checked_projections(n_projections: object, why: str, least: int = 1) -> int:
    """Return the number of random combinations.

    Raises:
        ArgumentError: It is not an integer of at least `least`.
    """
    if not is_whole(n_projections) or n_projections < least:
        because = " (a standard error needs two)" if least == 2 else ""
        raise ArgumentError(
            f"n_projections must be an integer of at least {least}{because} for {why}, found {n_projections!r}. Give"
            " the number of random sign vectors, for example 32."
        )
    return int(n_projections)


def check_exact_or_projected(reduction: str, n_projections: object) -> None:
    """Check the number of combinations for a kernel without an estimator.

    Raises:
        ArgumentError: A projected kernel has none, or an exact one was given a number.
    """
    if reduction == "projected":
        checked_projections(n_projections, "reduction='projected'")
    elif n_projections is not None:
        raise ArgumentError(
            f"n_projections={n_projections} was given for reduction={reduction!r}, which is exact. Give"
            " reduction='projected', or leave n_projections out."
        )


def number_of_rows(outputs: int) -> int:
    """Return R, the number of rows for this number of outputs: the next power of two."""
    return 1 << max(0, outputs - 1).bit_length()


def hadamard_rows(outputs: Sequence[int], r: int, seed: int) -> Tensor:
    """Return r rows (or all R, if fewer) for some outputs, `(r, C)` of 1 and −1 in float64.

    A sign depends only on the index of its output; a larger r takes the same rows and more.
    """
    size = number_of_rows(len(outputs))
    seed = checked_seed(seed)
    chosen = np.random.default_rng([seed, 0]).permutation(size)[:r]
    # one number per index in order, so that more outputs do not change earlier ones
    signs = 2.0 * (np.random.default_rng([seed, 1]).random(max(outputs) + 1) < 0.5) - 1.0
    return torch.from_numpy(hadamard(size)[chosen, : len(outputs)] * signs[list(outputs)])


def independent_rows(outputs: int, r: int, seed: int) -> Tensor:
    """Return r rows of independent random signs, `(r, C)` in float64."""
    generator = torch.Generator("cpu").manual_seed(checked_seed(seed))
    return torch.randint(0, 2, (r, outputs), generator=generator, device="cpu").double() * 2 - 1
