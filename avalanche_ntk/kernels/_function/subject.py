"""`Subject`: a model with chosen parameters, outputs and working precision, as one function.

Higher modules use only a `Subject`: leaves θ (name → tensor) and `forward(batch) → (N, C)`, never the user's module. If
the working precision is the parameters' own, the leaves *are* the model's parameters; otherwise they are cast copies
that replace them during the call, so the user's tensors are never written to.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, ModelError, is_whole, unknown_name
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.wrappers import unwrap, wrapper_prefix

_LOW = (torch.float16, torch.bfloat16)


def select_parameters(model: nn.Module, params: Any = None, layers: Any = None) -> list[str]:
    """Names of the parameters of the kernel, in the model's order.

    Args:
        model: The model, or a wrapper of it, whose prefix is removed from the names.
        params: None for all, or names of parameters (shell wildcards allowed).
        layers: None, or names of modules: every trainable parameter inside them (wildcards allowed).

    Returns:
        The names.

    Raises:
        ModelError: The model has no trainable parameter.
        ArgumentError: A name matches nothing, or only frozen parameters.
    """
    prefix, model = wrapper_prefix(model), unwrap(model)
    everything = dict(model.named_parameters())
    trainable = [n for n, p in everything.items() if p.requires_grad]
    if not trainable:
        raise ModelError(
            f"{type(model).__name__} has no trainable parameters: expected at least one parameter with"
            f" requires_grad=True, found {len(everything)} parameters, all frozen."
            " Unfreeze what the kernel should cover (parameter.requires_grad_(True))."
            if everything
            else f"{type(model).__name__} has no parameters: expected at least one parameter with requires_grad=True,"
            " found none. A function without parameters has no tangent kernel."
        )
    if params is None and layers is None:
        return trainable
    chosen: set[str] = set()
    aliases = dict(model.named_parameters(remove_duplicate=False))
    canonical = {id(p): n for n, p in everything.items()}
    for pattern in _without(prefix, params, "params"):
        hits = {canonical[id(aliases[n])] for n in aliases if n == pattern or fnmatch.fnmatchcase(n, pattern)}
        _require(hits, pattern, "parameter", aliases, trainable)
        chosen |= hits
    modules = [n for n, _ in model.named_modules(remove_duplicate=False)]
    for pattern in _without(prefix, layers, "layers"):
        inside = [m for m in modules if m == pattern or fnmatch.fnmatchcase(m, pattern)]
        hits = {canonical[id(aliases[n])] for n in aliases for m in inside if m == "" or n.startswith(m + ".")}
        _require(hits, pattern, "layer", modules, trainable, found_module=bool(inside))
        chosen |= hits
    return [n for n in trainable if n in chosen]


def _without(prefix: str, value: Any, what: str) -> list[str]:
    return [] if value is None else [name.removeprefix(prefix) for name in names_of(value, what)]


def names_of(value: Any, what: str) -> list[str]:
    """Return one name or several as a list.

    Raises:
        ArgumentError: It is neither a name nor a non-empty sequence of names.
    """
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else []
    if not names or not all(isinstance(n, str) for n in names):
        raise ArgumentError(f"{what} must be a name or a non-empty sequence of names, found {value!r}.")
    return names


def _require(
    hits: set[str], pattern: str, kind: str, choices: Any, trainable: list[str], found_module: bool = False
) -> None:
    if not hits and not found_module:
        raise unknown_name(kind, pattern, [c for c in choices if c])
    if not hits & set(trainable):
        raise ArgumentError(
            f"{kind} {pattern!r} has no parameter that requires a gradient: the kernel covers trainable"
            " parameters only."
            " Unfreeze it, or leave it out."
        )


def checked_precision(dtype: torch.dtype | None) -> torch.dtype | None:
    """Return the precision unchanged, or None for None.

    Raises:
        ArgumentError: Kernels are not computed in it.
    """
    if dtype not in (None, torch.float32, torch.float64):
        raise ArgumentError(
            f"unknown dtype {dtype}: expected torch.float32 or torch.float64. Half precision is too coarse for"
            " a kernel; leave dtype out to compute in float32."
        )
    return dtype


def working_dtype(model: nn.Module, dtype: torch.dtype | None) -> torch.dtype | None:
    """The precision to compute in (float32 for half-precision models), or None for the parameters' own."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if checked_precision(dtype) is not None:
        return None if kinds == {dtype} else dtype
    if not kinds & set(_LOW):
        return None
    return torch.float64 if torch.float64 in kinds else torch.float32


