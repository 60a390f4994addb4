"""Models of a given width and depth, in standard or NTK parametrisation, and any model by name.

Width is the number of units (channels) of every hidden layer; a sweep over widths changes nothing else. In *standard*
parametrisation layers and their initialisation are torch's own. In *NTK* parametrisation (Jacot et al. 2018; Lee et al.
2019) every weight and bias is drawn from N(0, 1) and a layer computes `(σ_w / √fan_in) · W x + σ_b · b`, so that the
kernel has a limit at infinite width with a learning rate independent of width.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn

from avalanche_ntk.errors import ArgumentError, checked_seed
from avalanche_ntk.lab.layers import ACTIVATIONS, PARAMETRISATIONS, SECOND_MOMENTS, NTKConv2d, NTKLinear, weight_scale
from avalanche_ntk.lab.networks.convolutional import CNN, ResNet18
from avalanche_ntk.lab.networks.dense import MLP
from avalanche_ntk.lab.networks.recurrent import RNN
from avalanche_ntk.lab.networks.transformer import ViT

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "MODELS",
    "PARAMETRISATIONS",
    "RNN",
    "SECOND_MOMENTS",
    "NTKConv2d",
    "NTKLinear",
    "ResNet18",
    "ViT",
    "build_model",
    "weight_scale",
    "width_sweep",
]


def _mlp(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"in_features": math.prod(shape)}


def _image(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    if len(shape) != 3:
        raise ArgumentError(
            f"model {name!r} reads images: expected input_shape (channels, height, width), found {shape}."
            " Reshape the inputs, or use model 'mlp'."
        )
    return {"in_channels": shape[0]}


def _cnn(shape: tuple[int, ...]) -> dict[str, Any]:
    return {**_image("cnn", shape), "image_size": shape[1:]}


def _vit(shape: tuple[int, ...]) -> dict[str, Any]:
    sizes = _image("vit", shape)
    if shape[1] != shape[2]:
        raise ArgumentError(
            f"model 'vit' reads square images, found input_shape {shape}. Crop or resize the images, or use model"
            " 'cnn'."
        )
    # Patches of 4 would give only four tokens for 8×8 digits.
    return {
        **sizes,
        "image_size": shape[1],
        "patch_size": 4 if shape[1] >= 28 and shape[1] % 4 == 0 else 2 - shape[1] % 2,
    }


def _sequence(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    if len(shape) not in (1, 2, 3):
        raise ArgumentError(
            f"model {name!r} reads sequences: expected input_shape (steps, features), (channels, rows, columns), or"
            f" (steps,) of tokens, found {shape}. Reshape the inputs, or use model 'mlp'."
        )
    if len(shape) == 1:
        return {"in_features": None}
    return {"in_features": shape[1] if len(shape) == 2 else shape[0] * shape[2]}


# Name → class, and the arguments derived from the shape of one input.
MODELS: dict[str, tuple[Callable[..., nn.Module], Callable[[tuple[int, ...]], dict[str, Any]]]] = {
    "mlp": (MLP, _mlp),
    "cnn": (CNN, _cnn),
    "resnet18": (ResNet18, partial(_image, "resnet18")),
    "vit": (ViT, _vit),
    "rnn": (partial(RNN, cell="rnn"), partial(_sequence, "rnn")),
    "gru": (partial(RNN, cell="gru"), partial(_sequence, "gru")),
    "lstm": (partial(RNN, cell="lstm"), partial(_sequence, "lstm")),
}


def build_model(
    model: str | Callable[..., nn.Module],
    *,
    input_shape: Sequence[int],
    n_classes: int,
    width: int | None = None,
    depth: int | None = None,
    parametrisation: str | None = None,
    activation: str | None = None,
    seed: int | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a model by name, or with your own factory.

    Args:
        model: A key of `MODELS`; `"torchvision:NAME"`, or a torchvision name that is not a key of `MODELS` (built
            without pretrained weights or downloads); `"module:factory"`, a callable of an importable module; or a
            callable. A factory gets `input_shape` and `n_classes` if it has such parameters, and all other arguments
            that are not None.
        input_shape: Shape of one input, without the batch.
        n_classes: Number of outputs C.
        width: Width of the hidden layers; None for the model's default.
        depth: Depth; None for the model's default.
        parametrisation: "standard" or "ntk"; None for the model's default.
        activation: A key of `ACTIVATIONS`; None for the model's default.
        seed: Seed of the initial weights, without affecting torch's generator; None uses that generator.
        **arguments: Further arguments of the model.

    Returns:
        The model, on the CPU.

    Raises:
        ArgumentError: The name is unknown (the nearest are listed), an argument does not fit, or the result is not a
            module.

    Examples:
        >>> net = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=32, depth=1, seed=0)
        >>> sum(p.numel() for p in net.parameters())  # 64·32 + 32 + 32·10 + 10
        2410
    """
    builder = _builder(model, tuple(int(n) for n in input_shape), n_classes)
    given = {"width": width, "depth": depth, "parametrisation": parametrisation, "activation": activation, **arguments}
    chosen = {name: value for name, value in given.items() if value is not None}
    builder.require(chosen)
    if seed is None:
        built = builder.call(**{**builder.fixed, **chosen})
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(checked_seed(seed))
            built = builder.call(**{**builder.fixed, **chosen})
    if not isinstance(built, nn.Module):
        raise ArgumentError(
            f"model {builder.label!r} must build a torch.nn.Module, found {type(built).__name__}."
            " Return the module from the factory."
        )
    return built


