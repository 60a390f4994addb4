"""`empirical_ntk`: the only door to the kernel engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import (
    ArgumentError,
    KernelError,
    ModelError,
    PrecisionWarning,
    checked_seed,
    is_whole,
    positive,
    unknown_name,
)
from avalanche_ntk.kernels._function.batch import Batch, labels_of_second
from avalanche_ntk.kernels._function.subject import Subject, names_of, output_rows, select_parameters
from avalanche_ntk.kernels._function.wrappers import wrapper_prefix
from avalanche_ntk.kernels._generic.reference import REDUCTIONS
from avalanche_ntk.kernels._guard import known
from avalanche_ntk.kernels._guard.hooks import hooks_as
from avalanche_ntk.kernels._guard.isolation import measuring
from avalanche_ntk.kernels._guard.policy import Checks
from avalanche_ntk.kernels.info import KernelInfo, Method
from avalanche_ntk.kernels.measurement import Measurement

DEFAULT_BUDGET = 2**30  # bytes beyond the forward pass


def empirical_ntk(
    model: nn.Module,
    x1: Any,
    x2: Any = None,
    *,
    task_labels: Any = None,
    task_labels2: Any = None,
    reduction: str = "trace",
    params: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    outputs: Sequence[int] | slice | None = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    memory_budget: int | None = None,
    dtype: torch.dtype | None = None,
    method: str | Method = "auto",
    estimator: str | None = None,
    n_projections: int | None = None,
    seed: int = 0,
    block: int | None = None,
    checks: str | Checks = "auto",
    hooks: str | None = None,
    return_info: bool = False,
) -> Any:
    """Empirical neural tangent kernel `Θ[n,m,c,d] = <∂f_c(x_n)/∂θ, ∂f_d(x_m)/∂θ>` of a model, in eval mode.

    Exact for any torch model whose outputs depend on one sample each; the model, its gradients and every random number
    generator are left as they were, also after an error.

    Args:
        model: The model; `torch.compile` and `DataParallel` wrappers are looked through.
        x1: N inputs: a tensor (`model(x)`), a tuple (`model(*x)`) or a dict (`model(**x)`), samples in dimension 0; a
            model whose forward pass takes the tuple or dict as one argument gets it whole.
        x2: M inputs for a cross-kernel, of `x1`'s size or another (shorter sequences, larger images); None for the
            self-kernel of `x1`.
        task_labels: Given to the model as its next positional argument when not None (an integer, or one per sample).
        task_labels2: The same for `x2`; by default the integer given for `x1`.
        reduction: `full` `(N, M, C, C)`; `trace` `(N, M)`, Σ_c Θ[n,m,c,c]; `sum_logits` `(N, M)`, Σ_{c,d} Θ[n,m,c,d].
        params: Names of the parameters covered (shell wildcards allowed); None for every trainable one.
        layers: Names of modules whose trainable parameters are covered (shell wildcards allowed).
        outputs: Indices of the outputs kept; None for all.
        output_selector: Maps the model's raw output (tuple, dict, object) to an `(N, C)` tensor.
        memory_budget: Bytes that may be taken beyond the forward pass; 1 GiB by default.
        dtype: `torch.float32` or `torch.float64` to compute in; None for the parameters' own (float32 for half
            precision). Autocast is off, also where the model turns it on itself.
        method: See `Method`.
        estimator: `rademacher` for an unbiased estimate of the trace kernel from random signs, for many outputs.
        n_projections: Number of random sign vectors of the estimator.
        seed: Seed of the estimator's own generator.
        block: Samples per block; chosen from the budget by default.
        checks: How often it is asked whether samples are independent, see `Checks`.
        hooks: "auto" (the default) does not call hooks of the model's modules that only look, see `kernels.hooks`;
            "keep" calls them all.
        return_info: Also return a `KernelInfo`.

    Returns:
        The kernel, a tensor in the working precision; with `return_info` a pair of it and a `KernelInfo`.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
        ModelError: The model has no per-sample kernel.
        KernelError: The kernel has entries that are not finite.
        MemoryBudgetError: The budget is too small for one block.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> empirical_ntk(model, x)  # the kernel of a linear model is its inputs' Gram matrix
        tensor([[5., 6.],
                [6., 9.]])
    """
    kernels, info = _measure(
        model,
        x1,
        x2,
        task_labels=task_labels,
        task_labels2=task_labels2,
        reduction=reduction,
        params=params,
        layers=layers,
        groups=None,
        whole=True,
        outputs=outputs,
        output_selector=output_selector,
        memory_budget=memory_budget,
        dtype=dtype,
        method=method,
        estimator=estimator,
        n_projections=n_projections,
        seed=seed,
        block=block,
        checks=checks,
        hooks=hooks,
        spectrum=return_info,
    )
    return (kernels[""], info) if return_info else kernels[""]


def empirical_ntk_by_group(
    model: nn.Module,
    x1: Any,
    groups: Mapping[str, Sequence[str]],
    x2: Any = None,
    *,
    task_labels: Any = None,
    task_labels2: Any = None,
    reduction: str = "trace",
    outputs: Sequence[int] | slice | None = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    memory_budget: int | None = None,
    dtype: torch.dtype | None = None,
    method: str | Method = "auto",
    whole: bool = False,
    params: str | Sequence[str] | None = None,
    checks: str | Checks = "auto",
    hooks: str | None = None,
    return_info: bool = False,
) -> Any:
    """Kernels of several groups of parameters in one pass; the sum over disjoint groups is their joint kernel.

    Args:
        model: See `empirical_ntk`.
        x1: See `empirical_ntk`.
        groups: Name → names of parameters or modules (shell wildcards allowed).
        x2: See `empirical_ntk`.
        task_labels: See `empirical_ntk`.
        task_labels2: See `empirical_ntk`.
        reduction: See `empirical_ntk`.
        outputs: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.
        memory_budget: See `empirical_ntk`.
        dtype: See `empirical_ntk`.
        method: See `empirical_ntk`.
        whole: Also return, under the name `""`, the kernel that `empirical_ntk` gives, from the same pass.
        params: Names of the parameters that the whole covers (shell wildcards allowed); None for every trainable one.
        checks: See `empirical_ntk`.
        hooks: See `empirical_ntk`.
        return_info: Also return a `KernelInfo`; its asymmetry and eigenvalues are those of the whole where it was asked
            for, else the worst of all groups.

    Returns:
        Name → kernel; with `return_info` a pair of that and a `KernelInfo`.

    Raises:
        ArgumentError: No group is given, a group names nothing trainable or nothing that the whole covers, or is called
            as the whole is.
    """
    if not isinstance(groups, Mapping):
        raise ArgumentError(
            f"groups must map a group's name to parameter or module names, found {type(groups).__name__}. Give a dict"
            " such as {'head': ['fc']}."
        )
    if not groups:
        raise ArgumentError(
            "groups must name at least one group of parameters, found none. Give a dict from a name to a list of"
            " parameter or module names."
        )
    if params is not None and not whole:
        raise ArgumentError(
            f"params={params!r} says what the whole kernel covers, found whole=False. Add whole=True, or leave params"
            " out."
        )
    if whole and "" in groups:
        raise ArgumentError("a group is called '', which is the name of the whole kernel. Give it another name.")
    kernels, info = _measure(
        model,
        x1,
        x2,
        task_labels=task_labels,
        task_labels2=task_labels2,
        reduction=reduction,
        params=params,
        layers=None,
        groups=groups,
        whole=whole,
        outputs=outputs,
        output_selector=output_selector,
        memory_budget=memory_budget,
        dtype=dtype,
        method=method,
        estimator=None,
        n_projections=None,
        seed=0,
        block=None,
        checks=checks,
        hooks=hooks,
        spectrum=return_info,
    )
    return (kernels, info) if return_info else kernels


def _measure(
    model: nn.Module,
    x1: Any,
    x2: Any,
    *,
    task_labels: Any,
    task_labels2: Any,
    reduction: str,
    params: Any,
    layers: Any,
    groups: Mapping[str, Sequence[str]] | None,
    whole: bool,
    outputs: Any,
    output_selector: Any,
    memory_budget: int | None,
    dtype: torch.dtype | None,
    method: str | Method,
    estimator: str | None,
    n_projections: int | None,
    seed: int,
    block: int | None,
    checks: str | Checks,
    hooks: str | None,
    spectrum: bool,
) -> tuple[dict[str, Tensor], KernelInfo]:
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    ways = [m.value for m in Method]
    if str(getattr(method, "value", method)) not in ways:
        raise unknown_name("method", method, ways)
    method = Method(method)
    if str(getattr(checks, "value", checks)) not in [c.value for c in Checks]:
        raise unknown_name("checks", checks, [c.value for c in Checks])
    checks = Checks(checks)
    _check_estimator(estimator, n_projections, reduction)
    budget = positive("memory_budget", memory_budget, "bytes") or DEFAULT_BUDGET
    block = positive("block", block, "samples")
    b1 = Batch.of(x1, task_labels)
    b2 = None
    if x2 is not None:
        b2 = Batch.of(x2, labels_of_second(task_labels, task_labels2))
    info = KernelInfo()
    with hooks_as(hooks), measuring(model, b1):
        subject = Subject.of(model, params, layers, dtype, output_selector)
        members = {"": list(subject.leaves)} if whole else {}
        members |= _members(subject, groups or {}, wrapper_prefix(model))
        if not whole:
            subject = subject.restricted({n for names in members.values() for n in names})
        with subject.standing_in():
            run = Measurement(subject, members, b1, b2, reduction == "full", budget, method, checks, info)
            rows = _cotangents(run.out, outputs, reduction)
            if estimator is None:
                result = run.kernels(rows, block)
            else:
                result = _estimate(run, rows, int(n_projections or 0), seed, block, info)
        if run.checks is not Checks.NEVER:
            for b in (b1, *([] if b2 is None else [b2])):
                known.note(subject.model, b)
    for name, kernel in result.items():
        _require_finite(kernel, name)
    if b2 is None:
        apart = KernelInfo()  # of the groups, where the report is about the whole
        for name, kernel in result.items():
            about = apart if whole and name else info
            result[name] = _symmetric(kernel, about)
            _check_spectrum(result[name], about, spectrum and about is info)
    return result, info


def _members(subject: Subject, groups: Mapping[str, Sequence[str]], prefix: str) -> dict[str, list[str]]:
    """Return each group's parameters; `prefix` is what wrappers of the model put before every name.

    Raises:
        ArgumentError: A group names nothing.
    """
    members: dict[str, list[str]] = {}
    everything = dict(subject.model.named_parameters(remove_duplicate=False))
    for name, patterns in groups.items():
        chosen: set[str] = set()
        for given in names_of(patterns, f"group {name!r}"):
            pattern = given.removeprefix(prefix)
            if pattern in subject.leaves:
                chosen.add(pattern)
                continue
            as_parameter = pattern in everything or any(fnmatchcase(n, pattern) for n in everything)
            kind = {"params": pattern} if as_parameter else {"layers": pattern}
            chosen |= set(select_parameters(subject.model, **kind))
        members[name] = [n for n in subject.leaves if n in chosen]
        if not members[name]:
            raise ArgumentError(
                f"group {name!r} ({', '.join(sorted(chosen))}) has no parameter in common with the whole"
                f" ({', '.join(subject.leaves)}). Leave the group out, or let params cover it."
            )
    return members


def _check_estimator(estimator: str | None, n_projections: int | None, reduction: str) -> None:
    if estimator is None:
        if n_projections is not None:
            raise ArgumentError(
                f"n_projections={n_projections} was given without an estimator: the kernel is exact unless an"
                " estimator is"
                " asked for. Add estimator='rademacher', or leave n_projections out."
            )
        return
    if estimator != "rademacher":
        raise unknown_name("estimator", estimator, ["rademacher"])
    if reduction != "trace":
        raise ArgumentError(
            f"estimator='rademacher' estimates the trace kernel, found reduction={reduction!r}. Use"
            " reduction='trace', or"
            " leave the estimator out."
        )
    if not is_whole(n_projections) or n_projections < 2:
        raise ArgumentError(
            f"n_projections must be an integer of at least 2 (a standard error needs two), found {n_projections!r}."
            " Give the number of random sign vectors, for example 32."
        )


def _cotangents(out: Tensor, outputs: Any, reduction: str) -> Tensor:
    """Output combinations `(R, C)`: unit vectors of the outputs kept, or their sum.

    Returns:
        The rows.
    """
    kept = output_rows(outputs, out.shape[1])
    rows = torch.eye(out.shape[1], dtype=out.dtype, device=out.device)
    rows = rows if kept is None else rows[kept]
    return rows.sum(0, keepdim=True) if reduction == "sum_logits" else rows


def _estimate(
    run: Measurement, rows: Tensor, r: int, seed: int, block: int | None, info: KernelInfo
) -> dict[str, Tensor]:
    """Mean and standard error over kernels of random signed sums of outputs (Hutchinson 1990).

    Returns:
        Group → estimated kernel.
    """
    generator = torch.Generator("cpu").manual_seed(checked_seed(seed))
    signs = torch.randint(0, 2, (r, rows.shape[0]), generator=generator, device="cpu").to(rows) * 2 - 1
    mean: dict[str, Tensor] = {}
    square: dict[str, Tensor] = {}
    for i, v in enumerate(signs @ rows):
        for g, k in run.kernels(v[None], block).items():
            k = k.double()
            delta = k - mean[g] if g in mean else k
            mean[g] = mean[g] + delta / (i + 1) if g in mean else k
            square[g] = square[g] + delta * (k - mean[g]) if g in square else torch.zeros_like(k)
    info.standard_error = (square[""] / (r - 1) / r).sqrt().to(rows.dtype)
    return {g: k.to(rows.dtype) for g, k in mean.items()}


def _require_finite(kernel: Tensor, group: str) -> None:
    finite = torch.isfinite(kernel)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        where = f" of group {group!r}" if group else ""
        raise KernelError(
            f"the kernel{where} has {bad} of {kernel.numel()} entries that are not finite: expected finite numbers."
            " Weights, activations or gradients overflow or are NaN; check the training loss, or measure with"
            " dtype=torch.float64."
        )


def _symmetric(kernel: Tensor, info: KernelInfo) -> Tensor:
    """The symmetric part of a self-kernel; rounding is all that is removed.

    Returns:
        The kernel.
    """
    turned = kernel.permute(1, 0, 3, 2) if kernel.dim() == 4 else kernel.T
    size = float(kernel.norm())
    gap = float((kernel - turned).norm()) / size if size else 0.0
    info.asymmetry = max(gap, info.asymmetry or 0.0)
    return (kernel + turned).mul_(0.5)


def _check_spectrum(kernel: Tensor, info: KernelInfo, wanted: bool) -> None:
    """Warn where rounding made a self-kernel clearly indefinite; fill in eigenvalues where asked for."""
    matrix = kernel
    if kernel.dim() == 4:
        n, _, c, _ = kernel.shape
        matrix = kernel.transpose(1, 2).reshape(n * c, n * c)
    if matrix.shape[0] > 4096:
        return
    if not wanted:
        # λ_max ≥ the Rayleigh quotient of any vector; a Cholesky factor of K + ε·λ exists where λ_min > -ε·λ
        shifted = matrix.to(torch.float64, copy=True)
        v = shifted.sum(1)
        size = float(v @ (shifted @ v)) / max(float(v @ v), 1e-300)
        shifted.diagonal().add_(0.9e-5 * max(size, 1e-300))
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            return
        del shifted
    matrix = matrix.double()
    values = torch.linalg.eigvalsh(matrix)
    low, high = float(values[0]), float(values[-1])
    info.min_eigenvalue = low if info.min_eigenvalue is None else min(low, info.min_eigenvalue)
    info.max_eigenvalue = high if info.max_eigenvalue is None else max(high, info.max_eigenvalue)
    if low < -1e-5 * high:
        warnings.warn(
            f"the kernel's smallest eigenvalue is {low:.3g}, its largest {high:.3g}: expected none below -1e-5 of the"
            " largest. The inputs are nearly equal for this precision; measure with dtype=torch.float64.",
            PrecisionWarning,
            stacklevel=4,
        )


__all__ = ["KernelInfo", "Method", "ModelError", "empirical_ntk", "empirical_ntk_by_group"]
