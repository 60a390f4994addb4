"""`empirical_ntk`: the entry point of the kernel engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels._guard.policy import Checks
from avalanche_ntk.kernels.disk import on_disk
from avalanche_ntk.kernels.info import KernelInfo, Method
from avalanche_ntk.kernels.measured import measured
from avalanche_ntk.kernels.request import GroupOptions, KernelOptions, Request

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def empirical_ntk(
    model: nn.Module, x1: Any, x2: Any = ..., *, return_info: Literal[False] = ..., **options: Unpack[KernelOptions]
) -> Tensor: ...


@overload
def empirical_ntk(
    model: nn.Module, x1: Any, x2: Any = ..., *, return_info: Literal[True], **options: Unpack[KernelOptions]
) -> tuple[Tensor, KernelInfo]: ...


@overload
def empirical_ntk(
    model: nn.Module, x1: Any, x2: Any = ..., *, return_info: bool, **options: Unpack[KernelOptions]
) -> Tensor | tuple[Tensor, KernelInfo]: ...


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
    preconditioner: Mapping[str, Tensor] | None = None,
    checks: str | Checks = "auto",
    hooks: str | None = None,
    process_group: Any = None,
    out: str | os.PathLike[str] | None = None,
    return_info: bool = False,
) -> Any:
    """Empirical neural tangent kernel `Θ[n,m,c,d] = <∂f_c(x_n)/∂θ, ∂f_d(x_m)/∂θ>` of a model, in eval mode.

    Exact for any torch model whose outputs depend on one sample each. The model, its gradients and all random number
    generators are left unchanged, also after an error.

    Args:
        model: The model; `torch.compile` and `DataParallel` wrappers are removed.
        x1: N inputs: a tensor (`model(x)`), a tuple (`model(*x)`) or a dict (`model(**x)`), samples in dimension 0; a
            model whose forward pass takes the tuple or dict as one argument gets it whole.
        x2: M inputs for a cross-kernel, possibly of another size (shorter sequences, larger images); None for the
            self-kernel of `x1`.
        task_labels: Passed to the model as its next positional argument if not None (an integer, or one per sample).
        task_labels2: The same for `x2`; by default the integer given for `x1`.
        reduction: `full` `(N, M, C, C)`; `trace` `(N, M)`, Σ_c Θ[n,m,c,c]; `sum_logits` `(N, M)`, Σ_{c,d} Θ[n,m,c,d];
            `projected` `(N, M)`, the mean over `n_projections` signed sums of outputs, for many outputs: a separate
            kernel for each seed, and the trace kernel on average, see `hadamard_rows`.
        params: Names of the parameters to use (shell wildcards allowed); None for every trainable one.
        layers: Names of modules whose trainable parameters to use (shell wildcards allowed).
        outputs: Indices of the outputs kept; None for all.
        output_selector: Maps the model's raw output (tuple, dict, object) to an `(N, C)` tensor.
        memory_budget: Bytes that may be used beyond the forward pass; by default 1 GiB on a CPU, and on an accelerator
            a quarter of the free memory, rounded down to a power of two. If memory still runs out, it is halved until
            the measurement fits, with a `MemoryWarning`.
        dtype: `torch.float32` or `torch.float64` to compute in; None for the parameters' own (float32 for half
            precision). Autocast is off, even if the model turns it on itself.
        method: See `Method`.
        estimator: `rademacher` for an unbiased estimate of the trace kernel from independent random signs.
        n_projections: Number of random sign vectors, for `projected` and the estimator.
        seed: Seed of the generator of the signs.
        block: Samples per block; chosen from the budget by default.
        preconditioner: Positive numbers P by parameter, of its shape, for the kernel `J P Jᵀ` of an optimiser with
            these step sizes (Adam's `1/(√v̂ + ε)`, see `adam_preconditioner`); 1 for parameters not named.
        checks: How often to check that samples are independent, see `Checks`.
        hooks: "auto" (the default) skips hooks that only observe, see `kernels.hooks`; "keep" calls all hooks.
        process_group: A `torch.distributed` group (`torch.distributed.group.WORLD`) whose processes share the
            measurement. Each calls with the same arguments, has the same parameters, and gets the same kernel. Buffers
            are taken from the first process. The work is split by combinations of outputs, or by rows of the kernel if
            there are fewer combinations than processes.
        out: A `.npy` file to write the kernel to, band by band, for kernels too large for memory. An interrupted call
            is continued; a finished kernel is read; a call with another model, batch or options is refused. See
            `top_eigenvalues`.
        return_info: Also return a `KernelInfo`.

    Returns:
        The kernel, a tensor in the working precision (with `out` memory-mapped on the CPU); with `return_info` a pair
        of kernel and `KernelInfo`.

    Raises:
        ArgumentError: An argument has a value that cannot be used.
        ModelError: The model has no per-sample kernel.
        KernelError: The kernel has entries that are not finite.
        MemoryBudgetError: The budget is too small for one block.
        ProcessError: Another process of the group failed, ended, or has different parameters or inputs.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> empirical_ntk(model, x)  # the kernel of a linear model is its inputs' Gram matrix
        tensor([[5., 6.],
                [6., 9.]])
    """
    request = Request(
        model=model,
        x1=x1,
        x2=x2,
        task_labels=task_labels,
        task_labels2=task_labels2,
        reduction=reduction,
        params=params,
        layers=layers,
        outputs=outputs,
        output_selector=output_selector,
        memory_budget=memory_budget,
        dtype=dtype,
        method=method,
        estimator=estimator,
        n_projections=n_projections,
        seed=seed,
        block=block,
        preconditioner=preconditioner,
        checks=checks,
        hooks=hooks,
        process_group=process_group,
        report=return_info,
    )
    if out is not None:
        kernel, info = on_disk(request, out)
    else:
        kernels, info = measured(request)
        kernel = kernels[""]
    return (kernel, info) if return_info else kernel


@overload
def empirical_ntk_by_group(
    model: nn.Module,
    x1: Any,
    groups: Mapping[str, Sequence[str]],
    x2: Any = ...,
    *,
    return_info: Literal[False] = ...,
    **options: Unpack[GroupOptions],
) -> dict[str, Tensor]: ...


@overload
def empirical_ntk_by_group(
    model: nn.Module,
    x1: Any,
    groups: Mapping[str, Sequence[str]],
    x2: Any = ...,
    *,
    return_info: Literal[True],
    **options: Unpack[GroupOptions],
) -> tuple[dict[str, Tensor], KernelInfo]: ...


@overload
def empirical_ntk_by_group(
    model: nn.Module,
    x1: Any,
    groups: Mapping[str, Sequence[str]],
    x2: Any = ...,
    *,
    return_info: bool,
    **options: Unpack[GroupOptions],
) -> dict[str, Tensor] | tuple[dict[str, Tensor], KernelInfo]: ...


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
    n_projections: int | None = None,
    seed: int = 0,
    whole: bool = False,
    params: str | Sequence[str] | None = None,
    preconditioner: Mapping[str, Tensor] | None = None,
    checks: str | Checks = "auto",
    hooks: str | None = None,
    process_group: Any = None,
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
        n_projections: See `empirical_ntk`.
        seed: See `empirical_ntk`.
        whole: Whether to also return the kernel of `empirical_ntk`, under the name `""`, from the same pass.
        params: Names of the parameters of the whole kernel (shell wildcards allowed); None for every trainable one.
        preconditioner: See `empirical_ntk`.
        checks: See `empirical_ntk`.
        hooks: See `empirical_ntk`.
        process_group: See `empirical_ntk`.
        return_info: Whether to also return a `KernelInfo`; its asymmetry and eigenvalues are those of the whole kernel
            if requested, otherwise the worst of all groups.

    Returns:
        Name → kernel; with `return_info` a pair of this mapping and a `KernelInfo`.

    Raises:
        ArgumentError: No group is given, a group names no trainable parameter or none of the whole kernel, or has its
            name.
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
            f"params={params!r} selects the parameters of the whole kernel, found whole=False. Add whole=True, or "
            "leave params"
            " out."
        )
    if whole and "" in groups:
        raise ArgumentError("a group is called '', which is the name of the whole kernel. Give it another name.")
    kernels, info = measured(
        Request(
            model=model,
            x1=x1,
            x2=x2,
            task_labels=task_labels,
            task_labels2=task_labels2,
            reduction=reduction,
            params=params,
            groups=groups,
            whole=whole,
            outputs=outputs,
            output_selector=output_selector,
            memory_budget=memory_budget,
            dtype=dtype,
            method=method,
            n_projections=n_projections,
            seed=seed,
            preconditioner=preconditioner,
            checks=checks,
            hooks=hooks,
            process_group=process_group,
            report=return_info,
        )
    )
    return (kernels, info) if return_info else kernels
