"""Full kernels."""

import numpy as np
import pytest

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures import as_matrix, eigenvalues, kernel_norm, kernel_trace, reduce_full


def jacobian_kernel(n=4, c=3, p=5, seed=0):
    j = np.random.default_rng(seed).normal(size=(n, c, p))
    return j, np.einsum("ncp,mdp->nmcd", j, j)


def test_as_matrix_is_the_gram_matrix_of_the_stacked_jacobian():
    j, theta = jacobian_kernel()
    rows = j.reshape(12, 5)
    np.testing.assert_allclose(as_matrix(theta), rows @ rows.T, rtol=1e-13)
    np.testing.assert_allclose(eigenvalues(as_matrix(theta))[:5], np.linalg.svd(rows)[1] ** 2, rtol=1e-10)
    assert kernel_trace(as_matrix(theta)) == pytest.approx(kernel_trace(reduce_full(theta, "trace")), rel=1e-13)


def test_reductions_are_those_of_the_jacobian():
    j, theta = jacobian_kernel()
    flat, summed = j.reshape(4, 15), j.sum(1)
    np.testing.assert_allclose(reduce_full(theta, "trace"), flat @ flat.T, rtol=1e-12)
    np.testing.assert_allclose(reduce_full(theta, "sum_logits"), summed @ summed.T, rtol=1e-12, atol=1e-12)


def test_cross_kernels():
    theta = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    assert as_matrix(theta).shape == (8, 12)
    assert as_matrix(theta)[1 * 4 + 2, 2 * 4 + 3] == theta[1, 2, 2, 3]
    assert reduce_full(theta, "trace").shape == (2, 3)


def test_one_output_is_the_kernel_itself():
    k = np.arange(4.0).reshape(2, 2, 1, 1)
    for reduced in (as_matrix(k), reduce_full(k, "trace"), reduce_full(k, "sum_logits")):
        np.testing.assert_array_equal(reduced, k[..., 0, 0])
    assert kernel_norm(as_matrix(k)) == pytest.approx(14**0.5)


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 3, 4), (0, 2, 3, 3)])
def test_refuses_other_shapes(shape):
    for function in (as_matrix, lambda theta: reduce_full(theta, "trace")):
        with pytest.raises(ArgumentError) as error:
            function(np.zeros(shape))
        assert str(error.value) == (
            f"a full kernel must have shape (N, M, C, C), found {shape}. Compute it with reduction='full'."
        )


def test_refuses_unknown_reduction():
    with pytest.raises(ArgumentError) as error:
        reduce_full(np.zeros((1, 1, 1, 1)), "sum_logit")
    assert str(error.value) == (
        "unknown reduction 'sum_logit': expected one of 'sum_logits', 'trace'. Did you mean 'sum_logits'?"
    )
