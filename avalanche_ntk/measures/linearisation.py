"""Error of the linearised network's outputs."""

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import as_float64, count_non_finite
from avalanche_ntk.measures._undefined import nan_when_undefined, undefined


@nan_when_undefined
def linearisation_error(f_now: ArrayLike, f_base: ArrayLike, jvp: ArrayLike) -> float:
    """Linearisation error, `‖f(X;θ_t) − f(X;θ_b) − J_b(X)(θ_t−θ_b)‖ / ‖f(X;θ_t) − f(X;θ_b)‖`.

    Args:
        f_now: Outputs `f(X; θ_t)`, any shape, usually `(N, C)`.
        f_base: Outputs `f(X; θ_b)` at the base b, a boundary or initialisation.
        jvp: `J_b(X) (θ_t − θ_b)`, one Jacobian-vector product at `θ_b`.

    Returns:
        0 if the network follows its linearisation, near 1 if the linearisation explains nothing, more if it points in
        another direction. NaN with a warning if the outputs have not changed or a number is not finite.

    Raises:
        ArgumentError: Arrays of different shapes, or empty.

    Source: Chizat, Oyallon, Bach 2019, "On Lazy Training in Differentiable Programming"; Ortiz-Jiménez et al. 2021.

    >>> linearisation_error([[3.0, 4.0]], [[0.0, 0.0]], [[3.0, 0.0]])
    0.8
    """
    now, base, step = as_float64(f_now, "f_now"), as_float64(f_base, "f_base"), as_float64(jvp, "jvp")
    if not now.shape == base.shape == step.shape or now.size == 0:
        raise ArgumentError(
            f"linearisation_error needs three non-empty arrays of the same shape, found {now.shape} (f_now), "
            f"{base.shape} (f_base) and {step.shape} (jvp). Evaluate all three on the same samples and outputs."
        )
    for name, array in (("f_now", now), ("f_base", base), ("jvp", step)):
        if bad := count_non_finite(array):
            undefined(f"{name} has {bad} non-finite entries of {array.size}")
    change = now - base
    size = float(np.linalg.norm(change))
    if size == 0:
        undefined("the outputs have not changed since the base")
    return float(np.linalg.norm(change - step)) / size
