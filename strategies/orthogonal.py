"""Orthogonal gradient descent: what training must not change are the outputs on samples of the old tasks.

To first order `f_c(x; θ + δ) − f_c(x; θ) = <∂f_c(x)/∂θ, δ>`, so that a step orthogonal to the stored gradients of the
outputs leaves these outputs alone. In the static-kernel approximation this is exact, and the stored directions span the
feature space of the old tasks' tangent kernel (Bennani et al. 2020).
"""

from __future__ import annotations

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche_ntk.strategies.directions import Directions, outside
from avalanche_ntk.strategies.memory import at_least, labels_for, remember
from torch import Tensor, nn

from avalanche_ntk.adapters.reading import model_of
from avalanche_ntk.adapters.trained import trained_function
from avalanche_ntk.errors import unknown_name
from avalanche_ntk.kernels.support import Batch, Subject, jacobian, measuring
from avalanche_ntk.recorder.probes import Probe

LOGITS = ("true", "all")


def trainable_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters that require a gradient, by name."""
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


def logit_gradients(model: nn.Module, samples: Probe, logits: str = "true") -> Tensor:
    """Gradients of logits with respect to the trainable parameters, `g = ∂f_c(x_n)/∂θ`, in eval mode and float64.

    Args:
        model: The model; left as it was.
        samples: N samples with labels and task labels.
        logits: "true" for the logit of each sample's own class, "all" for every logit.

    Returns:
        A column each, shape `(P, N)` or `(P, N·C)`, samples outside and logits inside.
    """
    batch = Batch.of(samples.x, labels_for(model, samples))
    names = list(trainable_shapes(model))
    with measuring(model, batch), trained_function(model):
        subject = Subject.of(model, dtype=torch.float64)
        with subject.standing_in():
            n_outputs = subject.forward(batch).shape[1]
            eye = torch.eye(n_outputs, dtype=torch.float64, device=batch.device)
            if logits == "all":
                found = jacobian(subject, batch, eye, names)[0]
                return torch.cat([found[name].flatten(0, 1).flatten(1) for name in names], 1).T
            length = sum(subject.leaves[name].numel() for name in names)
            rows = torch.empty(len(batch), length, dtype=torch.float64, device=batch.device)
            # The samples of one class share their cotangent: one backward pass a sample, not one a logit.
            for label in samples.y.unique().tolist():
                mine = (samples.y == label).nonzero().flatten().to(batch.device)
                found = jacobian(subject, batch.take(mine), eye[label : label + 1], names)[0]
                rows[mine] = torch.cat([found[name].flatten(1) for name in names], 1)
            return rows.T


class OGDPlugin(SupervisedPlugin):
    """Orthogonal gradient descent: the training gradient is projected away from the old tasks' output gradients.

    After each task the gradients `∂f_c(x_n)/∂θ` of `n_samples` of its samples are added to an orthonormal basis B; from
    then on every training gradient g is replaced by `g − B Bᵀ g` before the optimizer's step. Gradients of logits are
    taken in eval mode and float64, from samples read through the evaluation transform; the basis takes
    `8·P·(directions)` bytes for P parameters.

    What the projection promises holds for plain SGD. A momentum buffer (torch's `momentum_buffer`) that was filled
    before the new directions were stored is projected once at the boundary, after which momentum stays orthogonal.
    Weight decay, Adam and other preconditioners step outside the projection. Parameters frozen at the boundary are not
    covered; those that grow are (`Directions`).

    Args:
        n_samples: Samples remembered of each task.
        logits: "true" stores the gradient of each sample's own class's logit (OGD-GTL), "all" that of every logit
            (OGD-ALL: C times as many directions, and only then are all outputs held).
        seed: Seed of the choice of samples; training's generators are untouched.

    Attributes:
        directions: The stored basis.
        added: Directions that each task added, in order.

    Raises:
        ArgumentError: A value is out of range or unknown.

    Source: Farajtabar, Azizan, Mott & Li 2020, "Orthogonal Gradient Descent for Continual Learning", algorithm 1;
    Bennani, Doan & Sugiyama 2020, "Generalisation Guarantees for Continual Learning with Orthogonal Gradient Descent".
    """

    def __init__(self, n_samples: int = 100, logits: str = "true", seed: int = 0) -> None:
        super().__init__()
        at_least("n_samples", n_samples, 1, 100)
        if logits not in LOGITS:
            raise unknown_name("logits", logits, LOGITS)
        self.n_samples = n_samples
        self.logits = logits
        self.seed = seed
        self.directions = Directions()
        self.added: list[int] = []
        self._basis: Tensor | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Fit the stored directions to the model, which may have grown, and project what momentum remembers."""
        self._fit(strategy)
        if self._basis is None:
            return
        model = model_of(strategy)
        remembered = {}
        for name in self._shapes:
            buffer = strategy.optimizer.state.get(model.get_parameter(name), {}).get("momentum_buffer")
            if buffer is not None:
                remembered[name] = buffer
        self._project(remembered)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Project the gradient: `g ← g − B Bᵀ g`."""
        if not self.directions:
            return
        if trainable_shapes(model_of(strategy)) != self._shapes:
            self._fit(strategy)
        model = model_of(strategy)
        gradients = {name: model.get_parameter(name).grad for name in self._shapes}
        self._project({name: g for name, g in gradients.items() if g is not None})

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Store the directions of the task that has just been trained."""
        model = model_of(strategy)
        samples = remember(strategy, self.n_samples, self.seed + len(self.added))
        columns = self.reduce(logit_gradients(model, samples, self.logits))
        self.added.append(self.directions.add(columns, trainable_shapes(model)))
        self._basis = None

    def reduce(self, columns: Tensor) -> Tensor:
        """Return what is stored of a task's gradients, all of them here.

        Args:
            columns: A gradient each, shape `(P, K)`.

        Returns:
            Columns with the span to be stored.
        """
        return columns

    def _fit(self, strategy: Any) -> None:
        self._shapes = trainable_shapes(model_of(strategy))
        self._basis = self.directions.basis(self._shapes) if self.directions else None

    def _project(self, tensors: dict[str, Tensor]) -> None:
        """Project vectors given by parameter, in place; one that is absent is 0."""
        assert self._basis is not None
        flat = [
            tensors[name].reshape(-1).double()
            if name in tensors
            else self._basis.new_zeros(int(torch.Size(shape).numel()))
            for name, shape in self._shapes.items()
        ]
        if not tensors:
            return
        with torch.no_grad():
            projected = outside(torch.cat(flat)[:, None], self._basis)[:, 0]
            for (name, shape), piece in zip(self._shapes.items(), projected.split([len(f) for f in flat]), strict=True):
                if name in tensors:
                    tensors[name].copy_(piece.reshape(shape))

    def __getstate__(self) -> dict[str, Any]:
        # Made again from the directions.
        return {**self.__dict__, "_basis": None, "_shapes": {}}


class PCAOGDPlugin(OGDPlugin):
    """Orthogonal gradient descent along the leading principal directions of each task only.

    Of the task's gradients, the columns of `G = Jᵀ`, the `n_components` leading left singular vectors are kept. With
    `K = GᵀG = Σ λ_i u_i u_iᵀ`, the task's tangent kernel over the chosen logits, they are `v_i = G u_i / √λ_i`: the
    directions in which the kernel's leading eigenfunctions move. The theory is that of the kernel and not of its
    centred form `HKH`; the authors' program subtracts the mean gradient first, which `centre=True` does too.

    Args:
        n_samples: Samples of each task of which the principal directions are taken.
        n_components: Directions kept of each task.
        logits: See `OGDPlugin`.
        centre: Whether the task's mean gradient is subtracted before; the mean's own direction is then not held.
        seed: See `OGDPlugin`.

    Raises:
        ArgumentError: A value is out of range or unknown.

    Source: Doan, Bennani, Mazoure, Rabusseau & Alquier 2021, "A Theoretical Analysis of Catastrophic Forgetting through
    the NTK Overlap Matrix", PCA-OGD.
    """

    def __init__(
        self,
        n_samples: int = 100,
        n_components: int = 25,
        logits: str = "true",
        centre: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(n_samples, logits, seed)
        at_least("n_components", n_components, 1, 25)
        self.n_components = n_components
        self.centre = centre

    def reduce(self, columns: Tensor) -> Tensor:
        """Return the leading left singular vectors.

        Args:
            columns: A gradient each, shape `(P, K)`.

        Returns:
            Shape `(P, min(n_components, rank))`.
        """
        if self.centre:
            columns = columns - columns.mean(1, keepdim=True)
        # Of the small kernel K = GᵀG and not of G itself: P is large, and 1e-16 in λ is enough for leading directions.
        values, vectors = torch.linalg.eigh(columns.T @ columns)
        leading = vectors.flip(1)[:, : self.n_components]
        kept = values.flip(0)[: self.n_components]
        keep = kept > 1e-13 * kept[0].clamp(min=0)
        directions: Tensor = columns @ leading[:, keep] / kept[keep].sqrt()
        return directions


class OGDPlusPlugin(OGDPlugin):
    """Orthogonal gradient descent whose directions are taken anew at each boundary, of the samples of all tasks so far.

    OGD keeps a task's gradients as they were at that task's end. OGD+ keeps the samples: after each task the gradients
    `∂f_c(x_n)/∂θ` on the remembered samples of every task so far are computed with the parameters as they are then, and
    take the place of all stored directions. Where the kernel does not move both are the same.

    A projection away from what old outputs depend on now holds them to first order from this boundary on, and not where
    they were at their own task's end: what has been lost is not brought back. Samples are kept beside the directions,
    and each boundary costs the gradients of all of them.

    Args:
        n_samples: See `OGDPlugin`.
        logits: See `OGDPlugin`.
        seed: See `OGDPlugin`.

    Attributes:
        remembered: The samples of each task.
        added: Directions that all tasks together had at each boundary, in order.

    Source: Bennani, Doan & Sugiyama 2020 (arXiv 2006.11942), OGD+, as the authors' program has it
    (github.com/MehdiAbbanaBennani/continual-learning-ogdplus, `ogd/ogd_core_new.py`). "Understanding the Dynamics of
    Forgetting and Generalization in Continual Learning via the Neural Tangent Kernel" (ICLR 2026) gives the name to the
    same span. The program leaves the heads of a multi-head model outside the projection; here they are inside, as in
    `OGDPlugin`.
    """

    def __init__(self, n_samples: int = 100, logits: str = "true", seed: int = 0) -> None:
        super().__init__(n_samples, logits, seed)
        self.remembered: list[Probe] = []

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Remember samples of the task, and take the directions of all remembered samples as the model is now."""
        model = model_of(strategy)
        self.remembered.append(remember(strategy, self.n_samples, self.seed + len(self.remembered)))
        columns = [self.reduce(logit_gradients(model, samples, self.logits)) for samples in self.remembered]
        self.directions = Directions()
        self.added.append(self.directions.add(torch.cat(columns, 1), trainable_shapes(model)))
        self._basis = None


class OGD(SupervisedTemplate):
    """Orthogonal gradient descent as a strategy, see `OGDPlugin`.

    Args:
        model: The model.
        optimizer: The optimizer; plain SGD for what the method promises.
        n_samples: See `OGDPlugin`.
        logits: See `OGDPlugin`.
        seed: See `OGDPlugin`.
        plugins: Your plugins; they are called before `OGDPlugin`, so that it has the last word on the gradient.
        **usual: The other arguments of `avalanche.training.templates.SupervisedTemplate`.
    """

    _plugin: type[OGDPlugin] = OGDPlugin

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        n_samples: int = 100,
        logits: str = "true",
        seed: int = 0,
        plugins: Any = None,
        **usual: Any,
    ) -> None:
        own = self._plugin(n_samples, logits, seed)
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or ()), own], **usual)


class PCAOGD(SupervisedTemplate):
    """Orthogonal gradient descent along principal directions as a strategy, see `PCAOGDPlugin`.

    Args:
        model: The model.
        optimizer: The optimizer; plain SGD for what the method promises.
        n_samples: See `PCAOGDPlugin`.
        n_components: See `PCAOGDPlugin`.
        logits: See `PCAOGDPlugin`.
        centre: See `PCAOGDPlugin`.
        seed: See `PCAOGDPlugin`.
        plugins: Your plugins; they are called before `PCAOGDPlugin`, so that it has the last word on the gradient.
        **usual: The other arguments of `avalanche.training.templates.SupervisedTemplate`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        n_samples: int = 100,
        n_components: int = 25,
        logits: str = "true",
        centre: bool = False,
        seed: int = 0,
        plugins: Any = None,
        **usual: Any,
    ) -> None:
        own = PCAOGDPlugin(n_samples, n_components, logits, centre, seed)
        super().__init__(model=model, optimizer=optimizer, plugins=[*(plugins or ()), own], **usual)


class OGDPlus(OGD):
    """Orthogonal gradient descent with directions taken anew at each boundary as a strategy, see `OGDPlusPlugin`.

    Args:
        model: The model.
        optimizer: The optimizer; plain SGD for what the method promises.
        n_samples: See `OGDPlugin`.
        logits: See `OGDPlugin`.
        seed: See `OGDPlugin`.
        plugins: Your plugins; they are called before `OGDPlusPlugin`, so that it has the last word on the gradient.
        **usual: The other arguments of `avalanche.training.templates.SupervisedTemplate`.
    """

    _plugin = OGDPlusPlugin
