"""Where a run stood at the end of an experience: tensors and plain values only, so that loading executes nothing.

A strategy goes on from here exactly as if it had never stopped when its whole state is the model's, the optimizer's
and the random numbers'. `why_not` says for which runs this does not hold; those are trained anew after a kill, which
gives the same numbers too.
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
"""Strategies that remember nothing of earlier tasks but the weights."""


def why_not(config: RunConfig, model: Any) -> str | None:
    """Say why a run of this configuration cannot go on from a checkpoint.

    Args:
        config: The configuration.
        model: The model.

    Returns:
        The reason, or None when it can.
    """
    if config.strategy.name not in WITHOUT_STATE:
        return f"{config.strategy.name} remembers more of earlier tasks than the weights"
    if "linearisation" in config.observables:
        return "the linearisation at initialisation needs the initial parameters' outputs, which are not kept"
    if any(isinstance(module, DynamicModule) for module in model.modules()):
        return "the model grows with the tasks"
    return None


def save(path: Path, strategy: Any, config: RunConfig, experiences: int) -> None:
    """Write the checkpoint; the file is there either as it was before or complete.

    Args:
        path: The file.
        strategy: The strategy, between two calls of `train` and `eval`.
        config: The run's configuration.
        experiences: Number of experiences that it has been trained on.
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
        What `save` wrote; None when there is no file, it belongs to another configuration, or it cannot be read: the
        run then begins anew.
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
    """Put a strategy that was built of the same configuration where the checkpoint stood.

    Args:
        state: What `load` returned.
        strategy: The strategy.
    """
    strategy.model.load_state_dict(state["model"])
    strategy.model.to(strategy.device)
    # Avalanche empties the optimizer's state at the first call, so that it must have had that call.
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
    """Return what Avalanche's metrics of forgetting remember of earlier evaluations; the others remember nothing."""
    known = getattr(metric, "forgetting", None)
    if known is None or not hasattr(known, "initial"):
        return None
    return {
        "initial": {int(k): float(v) for k, v in known.initial.items()},
        "last": {int(k): float(v) for k, v in known.last.items()},
        "train_exp_id": metric.train_exp_id,
    }
