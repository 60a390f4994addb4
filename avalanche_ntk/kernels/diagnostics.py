"""Final processing of kernels: check, symmetrise, and report accuracy.

The numbers are transferred from the device together.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.linalg import cholesky, eigvalsh
from torch import Tensor

from avalanche_ntk.errors import KernelError, PrecisionWarning
from avalanche_ntk.kernels._device.profile import in_double
from avalanche_ntk.kernels.info import KernelInfo
from avalanche_ntk.kernels.sharing import transposed

LARGEST = 4096  # largest number of rows for which the spectrum is computed


def finished(kernel: Tensor, group: str, own: bool, info: KernelInfo, keep: bool) -> Tensor:
    """Check a kernel, and make a self-kernel symmetric.

    Args:
        kernel: `(N, M)` or `(N, M, C, C)`.
        group: Name of its group of parameters, for messages.
        own: Whether it is a self-kernel.
        info: Report that receives the asymmetry.
        keep: Whether to store the symmetric kernel there too, for its eigenvalues.

    Returns:
        The kernel.

    Raises:
        KernelError: Entries are not finite.
    """
    rows = kernel.shape[0] * (kernel.shape[2] if kernel.dim() == 4 else 1)
    turned = transposed(kernel)
    if not own or rows > LARGEST:
        bad, size, gap = _scalars(kernel, turned if own else kernel)
        _require_finite(bad, kernel.numel(), group)
        if own:
            info.asymmetry = max(gap / size if size else 0.0, info.asymmetry or 0.0)
        return (kernel + turned).mul_(0.5) if own else kernel
    host = kernel.detach().cpu().numpy().astype(np.float64)
    _require_finite(int(host.size - np.isfinite(host).sum()), kernel.numel(), group)
    matrix = host.transpose(0, 2, 1, 3).reshape(rows, rows) if host.ndim == 4 else host
    size = float(np.linalg.norm(matrix))
    gap = float(np.linalg.norm(matrix - matrix.T))
    info.asymmetry = max(gap / size if size else 0.0, info.asymmetry or 0.0)
    symmetric = (matrix + matrix.T) / 2
    _warn_where_indefinite(symmetric)
    if keep:
        info.symmetric.append(symmetric)
    return (kernel + turned).mul_(0.5)


def _scalars(kernel: Tensor, turned: Tensor) -> tuple[int, float, float]:
    bad = (~torch.isfinite(kernel)).sum()
    found = torch.stack([in_double(bad), in_double(kernel).norm(), in_double(kernel - turned).norm()]).tolist()
    return int(found[0]), found[1], found[2]


def _require_finite(bad: int, entries: int, group: str) -> None:
    if bad:
        where = f" of group {group!r}" if group else ""
        raise KernelError(
            f"the kernel{where} has {bad} of {entries} entries that are not finite: expected finite numbers."
            " Weights, activations or gradients overflow or are NaN; check the training loss, or measure with"
            " dtype=torch.float64."
        )


def _warn_where_indefinite(matrix: np.ndarray) -> None:
    """Warn if rounding made a self-kernel clearly indefinite."""
    # λ_max ≥ the Rayleigh quotient of any vector; a Cholesky factor of K + ε·λ exists where λ_min > -ε·λ
    v = matrix.sum(1)
    size = float(v @ (matrix @ v)) / max(float(v @ v), 1e-300)
    shifted = matrix.copy()
    shifted.flat[:: len(matrix) + 1] += 0.9e-5 * max(size, 1e-300)
    try:
        cholesky(shifted, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        values = eigvalsh(matrix, check_finite=False)
        low, high = float(values[0]), float(values[-1])
        if low < -1e-5 * high:
            warnings.warn(
                f"the kernel's smallest eigenvalue is {low:.3g}, its largest {high:.3g}: expected none below -1e-5 of"
                " the largest. The inputs are nearly equal for this precision; measure with dtype=torch.float64.",
                PrecisionWarning,
                stacklevel=5,
            )
