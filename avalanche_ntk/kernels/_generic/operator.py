"""The kernel as an operator: products `Θ v` without the kernel, for probes whose kernel does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, checked_seed, is_whole, unknown_name
from avalanche_ntk.kernels._device.profile import in_double
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject, output_rows, require_graph
from avalanche_ntk.kernels._generic.linearise import push
from avalanche_ntk.kernels._guard.isolation import measuring
from avalanche_ntk.kernels._guard.samples import require_separate
from avalanche_ntk.kernels._structure.passes import plain_operators

_REDUCTIONS = ("full", "trace", "sum_logits")


class NTKOperator:
    """A symmetric positive semidefinite operator, made by `ntk_operator`.

    One product costs a forward, a backward and a forward-mode pass over the batch for `full` and `sum_logits`, and one
    of each per output for `trace`. Memory is that of one training step.

    Attributes:
        shape: `(N·C, N·C)` for `full` (entry n·C + c is output c of sample n), `(N, N)` otherwise.
        dtype: Working precision.
    """

    def __init__(self, model: nn.Module, batch: Batch, rows: Tensor, full: bool, values: dict[str, Any]) -> None:
        self._model, self._batch, self._rows, self._full = model, batch, rows, full
        self._values = values
        n = len(batch) * (rows.shape[0] if full else 1)
        self.shape = (n, n)
        self.dtype = rows.dtype

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return `Θ v` for a vector `(n,)` or the columns of a matrix `(n, k)`."""
        if not isinstance(v, Tensor):
            raise ArgumentError(
                f"an operator is multiplied by a tensor, found {type(v).__name__}. Convert arrays with torch.as_tensor"
                " first."
            )
        if v.dim() not in (1, 2) or v.shape[0] != self.shape[0]:
            raise ArgumentError(
                f"the operator has shape {self.shape}, the vector {tuple(v.shape)}: expected ({self.shape[0]},) or"
                f" ({self.shape[0]}, k). Flatten (sample, output) pairs with the sample first."
            )
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.T], 1)
        v = v.to(self._rows)
        n = len(self._batch)
        if self._full:
            return (self._product(v.reshape(n, -1) @ self._rows) @ self._rows.T).reshape(-1)
        total = torch.zeros_like(v)
        for row in self._rows:
            total = total + self._product(v[:, None] * row) @ row
        return total

    def _product(self, cotangent: Tensor) -> Tensor:
        """`J Jᵀ u` for `u` of shape `(N, C)`.

        Returns:
            `(N, C)`.
        """
        values = self._values
        with measuring(self._model, self._batch):
            leaves = {k: t.requires_grad_() for k, t in values["leaves"].items()}
            subject = Subject(values["model"], leaves, values["dtype"], values["selector"], values["all"] | leaves)

            def f(theta: dict[str, Tensor]) -> Tensor:
                with subject.standing_in(theta):
                    return subject.forward(self._batch)

            out = f(leaves)
            require_graph(out, subject)
            grads = torch.autograd.grad(out, list(leaves.values()), cotangent, allow_unused=True)
            moved = {k: g.to_dense().detach() for k, g in zip(leaves, grads, strict=True) if g is not None}
            fixed = {k: t.detach() for k, t in leaves.items() if k not in moved}

            def g(theta: dict[str, Tensor]) -> Tensor:
                return f(fixed | theta)

            at = {k: leaves[k].detach() for k in moved}
            with plain_operators(values["model"]):
                return push(g, at, moved, values["model"])[1]

    def as_linear_operator(self) -> LinearOperator:
        """Return the operator as scipy's, for `scipy.sparse.linalg`."""

        def product(v: np.ndarray) -> np.ndarray:
            return (self @ torch.from_numpy(np.ascontiguousarray(v)).reshape(-1)).cpu().double().numpy()

        return LinearOperator(  # type: ignore[call-arg,misc]
            self.shape, matvec=product, rmatvec=product, dtype=np.float64
        )

    def top_eigenvalues(self, k: int = 1, *, tol: float = 0.0, seed: int = 0) -> Tensor:
        """The k largest eigenvalues, largest first, by Lanczos iteration (ARPACK).

        Args:
            k: Number of eigenvalues, below the operator's size.
            tol: Relative accuracy; 0 for machine precision.
            seed: Seed of the start vector.

        Returns:
            `(k,)` in float64.

        Raises:
            ArgumentError: k is not between 1 and the size minus 1.
        """
        n = self.shape[0]
        if n == 1 and k == 1:
            return (self @ torch.ones_like(self._rows[0, :1])).cpu().double()
        if not is_whole(k) or not 1 <= k < n:
            raise ArgumentError(
                f"k must be an integer from 1 to {max(1, n - 1)} (the operator has size {n}), found {k!r}. Ask for"
                " fewer eigenvalues, or compute the kernel and all of its eigenvalues."
            )
        start = np.random.default_rng(checked_seed(seed)).standard_normal(n)
        values = eigsh(self.as_linear_operator(), k=int(k), which="LA", tol=tol, v0=start, return_eigenvectors=False)
        return torch.from_numpy(np.sort(values)[::-1].copy())

    def trace(self, n_probes: int = 32, *, seed: int = 0) -> tuple[float, float]:
        """Unbiased estimate of the trace from random signs, `E zᵀΘz` (Hutchinson 1990).

        Args:
            n_probes: Number of sign vectors, at least 2.
            seed: Seed of the estimator's own generator.

        Returns:
            The estimate and its standard error.
        """
        return self._mean(lambda z, tz: float(z @ tz), n_probes, seed)

    def squared_frobenius_norm(self, n_probes: int = 32, *, seed: int = 0) -> tuple[float, float]:
        """Unbiased estimate of `‖Θ‖_F²` from random signs, `E ‖Θz‖²`.

        Args:
            n_probes: Number of sign vectors, at least 2.
            seed: Seed of the estimator's own generator.

        Returns:
            The estimate and its standard error.
        """
        return self._mean(lambda z, tz: float(tz @ tz), n_probes, seed)

    def _mean(self, value: Callable[[Tensor, Tensor], float], n_probes: int, seed: int) -> tuple[float, float]:
        if not is_whole(n_probes) or n_probes < 2:
            raise ArgumentError(
                f"n_probes must be an integer of at least 2 (a standard error needs two), found {n_probes!r}. Give"
                " the number of random sign vectors, for example 32."
            )
        g = torch.Generator("cpu").manual_seed(checked_seed(seed))
        found = []
        for _ in range(int(n_probes)):
            z = (torch.randint(0, 2, (self.shape[0],), generator=g, device="cpu") * 2 - 1).to(self._rows)
            found.append(value(in_double(z), in_double(self @ z)))
        t = torch.tensor(found, dtype=torch.float64, device="cpu")
        return float(t.mean()), float(t.std() / n_probes**0.5)


