"""Weights on disk: snapshots of a recording, and state dicts of any library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, ModelError
from avalanche_ntk.files import write_whole
from avalanche_ntk.recorder.clock import TrainingClock

FOLDER = "snapshots"
_FILE = re.compile(r"\d{6}-task(?P<task>\d{3,})-[a-z_]+-iteration\d{8,}\.safetensors")
# Keys under which checkpoints hold the model's weights.
_WEIGHTS = ("state_dict", "model_state_dict", "model")
_MOST_KEYS = 5


class Snapshots:
    """Stores a model's weights and buffers at every measurement, with its clock.

    Args:
        run_folder: The run folder; they are stored in its folder `snapshots`.
    """

    def __init__(self, run_folder: str | PathLike[str]) -> None:
        self.path = Path(run_folder) / FOLDER
        self.count: int | None = None

    def store(self, model: nn.Module, clock: TrainingClock, iterations_per_epoch: int | None) -> None:
        """Store the model as it is now.

        Args:
            model: The model.
            clock: When this is.
            iterations_per_epoch: Kept beside the clock, for velocities per epoch.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.count is None:  # the first snapshot of this run or of its continuation: others belong to another run
            known = {p: _FILE.fullmatch(p.name) for p in sorted(self.path.iterdir())}
            before = [p for p, match in known.items() if match and int(match["task"]) < clock.experience]
            for path in (p for p, match in known.items() if match and p not in before):
                path.unlink()
            self.count = len(before)
        name = f"{self.count:06d}-task{clock.experience:03d}-{clock.event}-iteration{clock.iteration:08d}.safetensors"
        told = {"clock": json.dumps(clock.as_dict()), "iterations_per_epoch": json.dumps(iterations_per_epoch)}
        write_whole(self.path / name, save(state_of(model), told))
        self.count += 1


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's weights and buffers on the CPU, including buffers that its state dict omits."""
    found = {**dict(model.named_buffers(remove_duplicate=False)), **model.state_dict()}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def read_state(path: str | PathLike[str], prefix: str = "") -> dict[str, Tensor]:
    """Read a state dict saved by any library; no code in the file is executed.

    Args:
        path: A `.safetensors` file, or one of `torch.save`, read with `weights_only=True`. From a larger checkpoint,
            the entry `state_dict`, `model_state_dict` or `model` is taken.
        prefix: Prefix of the keys that the model's keys lack, such as `module.` or `model.`; keys without it are
            ignored.

    Returns:
        Tensors by key, without the prefix.

    Raises:
        ArgumentError: The file holds no state dict.
    """
    path = Path(path)
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise ArgumentError(
            f"{path} cannot be read as weights ({type(error).__name__}: {told}). Give a .safetensors file, or a state "
            "dict that torch.save wrote: torch.save(model.state_dict(), path)."
        ) from None
    inner = next((content[key] for key in _WEIGHTS if isinstance(content, Mapping) and key in content), content)
    state = inner if isinstance(inner, Mapping) else content
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not found:
        keys = _listed(list(tensors or (content if isinstance(content, Mapping) else ())))
        raise ArgumentError(
            f"{path} holds no weights{f' whose keys begin with {prefix!r}' if prefix else ''}: expected a state dict, "
            f"found {keys or type(content).__name__}. Give the prefix that its keys have, or another file."
        )
    return found


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict into a model, all of it or nothing.

    Args:
        model: The model.
        state: Tensors by key.
        source: Their origin, for the message.

    Raises:
        ModelError: Keys or shapes differ; the message names them.
    """
    own = model.state_dict()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    expected = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    missing = [name for name in expected if name not in state]
    further = [name for name in state if name not in expected and name not in buffers]
    resized = [
        f"{name} {list(state[name].shape)} for {list(value.shape)}"
        for name, value in {**buffers, **expected}.items()
        if name in state and state[name].shape != value.shape
    ]
    kinds = {"missing there": missing, "unknown to the model": further, "of another shape": resized}
    if told := "; ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names):
        raise ModelError(
            f"{source} does not fit {type(model).__name__}: {told}. Give the factory of the model that was saved, or "
            "the prefix that the keys have."
        )
    with torch.no_grad():
        for name, value in {**buffers, **expected}.items():
            if name in state:
                value.copy_(state[name])


def moment_of(path: str | PathLike[str]) -> tuple[TrainingClock, int | None] | None:
    """Return the moment of a snapshot and the iterations of its epochs; None for any other file.

    Args:
        path: A file.
    """
    if Path(path).suffix != ".safetensors":
        return None
    with safe_open(path, "pt") as file:
        told: dict[str, Any] = file.metadata() or {}
    if "clock" not in told:
        return None
    length = json.loads(told.get("iterations_per_epoch", "null"))
    return TrainingClock.from_dict(json.loads(told["clock"])), length


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - _MOST_KEYS} more" if len(names) > _MOST_KEYS else ""
    return ", ".join(map(str, names[:_MOST_KEYS])) + more
