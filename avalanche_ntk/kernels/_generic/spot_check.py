"""Spot checks of kernel entries against the reference implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, checked_seed, is_whole, unknown_name
from avalanche_ntk.kernels._function.batch import Batch, labels_of_second
from avalanche_ntk.kernels._generic.reference import REDUCTIONS, combined, jacobian_and_outputs


def spot_check(
    model: nn.Module,
    x: Any,
    kernel: Tensor,
    n_entries: int = 8,
    *,
    x2: Any = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    reduction: str = "trace",
    task_labels: Any = None,
    task_labels2: Any = None,
    params: Any = None,
    layers: Any = None,
    outputs: Sequence[int] | slice | None = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    dtype: torch.dtype | None = torch.float64,
    n_projections: int | None = None,
    projection_seed: int = 0,
) -> float:
    """Compare random entries of a kernel with the reference implementation, in float64 by default.

    The error of an entry is `|K[n,m] − Θ[n,m]| / sqrt(Θ[n,n]·Θ[m,m])`: relative to the largest value the entry could
    have (Cauchy–Schwarz), so that entries near zero do not inflate it. For `full`, the norm over output pairs is used.

    Args:
        model: The model, in the state in which the kernel was computed.
        x: Its inputs.
        kernel: `(N, M)` or `(N, M, C, C)`.
        n_entries: How many (n, m) pairs to compare.
        x2: The second inputs of a cross-kernel.
        seed: Seed for choosing the entries.
        generator: A generator to use instead of `seed`.
        reduction: Reduction of the kernel.
        task_labels: See `empirical_ntk`.
        task_labels2: See `empirical_ntk`.
        params: See `empirical_ntk`.
        layers: See `empirical_ntk`.
        outputs: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.
        dtype: Precision of the reference; None for the model's own. A reference as coarse as the kernel has an equally
            large error, and the result is then the difference of the two.
        n_projections: Of a projected kernel, see `empirical_ntk`.
        projection_seed: Of a projected kernel, `seed` of `empirical_ntk`.

    Returns:
        The largest error found; 0.0 where both are zero.

    Raises:
        ArgumentError: `n_entries` is not positive, or the kernel is not a tensor or does not fit the inputs.
        unknown_name: The reduction is none of these (an `ArgumentError`).
    """
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    if not isinstance(kernel, Tensor):
        raise ArgumentError(
            f"kernel must be a tensor, found {type(kernel).__name__}. Give the result of `empirical_ntk`."
        )
    b1, b2 = Batch.of(x, task_labels), None if x2 is None else Batch.of(x2, labels_of_second(task_labels, task_labels2))
    n, m = len(b1), len(b1 if b2 is None else b2)
    if not is_whole(n_entries) or n_entries < 1:
        raise ArgumentError(
            f"n_entries must be a whole number of at least 1, found {n_entries!r}. Give the number of entries to"
            " compare."
        )
    if tuple(kernel.shape[:2]) != (n, m) or kernel.dim() != (4 if reduction == "full" else 2):
        raise ArgumentError(
            f"the kernel has shape {tuple(kernel.shape)}: expected {(n, m)}, the numbers of samples, and two numbers of"
            f" outputs after them for reduction='full' only (reduction={reduction!r} was given). Give the inputs and"
            " the reduction that it was computed from."
        )
    g = generator if generator is not None else torch.Generator("cpu").manual_seed(checked_seed(seed))
    rows = torch.randint(0, n, (int(n_entries),), generator=g, device="cpu").tolist()
    cols = torch.randint(0, m, (int(n_entries),), generator=g, device="cpu").tolist()

    def jacobians(b: Batch, index: list[int]) -> dict[int, Tensor]:
        unique = sorted(set(index))
        part = b.take(torch.tensor(unique, device=b.device))
        j, kept = jacobian_and_outputs(model, part.x, part.task_labels, params, layers, outputs, output_selector, dtype)
        j = combined(j, kept, reduction, n_projections, projection_seed)
        return dict(zip(unique, j, strict=True))

    left = jacobians(b1, rows + cols if b2 is None else rows)
    right = left if b2 is None else jacobians(b2, cols)
    worst = 0.0
    for i, k in zip(rows, cols, strict=True):
        theta = left[i] @ right[k].T
        want = theta if reduction == "full" else theta.diagonal().sum()
        have = kernel[i, k].to(theta)
        if have.shape != want.shape:
            raise ArgumentError(
                f"the kernel has {tuple(have.shape)} pairs of outputs, the model {tuple(want.shape)}: expected as many."
                " Give outputs= as it was when the kernel was computed."
            )
        scale = float(left[i].norm() * right[k].norm())
        gap = float((have - want).norm())
        worst = max(worst, gap / scale if scale else (0.0 if gap == 0 else float("inf")))
    return worst


def spot_check_in_double(model: nn.Module, x: Any, kernel: Tensor, **arguments: Any) -> tuple[float, str]:
    """Compare with the reference in float64, or in the model's own precision if the model refuses float64.

    A forward pass that casts its inputs (`x = x.float()`) works in its own precision only.

    Args:
        model: See `spot_check`.
        x: See `spot_check`.
        kernel: See `spot_check`.
        arguments: The other arguments of `spot_check`.

    Returns:
        The largest error found, and the precision of the reference, such as "float64".

    Raises:
        Exception: The error of `spot_check`, if it is also raised in the model's own precision.
    """
    try:
        return spot_check(model, x, kernel, **arguments), "float64"
    except Exception:  # noqa: BLE001  (whatever it is: it is raised again below unless float64 was to blame)
        found = spot_check(model, x, kernel, **arguments, dtype=None)
    own = {p.dtype for p in model.parameters() if p.requires_grad}
    return found, " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in own))