def ntk_operator(
    model: nn.Module,
    x: Any,
    *,
    task_labels: Any = None,
    reduction: str = "full",
    params: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    outputs: Sequence[int] | slice | None = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> NTKOperator:
    """The empirical NTK of the present model, as an operator with products `Θ v = J (Jᵀ v)`.

    Args:
        model: The model; its parameters and buffers are copied, so further training does not change the operator.
        x: N inputs, see `empirical_ntk`.
        task_labels: See `empirical_ntk`.
        reduction: `full`, `trace` or `sum_logits`.
        params: See `empirical_ntk`.
        layers: See `empirical_ntk`.
        outputs: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.
        dtype: See `empirical_ntk`.

    Returns:
        The operator.

    Raises:
        unknown_name: The reduction is none of these (an `ArgumentError`).
        ModelError: Outputs of one sample depend on other samples or are random.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> theta = ntk_operator(model, torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        >>> theta @ torch.tensor([1.0, 1.0])
        tensor([11., 15.])
        >>> theta.top_eigenvalues(1)  # of [[5, 6], [6, 9]]
        tensor([13.3246], dtype=torch.float64)
    """
    if reduction not in _REDUCTIONS:
        raise unknown_name("reduction", reduction, _REDUCTIONS)
    batch = Batch.of(x, task_labels)
    with measuring(model, batch):
        subject = Subject.of(model, params, layers, dtype, output_selector)
        with subject.standing_in():
            require_separate(subject, batch)
            out = subject.forward(batch.take(slice(0, 1)))
        require_graph(out, subject)
        kept = output_rows(outputs, out.shape[1])
        rows = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
        rows = rows if kept is None else rows[kept]
        if reduction == "sum_logits":
            rows = rows.sum(0, keepdim=True)
        own = dict(subject.model.named_parameters()) | dict(subject.model.named_buffers())
        values = {
            "model": subject.model,
            "dtype": subject.dtype,
            "selector": output_selector,
            "leaves": {k: t.detach().clone() for k, t in subject.leaves.items()},
            "all": {k: subject.substitutes.get(k, t).detach().clone() for k, t in own.items()},
        }
    return NTKOperator(model, batch, rows, reduction == "full", values)
