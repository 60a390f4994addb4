"""The kernel frozen at a boundary, between the old task's probe and samples of the new task, and its dynamics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_ntk.observables.base import Moment
from avalanche_ntk.recorder.labels import NO_CLASSES
from avalanche_ntk.recorder.probes import ProbeSpec


@dataclass
class StaticKernel:
    """The frozen kernel of one boundary and the outputs that it drives; C is the number of the kernel's outputs.

    Attributes:
        learning_rate: η, including the factor of heavy-ball momentum.
        labels: Labels of the M new samples, as indices of outputs.
        new_on_new: `Θ(X_new, X_new)` as a matrix, `(M·C, M·C)`, float64.
        old_on_new: `Θ(X_old, X_new)` as a matrix, `(N·C, M·C)`.
        new: Outputs on the new samples after `steps` steps, `(M, C)`.
        old: Outputs on the old task's probe after `steps` steps, `(N, C)`.
        old_at_boundary: The same before any step.
        epsilon: Relative precision of the kernel.
        steps: Steps made so far.
    """

    learning_rate: float
    labels: Tensor
    new_on_new: Tensor
    old_on_new: Tensor
    new: Tensor
    old: Tensor
    old_at_boundary: Tensor
    epsilon: float = 2.0**-52
    steps: int = 0

    def advance(self, steps: int) -> None:
        """Take full-batch gradient steps on the cross-entropy in function space, `f ← f − η Θ ∂L/∂f`.

        Args:
            steps: Total number of steps to reach.
        """
        while self.steps < steps:
            gradient = self.new.softmax(dim=1)
            gradient[torch.arange(len(self.labels), device=self.labels.device), self.labels] -= 1
            gradient /= len(self.labels)
            gradient = gradient.flatten()
            self.old = self.old - self.learning_rate * (self.old_on_new @ gradient).view_as(self.old)
            self.new = self.new - self.learning_rate * (self.new_on_new @ gradient).view_as(self.new)
            self.steps += 1


def frozen_kernel(moment: Moment, size: int, seed: int) -> StaticKernel | str:
    """Freeze the kernel at a boundary, before any step of the new task.

    Args:
        moment: The boundary.
        size: Samples of the new task's training data.
        seed: Seed for choosing them.

    Returns:
        The kernel, or the reason why there is none.
    """
    rate = _step_size(moment.optimizer)
    if isinstance(rate, str):
        return rate
    balance = "class" if moment.probe.has_classes else "none"
    spec = ProbeSpec(size=min(size, len(moment.dataset)), balance=balance, seed=seed, name="new_task")
    new = spec.choose(moment.dataset, moment.read)
    if not new.has_classes:
        return f"{NO_CLASSES}, and the forecast assumes training with the cross-entropy"
    new = new.to(next(moment.model.parameters()).device)
    f_new = moment.kept_outputs(moment.outputs(new)).double()
    labels = places(new.y.to(f_new.device), moment)
    if labels is None:
        return "the new task's classes are not among the kernel's outputs (NTKPlugin(outputs='all') measures them)"
    f_old = moment.kept_outputs(moment.outputs(moment.probe)).double()
    own = moment.ntk(new, reduction="full")
    return StaticKernel(
        learning_rate=rate,
        labels=labels,
        new_on_new=as_matrix(own),
        old_on_new=as_matrix(moment.ntk(moment.probe, new, reduction="full")),
        new=f_new,
        old=f_old.clone(),
        old_at_boundary=f_old,
        epsilon=torch.finfo(own.dtype).eps,
    )


def places(labels: Tensor, moment: Moment) -> Tensor | None:
    """Return labels as indices of the kernel's outputs; None if one is not among them."""
    kept = moment.options.get("outputs")
    if kept is None:
        return labels
    place = {c: i for i, c in enumerate(kept)}
    if any(int(c) not in place for c in labels):
        return None
    return torch.tensor([place[int(c)] for c in labels], device=labels.device)


def as_matrix(theta: Tensor) -> Tensor:
    """Return a full kernel `(N, M, C, C)` as the matrix `(N·C, M·C)` in float64, so that a step is one product."""
    return theta.double().transpose(1, 2).flatten(2).flatten(0, 1)


def _step_size(optimizer: object) -> float | str:
    """Return SGD's asymptotic step size; heavy-ball momentum μ multiplies it by 1/(1 − μ)."""
    if not isinstance(optimizer, torch.optim.SGD):
        return f"the forecast supports torch.optim.SGD only; the strategy has {type(optimizer).__name__}"
    rates = {(float(g["lr"]), float(g["momentum"])) for g in optimizer.param_groups}
    if len(rates) != 1:
        return "the forecast supports a single step size; the optimizer has groups with different ones"
    ((rate, momentum),) = rates
    return rate / (1 - momentum)