def check_supported(model: nn.Module) -> None:
    """Refuse unsupported models (complex, quantised, uninitialised)."""
    for name, p in model.named_parameters(remove_duplicate=False):
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"parameter {name!r} is not initialised yet (a lazy module): expected a parameter with a shape."
                " Run one forward pass before the first measurement."
            )
        if p.layout != torch.strided:
            raise ModelError(
                f"parameter {name!r} is sparse ({p.layout}): expected dense parameters, whose entries a kernel sums"
                " over. Store its values as a dense parameter and its pattern as a buffer."
            )
        if p.is_complex():
            raise ModelError(
                f"parameter {name!r} is complex ({p.dtype}): the kernel is defined for real parameters only."
                " Store real and imaginary parts as two real parameters (torch.view_as_real)."
            )
    for name, m in model.named_modules():
        kind = type(m).__module__
        if ".quantized" in kind or ".qat" in kind or "torchao" in kind:
            raise ModelError(
                f"module {name or 'model'!r} ({type(m).__name__}) is quantised: a quantised weight has no"
                " gradient, so no"
                " tangent kernel. Measure the float model it was made from."
            )


def output_rows(outputs: Sequence[int] | slice | Tensor | None, n_outputs: int) -> list[int] | None:
    """Indices of the outputs kept; None for all.

    Returns:
        Non-negative indices, in the order given.

    Raises:
        ArgumentError: An index is out of range or repeated, or none is kept.
    """
    if outputs is None:
        return None
    if isinstance(outputs, slice):
        kept = list(range(n_outputs))[outputs]
    else:
        given = outputs.tolist() if isinstance(outputs, Tensor) else outputs
        given = [i.item() if isinstance(i, Tensor) and not i.dim() else i for i in _listed(given)]
        if not given or not all(is_whole(i) for i in given):
            raise ArgumentError(
                f"outputs must be indices of outputs, at least one, found {outputs!r}. Give a list of whole numbers or"
                " a slice (mask.nonzero() of a mask)."
            )
        kept = [int(i) for i in given]
    bad = [i for i in kept if not -n_outputs <= i < n_outputs]
    kept = [i % n_outputs for i in kept if i not in bad]
    if bad or not kept or len(set(kept)) != len(kept):
        raise ArgumentError(
            f"outputs must be distinct indices of the model's {n_outputs} outputs, at least one, found {outputs!r}."
            " Give a list of indices or a slice."
        )
    return kept


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) else []


