"""Measures of plasticity: dormant units, gradients, churn, and the kernel's change."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, count_non_finite
from avalanche_ntk.measures._undefined import nan_when_undefined, undefined
from avalanche_ntk.measures.full import as_matrix
from avalanche_ntk.measures.view import KernelView, view_of


@nan_when_undefined
def dormant_share(activations: ArrayLike, *, tau: float = 0.1) -> float:
    """Share of a layer's units that are dormant: `E|h_i| / mean_k E|h_k| ≤ τ`, E over the probe's samples.

    Args:
        activations: h, shape `(N, D)`: N samples, D units; average a channel's |h| over its positions beforehand.
        tau: τ; 0 counts only units that are exactly silent.

    Returns:
        A share in [0, 1]; 1 if every unit is silent. NaN with a warning if an entry is not finite.

    Raises:
        ArgumentError: Not a matrix, or τ < 0.

    Source: Sokar et al. 2023, "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", definition 3.1.

    >>> dormant_share([[1.0, 0.0, 2.0], [1.0, 0.0, -2.0]])
    0.3333333333333333
    """
    h = _matrix(activations, "dormant_share needs activations")
    if not tau >= 0:
        raise ArgumentError(f"tau must be 0 or more, found {tau!r}.")
    if bad := count_non_finite(h):
        undefined(f"the activations have {bad} non-finite entries of {h.size}")
    scores = np.abs(h).mean(axis=0)
    return float(np.mean(scores <= tau * scores.mean()))


@nan_when_undefined
def zero_gradient_share(gradients: ArrayLike) -> float:
    """Share of units whose gradient is exactly zero on every sample, so that their inputs cannot be learnt.

    Args:
        gradients: Gradient of each sample's loss with respect to each unit's input, shape `(N, D)`.

    Returns:
        A share in [0, 1]; NaN with a warning if an entry is not finite.

    Raises:
        ArgumentError: Not a matrix.

    Source: after Dohare et al. 2024 (dead units) and Lyle et al. 2023.

    >>> zero_gradient_share([[0.0, 1.0], [0.0, 0.0]])
    0.5
    """
    g = _matrix(gradients, "zero_gradient_share needs gradients")
    if bad := count_non_finite(g):
        undefined(f"the gradients have {bad} non-finite entries of {g.size}")
    return float(np.mean(~g.any(axis=0)))


@nan_when_undefined
def churn(now: ArrayLike, before: ArrayLike) -> float:
    """Churn, `1/N Σ_n ‖f_now(x_n) − f_before(x_n)‖` on samples that were in no minibatch in between.

    Args:
        now: Outputs, shape `(N, C)`.
        before: Outputs on the same samples earlier, `(N, C)`.

    Returns:
        Mean change, in the outputs' units; NaN with a warning if an entry is not finite.

    Raises:
        ArgumentError: Not two matrices of the same shape.

    Source: Tang et al. 2025 (arXiv 2506.00592); with the Euclidean norm over outputs.

    >>> churn([[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    2.5
    """
    a, b = _matrix(now, "churn needs outputs"), _matrix(before, "churn needs outputs")
    if a.shape != b.shape:
        raise ArgumentError(f"churn compares outputs on the same samples, found shapes {a.shape} and {b.shape}.")
    if bad := count_non_finite(a) + count_non_finite(b):
        undefined(f"the outputs have {bad} non-finite entries")
    return float(np.linalg.norm(a - b, axis=1).mean())


def loss_gradient_products(theta: ArrayLike, errors: ArrayLike) -> Array:
    """Inner products of all samples' loss gradients, `<g_n, g_m> = Σ_{c,d} e[n,c] Θ[n,m,c,d] e[m,d]`, `e = ∂L/∂f`.

    Args:
        theta: Full self-kernel `(N, N, C, C)`.
        errors: Gradient of each sample's own loss with respect to its outputs, `(N, C)`: softmax minus one-hot for the
            cross-entropy.

    Returns:
        Shape `(N, N)`.

    Raises:
        ArgumentError: Shapes that do not fit.

    >>> import numpy as np
    >>> loss_gradient_products(np.eye(2).reshape(1, 1, 2, 2), [[3.0, 4.0]])
    array([[25.]])
    """
    matrix = as_matrix(theta)
    e = _matrix(errors, "loss_gradient_products needs errors")
    if matrix.shape != (e.size, e.size):
        raise ArgumentError(
            f"loss_gradient_products needs errors (N, C) that fit a full kernel (N, N, C, C), found {e.shape} beside "
            f"{np.shape(theta)}."
        )
    weighted = matrix * e.ravel()[:, None] * e.ravel()[None, :]
    n, c = e.shape
    return np.asarray(weighted.reshape(n, c, n, c).sum(axis=(1, 3)))


@nan_when_undefined
def gradient_cosine(products: ArrayLike | KernelView) -> float:
    """Mean cosine of the loss gradients of two different samples, over all pairs whose gradients are not zero.

    Near 1 all gradients are parallel, so learning one sample changes all others; near 0 samples do not interfere. It is
    the off-diagonal mean of the matrix that Lyle et al. call the gradients' covariance.

    Args:
        products: `<g_n, g_m>`, shape `(N, N)`.

    Returns:
        A number in [−1, 1]; NaN with a warning if fewer than two samples have a gradient or an entry is not finite.

    Raises:
        ArgumentError: Not a square matrix.

    Source: Lyle et al. 2023, "Understanding Plasticity in Neural Networks", section 3.

    >>> round(gradient_cosine([[1.0, 1.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 0.0]]), 12)
    0.5
    """
    view = view_of(products)
    view.require_square("gradient_cosine")
    view.require_finite()
    norms = np.sqrt(np.clip(np.diag(view.matrix), 0.0, None))
    alive = norms > 0
    n = int(np.count_nonzero(alive))
    if n < 2:
        undefined(f"{n} of {len(norms)} samples has a gradient, and a pair needs two")
    unit = view.matrix[np.ix_(alive, alive)] / np.outer(norms[alive], norms[alive])
    return float((unit.sum() - np.trace(unit)) / (n * (n - 1)))


@nan_when_undefined
def relative_kernel_change(k: ArrayLike | KernelView, reference: ArrayLike | KernelView) -> float:
    """Relative change of the kernel, `‖Θ_t − Θ_0‖_F / ‖Θ_0‖_F`: unlike the kernel distance it depends on the scale.

    Args:
        k: Kernel now, `(N, M)`.
        reference: Θ_0, the same shape.

    Returns:
        0 or more; NaN with a warning if the reference is zero or an entry is not finite.

    Raises:
        ArgumentError: Different shapes.

    Source: Geiger et al. 2020, "Disentangling feature and lazy training in deep neural networks".

    >>> relative_kernel_change([[3.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]])
    0.5
    """
    now, then = view_of(k), view_of(reference)
    if now.shape != then.shape:
        raise ArgumentError(
            f"relative_kernel_change needs two kernels of the same shape, found {now.shape} and {then.shape}."
        )
    now.require_finite()
    if then.frobenius == 0:
        undefined("the reference is exactly zero")
    return float(np.linalg.norm(now.matrix / then.frobenius - then.matrix / then.frobenius))


def _matrix(values: ArrayLike, what: str) -> Array:
    found = as_float64(values, "activations, gradients and outputs")
    if found.ndim != 2 or found.size == 0:
        raise ArgumentError(f"{what} of shape (N, D), found {found.shape}.")
    return found
