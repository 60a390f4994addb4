"""The configuration of one run: its schema, reading, and the hash that identifies equal runs.

Nothing here imports torch, so that errors are reported immediately. `docs/experiments.md` has the same table.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.experiments import names
from avalanche_ntk.experiments.schema import (
    ConfigError,
    Document,
    as_plain,
    build,
    option,
    read_document,
    unknown_choice,
)
from avalanche_ntk.recorder.schedule import Schedule


def _check_device(name: str) -> None:
    """Refuse invalid device names; whether this machine has the device is checked when torch is loaded.

    Raises:
        ArgumentError: It is not a device name.
    """
    if not re.fullmatch(r"(cpu|mps|(cuda|xpu)(:\d+)?)", name):
        raise ArgumentError(
            f"unknown device {name!r}: expected 'cpu', 'cuda', 'cuda:N', 'mps', 'xpu' or 'xpu:N'. Leave it out for "
            "'cpu'."
        )


@dataclass(frozen=True)
class StrategyConfig:
    """The strategy, built by `avalanche_ntk.strategies.recipes`."""

    name: str = option("Naive", choices=names.strategies, help="Name of the recipe.")
    arguments: dict[str, Any] = option(
        factory=dict, help="Arguments of the strategy's class that replace the recipe's, such as `mem_size: 200`."
    )


@dataclass(frozen=True)
class BenchmarkConfig:
    """The benchmark: a function of `avalanche_ntk.lab.benchmarks` and its arguments.

    A null argument takes the function's default; an argument that the benchmark does not have is refused.
    """

    name: str = option("class_incremental", choices=names.benchmarks, help="Kind of shift.")
    data: str = option(
        "digits", help="What `load_data` takes: digits, markov, a name of torchvision.datasets, a folder, a zip."
    )
    data_root: str | None = option(None, help="Folder of torchvision's datasets.")
    download: bool = option(False, help="Whether torchvision may download what `data_root` lacks.")
    image_size: int | None = option(None, least=1, help="Side to which images are resized.")
    standardise: bool = option(False, help="Whether each channel has mean 0 and standard deviation 1 in training.")
    n_tasks: int | None = option(None, least=1, help="Number of tasks.")
    classes_per_task: int | None = option(None, least=1, help="Classes of each task.")
    per_class: int | None = option(None, least=1, help="Training samples of each class in one task.")
    similarity: float | None = option(None, least=0, help="class_overlap: Jaccard similarity of the class sets.")
    alpha: float | None = option(None, least=0, help="class_frequency: how far the frequencies move, 0 to 1.")
    imbalance: float | None = option(None, least=1, help="class_frequency: most frequent class over the rarest.")
    size: int | None = option(None, least=1, help="class_frequency: training samples of one task.")
    steps: int | None = option(None, least=0, help="blurred: mixtures at each boundary.")
    degrees: list[float] | None = option(None, help="rotated: the angle of each task.")
    fresh: bool | None = option(None, help="Whether classes that stay have new samples in each task.")
    task_labels: bool | None = option(None, help="Whether each experience has a task label of its own.")
    seed: int | None = option(None, least=0, help="Seed of classes and samples; the run's when null.")


@dataclass(frozen=True)
class ModelConfig:
    """The model, made by `avalanche_ntk.lab.models.build_model`."""

    name: str = option(
        "mlp", choices=names.models, open_choices=True, help="Model, `torchvision:NAME` or `module:factory`."
    )
    width: int | None = option(None, least=1, help="Width; the model's own when null.")
    depth: int | None = option(None, least=0, help="Depth; the model's own when null.")
    parametrisation: str | None = option(
        None, choices=lambda: ("standard", "ntk"), help="Parametrisation; a regime sets it itself."
    )
    activation: str | None = option(None, choices=names.activations, help="Activation; the model's own when null.")
    arguments: dict[str, Any] = option(factory=dict, help="Further arguments of the model, such as `norm: group`.")


@dataclass(frozen=True)
class RegimeConfig:
    """Lazy or rich training, set up by `avalanche_ntk.lab.regimes.build_regime`; its `base_lr` is `optimizer.lr`."""

    name: str = option(choices=names.regimes, help="Name of the regime.")
    base_width: int = option(64, least=1, help="Width at which the lazy learning rate is `optimizer.lr`.")
    alpha: float = option(1.0, above=0, help="Scale of the outputs in `centred` and `mean_field`.")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer: a class of `torch.optim`."""

    name: str = option("SGD", choices=names.optimizers, help="Optimizer.")
    lr: float = option(0.1, above=0, help="Learning rate; with a regime, its base learning rate.")
    momentum: float = option(0.0, least=0, help="Momentum (SGD and RMSprop).")
    weight_decay: float = option(0.0, least=0, help="Weight decay.")
    nesterov: bool = option(False, help="Nesterov's momentum (SGD).")


