"""Every strategy of Avalanche and of this package by name, with arguments that make it run.

One table for comparisons and for tests. A recipe is data: which class, which arguments beside the usual ones, which
kind of model and of stream, and what the kernel is measured on. `build` turns a name into a strategy.
"""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from avalanche.models import PNN, MlpVAE, MTSimpleMLP, SCRModel, SimpleMLP
from avalanche.models.expert_gate import ExpertGate
from avalanche.models.packnet import packnet_simple_mlp
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.plugins import EvaluationPlugin, GenerativeReplayPlugin, RARPlugin, RWalkPlugin
from avalanche.training.supervised import VAETraining
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, unknown_name
from avalanche_ntk.lab.models import MLP

WIDTH = 32
MEMORY = 64


@dataclass(frozen=True)
class Setting:
    """What a recipe may look at when it chooses arguments.

    Attributes:
        input_shape: Shape of one sample.
        n_classes: Number of classes in the whole stream.
        lr: Learning rate.
        epochs: Epochs for each experience.
        mb_size: Size of the training minibatch.
        device: Device of the strategy.
        model: The model; absent while the model itself is made.
    """

    input_shape: tuple[int, ...]
    n_classes: int
    lr: float
    epochs: int
    mb_size: int
    device: torch.device
    model: Any = None

    @property
    def n_features(self) -> int:
        """Numbers in one flattened sample."""
        return int(np.prod(self.input_shape))


