"""The conjugate kernel of the penultimate layer: the Gram matrix of the last linear layer's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels._device.order import agree
from avalanche_ntk.kernels._device.profile import in_double
from avalanche_ntk.kernels._function.batch import Batch, labels_of_second
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._guard.isolation import measuring
from avalanche_ntk.kernels._guard.samples import LARGE, SMALL
from avalanche_ntk.kernels._structure.layout import candidates


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
    """Feature kernel `K[n,m] = <h(x_n), h(x_m)>`, h the input of the last linear layer on which the outputs depend.

    A linear layer is a `nn.Linear`, or a module whose `weight` is a matrix with a column per input number (such as
    `models.NTKLinear`; its factor is not part of h).

    It is the tangent kernel of the last layer's weight for one output, that is, of training the head alone (the
    conjugate kernel of Daniely et al. 2016, at finite width).

    Args:
        model: The model; evaluated in eval mode and left unchanged, hooks removed.
        x: N inputs, see `empirical_ntk`.
        x2: M inputs for a cross-kernel.
        task_labels: See `empirical_ntk`.
        task_labels2: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.
        dtype: Precision to compute in; None for the parameters' own.

    Returns:
        `(N, M)`.

    Raises:
        ModelError: No linear layer is called, its input has no separate part for each sample, or the samples of the two
            batches have features of different sizes.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 3))
        >>> feature_kernel(model, torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[5., 6.],
                [6., 9.]])
    """
    batches = [Batch.of(x, task_labels)]
    if x2 is not None:
        batches.append(Batch.of(x2, labels_of_second(task_labels, task_labels2)))
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
    """Features `h(x_n)`, whose Gram matrix is `feature_kernel`: one column per unit.

    Args:
        model: The model; evaluated in eval mode and left unchanged, hooks removed.
        x: N inputs, see `empirical_ntk`.
        task_labels: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.
        dtype: Precision to compute in; None for the parameters' own.

    Returns:
        `(N, D)`; each sample's features are flattened into a row.

    Raises:
        ModelError: As `feature_kernel`.

    Examples:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(2, 3))
        >>> penultimate_features(model, torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[1., 2.],
                [0., 3.]])
    """
    return _features_of_model(model, [Batch.of(x, task_labels)], output_selector, dtype)[0]


def _features_of_model(
    model: nn.Module,
    batches: list[Batch],
    output_selector: Callable[[Any], Tensor] | None,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    with measuring(model, batches[0]):
        subject = Subject.without_leaves(model, dtype, output_selector)
        with subject.standing_in():
            try:
                with torch.no_grad():
                    found = [_features(subject, batch) for batch in batches]
            except ModelError:  # a model that differentiates something in its forward pass
                found = [_features(subject, batch).detach() for batch in batches]
    sizes = [h.shape[1] for h in found]
    if sizes[0] != sizes[-1]:
        raise ModelError(
            f"the features of {type(subject.model).__name__} have {sizes[0]} numbers for a sample of the first batch"
            f" and {sizes[-1]} for one of the second: expected as many. Give both batches sequences (or images) of one"
            " size."
        )
    return found


def _features(subject: Subject, batch: Batch) -> Tensor:
    """Input of the last linear layer called, one row per sample.

    The samples' dimension is found from batches of two sizes: usually 0, another one if tokens come first.

    Returns:
        `(N, D)`.

    Raises:
        ModelError: There is no such layer, or it has no rows of samples.
    """
    n = len(batch)
    parts = [batch.take([i % n for i in range(size)]) for size in (SMALL, LARGE)]
    which = _last_that_counts(subject, parts[0])
    h, *few = [_inputs(subject, part)[which][0] for part in (batch, *parts)]
    options = candidates(tuple(few[0].shape), tuple(few[1].shape), SMALL, LARGE) or []
    index = [i % n for i in range(LARGE)]
    for layout in options:
        rows = [layout.samples_first(t[None], k)[0] for t, k in zip(few, (SMALL, LARGE), strict=True)]
        if layout.fits(tuple(h.shape), n) and agree(rows[0], rows[1][:SMALL], torch.float32):
            found = layout.samples_first(h[None], n)[0].reshape(n, -1)
            if agree(found[index], rows[1].reshape(LARGE, -1), torch.float32):
                return found.clone()
    name = type(subject.model).__name__
    raise ModelError(
        f"the last linear layer of {name} sees an input of shape {tuple(h.shape)} for {n} samples: expected one"
        " dimension in which each sample has its own part. Leave the feature kernel out for this model."
    )


def _inputs(subject: Subject, batch: Batch, copies: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Inputs and outputs of all linear layers in a forward pass, in the order of the calls.

    Inputs are copied only if the forward pass writes into them afterwards.

    Returns:
        `(input, output)` of each call, and last those of the model.

    Raises:
        ModelError: No linear layer is called.
    """
    calls: list[tuple[Tensor, Tensor]] = []
    versions: list[int] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        x = next((t for t in (*inputs, *named.values()) if isinstance(t, Tensor)), None)
        if x is not None and (isinstance(module, nn.Linear) or _multiplies_rows(module, x, output)):
            calls.append((x.detach().clone() if copies else x.detach(), output))
            versions.append(_writes(calls[-1][0]))

    hooks = [m.register_forward_hook(keep, with_kwargs=True) for m in subject.model.modules()]
    try:
        out = subject.forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise ModelError(
            f"{type(subject.model).__name__} calls no linear layer in its forward pass: expected a last one, whose"
            " input is the feature vector. Leave the feature kernel out for this model."
        )
    if not copies and any(_writes(x) != v for (x, _), v in zip(calls, versions, strict=True)):
        return _inputs(subject, batch, copies=True)
    return [*calls, (out, out)]


def _writes(t: Tensor) -> int:
    """Return how often a tensor was written into; unknown for tensors made in inference mode."""
    return 0 if t.is_inference() else t._version


def _last_that_counts(subject: Subject, few: Batch) -> int:
    """Find the last call of a linear layer on which the outputs depend (not, for example, a separate decoder).

    Returns:
        Its position, counted from the end; that of the last call if the outputs have no gradient (a nearest-mean
        classifier).
    """
    with torch.enable_grad():
        *calls, (out, _) = _inputs(subject, few.with_gradients())
        for place in range(len(calls) - 1, -1, -1):
            y = calls[place][1]
            if out.requires_grad and y.requires_grad:
                (g,) = torch.autograd.grad(out.sum(), [y], retain_graph=True, allow_unused=True)
                if g is not None:
                    return place - len(calls) - 1
    return -2


def _multiplies_rows(module: nn.Module, x: Tensor, y: Any) -> bool:
    """Return whether a module of another class multiplies the rows of its input by its weight matrix.

    Its output is then a multiple of `x Wᵀ` plus a multiple of its bias, with any factors (such as those of the NTK
    parametrisation). A norm whose scales form a matrix gives a different output.

    Returns:
        True if it does.
    """
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 2 or not x.is_floating_point() or not x.ndim or not isinstance(y, Tensor):
        return False
    if x.shape[-1] != weight.shape[1] or y.shape != (*x.shape[:-1], weight.shape[0]):
        return False
    product = x.to(weight) @ weight.T
    bias = module._parameters.get("bias")
    terms = [in_double(product)]
    if bias is not None and bias.shape == weight.shape[:1]:
        terms.append(in_double(bias).expand_as(product))
    design = torch.stack([t.reshape(-1) for t in terms], 1)
    right = in_double(y).reshape(-1)
    rest = right - design @ (torch.linalg.pinv(design.T @ design) @ (design.T @ right))
    return bool(rest.norm() <= 1e-3 * right.norm())
