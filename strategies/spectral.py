"""Spectral regularisation: old outputs are held along the leading modes of the old task's kernel, and only there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche_ntk.strategies.memory import at_least, call, evaluating, labels_for, live_outputs_on, remember
from torch import Tensor, nn

from avalanche_ntk.adapters.reading import model_of
from avalanche_ntk.adapters.trained import trained_function
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.observables.static import as_matrix
from avalanche_ntk.recorder.probes import Probe


@dataclass
class Modes:
    """The outputs of one task at its end, and the directions among them in which its kernel is largest.

    Attributes:
        samples: N samples.
        outputs: The outputs then, shape `(N, C)`.
        live: Indices of the L outputs that depended on a parameter then; a growing head masks the others.
        values: The k leading eigenvalues of `Θ(X, X)` over these outputs, the largest first, shape `(k,)`.
        vectors: Their eigenvectors, a column each, shape `(N·L, k)`; samples outside and outputs inside.
    """

    samples: Probe
    outputs: Tensor
    live: list[int]
    values: Tensor
    vectors: Tensor

    def drift(self, model: nn.Module) -> Tensor:
        """Return how far the outputs have moved along each mode, `u_jᵀ (f(X; θ) − f_b(X))`, with a gradient.

        Args:
            model: The model; left as it was.

        Returns:
            Shape `(k,)`.
        """
        with trained_function(model), evaluating(model):
            outputs = call(model, self.samples)
        moved = outputs[:, self.live] - self.outputs[:, self.live]
        along: Tensor = self.vectors.to(moved).T @ moved.flatten()
        return along


def leading_modes(model: nn.Module, samples: Probe, n_modes: int) -> Modes:
    """Return the outputs and the leading eigenvectors of the kernel as the model is now.

    Args:
        model: The model; left as it was.
        samples: N samples of one task.
        n_modes: k; all modes where there are fewer.

    Returns:
        Outputs and modes.
    """
    with trained_function(model):
        with torch.no_grad(), evaluating(model):
            outputs = call(model, samples)
        live = live_outputs_on(model, samples)
        theta = empirical_ntk(
            model, samples.read_only()[0], task_labels=labels_for(model, samples), reduction="full", outputs=live
        )
    # On the CPU: float64 is not on every device, and the matrix is small.
    values, vectors = torch.linalg.eigh(as_matrix(theta.cpu()))
    kept = vectors.flip(1)[:, :n_modes].contiguous().to(outputs)
    return Modes(samples, outputs, live, values.flip(0)[:n_modes].contiguous(), kept)


class SpectralDriftPlugin(SupervisedPlugin):
    """Adds to the loss how far old outputs have moved along the leading modes of the old tasks' kernels.

    At the end of each task (b), the outputs f_b(X) on N of its samples and the k leading eigenvectors u_j of its kernel
    `Θ(X, X)` are stored. The kernel is the full one, over samples and outputs, as in the forgetting forecast
    (docs/definitions.md); it is not centred. From then on the loss has beside it

        R = Σ_old tasks (μ/k) Σ_{j≤k} (u_jᵀ (f(X; θ) − f_b(X)))²,    μ the argument `weight`.

    What the outputs do in the other N·C − k directions is free. With all modes R is `μ/(N·C) ‖f − f_b‖²`, distillation
    with squared error. At the boundary R and its gradient are 0. Training by plain SGD of step size η is stable where
    `η · μ · λ_1 / k` stays below 1, λ_1 the largest eigenvalue (`modes[i].values`); each old task adds its own.

    A layer that gives each output its own weights makes each eigenvalue C-fold: then k = C covers one direction among
    the samples, and where k cuts such a group, which of its vectors are kept is arbitrary.

    The samples are passed through the model in eval mode, so that running statistics and generators are untouched.
    Outputs that a growing head masked at the boundary are left out, of the kernel too. Storing the modes takes the full
    kernel once a task, `(N·C)²` numbers, and its eigenvectors.

    Args:
        n_samples: N, samples remembered of each task; all of them where it has fewer.
        n_modes: k; 0 for none, and all where there are fewer.
        weight: μ.
        every: Iterations of which one has R in its loss, counted from the first with an old task; between them the
            loss is the plain one. Above 1 it is cheaper, and weaker.
        seed: Seed of the choice of samples; training's generators are untouched.

    Attributes:
        modes: What is remembered of each task.

    Raises:
        ArgumentError: A value is out of range.

    Source: Hidekel & Raviv 2026 (arXiv 2606.18024), spectral regularisation. The paper could not be read beyond its
    abstract and the beginning of its introduction: the formula is the one that a reader's notes give of it
    (docs/strategies.md names them). `every`, the treatment of heads that grow and the defaults are ours.
    """

    def __init__(
        self, n_samples: int = 32, n_modes: int = 40, weight: float = 0.04, every: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        at_least("n_samples", n_samples, 1, 32, whole=True)
        at_least("n_modes", n_modes, 0, 40, whole=True)
        at_least("weight", weight, 0, 0.04)
        at_least("every", every, 1, 1, whole=True)
        self.n_samples = n_samples
        self.n_modes = n_modes
        self.weight = weight
        self.every = every
        self.seed = seed
        self.modes: list[Modes] = []
        self._iterations = 0

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss, in one iteration of `every`."""
        if not self.modes:
            return
        if self._iterations % self.every == 0:
            strategy.loss += self.penalty(model_of(strategy))
        self._iterations += 1

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the outputs and the leading modes at the end of the task."""
        # Nothing is held: no kernel is computed for it.
        if self.n_modes == 0 or self.weight == 0:
            return
        samples = remember(strategy, self.n_samples, self.seed + len(self.modes))
        self.modes.append(leading_modes(model_of(strategy), samples, self.n_modes))

    def penalty(self, model: nn.Module) -> Tensor:
        """Return R at the model's present parameters, a number with a gradient; there must be an old task.

        Args:
            model: The model; left as it was.

        Returns:
            R, 0-dimensional.
        """
        return self.weight * torch.stack([(task.drift(model) ** 2).mean() for task in self.modes]).sum()


class SpectralDrift(SupervisedTemplate):
    """Spectral regularisation as a strategy, see `SpectralDriftPlugin`.

    Args:
        model: The model.
        optimizer: The optimizer.
        n_samples: See `SpectralDriftPlugin`.
        n_modes: See `SpectralDriftPlugin`.
        weight: See `SpectralDriftPlugin`.
        every: See `SpectralDriftPlugin`.
        seed: See `SpectralDriftPlugin`.
        plugins: Your plugins.
        **usual: The other arguments of `avalanche.training.templates.SupervisedTemplate`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        n_samples: int = 32,
        n_modes: int = 40,
        weight: float = 0.04,
        every: int = 1,
        seed: int = 0,
        plugins: Any = None,
        **usual: Any,
    ) -> None:
        own = SpectralDriftPlugin(n_samples, n_modes, weight, every, seed)
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or ()), own], **usual)