@contextmanager
def swapped(model: nn.Module, tensors: dict[str, Tensor]) -> Generator[None, None, None]:
    """Replace parameters and buffers by tensors of the same names, under all their names, and restore them on exit.

    A tensor is replaced wherever the model holds it: tied weights and modules used under several names stay tied.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    instead = {id(own[name]): t for name, t in tensors.items() if name in own}
    undo: list[tuple[dict[str, Any], str, Any]] = []
    flat: list[tuple[nn.RNNBase, list[Any]]] = []
    try:
        for m in model.modules():
            for table in (m._parameters, m._buffers):
                for k, t in table.items():
                    if t is not None and id(t) in instead:
                        undo.append((table, k, t))
                        table[k] = instead[id(t)]  # type: ignore[assignment]
            if isinstance(m, nn.RNNBase):  # recurrent layers keep a list of their weights beside the attributes
                flat.append((m, m._flat_weights))
                m.__dict__["_flat_weights"] = [getattr(m, k, None) for k in m._flat_weights_names]
        yield
    finally:
        for m, weights in flat:
            m.__dict__["_flat_weights"] = weights
        for table, k, t in reversed(undo):
            table[k] = t


@contextmanager
def _new_tensors_in(dtype: torch.dtype | None) -> Generator[None, None, None]:
    """Make `torch.zeros` and similar use the working precision; some models collect outputs in such a tensor."""
    before = torch.get_default_dtype()
    if dtype is None or dtype == before:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_precision(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of the tensor, in the working precision if it holds floating or complex numbers."""
    kind = dtype if t.is_floating_point() else dtype.to_complex() if t.is_complex() else t.dtype
    return t.to(kind, copy=True)


def _substitutes(
    model: nn.Module, own: Mapping[str, nn.Parameter], work: torch.dtype | None, wanted: set[str]
) -> dict[str, Tensor]:
    """Tensors that replace the model's parameters and buffers; the `wanted` ones require a gradient."""
    both = {**own, **dict(model.named_buffers())}
    if work is not None:
        return {n: in_precision(t.detach(), work).requires_grad_(n in wanted) for n, t in both.items()}
    # A hook on a parameter changes its gradient, not the function: use the same memory without the hook.
    bare = {n: own[n].detach().requires_grad_() for n in wanted if own[n]._backward_hooks}
    # Tensors made in inference mode cannot have a gradient, so copy them.
    return bare | {n: t.detach().clone().requires_grad_(n in wanted) for n, t in both.items() if t.is_inference()}


