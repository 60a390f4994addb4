"""The conjugate kernel of the penultimate layer: the Gram matrix of what the last linear layer sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels.inputs import Batch
from avalanche_ntk.kernels.state import measuring, unwrap
from avalanche_ntk.kernels.subject import Subject, check_supported, working_dtype


def feature_kernel(
    model: nn.Module,
    x: Any,
    x2: Any = None,
    *,
    task_labels: Any = None,
    task_labels2: Any = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Feature kernel `K[n,m] = <h(x_n), h(x_m)>`, h the input of the last linear layer that the forward pass calls.

    A linear layer is a `nn.Linear`, or a module whose own `weight` is a matrix with a column for each number that it
    reads (such as `models.NTKLinear`, whose factor is no part of h).

    It is the tangent kernel of the last layer's weight for one output: the part of the kernel that training the head
    alone would see (the conjugate kernel of Daniely et al. 2016, at finite width).

    Args:
        model: The model; evaluated in eval mode and left as it was, hooks removed.
        x: N inputs, see `empirical_ntk`.
        x2: M inputs for a cross-kernel.
        task_labels: See `empirical_ntk`.
        task_labels2: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.
        dtype: Precision to compute in; None for the parameters' own.

    Returns:
        `(N, M)`.

    Raises:
        ModelError: No linear layer is called, or its input has not one row (or block of rows) for each sample.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 3))
        >>> feature_kernel(model, torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[5., 6.],
                [6., 9.]])
    """
    if task_labels2 is None and isinstance(task_labels, int):
        task_labels2 = task_labels
    batches = [Batch.of(x, task_labels)] + ([] if x2 is None else [Batch.of(x2, task_labels2)])
    h = _features_of_model(model, batches, output_selector, dtype)
    return h[0] @ h[-1].T


def penultimate_features(
    model: nn.Module,
    x: Any,
    *,
    task_labels: Any = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Features `h(x_n)` themselves, of which `feature_kernel` is the Gram matrix: one column for each unit.

    Args:
        model: The model; evaluated in eval mode and left as it was, hooks removed.
        x: N inputs, see `empirical_ntk`.
        task_labels: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.
        dtype: Precision to compute in; None for the parameters' own.

    Returns:
        `(N, D)`; what belongs to one sample is flattened into its row.

    Raises:
        ModelError: As `feature_kernel`.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 3))
        >>> penultimate_features(model, torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[1., 2.],
                [0., 3.]])
    """  # noqa: DOC502
    return _features_of_model(model, [Batch.of(x, task_labels)], output_selector, dtype)[0]


def _features_of_model(
    model: nn.Module,
    batches: list[Batch],
    output_selector: Callable[[Any], Tensor] | None,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    with measuring(model), torch.no_grad():
        inner = unwrap(model)
        check_supported(inner)
        work = working_dtype(inner, dtype)
        tensors = dict(inner.named_parameters()) | dict(inner.named_buffers()) if work is not None else {}
        cast = {k: v.detach().to(work) if v.is_floating_point() else v.detach().clone() for k, v in tensors.items()}
        subject = Subject(inner, {}, work, output_selector, cast)
        with subject.standing_in():
            return [_features(subject, batch) for batch in batches]


def _features(subject: Subject, batch: Batch) -> Tensor:
    """Input of the last linear layer called, one row a sample.

    Returns:
        `(N, D)`.

    Raises:
        ModelError: There is no such layer or row.
    """
    last: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Linear) or _reads_rows(module, inputs):
            last["h"] = inputs[0]

    hooks = [m.register_forward_pre_hook(keep) for m in subject.model.modules()]
    try:
        subject.forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    name = type(subject.model).__name__
    if "h" not in last:
        raise ModelError(
            f"{name} calls no linear layer in its forward pass: expected a last one, whose input is the feature vector."
            " Leave the feature kernel out for this model."
        )
    h = last["h"].detach()
    if h.shape[0] != len(batch):
        raise ModelError(
            f"the last linear layer of {name} sees an input of shape {tuple(h.shape)}: expected {len(batch)} samples in"
            " dimension 0. Leave the feature kernel out for this model."
        )
    return h.reshape(len(batch), -1).clone()


def _reads_rows(module: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Tell whether a module of another class multiplies rows of its input by a matrix of its own."""
    x = inputs[0] if inputs else None
    weight = module._parameters.get("weight")
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.ndim or weight is None:
        return False
    return weight.ndim == 2 and x.shape[-1] == weight.shape[1]
