"""From a configuration to the objects that train: benchmark, model, strategy, plugin."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_ntk.adapters.evaluation import ntk_metrics
from avalanche_ntk.adapters.plugin import NTKPlugin
from avalanche_ntk.experiments.config import BenchmarkConfig, RunConfig
from avalanche_ntk.experiments.names import BENCHMARK_ARGUMENTS
from avalanche_ntk.experiments.schema import ConfigError, unknown_choice
from avalanche_ntk.lab.benchmarks import SHIFTS, LabelledData, load_data
from avalanche_ntk.lab.benchmarks.images import has_test_part
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.lab.regimes import build_regime
from avalanche_ntk.recorder.probes import ProbeSpec
from avalanche_ntk.recorder.schedule import Schedule
from avalanche_ntk.strategies.recipes import RECIPES, build


@dataclass
class Setup:
    """The objects of one run, ready to train.

    Attributes:
        benchmark: The benchmark.
        strategy: The strategy; the plugin is among its plugins.
        ntk: The plugin that measures.
        streams: The arguments of successive calls of `train`.
        facts: Further entries for the record: the benchmark and the regime in words.
    """

    benchmark: Any
    strategy: Any
    ntk: NTKPlugin
    streams: list[Any]
    facts: dict[str, Any]


def make_benchmark(config: RunConfig) -> tuple[Any, tuple[int, ...]]:
    """Make the benchmark.

    Args:
        config: The configuration.

    Returns:
        The benchmark and the shape of one input.

    Raises:
        ArgumentError: The data are missing, or there are too few classes or samples.
    """
    b = config.benchmark
    seed = config.seed if b.seed is None else b.seed
    data = _load(b, seed)
    given = {name: getattr(b, name) for name in BENCHMARK_ARGUMENTS[b.name] if name != "seed"}
    arguments = {name: value for name, value in given.items() if value is not None}
    shift = cast(Callable[..., Any], SHIFTS[b.name])
    return shift(data, seed=seed, **arguments), data.input_shape


def _load(b: BenchmarkConfig, seed: int) -> LabelledData:
    path = Path(b.data)
    if path.suffix.lower() == ".zip" and path.is_file():
        found = path.stat()
        # A process that makes many runs decodes the images only once, unless the file changes. The seed splits off a
        # test part; where there is one, runs of all seeds share the data.
        split = 0 if has_test_part(path) else seed
        return _load_zip(str(path.resolve()), (found.st_size, found.st_mtime_ns), b.image_size, b.standardise, split)
    return load_data(
        b.data,
        data_root=b.data_root,
        download=b.download,
        image_size=b.image_size,
        seed=seed,
        standardise=b.standardise,
    )


@lru_cache(maxsize=1)
def _load_zip(path: str, state: tuple[int, int], image_size: int | None, standardise: bool, seed: int) -> LabelledData:
    return load_data(path, image_size=image_size, seed=seed, standardise=standardise)


def make_model(config: RunConfig, shape: tuple[int, ...], n_classes: int) -> tuple[nn.Module | None, float, str | None]:
    """Make the model and its learning rate.

    Args:
        config: The configuration.
        shape: Shape of one input.
        n_classes: Number of outputs.

    Returns:
        The model (None for the strategy's own), the learning rate, and a description of the regime.

    Raises:
        ArgumentError: An argument does not fit.
    """
    m, lr = config.model, config.optimizer.lr
    if m is None:
        return None, lr, None
    shared: dict[str, Any] = {
        "input_shape": shape,
        "n_classes": n_classes,
        "width": m.width,
        "depth": m.depth,
        "activation": m.activation,
        "seed": config.seed,
        **m.arguments,
    }
    if config.regime is None:
        return build_model(m.name, parametrisation=m.parametrisation, **shared), lr, None
    r = config.regime
    prepared = build_regime(r.name, m.name, base_lr=lr, base_width=r.base_width, alpha=r.alpha, **shared)
    return prepared.model, prepared.lr, prepared.sentence


def _require_device(name: str) -> None:
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return
    there = getattr(torch, kind, None)
    count = there.device_count() if there is not None and there.is_available() else 0
    if int(number or 0) >= count:
        found = f"{count} of this kind" if count else "none of this kind that torch can use"
        raise ConfigError(
            f"device: this machine has no {name!r}: found {found}. Give device cpu, or see what avalanche-ntk doctor "
            "says."
        )


def make_setup(config: RunConfig, run_folder: Path, *, done: int, further: list[Any]) -> Setup:
    """Make the objects of one run.

    Args:
        config: The configuration.
        run_folder: The plugin's run folder.
        done: Number of experiences trained before; with 0 a run in the folder is replaced.
        further: Plugins after the one that measures.

    Returns:
        The set-up.

    Raises:
        ConfigError: The strategy does not take an argument of the configuration, or this machine has no such device.
    """
    _require_device(config.device)
    benchmark, shape = make_benchmark(config)
    model, lr, regime = make_model(config, shape, benchmark.n_classes)
    recipe = RECIPES[config.strategy.name]
    ntk = NTKPlugin(
        [ProbeSpec(p.size, p.from_experience, p.balance, p.seed, p.split) for p in config.probes],
        Schedule.from_name(config.schedule),
        run_folder=run_folder,
        overwrite=done == 0,
        resume=done or False,
        reduction=config.reduction,
        n_projections=config.n_projections,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        output_selector=recipe.output_selector,
        spot_check_every=config.spot_check_every,
        keep_kernels=config.keep_kernels,
        on_error=config.on_error,
        seed=config.seed,
    )
    overrides = _strategy_arguments(config, recipe)
    optimizer = _optimizer(config, model, lr)
    if optimizer is not None:
        if "optimizer" in recipe.drop or recipe.lr_scale != 1.0:
            raise ConfigError(
                f"optimizer: {config.strategy.name} is trained by plain SGD, or by nothing, in its recipe; found "
                f"{config.optimizer.name} with momentum {config.optimizer.momentum:g} and weight decay "
                f"{config.optimizer.weight_decay:g}. Leave all of the optimizer but lr out."
            )
        overrides["optimizer"] = optimizer
    strategy = build(
        config.strategy.name,
        benchmark=benchmark,
        model=model,
        lr=lr,
        epochs=config.epochs,
        mb_size=config.mb_size,
        plugins=[ntk, *further],
        evaluator=_evaluator(config, ntk, recipe.accuracy),
        device=config.device,
        seed=config.seed,
        **overrides,
    )
    facts = {"benchmark": benchmark.description.to_dict(), "regime": regime, "learning_rate": lr * recipe.lr_scale}
    streams = [benchmark.train_stream] if recipe.whole_stream else list(benchmark.train_stream)
    return Setup(benchmark, strategy, ntk, streams, facts)


def _strategy_arguments(config: RunConfig, recipe: Any) -> dict[str, Any]:
    """Check the names of the strategy's arguments; the strategy checks their values."""
    accepted: set[str] = set()
    for cls in recipe.strategy_class.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        accepted |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    own = {"self", "model", "optimizer", "criterion", "train_mb_size", "train_epochs", "plugins", "evaluator", "device"}
    offered = sorted(accepted - own)
    for name in config.strategy.arguments:
        if name not in offered:
            found = unknown_choice("argument", name, offered)
            raise ConfigError(f"strategy.arguments: {config.strategy.name}: {found}")
    return dict(config.strategy.arguments)


def _optimizer(config: RunConfig, model: nn.Module | None, lr: float) -> torch.optim.Optimizer | None:
    """Make the optimizer; None for the recipe's plain SGD."""
    o = config.optimizer
    if o.name == "SGD" and not (o.momentum or o.weight_decay or o.nesterov):
        return None
    arguments: dict[str, Any] = {"lr": lr, "weight_decay": o.weight_decay}
    for name, value, takers in (
        ("momentum", o.momentum, ("SGD", "RMSprop")),
        ("nesterov", o.nesterov, ("SGD",)),
    ):
        if o.name in takers:
            arguments[name] = value
        elif value:
            raise ConfigError(
                f"optimizer: {o.name} has no {name}, found {value}. Leave it out, or use {' or '.join(takers)}."
            )
    if model is None:
        raise ConfigError(
            f"optimizer: {o.name} needs a named model, found model: null (the strategy's own). "
            "Name a model, or use plain SGD."
        )
    made: torch.optim.Optimizer = getattr(torch.optim, o.name)(model.parameters(), **arguments)
    return made


def _evaluator(config: RunConfig, ntk: NTKPlugin, accuracy: bool) -> EvaluationPlugin:
    metrics: list[Any] = []
    if accuracy:
        metrics = [
            accuracy_metrics(epoch=True, experience=True, stream=True),
            forgetting_metrics(experience=True, stream=True),
            bwt_metrics(experience=True, stream=True),
            loss_metrics(epoch=True, experience=True),
        ]
    flags: dict[str, Any] = dict.fromkeys(config.observables, True)
    metrics.append(ntk_metrics(ntk, kernel_image=config.tensorboard, **flags))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin(*metrics, loggers=[])
