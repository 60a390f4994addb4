"""`KernelView`: a kernel with cached quantities shared by several measures."""

import functools
import math

import numpy as np
from numpy.typing import ArrayLike

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.measures._arrays import Array, as_float64, count_non_finite, working_epsilon
from avalanche_ntk.measures._undefined import undefined


def centre(k: ArrayLike) -> Array:
    """Centre a kernel in feature space: `H_N K H_M` with `H = I − 11ᵀ/N`.

    For a self-kernel this is `HKH`, the kernel of features whose mean over the samples was subtracted. A cross kernel
    `(N, M)` is centred on both sides, each with its own number of samples.

    Args:
        k: Kernel of shape `(N, M)`.

    Returns:
        The centred kernel, `(N, M)`, float64; every row and column sums to zero.

    Raises:
        ArgumentError: Not a matrix.

    Source: Cortes, Mohri, Rostamizadeh 2012, "Algorithms for Learning Kernels Based on Centered Alignment", lemma 1.

    >>> centre([[2.0, 0.0], [0.0, 2.0]])
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    return _centre(view_of(k).matrix)


def _centre(matrix: Array) -> Array:
    # Two passes instead of `K − r − c + m`: the second mean is taken of numbers that are already small.
    matrix = matrix - matrix.mean(axis=0, keepdims=True)
    centred: Array = matrix - matrix.mean(axis=1, keepdims=True)
    return centred


class KernelView:
    """A kernel in float64, with cached unit forms and eigendecompositions.

    Every measure takes a `KernelView` instead of an array and gives the same number, bit for bit. A trajectory keeps
    three views (of the previous kernel, the first one and that of the experience's start) and decomposes each kernel
    once.

    Args:
        k: Kernel `(N, M)`, numpy or torch; it is copied.
        epsilon: Relative precision of the entries, below which a centred kernel or an eigenvalue is noise; by default
            the machine epsilon of `k`'s dtype. Give it for a kernel computed in float32 and stored as float64.

    Raises:
        ArgumentError: Not a non-empty matrix of real numbers; later, the eigenvalues of one that is not square.
        KernelError: Later, by an undefined attribute, such as the eigenvalues of a kernel with NaN entries. The
            measures give NaN and a warning instead.

    >>> view = KernelView([[2.0, 1.0], [1.0, 2.0]])
    >>> view.eigenvalues.round(12)
    array([3., 1.])
    """

    def __init__(self, k: ArrayLike, *, epsilon: float | None = None) -> None:
        matrix = as_float64(k, "a kernel").copy()
        if matrix.ndim == 4:
            raise ArgumentError(
                f"a kernel must be a matrix, found shape {matrix.shape}, a full kernel (N, M, C, C). "
                "Turn it into one with as_matrix(theta) or reduce_full(theta, 'trace')."
            )
        if matrix.ndim != 2 or matrix.size == 0:
            raise ArgumentError(
                f"a kernel must be a non-empty matrix (N, M), found shape {matrix.shape}. "
                "Pass the kernel of one probe at one time."
            )
        matrix.flags.writeable = False
        self.matrix = matrix
        self.epsilon = working_epsilon(k) if epsilon is None else epsilon

    @property
    def shape(self) -> tuple[int, int]:
        """Shape `(N, M)`."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @functools.cached_property
    def non_finite(self) -> int:
        """Number of NaN or infinite entries."""
        return count_non_finite(self.matrix)

    def require_square(self, measure: str) -> int:
        """Return N.

        Raises:
            ArgumentError: The kernel is not square.
        """
        rows, columns = self.shape
        if rows != columns:
            raise ArgumentError(
                f"{measure} needs a square kernel of one probe with itself, found shape {self.shape}. "
                "Pass a self-kernel (x2=None)."
            )
        return rows

    def require_finite(self) -> None:
        """Raise `Undefined` if an entry is NaN or infinite."""
        if self.non_finite:
            undefined(f"the kernel has {self.non_finite} non-finite entries of {self.matrix.size}")

    @functools.cached_property
    def _scaled(self) -> tuple[Array, int]:
        """The kernel times a power of two (exact), with largest entry near 1, so that squares cannot overflow."""
        exponent = int(np.frexp(np.abs(self.matrix).max())[1])
        # In two steps: one factor of 2**1074 would itself overflow.
        half = exponent // 2
        return np.ldexp(np.ldexp(self.matrix, -half), half - exponent), exponent

    @functools.cached_property
    def frobenius(self) -> float:
        """Frobenius norm."""
        self.require_finite()
        scaled, exponent = self._scaled
        with np.errstate(over="ignore"):
            return float(np.ldexp(np.linalg.norm(scaled), exponent))

    @functools.cached_property
    def centred(self) -> Array:
        """`HKH`."""
        self.require_finite()
        return _centre(self.matrix)

    def problem(self, centred: bool) -> str | None:
        """Return why the kernel has no direction ("is exactly zero"), None if it has one."""
        return (self._unit_centred if centred else self._unit_uncentred)[1]

    def unit(self, centred: bool) -> Array:
        """Return the kernel, centred or not, divided by its Frobenius norm.

        Raises:
            Undefined: It has no direction.
        """
        array, problem = self._unit_centred if centred else self._unit_uncentred
        if array is None:
            undefined(f"the kernel {problem}")
        return array

    @functools.cached_property
    def _unit_centred(self) -> tuple[Array | None, str | None]:
        return self._unit(centred=True)

    @functools.cached_property
    def _unit_uncentred(self) -> tuple[Array | None, str | None]:
        return self._unit(centred=False)

    def _unit(self, centred: bool) -> tuple[Array | None, str | None]:
        rows, columns = self.shape
        if self.non_finite:
            return None, f"has {self.non_finite} non-finite entries of {self.matrix.size}"
        scaled, _ = self._scaled
        norm = math.sqrt(float(np.vdot(scaled, scaled)))
        if norm == 0.0:
            return None, "is exactly zero, as for a dead network"
        # In a one-dimensional space every alignment is 1 and every distance 0.
        if centred and (rows - 1) * (columns - 1) <= 1:
            return None, f"has shape {self.shape}: after centring at most one number is left, which has no direction"
        if not centred and rows * columns == 1:
            return None, "has a single entry, which has no direction"
        if not centred:
            return scaled / norm, None
        scaled = _centre(scaled)
        rest = math.sqrt(float(np.vdot(scaled, scaled)))
        if rest <= 4 * self.epsilon * norm:
            return None, "is constant to working precision: nothing is left of it after centring"
        return scaled / rest, None

    @functools.cached_property
    def eigh(self) -> tuple[Array, Array]:
        """Eigenvalues (descending) and eigenvectors (columns, in that order) of the symmetrised kernel `(K + Kᵀ)/2`."""
        self.require_square("an eigendecomposition")
        self.require_finite()
        values, vectors = np.linalg.eigh((self.matrix + self.matrix.T) / 2)
        return values[::-1], vectors[:, ::-1]

    @property
    def eigenvalues(self) -> Array:
        """Eigenvalues of the symmetrised kernel, descending."""
        return self.eigh[0]

    @functools.cached_property
    def centred_eigenvalues(self) -> Array:
        """Eigenvalues of the symmetrised centred kernel, descending."""
        self.require_square("an eigendecomposition")
        centred = self.centred
        return np.linalg.eigvalsh((centred + centred.T) / 2)[::-1]


def view_of(k: "ArrayLike | KernelView") -> KernelView:
    """Return `k` itself if it is a view, otherwise a new view of it."""
    return k if isinstance(k, KernelView) else KernelView(k)
