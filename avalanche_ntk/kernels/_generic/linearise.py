"""The network's linearisation: `J_b(x)·δ` by one forward-mode pass at base parameters θ_b."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_ntk.errors import ArgumentError, ModelError
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject, check_supported, in_precision, working_dtype
from avalanche_ntk.kernels._function.wrappers import unwrap
from avalanche_ntk.kernels._guard.isolation import measuring
from avalanche_ntk.kernels._guard.known import is_new, note
from avalanche_ntk.kernels._guard.samples import require_alone
from avalanche_ntk.kernels._guard.written import exchanges_memory, written
from avalanche_ntk.kernels._structure.graph import Graph
from avalanche_ntk.kernels._structure.passes import plain_operators, require_reached


def jvp_prediction(
    model: nn.Module,
    x: Any,
    params_base: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    *,
    task_labels: Any = None,
    output_selector: Callable[[Any], Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """First-order change of the outputs, `J_b(x)·δ` with the Jacobian taken at base parameters θ_b.

    With `δ = θ_t − θ_b` this is the change of the outputs under a static kernel (Chizat et al. 2019; Ortiz-Jiménez et
    al. 2021). Parameters and buffers not named in `params_base` have their current values. Parameters not named in
    `delta` do not move.

    Args:
        model: The model; evaluated in eval mode and left unchanged.
        x: N inputs, see `empirical_ntk`.
        params_base: Name → value at the base point.
        delta: Name → displacement.
        task_labels: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.
        dtype: Precision to compute in; None for the parameters' own.

    Returns:
        `(N, C)`.

    Raises:
        ArgumentError: A name is unknown or a shape differs from the model's (a head has grown since).
        ModelError: The model has neither a forward-mode nor a double-backward derivative, mixes samples, is random,
            takes a different path for a single sample, or uses a parameter other than through the module that holds it.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> jvp_prediction(model, x, {"weight": torch.zeros(1, 2)}, {"weight": torch.tensor([[3.0, 4.0]])})
        tensor([[11.]])
    """
    batch = Batch.of(x, task_labels)
    with measuring(model, batch):
        inner = unwrap(model)
        check_supported(inner)
        work = working_dtype(inner, dtype)
        own: dict[str, Tensor] = {k: p.detach() for k, p in inner.named_parameters()}
        buffers = dict(inner.named_buffers())
        names = _names(model, inner)
        params_base = _fitting(params_base, own | buffers, names, "params_base")
        delta = _fitting(delta, own, names, "delta")
        base = {k: params_base.get(k, v).detach().to(v) for k, v in (own | buffers).items()}
        if work is not None:
            base = {k: in_precision(v, work) for k, v in base.items()}
        base = {k: v.clone() if k in buffers or v.is_inference() else v for k, v in base.items()}
        tangent = {k: delta[k].detach().to(base[k]) for k in own if k in delta}
        subject = Subject(inner, {}, work or dtype, output_selector)
        fixed = {k: v for k, v in base.items() if k not in tangent}
        moving = {k: base[k] for k in tangent}

        def f(theta: dict[str, Tensor]) -> Tensor:
            with subject.standing_in(fixed | theta):
                return subject.forward(batch)

        if not moving:
            return torch.zeros_like(f({}).detach())
        asking = {k: t.clone().requires_grad_() for k, t in moving.items()}
        with subject.showing_originals(), subject.standing_in(fixed | asking):
            out = subject.forward(batch.take(slice(0, 2)))  # some models cannot be called with one sample
            if out.requires_grad:
                require_reached(subject, Graph.of(out, {}))
        with plain_operators(inner):
            out, moved = push(f, moving, tangent, inner)
        with subject.standing_in(fixed | moving):
            require_alone(subject, batch, out, every=is_new(inner, batch))
        note(inner, batch)
        return moved


def live_outputs(
    model: nn.Module,
    x: Any,
    parameters: Mapping[str, Tensor],
    *,
    task_labels: Any = None,
    output_selector: Callable[[Any], Tensor] | None = None,
) -> list[int]:
    """Return the outputs that depend on a parameter: a growing head masks those of classes not seen yet.

    Args:
        model: The model.
        x: N inputs.
        parameters: Name → parameter of the model.
        task_labels: See `empirical_ntk`.
        output_selector: See `empirical_ntk`.

    Returns:
        Their indices; all of them if none depends.
    """
    # The derivative along a random direction is exactly zero for an output that depends on no parameter.
    generator = torch.Generator("cpu").manual_seed(0)
    here = {name: p.detach() for name, p in parameters.items()}
    direction = {name: torch.randn(p.shape, generator=generator, device="cpu").to(p) for name, p in here.items()}
    moved = jvp_prediction(model, x, here, direction, task_labels=task_labels, output_selector=output_selector)
    live: list[int] = (moved != 0).any(0).nonzero().flatten().tolist()
    return live or list(range(moved.shape[1]))


def push(
    f: Callable[[dict[str, Tensor]], Tensor], at: dict[str, Tensor], tangent: dict[str, Tensor], model: nn.Module
) -> tuple[Tensor, Tensor]:
    """Directional derivative of `f` by forward mode, or by two backward passes if an operator has no forward mode.

    Returns:
        `f` and its derivative, of one shape.
    """
    name = type(model).__name__
    if exchanges_memory(model) or written(model):  # forward mode ignores writes without a gradient
        return _double_backward(f, at, tangent, name)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # from torch, on first loading forward mode
        try:
            found = torch.func.jvp(f, (at,), (tangent,))
            return found[0].detach(), found[1].detach()
        except (RuntimeError, NotImplementedError, ModelError):
            return _double_backward(f, at, tangent, name)


def _double_backward(
    f: Callable[[dict[str, Tensor]], Tensor], at: dict[str, Tensor], tangent: dict[str, Tensor], name: str
) -> tuple[Tensor, Tensor]:
    """The same product by differentiating `uᵀJ` in u, for operators without a forward-mode derivative.

    Returns:
        `f` and its derivative, `(N, C)` both.

    Raises:
        ModelError: Neither derivative exists.
    """
    leaves = {k: v.detach().clone().requires_grad_() for k, v in at.items()}
    try:
        out = f(leaves)
        u = torch.zeros_like(out, requires_grad=True)
        grads = torch.autograd.grad(out, list(leaves.values()), u, create_graph=True, allow_unused=True)
        pairs = [(g, tangent[k]) for k, g in zip(leaves, grads, strict=True) if g is not None]
        total = torch.stack([(g * t).sum() for g, t in pairs]).sum() if pairs else u.sum() * 0
        return out.detach(), torch.autograd.grad(total, u)[0].detach()
    except RuntimeError as exc:
        raise ModelError(
            f"{name} has an operator with neither a forward-mode nor a second derivative ({exc}): expected one"
            " of them, to"
            " push a displacement of the parameters through the model. Leave the linearisation error out for"
            " this model."
        ) from exc


def _names(model: nn.Module, inner: nn.Module) -> dict[str, str]:
    """Return every name of a parameter or buffer, including tied ones and those of wrappers → its canonical name."""
    names: dict[str, str] = {}
    for kind in ("named_parameters", "named_buffers"):
        own = {id(t): k for k, t in getattr(inner, kind)()}
        every = [*getattr(inner, kind)(remove_duplicate=False), *getattr(model, kind)(remove_duplicate=False)]
        names |= {k: own[id(t)] for k, t in every}
    return names


def _told(given: object) -> str:
    """Return an argument's class, or those of a mapping's values, for messages."""
    if not isinstance(given, Mapping):
        return type(given).__name__
    return "a mapping to " + ", ".join(sorted({type(v).__name__ for v in given.values()}))


def _fitting(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Mapping[str, str], what: str
) -> dict[str, Tensor]:
    """Return the tensors under their canonical names.

    Raises:
        ArgumentError: They are not tensors by name, a name is unknown, a shape differs from the model's, or a tied
            weight is given two values.
    """
    found: dict[str, Tensor] = {}
    seen: dict[str, str] = {}
    if not isinstance(given, Mapping) or not all(isinstance(v, Tensor) for v in given.values()):
        raise ArgumentError(
            f"{what} must map names of parameters to tensors, found {_told(given)}. Give for example"
            " dict(model.named_parameters()), detached and cloned."
        )
    for given_name, v in given.items():
        k = names.get(given_name, given_name)
        if k not in own:
            raise ArgumentError(
                f"{what} names {given_name!r}, which the model does not have: expected names of its parameters. The"
                " model has changed since; compare only what both have."
            )
        if v.shape != own[k].shape:
            raise ArgumentError(
                f"{what}[{given_name!r}] has shape {tuple(v.shape)}: expected {tuple(own[k].shape)}, the model's own."
                " The model has changed since (a head that has grown); start a new base point."
            )
        if k in found and not torch.equal(found[k], v):
            raise ArgumentError(
                f"{what} gives two values to one parameter, as {seen[k]!r} and as {given_name!r}, which are tied:"
                " expected one value. Leave one of the names out."
            )
        found[k], seen[k] = v, given_name
    return found
