"""What the measures take: numpy, torch on any device and in any dtype, lists; and that they do not need torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from avalanche_ntk.errors import ArgumentError, KernelError
from avalanche_ntk.measures import KernelView, kernel_distance, kernel_norm, kernel_trace, mode_response, one_hot


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_torch_tensors_of_every_dtype(dtype):
    k = torch.tensor([[3, 1], [1, 4]], dtype=dtype)
    assert kernel_trace(k) == 7.0
    assert type(kernel_norm(k)) is float


def test_tensor_that_requires_a_gradient_and_is_not_contiguous():
    k = torch.arange(9.0, requires_grad=True).reshape(3, 3).T
    assert kernel_trace(k) == 12.0
    np.testing.assert_array_equal(KernelView(k).matrix, np.arange(9.0).reshape(3, 3).T)


def test_labels_as_tensor():
    np.testing.assert_array_equal(one_hot(torch.tensor([2, 0])), [[0, 1], [1, 0]])


def test_a_view_is_a_copy():
    k = np.eye(3)
    view = KernelView(k)
    k[0, 0] = 5.0
    assert kernel_norm(view) == pytest.approx(3**0.5)
    with pytest.raises(ValueError, match="read-only"):
        view.matrix[0, 0] = 1.0


def test_changing_a_result_does_not_change_the_view():
    view = KernelView(np.diag([1.0, 2.0]))
    mode_response(view, [1.0, 1.0]).eigenvalues[:] = 0
    np.testing.assert_array_equal(view.eigenvalues, [2.0, 1.0])


def test_attributes_of_a_view_without_a_value_raise():
    view = KernelView([[np.nan, 1.0], [1.0, 1.0]])
    for attribute in ("eigenvalues", "eigh", "centred_eigenvalues", "centred", "frobenius"):
        with pytest.raises(KernelError) as error:
            getattr(view, attribute)
        assert str(error.value) == "the kernel has 1 non-finite entries of 4"


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (
            np.zeros((2, 2, 3, 3)),
            "a kernel must be a matrix, found shape (2, 2, 3, 3), a full kernel (N, M, C, C). "
            "Turn it into one with as_matrix(theta) or reduce_full(theta, 'trace').",
        ),
        (
            np.zeros(3),
            "a kernel must be a non-empty matrix (N, M), found shape (3,). Pass the kernel of one probe at one time.",
        ),
        (
            np.zeros((0, 0)),
            "a kernel must be a non-empty matrix (N, M), found shape (0, 0). Pass the kernel of one probe at one time.",
        ),
        (
            np.eye(2) * 1j,
            "a kernel must hold real numbers, found dtype complex128. Pass a float or integer array.",
        ),
        ([["a"]], "a kernel must hold real numbers, found dtype <U1. Pass a float or integer array."),
    ],
)
def test_what_is_no_kernel_is_refused(k, message):
    with pytest.raises(ArgumentError) as error:
        kernel_norm(k)
    assert str(error.value) == message


def test_measures_are_computed_in_float64():
    a = np.eye(3, dtype=np.float32)
    b = np.diag(np.array([1, 1, 1 + 2**-20], dtype=np.float32))
    assert kernel_distance(a, b) == kernel_distance(a.astype(float), b.astype(float)) > 1e-14


IMPORT = (
    "import sys\n"
    "{before}\n"
    "import numpy as np\n"
    "from avalanche_ntk import measures\n"
    "measures.summary(np.diag([1.0, 2, 3, 4]), [0, 0, 1, 1], previous=np.eye(4), elapsed=1)\n"
    "sys.exit('torch' in sys.modules)\n"
)


@pytest.mark.parametrize(("before", "loaded"), [("", 0), ("import torch", 1)], ids=["measures", "proof it can fail"])
def test_measures_do_not_import_torch(before, loaded):
    assert subprocess.run([sys.executable, "-c", IMPORT.format(before=before)], check=False).returncode == loaded
