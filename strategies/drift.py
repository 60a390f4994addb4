"""Kernel-drift regularisation: the tangent kernel of the old tasks is held where it was at the boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche_ntk.strategies.memory import at_least, call, evaluating, live_outputs_on, remember
from torch import Tensor, nn

from avalanche_ntk.adapters.reading import model_of
from avalanche_ntk.adapters.trained import trained_function
from avalanche_ntk.errors import ModelError
from avalanche_ntk.recorder.probes import Probe


@dataclass
class Anchor:
    """What the function was on the samples of one task at that task's end.

    Attributes:
        samples: N samples.
        outputs: The outputs then, shape `(N, C)`.
        live: Indices of the outputs that depended on a parameter then; a growing head masks the others.
        gram: Head block of the kernel of one output, `φ φᵀ + 1`, shape `(N, N)`.
    """

    samples: Probe
    outputs: Tensor
    live: list[int]
    gram: Tensor


class KernelDriftPlugin(SupervisedPlugin):
    """Adds to the loss what the old tasks' function and the head's share of their tangent kernel have moved by.

    For every old task, with N samples X remembered at its end (b), outputs f and φ the input of the last linear layer:

        R = λ_out · mean_n ½‖f(x_n) − f_b(x_n)‖²  +  λ_kernel · ½‖G − G_b‖_F² / ‖G_b‖_F²,    G = φ(X) φ(X)ᵀ + 1

    summed over the old tasks and averaged by their number. Both terms are 0 with a gradient of 0 at the boundary.

    The first term is function-space distillation on the probe with squared error (Benjamin, Rolnick & Körding 2019,
    "Measuring and regularizing networks in function space"; on logits as in dark experience replay, Buzzega et al.
    2020). In the static-kernel approximation it is a quadratic in θ − θ_b whose matrix is `J_bᵀ J_b / N`, which has the
    non-zero spectrum of the old task's kernel: displacements that the kernel sees are held, others are free.

    The second term holds a part of the kernel itself, exactly: the gradient of output c with respect to row d of the
    last layer's weight is `δ_cd φ(x)` and with respect to its bias `δ_cd`, so that the last layer's block of the
    kernel is `Θ_head[n,m,c,d] = δ_cd (φ_n·φ_m + 1)`, that is, G for each output. What lower layers contribute is held
    only through the first term. The motion of the Gram is that which relational distillation penalises (Tung & Mori
    2019, "Similarity-Preserving Knowledge Distillation", with rows normalised there); the derivation is the one above.

    The samples are passed through the model in eval mode, so that running statistics and generators are untouched.
    The last linear layer is the `torch.nn.Linear` that is called last for these samples.

    Args:
        n_samples: Samples remembered of each task.
        output_weight: λ_out.
        kernel_weight: λ_kernel.
        seed: Seed of the choice of samples; training's generators are untouched.

    Attributes:
        anchors: What is remembered of each task.

    Raises:
        ArgumentError: A value is out of range.
    """

    def __init__(
        self, n_samples: int = 32, output_weight: float = 0.1, kernel_weight: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__()
        at_least("n_samples", n_samples, 1, 32)
        at_least("output_weight", output_weight, 0, 0.1)
        at_least("kernel_weight", kernel_weight, 0, 0.1)
        self.n_samples = n_samples
        self.output_weight = output_weight
        self.kernel_weight = kernel_weight
        self.seed = seed
        self.anchors: list[Anchor] = []

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss."""
        if self.anchors:
            strategy.loss += self.penalty(model_of(strategy))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Remember what the function and the kernel's head block are at the end of the task."""
        model = model_of(strategy)
        samples = remember(strategy, self.n_samples, self.seed + len(self.anchors))
        with trained_function(model):
            with torch.no_grad():
                outputs, features = outputs_and_features(model, samples)
            live = live_outputs_on(model, samples)
        self.anchors.append(Anchor(samples, outputs, live, gram(features)))

    def penalty(self, model: nn.Module) -> Tensor:
        """Return R at the model's present parameters, a number with a gradient.

        Args:
            model: The model; left as it was.

        Returns:
            R, 0-dimensional.
        """
        terms = []
        for anchor in self.anchors:
            with trained_function(model):
                outputs, features = outputs_and_features(model, anchor.samples)
            moved = outputs[:, anchor.live] - anchor.outputs[:, anchor.live]
            drift = ((gram(features) - anchor.gram) ** 2).sum() / (anchor.gram**2).sum()
            terms.append(self.output_weight * 0.5 * (moved**2).sum(1).mean() + self.kernel_weight * 0.5 * drift)
        return torch.stack(terms).mean()


def gram(features: Tensor) -> Tensor:
    """Return `φ φᵀ + 1`, the head block of the tangent kernel for each output.

    Args:
        features: φ, shape `(N, F)`.

    Returns:
        Shape `(N, N)`.
    """
    return features @ features.T + 1


def outputs_and_features(model: nn.Module, samples: Probe) -> tuple[Tensor, Tensor]:
    """Return the outputs and the input of the linear layer that is called last, in eval mode and with gradients.

    Args:
        model: The model.
        samples: N samples of one task.

    Returns:
        `(N, C)` and `(N, F)`.

    Raises:
        ModelError: The model calls no `torch.nn.Linear` on a batch of N vectors.
    """
    inputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim() == 2 and len(args[0]) == samples.size:
            inputs.append(args[0])

    hooks = [m.register_forward_pre_hook(keep) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        with evaluating(model):
            out = call(model, samples)
    finally:
        for hook in hooks:
            hook.remove()
    if not inputs:
        raise ModelError(
            f"{type(model).__name__} calls no torch.nn.Linear on {samples.size} feature vectors: expected a last linear"
            " layer, whose input is the feature that the kernel's head block is made of. Give the model one, or use"
            " another strategy."
        )
    return out, inputs[-1]


class KernelDrift(SupervisedTemplate):
    """Kernel-drift regularisation as a strategy, see `KernelDriftPlugin`.

    Args:
        model: The model.
        optimizer: The optimizer.
        n_samples: See `KernelDriftPlugin`.
        output_weight: See `KernelDriftPlugin`.
        kernel_weight: See `KernelDriftPlugin`.
        seed: See `KernelDriftPlugin`.
        plugins: Your plugins.
        **usual: The other arguments of `avalanche.training.templates.SupervisedTemplate`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        n_samples: int = 32,
        output_weight: float = 0.1,
        kernel_weight: float = 0.1,
        seed: int = 0,
        plugins: Any = None,
        **usual: Any,
    ) -> None:
        own = KernelDriftPlugin(n_samples, output_weight, kernel_weight, seed)
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or ()), own], **usual)