@dataclass
class Subject:
    """Model + chosen parameters + output selector + working precision.

    Attributes:
        model: The module behind any wrapper.
        leaves: Chosen parameters, name → tensor used for it in the forward pass.
        dtype: Working precision, or None for the parameters' own.
        selector: Maps the raw output to `(N, C)`.
        substitutes: All tensors that replace the model's (empty if the model's own are used).
        originals: The model's own parameters.
        roots: Square roots of a diagonal preconditioner, the factors of gradients, for some of the leaves.
    """

    model: nn.Module
    leaves: dict[str, Tensor]
    dtype: torch.dtype | None = None
    selector: Callable[[Any], Tensor] | None = None
    substitutes: dict[str, Tensor] = field(default_factory=dict)
    originals: dict[str, nn.Parameter] = field(default_factory=dict)
    roots: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Record the model's own parameters before they are replaced."""
        self.originals = self.originals or dict(self.model.named_parameters())

    @staticmethod
    def of(
        model: nn.Module,
        params: Any = None,
        layers: Any = None,
        dtype: torch.dtype | None = None,
        selector: Callable[[Any], Tensor] | None = None,
    ) -> Subject:
        """Check the model and choose its parameters; see `select_parameters` and `working_dtype` for the errors."""
        inner = unwrap(model)
        check_supported(inner)
        names = select_parameters(model, params, layers)
        work = working_dtype(inner, dtype)
        own = dict(inner.named_parameters())
        substitutes = _substitutes(inner, own, work, set(names))
        leaves = {n: substitutes.get(n, own[n]) for n in names}
        return Subject(inner, leaves, work or dtype, selector, substitutes, own)

    @staticmethod
    def without_leaves(
        model: nn.Module, dtype: torch.dtype | None = None, selector: Callable[[Any], Tensor] | None = None
    ) -> Subject:
        """Check the model, for uses without parameter gradients; it may have no trainable parameters."""
        inner = unwrap(model)
        check_supported(inner)
        work = working_dtype(inner, dtype)
        own = dict(inner.named_parameters())
        return Subject(inner, {}, work or dtype, selector, _substitutes(inner, own, work, set()), own)

    def restricted(self, names: set[str]) -> Subject:
        """The same model with fewer parameters chosen."""
        leaves = {n: t for n, t in self.leaves.items() if n in names}
        return Subject(self.model, leaves, self.dtype, self.selector, self.substitutes, self.originals)

    def preconditioned(self, given: Mapping[str, Tensor]) -> Subject:
        """The same model with the kernel `J P Jᵀ` with diagonal P: `given` for the named parameters, 1 for others.

        Args:
            given: Name of a parameter → its entries of P, of the parameter's shape.

        Returns:
            A subject with the square roots of P.

        Raises:
            ArgumentError: A name is not a chosen parameter, a shape differs, or an entry is not positive.
        """
        prefix = wrapper_prefix(self.model)
        names = {id(p): n for n, p in self.originals.items()}
        aliases = {k: names[id(p)] for k, p in self.model.named_parameters(remove_duplicate=False) if id(p) in names}
        roots = {}
        for given_name, value in given.items():
            name = aliases.get(given_name.removeprefix(prefix), given_name)
            if name not in self.leaves:
                error: ArgumentError = unknown_name("parameter in preconditioner", given_name, self.leaves)
                raise error
            leaf = self.leaves[name]
            if not isinstance(value, Tensor) or value.shape != leaf.shape:
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ArgumentError(
                    f"preconditioner[{given_name!r}] must be a tensor of the parameter's shape {tuple(leaf.shape)},"
                    f" found {found}. Give one positive number for each entry."
                )
            if not bool(((value > 0) & torch.isfinite(value)).all()):
                raise ArgumentError(
                    f"preconditioner[{given_name!r}] must be positive and finite, found entries from"
                    f" {float(value.min()):.3g} to {float(value.max()):.3g}. Give for example 1/(√v + ε) of Adam."
                )
            roots[name] = value.detach().to(leaf).sqrt()
        return replace(self, roots=roots)

    def everything(self) -> dict[str, Tensor]:
        """All tensors used as parameters in the forward pass, chosen or not."""
        return {n: self.substitutes.get(n, p) for n, p in self.originals.items()}

    @contextmanager
    def standing_in(self, extra: dict[str, Tensor] | None = None) -> Generator[None, None, None]:
        """The model with its substitutes (and `extra` tensors by name) in place of its own tensors."""
        tensors = self.substitutes | (extra or {})
        if not tensors:
            yield
            return
        with swapped(self.model, tensors):
            yield

    @contextmanager
    def showing_originals(self) -> Generator[None, None, None]:
        """Use the model's own parameters instead of substitutes, so that graphs show their uses."""
        asked = [p for p in self.originals.values() if p.is_floating_point() and not p.requires_grad]
        for p in asked:
            p.requires_grad_(True)
        try:
            yield
        finally:
            for p in asked:
                p.requires_grad_(False)

    @contextmanager
    def in_double(self) -> Generator[Subject, None, None]:
        """The model in float64, with copies of all its tensors; for outputs only."""
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        copies = {n: in_precision(t.detach(), torch.float64) for n, t in tensors.items()}
        with swapped(self.model, copies):
            yield Subject(self.model, {}, torch.float64, self.selector, copies)

    @contextmanager
    def nearby(self) -> Generator[Subject, None, None]:
        """The model with slightly perturbed copies of all its parameters.

        Each entry is changed by about a tenth of its tensor's typical entry, or of a typical initial entry if all are
        zero.

        Yields:
            The perturbed model.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        copies: dict[str, Tensor] = {}
        for name, t in self.model.named_parameters():
            if not t.is_floating_point():
                continue
            noise = torch.randn(t.shape, generator=generator, dtype=torch.float32, device="cpu").to(t)
            usual = float(t.detach().double().square().mean().sqrt()) or (t.shape[0] / max(1, t.numel())) ** 0.5
            copies[name] = (t.detach() + 0.1 * usual * noise).requires_grad_(name in self.leaves)
        with swapped(self.model, copies):
            leaves = {n: copies[n] for n in self.leaves}
            yield Subject(self.model, leaves, self.dtype, self.selector, self.substitutes | copies)

    def outputs(self, batch: Batch) -> Tensor:
        """`forward` without a graph, unless the model itself needs one (it differentiates something)."""
        try:
            with torch.no_grad():
                return self.forward(batch)
        except ModelError:
            with torch.enable_grad():
                return self.forward(batch).detach()

    def call(self, batch: Batch) -> Tensor:
        """Return the (selected) outputs of the model, unchecked (use inside `standing_in`)."""
        batch = batch.cast(self.dtype)
        # pass copies: the model may write into its inputs, which belong to the caller
        copies = [t if t.requires_grad else t.clone() for t in batch.tensors()]
        args, kwargs = batch.with_tensors(copies).arguments(self.model)
        with _new_tensors_in(self.dtype):
            out: Tensor = self.model(*args, **kwargs)
        if self.selector is not None:
            out = self.selector(out)
        if self.dtype is not None and isinstance(out, Tensor) and out.is_floating_point():
            out = out.to(self.dtype)  # for a model that ends in .float(): cotangents that are unit vectors lose nothing
        return out

    def forward(self, batch: Batch) -> Tensor:
        """`call` with its errors converted into the package's own."""
        try:
            out = self.call(batch)
        except Exception as exc:
            hint = f" (x is a {type(batch.x).__name__})" if isinstance(batch.x, dict | tuple | list) else ""
            raise ModelError(
                f"the forward pass of {type(self.model).__name__} failed in eval mode on the probe"
                f" ({type(exc).__name__}: {exc}). Expected {batch.call_told(self.model)} to work on {len(batch)}"
                f" samples{hint}; check the inputs' shape, dtype and device, and task_labels for multi-task models."
            ) from exc
        for name, leaf in self.leaves.items():
            if not leaf.requires_grad and torch.is_grad_enabled():
                raise ModelError(
                    f"the forward pass of {type(self.model).__name__} freezes parameter {name!r}: expected it to stay"
                    " trainable, as it was chosen. Freeze it before the measurement, or leave it out (params=)."
                )
        return self.checked(out, len(batch))

    def checked(self, out: Any, n: int) -> Tensor:
        """Return the output if it is a floating `(N, C)` tensor connected to a parameter."""
        name = type(self.model).__name__
        if not isinstance(out, Tensor):
            raise ModelError(
                f"the output of {name} is a {type(out).__name__}: expected a tensor of shape (N, C)."
                " Give output_selector=, a function from the model's output to that tensor."
            )
        if type(out) is not Tensor:
            out = out.as_subclass(Tensor)
        if out.dim() != 2 or out.shape[0] != n:
            raise ModelError(
                f"the output of {name} has shape {tuple(out.shape)}: expected (N, C) with N = {n} samples."
                " Give output_selector=, a function from the model's output to a tensor of that shape"
                " (lambda y: y.flatten(1))."
            )
        if out.shape[1] == 0 or not out.is_floating_point():
            raise ModelError(
                f"the output of {name} has shape {tuple(out.shape)} and dtype {out.dtype}: expected real numbers (N, C)"
                " with C ≥ 1. Give output_selector=, a function from the model's output to the logits."
            )
        checked: Tensor = out
        return checked


def require_graph(out: Tensor, subject: Subject) -> None:
    """Refuse an output that depends on no parameter (an argmax, a nearest-mean classifier, a no_grad block)."""
    if not out.requires_grad:
        raise ModelError(
            f"the output of {type(subject.model).__name__} in eval mode has no gradient: expected logits that depend on"
            " the parameters differentiably. Something in the forward pass detaches them (torch.no_grad, argmax, a"
            " nearest-mean classifier); measure the part before it (output_selector=, or the feature extractor)."
        )
