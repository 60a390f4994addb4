"""Checkpoints of a run at the end of an experience: tensors and plain values only, so loading executes no code.

A strategy continues exactly from a checkpoint if its whole state is that of the model, the optimizer and the random
numbers. `why_not` finds the runs for which this does not hold; they are retrained after a kill, which gives the same
numbers.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.models import DynamicModule

from avalanche_ntk.experiments.config import RunConfig

NAME = "checkpoint.pt"
WHOLE = "checkpoint.pkl"

WITHOUT_STATE = frozenset({"Naive", "OnlineNaive"})
"""Strategies that keep no state from earlier tasks except the weights."""


def why_not(config: RunConfig, model: Any) -> str | None:
    """Return why a run of this configuration cannot continue from a checkpoint.

    Args:
        config: The configuration.
        model: The model.

    Returns:
        The reason, or None if it can.
    """
    if config.strategy.name not in WITHOUT_STATE:
        return f"{config.strategy.name} keeps more state from earlier tasks than the weights"
    if "linearisation" in config.observables:
        return "the linearisation at initialisation needs the initial parameters' outputs, which are not kept"
    if any(isinstance(module, DynamicModule) for module in model.modules()):
        return "the model grows with the tasks"
    return None


def save(path: Path, strategy: Any, config: RunConfig, experiences: int) -> None:
    """Write the checkpoint atomically.

    Args:
        path: The file.
        strategy: The strategy, between two calls of `train` and `eval`.
        config: The run's configuration.
        experiences: Number of trained experiences.
    """
    version, internal, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "config_hash": config.hash,
        "experiences": experiences,
        "model": strategy.model.state_dict(),
        "optimizer": strategy.optimizer.state_dict(),
        "clock": {name: value for name, value in vars(strategy.clock).items() if isinstance(value, int)},
        "forgetting": [_forgetting(metric) for metric in strategy.evaluator.metrics],
        "python": [version, list(internal), gauss],
        "numpy": [str(algorithm), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path, config: RunConfig) -> dict[str, Any] | None:
    """Read a checkpoint.

    Args:
        path: The file.
        config: The run's configuration.

    Returns:
        The content written by `save`; None if there is no file, it belongs to another configuration, or it cannot be
        read. The run then starts again.
    """
    if not path.is_file() or path.is_symlink():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # noqa: BLE001  (whatever is wrong with the file, training anew is right)
        return None
    if not isinstance(state, dict) or state.get("config_hash") != config.hash:
        return None
    return state


def restore(state: dict[str, Any], strategy: Any) -> None:
    """Restore a checkpoint into a strategy built from the same configuration.

    Args:
        state: The result of `load`.
        strategy: The strategy.
    """
    strategy.model.load_state_dict(state["model"])
    strategy.model.to(strategy.device)
    # Avalanche clears the optimizer's state at the first call, so make that call before restoring.
    strategy.make_optimizer(reset_optimizer_state=True)
    strategy.optimizer.load_state_dict(state["optimizer"])
    for name, value in state["clock"].items():
        setattr(strategy.clock, name, value)
    for metric, known in zip(strategy.evaluator.metrics, state["forgetting"], strict=True):
        if known is not None:
            metric.forgetting.initial, metric.forgetting.last = dict(known["initial"]), dict(known["last"])
            metric.train_exp_id = known["train_exp_id"]
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _forgetting(metric: Any) -> dict[str, Any] | None:
    """Return the state of Avalanche's forgetting metrics from earlier evaluations; other metrics have none."""
    known = getattr(metric, "forgetting", None)
    if known is None or not hasattr(known, "initial"):
        return None
    return {
        "initial": {int(k): float(v) for k, v in known.initial.items()},
        "last": {int(k): float(v) for k, v in known.last.items()},
        "train_exp_id": metric.train_exp_id,
    }