def width_sweep(
    model: str | Callable[..., nn.Module], widths: Sequence[int], **arguments: Any
) -> Iterator[tuple[int, nn.Module]]:
    """Yield `(width, model)` for each width: same depth, heads, activation, parametrisation and seed.

    Args:
        model: As in `build_model`; it must have an argument `width`.
        widths: The widths, in order.
        **arguments: Arguments of `build_model`; everything but the width is kept.

    Yields:
        The width and a model of that width.

    Raises:
        ArgumentError: As in `build_model`.
    """
    if "width" in arguments:
        raise ArgumentError(
            f"width_sweep sets the width itself, found width={arguments['width']!r} besides widths={list(widths)}."
            " Leave width out."
        )
    for width in widths:
        yield width, build_model(model, width=width, **arguments)


_OWN = ("width", "depth", "parametrisation", "activation")


@dataclass(frozen=True)
class _Builder:
    """A model's name in messages, its constructor and accepted arguments, and the arguments set by the data."""

    label: str
    call: Callable[..., Any]
    fixed: dict[str, Any]
    accepts: frozenset[str]
    anything: bool = False
    refuses: tuple[str, ...] = ()

    def require(self, chosen: dict[str, Any]) -> None:
        foreign = [n for n in chosen if n in self.refuses or (n not in self.accepts and not self.anything)]
        if foreign:
            offer = f"it accepts {', '.join(sorted(self.accepts))}" if self.accepts else "it accepts none of these"
            raise ArgumentError(
                f"model {self.label!r} has no argument {', '.join(map(repr, foreign))}: {offer}."
                " Leave it out, or use a model that has it."
            )


def _builder(model: str | Callable[..., nn.Module], shape: tuple[int, ...], n_classes: int) -> _Builder:
    data = {"input_shape": shape, "n_classes": n_classes}
    if not isinstance(model, str):
        if not callable(model) or isinstance(model, nn.Module):
            raise ArgumentError(
                f"model must be a name or a callable that builds a module, found {type(model).__name__}."
                " Give lambda: module, or a name."
            )
        return _of_user(getattr(model, "__name__", type(model).__name__), model, data)
    if model in MODELS:
        call, sizes = MODELS[model]
        fixed = {"n_classes": n_classes, **sizes(shape)}
        named, _ = _parameters(call)
        return _Builder(model, call, fixed, frozenset(named) - {"n_classes", "in_features", "in_channels", "cell"})
    if ":" in model and not model.startswith("torchvision:"):
        return _of_user(model, _imported(model), data)
    zoo = importlib.import_module("torchvision.models")
    name = model.removeprefix("torchvision:")
    if name not in zoo.list_models(module=zoo):  # detection and segmentation models return no logits
        raise _unknown_model(model, name, zoo.list_models(module=zoo))
    named, _ = _parameters(zoo.get_model_builder(name))
    accepts = frozenset(named) - {"weights", "progress"}
    call = partial(zoo.get_model, name, weights=None)
    # Its builders take **kwargs and pass them to classes without our arguments.
    return _Builder(model, call, {"num_classes": n_classes}, accepts, anything=True, refuses=_OWN)


def _of_user(label: str, call: Callable[..., Any], data: dict[str, Any]) -> _Builder:
    named, anything = _parameters(call)
    fixed = {k: v for k, v in data.items() if k in named}
    return _Builder(label, call, fixed, frozenset(named) - frozenset(data), anything)


def _parameters(call: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of keyword parameters, and whether arbitrary ones are accepted."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature raises its own error
        return [], True
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _unknown_model(asked: str, name: str, zoo: Sequence[str]) -> ArgumentError:
    own = sorted(MODELS)
    near = get_close_matches(name, sorted({*own, *zoo}), n=3)
    hint = f" The nearest: {', '.join(map(repr, near))}." if near else ""
    return ArgumentError(
        f"unknown model {asked!r}: expected one of {', '.join(map(repr, own))}, a classifier of torchvision.models, or"
        f" 'module:factory'.{hint}"
    )


def _imported(path: str) -> Callable[..., Any]:
    where, _, what = path.partition(":")
    try:
        module = importlib.import_module(where)
    except (ImportError, ValueError) as exc:  # an empty module name is a ValueError
        raise ArgumentError(
            f"model {path!r} cannot be imported ({exc}): expected 'module:factory' with an importable module."
            " Install it, or run where it can be found."
        ) from exc
    factory: Any = getattr(module, what, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = get_close_matches(what, names, n=3)
        hint = f" The nearest: {', '.join(map(repr, near))}." if near else ""
        raise ArgumentError(f"module {where!r} has no callable {what!r}: expected a function or class.{hint}")
    made: Callable[..., Any] = factory
    return made