class Autoencoder(nn.Module):
    """A small autoencoder in the form that Avalanche's `AETraining` asks for: its target is made by `feature_module`.

    Args:
        input_shape: Shape of one sample.
        latent: Units of the bottleneck.
    """

    def __init__(self, input_shape: Sequence[int], latent: int = 16) -> None:
        super().__init__()
        size = int(np.prod(input_shape))
        self.shape = tuple(input_shape)
        self.feature_module = nn.Identity()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, latent), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(latent, size), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction, shaped as the input."""
        out: Tensor = self.decoder(self.encoder(torch.sigmoid(x)))
        return out.view(-1, *self.shape)


def _mlp(s: Setting) -> nn.Module:
    return MLP(s.n_features, s.n_classes, width=WIDTH, depth=2)


def _simple_mlp(s: Setting) -> nn.Module:
    return SimpleMLP(num_classes=s.n_classes, input_size=s.n_features, hidden_size=WIDTH)


def _multi_head(s: Setting) -> nn.Module:
    return MTSimpleMLP(input_size=s.n_features, hidden_size=WIDTH)


def _contrastive(s: Setting) -> nn.Module:
    encoder = MLP(s.n_features, s.n_classes, width=WIDTH, depth=1).features
    return SCRModel(encoder, nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 16)))


def _no_arguments(s: Setting) -> dict[str, Any]:
    return {}


def _no_plugins(s: Setting) -> list[Any]:
    return []


def _silent() -> EvaluationPlugin:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        return EvaluationPlugin()


def _generator(s: Setting) -> Any:
    vae = MlpVAE(s.input_shape, nhid=2, device=s.device)
    return VAETraining(
        model=vae,
        optimizer=torch.optim.Adam(vae.parameters(), lr=0.01, weight_decay=1e-4),
        train_mb_size=s.mb_size,
        train_epochs=s.epochs,
        device=s.device,
        plugins=[GenerativeReplayPlugin()],
        evaluator=_silent(),
    )


def flat(output: Tensor) -> Tensor:
    """Select all numbers of an output as one vector a sample."""
    return output.flatten(1)


def latent_mean(output: Sequence[Tensor]) -> Tensor:
    """Select the mean of the latent code from a variational autoencoder's output.

    The reconstruction is drawn at random on every call and has no kernel of its own.

    Returns:
        The second entry, shape `(N, nhid)`.
    """
    return output[1]


@dataclass(frozen=True)
class Recipe:
    """How one strategy is built and what is measured on it.

    Attributes:
        strategy: The class, as `module:name`.
        model: Makes the model; None when the strategy makes its own.
        arguments: Arguments beside the usual ones.
        plugins: Plugins beside the caller's.
        drop: Usual arguments that the class does not take.
        rename: Usual arguments that the class calls otherwise.
        task_labels: Whether the stream must give a task label to each experience.
        whole_stream: Whether it is trained once, on the whole stream.
        features: Length of a flattened sample that the strategy's own model insists on; any when None.
        sample_shape: Shape of a sample that the strategy's own model insists on; any when None.
        output_selector: Picks the `(N, C)` output that is measured; give it to `NTKPlugin`.
        accuracy: Whether accuracy can be computed while training (the output has classes).
        lr_scale: What the learning rate is multiplied by, where the loss is a sum and not a mean.
        package: Optional package that it needs.
        downloads: Whether building it downloads pretrained weights.
        broken_because: Why it cannot run with today's versions, with or without the plugin; None when it runs.
        measured: The function whose kernel is measured.
        note: What a reader of the series should know.
    """

    strategy: str
    model: Callable[[Setting], nn.Module] | None = _mlp
    arguments: Callable[[Setting], dict[str, Any]] = _no_arguments
    plugins: Callable[[Setting], list[Any]] = _no_plugins
    drop: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    task_labels: bool = False
    whole_stream: bool = False
    features: int | None = None
    sample_shape: tuple[int, ...] | None = None
    output_selector: Callable[[Any], Tensor] | None = None
    accuracy: bool = True
    lr_scale: float = 1.0
    package: str | None = None
    downloads: bool = False
    broken_because: str | None = None
    measured: str = "logits"
    note: str = ""

    @property
    def strategy_class(self) -> type:
        """The class; importing it is put off until it is used."""
        module, name = self.strategy.split(":")
        found: type = getattr(importlib.import_module(module), name)
        return found


_A = "avalanche.training:"
_OWN = "avalanche_ntk.strategies:"

RECIPES: dict[str, Recipe] = {
    "Naive": Recipe(_A + "Naive"),
    "OnlineNaive": Recipe(_A + "OnlineNaive", rename={"train_epochs": "train_passes"}, note="deprecated in Avalanche"),
    "Cumulative": Recipe(_A + "Cumulative"),
    "JointTraining": Recipe(_A + "JointTraining", whole_stream=True, note="the whole stream is one experience"),
    "FromScratchTraining": Recipe(
        _A + "FromScratchTraining", note="each experience begins a new segment: the model is reinitialised"
    ),
    "Replay": Recipe(_A + "Replay", arguments=lambda s: {"mem_size": MEMORY}),
    "EWC": Recipe(_A + "EWC", arguments=lambda s: {"ewc_lambda": 1.0}),
    "EWC_online": Recipe(_A + "EWC", arguments=lambda s: {"ewc_lambda": 1.0, "mode": "online", "decay_factor": 0.9}),
    "LwF": Recipe(_A + "LwF", arguments=lambda s: {"alpha": 1.0, "temperature": 2.0}),
    "SynapticIntelligence": Recipe(_A + "SynapticIntelligence", arguments=lambda s: {"si_lambda": 1.0}),
    "MAS": Recipe(_A + "MAS", arguments=lambda s: {"lambda_reg": 1.0, "alpha": 0.5}),
    "RWalk": Recipe(_A + "Naive", plugins=lambda s: [RWalkPlugin(ewc_lambda=0.1, ewc_alpha=0.9, delta_t=4)]),
    "LFL": Recipe(
        _A + "LFL",
        model=_simple_mlp,
        arguments=lambda s: {"lambda_e": 1.0},
        note="the head is frozen after the first experience; later ones train in eval mode",
    ),
    "GEM": Recipe(_A + "GEM", arguments=lambda s: {"patterns_per_exp": 16, "memory_strength": 0.5}, package="quadprog"),
    "AGEM": Recipe(_A + "AGEM", arguments=lambda s: {"patterns_per_exp": 16, "sample_size": 16}),
    "GDumb": Recipe(
        _A + "GDumb",
        arguments=lambda s: {"mem_size": MEMORY},
        note="each experience begins a new segment: the model is a new copy of the initial one",
    ),
    "GSS_greedy": Recipe(
        _A + "GSS_greedy",
        arguments=lambda s: {"mem_size": 4 * s.mb_size, "mem_strength": 2, "input_size": list(s.input_shape)},
        note="mem_size must be at least twice train_mb_size: with less it has nothing to compare with and fails",
    ),
    "DER": Recipe(_A + "DER", arguments=lambda s: {"mem_size": MEMORY, "batch_size_mem": 8}),
    "ER_ACE": Recipe(_A + "ER_ACE", arguments=lambda s: {"mem_size": 200, "batch_size_mem": 8}),
    "ER_AML": Recipe(
        _A + "ER_AML",
        arguments=lambda s: {"feature_extractor": s.model.features, "mem_size": 200, "batch_size_mem": 8},
        note="needs a buffer with a full minibatch of each class; a smaller one loops for ever",
    ),
    "MER": Recipe(
        _A + "MER",
        arguments=lambda s: {"mem_size": MEMORY, "batch_size_mem": 4, "n_inner_steps": 2},
        note="many optimizer steps an iteration, and an interpolation of weights after them",
    ),
    "MIR": Recipe(_A + "MIR", arguments=lambda s: {"mem_size": MEMORY, "subsample": 16, "batch_size_mem": 8}),
    "RAR": Recipe(
        _A + "Naive",
        plugins=lambda s: [
            RARPlugin(batch_size_mem=8, mem_size=MEMORY, opt_lr=s.lr, name_ext_layer="features", iter_fgsm=1)
        ],
    ),
    "FeatureReplay": Recipe(
        _A + "FeatureReplay",
        arguments=lambda s: {
            "criterion": MaskedCrossEntropy(),
            "mem_size": MEMORY,
            "batch_size_mem": 8,
            "last_layer_name": "classifier",
        },
    ),
    "GenerativeReplay": Recipe(
        _A + "GenerativeReplay",
        arguments=lambda s: {"generator_strategy": _generator(s)},
        measured="logits of the solver; the generator is not measured",
    ),
    "CWRStar": Recipe(
        _A + "CWRStar",
        arguments=lambda s: {"cwr_layer_name": "classifier"},
        note="the head is rewritten at every boundary, which is noted; features are frozen after the first",
    ),
    "CoPE": Recipe(
        _A + "CoPE",
        arguments=lambda s: {"mem_size": MEMORY, "n_classes": s.n_classes, "p_size": s.n_classes},
        accuracy=False,
        measured="embedding, normalised",
        note="made for online streams: one iteration an experience",
    ),
    "ICaRL": Recipe(
        _A + "ICaRL",
        arguments=lambda s: {
            "feature_extractor": s.model.features,
            "classifier": s.model.classifier,
            "memory_size": MEMORY,
            "buffer_transform": None,
            "fixed_memory": True,
        },
        drop=("model", "criterion"),
        measured="logits of the training head; the nearest-mean classifier of evaluation has no gradient",
    ),
    "SCR": Recipe(
        _A + "SCR",
        model=_contrastive,
        arguments=lambda s: {"mem_size": MEMORY, "batch_size_mem": 8},
        drop=("criterion",),
        accuracy=False,
        measured="projected features (training head); the nearest-mean classifier of evaluation has no gradient",
    ),
    "BiC": Recipe(
        _A + "BiC",
        arguments=lambda s: {"mem_size": MEMORY, "val_percentage": 0.25, "stage_2_epochs": 2},
        broken_because="BiCPlugin calls MultiStepLR(verbose=...), an argument that torch has removed; with the argument"
        " accepted it runs, bit-identical",
        measured="logits before the bias layer, which is outside the model",
    ),
    "PackNet": Recipe(
        "avalanche.training.supervised.strategy_wrappers:PackNet",
        model=lambda s: packnet_simple_mlp(s.n_classes, s.n_features, WIDTH, 1, drop_rate=0.0),
        arguments=lambda s: {"train_epochs": max(2, s.epochs), "post_prune_epochs": 1, "prune_proportion": 0.5},
        task_labels=True,
        measured="logits of the probe's task through its mask",
        note="weights that PackNet holds by gradient hooks are counted: they are no part of the function; PackNet nests"
        " the caller's list of plugins and calls none of them, so add yours to strategy.plugins (recipes do)",
    ),
    "PNN": Recipe(
        _A + "PNNStrategy",
        model=lambda s: PNN(num_layers=1, in_features=s.n_features, hidden_features_per_column=WIDTH),
        task_labels=True,
        measured="logits of the probe's task",
        note="old columns are frozen when a new one comes; then only the probe's head is left of its kernel",
    ),
    "StreamingLDA": Recipe(
        _A + "StreamingLDA",
        model=lambda s: MLP(s.n_features, s.n_classes, width=16, depth=1).features,
        arguments=lambda s: {"input_size": 16, "num_classes": s.n_classes},
        drop=("optimizer",),
        rename={"model": "slda_model"},
        measured="features; the classifier is fitted in closed form and has no gradient",
        note="no weight changes: every distance is 0",
    ),
    "LearningToPrompt": Recipe(
        _A + "LearningToPrompt",
        model=None,
        arguments=lambda s: {
            "model_name": "simpleMLP",
            "pretrained": False,
            "use_cls_features": False,
            "use_mask": False,
            "use_vit": False,
            "num_classes": s.n_classes,
            "lr": s.lr,
        },
        drop=("optimizer",),
        features=6,
        note="with Avalanche's small test model; its vision transformers need timm, and cannot be built with 1.0.31:"
        " `TypeError: 'PretrainedCfg' object is not subscriptable`",
    ),
    "LaMAML": Recipe(
        "avalanche.training.supervised.lamaml_v2:LaMAML",
        model=_multi_head,
        arguments=lambda s: {"n_inner_updates": 2, "max_buffer_size": MEMORY, "buffer_mb_size": 8},
        task_labels=True,
        measured="logits of the probe's task",
        note="weights are changed without the optimizer: velocity per optimizer step is undefined",
    ),
    "VAETraining": Recipe(
        _A + "VAETraining",
        model=lambda s: MlpVAE(s.input_shape, nhid=4, device=s.device),
        drop=("criterion",),
        output_selector=latent_mean,
        accuracy=False,
        lr_scale=1e-4,
        measured="mean of the latent code; the reconstruction is drawn at random",
    ),
    "AETraining": Recipe(
        _A + "AETraining",
        model=lambda s: Autoencoder(s.input_shape),
        drop=("criterion",),
        output_selector=flat,
        accuracy=False,
        lr_scale=1e-2,
        measured="reconstruction, all its numbers",
    ),
    "AR1": Recipe(
        _A + "AR1",
        model=None,
        arguments=lambda s: {"lr": s.lr, "rm_sz": MEMORY},
        drop=("optimizer",),
        downloads=True,
        sample_shape=(3, 128, 128),
        note="colour images of 128 pixels; a pretrained MobileNet of its own",
    ),
    "ExpertGate": Recipe(
        _A + "ExpertGateStrategy",
        model=lambda s: ExpertGate(shape=s.input_shape, device=s.device),
        arguments=lambda s: {"ae_train_mb_size": s.mb_size, "ae_train_epochs": 1, "ae_latent_dim": 16},
        task_labels=True,
        downloads=True,
        measured="logits of the expert being trained",
        note="each experience trains another expert, which is noted",
    ),
    "OGD": Recipe(_OWN + "OGD", arguments=lambda s: {"n_samples": MEMORY}),
    "OGDPlus": Recipe(_OWN + "OGDPlus", arguments=lambda s: {"n_samples": MEMORY}),
    "PCAOGD": Recipe(_OWN + "PCAOGD", arguments=lambda s: {"n_samples": MEMORY, "n_components": MEMORY // 4}),
    "Linearised": Recipe(
        _OWN + "Linearised",
        measured="logits; of the linearised model from the second experience on",
        note="the kernel stands still from the second experience on",
    ),
    "KernelDrift": Recipe(_OWN + "KernelDrift", arguments=lambda s: {"n_samples": 16}),
    "SpectralDrift": Recipe(_OWN + "SpectralDrift", arguments=lambda s: {"n_samples": 16}),
    "ReactivationAwareLR": Recipe(
        _OWN + "ReactivationAwareLR", note="reads an NTKPlugin of its own, or the one given as ntk="
    ),
    "ReactivationReplay": Recipe(
        _OWN + "ReactivationReplay",
        arguments=lambda s: {"mem_size": MEMORY},
        note="reads an NTKPlugin of its own, or the one given as ntk=",
    ),
}


def build(
    name: str,
    *,
    benchmark: Any,
    model: nn.Module | None = None,
    lr: float = 0.1,
    epochs: int = 1,
    mb_size: int = 16,
    plugins: Sequence[Any] = (),
    evaluator: Any = None,
    device: torch.device | str = "cpu",
    seed: int | None = None,
    **overrides: Any,
) -> Any:
    """Build a strategy of Avalanche, or of this package, by name.

    Args:
        name: A key of `RECIPES`.
        benchmark: The benchmark that it will be trained on; sizes are read from its first experience.
        model: The model to train; the recipe's small one when None.
        lr: Learning rate of plain SGD.
        epochs: Epochs for each experience.
        mb_size: Size of the training minibatch.
        plugins: Your plugins, such as an `NTKPlugin`; they are called before the strategy's own where Avalanche lets
            them (SCR and PackNet put theirs first).
        evaluator: An `EvaluationPlugin`; one without metrics or loggers when None.
        device: Device of the strategy.
        seed: Seeds `random`, numpy and torch before the model is made, so that two builds train alike; nothing is
            seeded when None.
        **overrides: Arguments of the strategy that replace the recipe's.

    Returns:
        The strategy, ready to train.

    Raises:
        ArgumentError: The name is unknown, or the strategy makes its own model and one was given, or the stream does
            not fit.

    Example:
        >>> from avalanche_ntk.lab.benchmarks import split_digits
        >>> build("EWC", benchmark=split_digits(5), seed=0, ewc_lambda=10.0).__class__.__name__
        'EWC'
    """  # noqa: DOC501  (unknown_name makes an ArgumentError)
    if name not in RECIPES:
        raise unknown_name("strategy", name, RECIPES)
    recipe = RECIPES[name]
    setting = _setting(benchmark, lr, epochs, mb_size, torch.device(device))
    _check(name, recipe, setting, benchmark, model, overrides)
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
    if model is None and recipe.model is not None:
        model = recipe.model(setting)
    setting = Setting(**{**setting.__dict__, "model": model})
    given: dict[str, Any] = {
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": mb_size,
        "train_epochs": epochs,
        "eval_mb_size": 256,
        "device": setting.device,
        "plugins": [*plugins, *recipe.plugins(setting)],
        "evaluator": _silent() if evaluator is None else evaluator,
    }
    if model is not None:
        given |= {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=lr * recipe.lr_scale)}
    given = {recipe.rename.get(key, key): value for key, value in given.items() if key not in recipe.drop}
    strategy = recipe.strategy_class(**{**given, **recipe.arguments(setting), **overrides})
    _flatten_plugins(strategy)
    return strategy


def _setting(benchmark: Any, lr: float, epochs: int, mb_size: int, device: torch.device) -> Setting:
    first = benchmark.train_stream[0]
    shape = tuple(first.dataset.eval()[0][0].shape)
    n_classes = 1 + max(max(experience.classes_in_this_experience) for experience in benchmark.train_stream)
    return Setting(shape, int(n_classes), lr, epochs, mb_size, device)


def _check(
    name: str, recipe: Recipe, setting: Setting, benchmark: Any, model: nn.Module | None, overrides: Mapping[str, Any]
) -> None:
    if recipe.model is None and model is not None:
        raise ArgumentError(
            f"{name} makes its own model: expected model=None, found {type(model).__name__}. Leave model out."
        )
    if recipe.features not in (None, setting.n_features) and "model_name" not in overrides:
        raise ArgumentError(
            f"{name} is built with a model for {recipe.features} features: expected samples of {recipe.features} "
            f"numbers, found shape {list(setting.input_shape)}. "
            "Give a stream of such samples, or model_name= for another model."
        )
    if recipe.sample_shape not in (None, setting.input_shape):
        raise ArgumentError(
            f"{name} is built with a model for samples of shape {list(recipe.sample_shape or ())}, found shape "
            f"{list(setting.input_shape)}. Resize the images of the stream."
        )
    labels = {label for experience in benchmark.train_stream for label in experience.task_labels}
    if recipe.task_labels and len(labels) < len(benchmark.train_stream):
        raise ArgumentError(
            f"{name} learns tasks by their labels: expected a task label of its own for each of the"
            f" {len(benchmark.train_stream)} experiences, found {len(labels)} different. Make the benchmark with"
            " task_labels=True."
        )


def _flatten_plugins(strategy: Any) -> None:
    """Unpack lists among the plugins: PackNet nests the caller's list, and nothing in it is ever called."""
    strategy.plugins[:] = [
        plugin for entry in strategy.plugins for plugin in (entry if isinstance(entry, list) else [entry])
    ]
