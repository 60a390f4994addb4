"""Names allowed in configurations, read from the sources of the defining modules without importing torch."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path


@cache
def keys_of(module: str, variable: str) -> tuple[str, ...]:
    """Return the keys of a dictionary literal at the top level of a module, without importing it.

    Args:
        module: The module.
        variable: Name of the dictionary.

    Returns:
        Its keys, in order.

    >>> keys_of("avalanche_ntk.lab.regimes", "REGIMES")[:2]
    ('lazy', 'rich')
    """
    # Parent packages are light to import; the module itself may import torch.
    spec = importlib.util.find_spec(module)
    source = Path(str(spec.origin if spec else None)).read_text(encoding="utf-8")
    found: list[ast.Dict] = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and any(isinstance(t, ast.Name) and t.id == variable for t in targets):
            found.append(value)
    return tuple(str(key.value) for key in found[0].keys if isinstance(key, ast.Constant))


def strategies() -> tuple[str, ...]:
    """Return the names of the strategies with a recipe."""
    return keys_of("avalanche_ntk.strategies.recipes", "RECIPES")


def models() -> tuple[str, ...]:
    """Return the names of the models of this package."""
    return keys_of("avalanche_ntk.lab.models", "MODELS")


def activations() -> tuple[str, ...]:
    """Return the names of the activations."""
    return keys_of("avalanche_ntk.lab.layers", "ACTIVATIONS")


def regimes() -> tuple[str, ...]:
    """Return the names of the regimes."""
    return keys_of("avalanche_ntk.lab.regimes", "REGIMES")


_SHARED = frozenset({"per_class", "seed"})

BENCHMARK_ARGUMENTS: dict[str, frozenset[str]] = {
    "blurred": _SHARED | {"classes_per_task", "n_tasks", "steps"},
    "class_frequency": frozenset({"alpha", "classes_per_task", "imbalance", "size", "task_labels", "seed"}),
    "class_incremental": _SHARED | {"classes_per_task", "n_tasks", "task_labels"},
    "class_overlap": _SHARED | {"similarity", "classes_per_task", "fresh", "task_labels"},
    "label_permuted": _SHARED | {"n_tasks", "classes_per_task", "fresh", "task_labels"},
    "no_shift": _SHARED | {"n_tasks", "classes_per_task", "fresh", "task_labels"},
    "permuted": _SHARED | {"n_tasks", "classes_per_task", "fresh", "task_labels"},
    "rotated": _SHARED | {"degrees", "classes_per_task", "fresh", "task_labels"},
}
"""Arguments by benchmark; a test compares them with the functions of `avalanche_ntk.lab.benchmarks`."""

REQUIRED_ARGUMENTS = {"class_frequency": "alpha", "class_overlap": "similarity"}


def benchmarks() -> tuple[str, ...]:
    """Return the names of the benchmarks."""
    return tuple(BENCHMARK_ARGUMENTS)


OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")


def optimizers() -> tuple[str, ...]:
    """Return the names of the optimizers."""
    return OPTIMIZERS


def observables() -> tuple[str, ...]:
    """Return the names of the observables: the flags of `ntk_metrics`."""
    from avalanche_ntk.observables import families  # imports torch, which the rest of a configuration does not need

    return tuple(flag for flag, family in families().items() if family.metrics and not family.on)
