"""Batches of probe inputs: a tensor, or a tuple or dict of tensors, with samples in dimension 0."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from avalanche_ntk.errors import ArgumentError


def _map(value: Any, fn: Any) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping):
        return {k: _map(v, fn) for k, v in value.items()}
    if isinstance(value, list | tuple):
        parts = [_map(v, fn) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else parts if isinstance(value, list) else tuple(parts)
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    return []


@dataclass(frozen=True)
class Batch:
    """N probe samples and, if the model takes them, their task labels.

    A tensor is passed to the model as `model(x)`, a tuple as `model(*x)`, a dict as `model(**x)`; `task_labels` follow
    as the next positional argument (as the keyword `task_labels` after a dict). If the model's forward pass only takes
    a single argument, it gets the tuple or dict whole, as from Avalanche's strategies. Entries that are not tensors
    (None, numbers, strings) are passed on unchanged.
    """

    x: Any
    task_labels: Any = None
    given: tuple[Any, ...] = ()  # the caller's tensors and task labels, to recognise a batch

    @staticmethod
    def of(x: Any, task_labels: Any = None) -> Batch:
        """Check the shapes and detach; raise an `ArgumentError` that names the sizes found."""
        tensors = _tensors(x)
        if not tensors:
            raise ArgumentError(
                "the inputs hold no tensor: expected a tensor, a tuple or a dict of tensors with samples in"
                " dimension 0,"
                f" found {type(x).__name__}. Convert arrays with torch.as_tensor first."
            )
        for t in tensors:
            if t.is_nested or t.layout != torch.strided:
                raise ArgumentError(
                    f"an input is a {'nested' if t.is_nested else 'sparse'} tensor ({t.layout}): expected dense tensors"
                    " with the samples in dimension 0. Give it as"
                    + (
                        " torch.nested.to_padded_tensor(x, 0.0) with a mask."
                        if t.is_nested
                        else " x.to_dense(), or wrap a model that wants sparse inputs."
                    )
                )
        sizes = [t.shape[0] if t.dim() else None for t in tensors]
        if None in sizes or len(set(sizes)) > 1:
            raise ArgumentError(
                "every input tensor must have the samples in dimension 0, found shapes"
                f" {[tuple(t.shape) for t in tensors]}."
                " Bind arguments that are shared by all samples into the model (functools.partial, a wrapper module)."
            )
        if sizes[0] == 0:
            raise ArgumentError("the inputs hold 0 samples: expected at least 1. Give a probe that is not empty.")
        x = _map(x, _plain)
        given = (*tensors, task_labels)
        task_labels = _labels(task_labels, tensors[0].device)
        if isinstance(task_labels, Tensor):
            task_labels = _plain(task_labels)
            if task_labels.dim() != 1 or task_labels.shape[0] != sizes[0]:
                raise ArgumentError(
                    f"task_labels must be one integer or one per sample: expected shape ({sizes[0]},),"
                    f" found {tuple(task_labels.shape)}. Give the task label of every probe sample."
                )
        return Batch(x, task_labels, given)

    def __len__(self) -> int:
        """The number of samples N."""
        return int(_tensors(self.x)[0].shape[0])

    def take(self, index: slice | Tensor | list[int]) -> Batch:
        """The samples at `index`, in its order."""
        labels = self.task_labels[index] if isinstance(self.task_labels, Tensor) else self.task_labels
        return Batch(_map(self.x, lambda t: t[index]), labels)

    def part(self, some: slice) -> Batch:
        """A range of samples, recognised by the caller's tensors and the bounds."""
        batch = self.take(some)
        return Batch(batch.x, batch.task_labels, (*self.given, some.start, some.stop))

    def cast(self, dtype: torch.dtype | None) -> Batch:
        """Cast floating inputs to `dtype` and complex ones to the same precision; keep integer and boolean inputs."""
        if dtype is None:
            return self
        return Batch(_map(self.x, lambda t: _cast(t, dtype)), self.task_labels)

    def with_gradients(self) -> Batch:
        """Copies of the inputs that require a gradient where possible and may be written to."""
        return Batch(_map(self.x, _asking), self.task_labels)

    def arguments(self, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the model's call."""
        label = () if self.task_labels is None else (self.task_labels,)
        whole: tuple[tuple[Any, ...], dict[str, Any]] = ((self.x, *label), {})
        if isinstance(self.x, Mapping):
            parts = (), dict(self.x) | dict.fromkeys(["task_labels"][: len(label)], self.task_labels)
        elif isinstance(self.x, tuple | list):
            parts = (*self.x, *label), {}
        else:
            return whole
        return whole if _fits(model, whole) and not _fits(model, parts) else parts

    def call_told(self, model: nn.Module) -> str:
        """Return the form of the model's call, for messages."""
        args, kwargs = self.arguments(model)
        spread = isinstance(self.x, tuple | list) and args[0] is not self.x
        return "model(**x)" if kwargs else "model(*x)" if spread else "model(x)"

    @property
    def device(self) -> torch.device:
        """Device of the first input tensor."""
        return _tensors(self.x)[0].device

    def tensors(self) -> list[Tensor]:
        """Every per-sample tensor, task labels last."""
        return _tensors(self.x) + ([self.task_labels] if isinstance(self.task_labels, Tensor) else [])

    @property
    def n_inputs(self) -> int:
        """Number of inputs among `tensors()` (the rest are task labels)."""
        return len(_tensors(self.x))

    def shapes(self) -> tuple[object, ...]:
        """Shape of one sample and dtype of every tensor: equal for batches with the same graph."""
        labels = self.task_labels if isinstance(self.task_labels, int) else None
        return (*((tuple(t.shape[1:]), t.dtype, t.device) for t in self.tensors()), labels)

    def with_tensors(self, tensors: list[Tensor]) -> Batch:
        """The same batch with its tensors (in the order of `tensors()`) replaced."""
        rest = iter(tensors)
        x = _map(self.x, lambda _: next(rest))
        return Batch(x, next(rest) if isinstance(self.task_labels, Tensor) else self.task_labels)


def _fits(model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Return whether a model's forward pass takes such arguments, according to its signature."""
    try:
        inspect.signature(model.forward).bind(*call[0], **call[1])
    except (TypeError, ValueError):
        return False
    return True


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    if t.is_complex():
        return t.to(dtype.to_complex())
    return t.to(dtype) if t.is_floating_point() else t


def _asking(t: Tensor) -> Tensor:
    return t.detach().requires_grad_().clone() if t.is_floating_point() or t.is_complex() else t


def _labels(value: Any, device: torch.device) -> Any:
    """Return an `int` for one label of all samples, a tensor for one label each, and other values unchanged."""
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        try:
            value = torch.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError):
            raise ArgumentError(
                f"task_labels must be one integer or one per sample, found {value!r}. Give whole numbers."
            ) from None
    if isinstance(value, Integral) or (isinstance(value, Tensor) and value.dim() == 0):
        return int(value)
    return value


def labels_of_second(task_labels: Any, task_labels2: Any) -> Any:
    """Return the task labels of a second batch: by default the first one's, if they are a single number."""
    first = _labels(task_labels, torch.device("cpu"))
    return first if task_labels2 is None and isinstance(first, int) else task_labels2


def _plain(t: Tensor) -> Tensor:
    """Return a detached tensor of no subclass (such as images), usable by autograd even if made in inference mode."""
    if type(t) is not Tensor and not is_traceable_wrapper_subclass(t):
        t = t.as_subclass(Tensor)
    if not t.is_inference():
        return t.detach()
    with torch.inference_mode(False):
        return t.clone()
