"""Helpers for measurements outside run folders: samples as tensors, and plain SGD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_ntk.lab.benchmarks import LabelledData, load_data
from avalanche_ntk.reproduce.study import Context


def samples(
    context: Context, classes: Sequence[int], per_class: int, *, seed: int, skip: int = 0, part: str = "train"
) -> tuple[Tensor, Tensor]:
    """Return standardised samples of some classes.

    Args:
        context: The setting.
        classes: Labels of the data; the i-th of them gets the label i.
        per_class: Samples n of each class; fewer if the test part has fewer.
        seed: Seed of the order of a class's samples.
        skip: Number of samples of each class to skip, as used by an earlier call.
        part: "train" or "test".

    Returns:
        Inputs, float32, `(n·classes, …)`, and labels, int64, in the order of the classes.

    Raises:
        ValueError: A class has too few samples in the training part.
    """
    data = _load(context)
    found, labels = (data.train, data.train_labels) if part == "train" else (data.test, data.test_labels)
    inputs, numbers = [], []
    for number, label in enumerate(classes):
        members = np.flatnonzero(labels.numpy() == label)
        order = np.random.default_rng([seed, label]).permutation(members)[skip : skip + per_class]
        if part == "train" and len(order) < per_class:
            raise ValueError(f"class {label} of {data.name} has {len(members)} samples, of {skip + per_class} needed.")
        inputs += [found[int(index)][0] for index in order]
        numbers += [number] * len(order)
    return torch.stack(inputs), torch.tensor(numbers)


@lru_cache(maxsize=1)
def _load(context: Context) -> LabelledData:
    # A measurement needs several sets of samples: cache files and means.
    return load_data(context.data, data_root=context.data_root, standardise=True, seed=0)


def class_labels(context: Context, most: int = 10) -> range:
    """Return the labels of the data's classes, at most `most`."""
    return range(min(most, _load(context).n_classes))


def minibatches(n: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the indices of `steps` minibatches, epoch after epoch in a new order.

    Args:
        n: Number of samples.
        size: Samples of a minibatch; the last of an epoch may have fewer.
        steps: Number of minibatches.
        generator: Random number generator of the orders.

    Yields:
        Indices, `(size,)`.
    """
    done = 0
    while done < steps:
        for indices in torch.randperm(n, generator=generator).split(size):
            yield indices
            done += 1
            if done == steps:
                return


def sgd_step(model: nn.Module, loss: Tensor, lr: float) -> None:
    """Make one step of plain gradient descent, `θ ← θ − η ∇L`.

    Args:
        model: The model.
        loss: L, a scalar.
        lr: η.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(lr * gradient)


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step of an optimizer.

    Args:
        optimizer: The optimizer.
        loss: The loss, a scalar.
    """
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of samples whose largest logit is their label's."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())