@dataclass(frozen=True)
class ProbeConfig:
    """The probe, as `avalanche_ntk.ProbeSpec`."""

    size: int = option(64, least=1, help="Number of samples N.")
    from_experience: int | None = option(
        0, least=0, help="Experience to choose from; null takes one probe of each task."
    )
    balance: str = option("class", choices=lambda: ("class", "none"), help="Equally many of each class, or uniformly.")
    split: str = option("train", choices=lambda: ("train", "test"), help="Training or test samples.")
    seed: int = option(0, least=0, help="Seed of the choice.")


@dataclass(frozen=True)
class RunConfig:
    """One run: all settings that its numbers depend on."""

    strategy: StrategyConfig = option(
        factory=StrategyConfig, shorthand="name", help="Strategy; its name alone will do."
    )
    benchmark: BenchmarkConfig = option(
        factory=BenchmarkConfig, shorthand="name", help="Stream of tasks; its name alone will do."
    )
    model: ModelConfig | None = option(
        factory=ModelConfig, shorthand="name", help="Model; null for the strategy's own small one."
    )
    regime: RegimeConfig | None = option(None, shorthand="name", help="Lazy or rich; null trains the model as it is.")
    optimizer: OptimizerConfig = option(
        factory=OptimizerConfig, shorthand="name", help="Optimizer; its name alone will do."
    )
    epochs: int = option(5, least=1, help="Epochs of each experience.")
    mb_size: int = option(16, least=1, help="Size of the training minibatch.")
    probe: ProbeConfig | list[ProbeConfig] = option(
        factory=ProbeConfig, shorthand="size", help="Probe, or a list of them; its size alone will do."
    )
    schedule: str = option(
        "every_iterations:5",
        check=Schedule.from_name,
        help="When to measure, as `Schedule.from_name`; a boundary is always measured.",
    )
    observables: list[str] = option(
        factory=list, choices=names.observables, help="What else to measure: flags of `ntk_metrics`."
    )
    reduction: str = option(
        "trace", choices=lambda: ("trace", "sum_logits", "projected"), help="Reduction of the kernel."
    )
    n_projections: int | None = option(None, least=1, help="projected: number of sign vectors.")
    dtype: str | None = option(
        None, choices=lambda: ("float32", "float64"), help="Precision of the kernel; the model's own when null."
    )
    keep_kernels: bool = option(True, help="Whether the kernels are stored, not only their numbers.")
    spot_check_every: int = option(
        50, least=0, help="Measurements between two comparisons with the slow oracle; 0: none."
    )
    on_error: str = option("warn", choices=lambda: ("warn", "raise"), help="What a measurement that fails does.")
    seed: int = option(0, least=0, help="Seed of data, model and training.")
    device: str = option("cpu", help="Device, such as cpu, cuda or cuda:1.", check=_check_device)
    threads: int = option(1, least=1, help="Threads of torch on the CPU: sums depend on their number.")
    checkpoint: str = option(
        "plain",
        choices=lambda: ("plain", "whole"),
        help="What is stored after an experience: numbers, or, where these are too few, the whole strategy (a pickle).",
    )
    tensorboard: bool = option(False, help="Whether Avalanche's curves go to `tensorboard/` in the run folder.")

    def __post_init__(self) -> None:
        if self.regime is not None and self.model is None:
            raise ArgumentError(
                "a regime builds the model: expected a model, found none (model: null). Name one, such as mlp, "
                "or leave the regime out."
            )
        if self.regime is not None and self.model is not None and self.model.parametrisation is not None:
            raise ArgumentError(
                "a regime sets the parametrisation itself, found model.parametrisation "
                f"{self.model.parametrisation!r}. Leave one of the two out."
            )

    @property
    def probes(self) -> list[ProbeConfig]:
        """The probes as a list."""
        return list(self.probe) if isinstance(self.probe, list) else [self.probe]

    def as_dict(self) -> dict[str, Any]:
        """Return every key written out, as stored in `run.json`."""
        plain: dict[str, Any] = as_plain(self)
        return plain

    @property
    def hash(self) -> str:
        """SHA-256 of the content, without keys that do not affect numbers (`checkpoint`, `tensorboard`)."""
        return content_hash(self.as_dict())

    def with_values(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration with other values, by dotted key.

        Args:
            values: Such as `{"model.width": 128}`.

        Returns:
            A new configuration.

        Raises:
            ConfigError: A key is unknown or a value does not fit.
        """
        document = Document(self.as_dict(), "the configuration").with_values(
            values, lambda key: f"the value of {key}", SHORTHANDS
        )
        return resolve(document)


SHORTHANDS = {f.name: f.metadata["shorthand"] for f in fields(RunConfig) if f.metadata["shorthand"]}
"""By section, the key set by a plain value in its place."""

_NO_INFLUENCE = ("checkpoint", "tensorboard")
_ADDED = ("n_projections",)  # runs recorded before these keys existed keep their hash


def content_hash(config: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    """Hash a resolved configuration.

    Args:
        config: The result of `RunConfig.as_dict`.
        without: Further keys to leave out.

    Returns:
        SHA-256, hexadecimal.
    """
    kept = {k: v for k, v in config.items() if k not in (*_NO_INFLUENCE, *without) and not (k in _ADDED and v is None)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def resolve(document: Document) -> RunConfig:
    """Make a configuration from a document.

    Args:
        document: The content of a file or flags.

    Returns:
        The configuration, every default filled in.

    Raises:
        ConfigError: It does not fit the schema.
    """
    config = build(RunConfig, document)
    benchmark = config.benchmark
    accepted = names.BENCHMARK_ARGUMENTS[benchmark.name]
    optional = set().union(*names.BENCHMARK_ARGUMENTS.values()) - {"seed"}
    for key in sorted(optional - accepted):
        if getattr(benchmark, key) is not None:
            takes = ", ".join(sorted(accepted))
            raise document.error(
                ("benchmark", key), f"benchmark {benchmark.name!r} has no {key}: it takes {takes}. Leave {key} out."
            )
    needed = names.REQUIRED_ARGUMENTS.get(benchmark.name)
    if needed and getattr(benchmark, needed) is None:
        raise document.error(
            ("benchmark",),
            f"benchmark {benchmark.name!r} needs benchmark.{needed}, found none. Give a number from 0 to 1.",
        )
    return config


def load_config(
    source: RunConfig | Mapping[str, Any] | str | Path | None,
    values: Mapping[str, Any] | None = None,
    called: Callable[[str], str] = lambda key: f"the value of {key}",
) -> RunConfig:
    """Read a configuration.

    Args:
        source: A configuration, its keys as a mapping, a YAML file, the name of one that ships with this package (see
            `ready()`), or None for the defaults.
        values: Values by dotted key that replace those of the source, as `--set` gives them.
        called: Gives the name of such a value's place in messages.

    Returns:
        The configuration, every default filled in.

    Raises:
        ConfigError: The file cannot be read, or does not fit the schema.
    """
    if isinstance(source, RunConfig):
        document = Document(source.as_dict(), "the configuration")
    elif source is None:
        document = Document({}, "the configuration")
    elif isinstance(source, Mapping):
        document = Document(as_plain(source), "the configuration")
    else:
        document = read_document(ready_path(source))
    if values:
        document = document.with_values(values, called, SHORTHANDS)
    return resolve(document)


def ready() -> dict[str, Path]:
    """Return the configurations and sweeps that ship with this package, by name."""
    folder = Path(__file__).parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def default_folder(config: RunConfig) -> Path:
    """Return the default folder of a run: strategy, benchmark and the beginning of its hash."""
    return Path("runs") / f"{config.strategy.name}-{config.benchmark.name}-{config.hash[:8]}"


def ready_path(source: str | Path) -> Path:
    """Return the file of a path or of a ready configuration's name; an existing file takes precedence.

    Args:
        source: The path or the name.

    Returns:
        The file; a path that does not exist is returned unchanged.

    Raises:
        ConfigError: It looks like a name, but is unknown.
    """
    path = Path(source)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    known = ready()
    if str(source) not in known:
        raise ConfigError(unknown_choice("configuration", str(source), known, ", or the path of a YAML file"))
    return known[str(source)]
