"""Avalanche's checkpoints with today's torch: the whole strategy, plugin and metrics included, in one file.

Avalanche's own `save_checkpoint` fails with torch 2.14, dill 0.4 and typing_extensions 4.16: "Can't pickle sentinel:
it's not the same object as typing_extensions.sentinel". `torch.optim` deletes its submodules from its namespace. So
dill, which looks for `sgd` there, does not find the module of `torch.optim.SGD` and stores the class by value. One of
the class's methods is wrapped by `typing_extensions.deprecated`, and that module holds a sentinel under a name other
than its own. `save_checkpoint` of this module puts the submodules back while it runs, so that dill stores the
optimizer's class by name like any other class.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Collection, Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, BinaryIO

import torch
from avalanche.checkpointing import maybe_load_checkpoint
from avalanche.checkpointing import save_checkpoint as avalanche_save_checkpoint
from avalanche.logging import TensorboardLogger

from avalanche_ntk.adapters.plugin import NTKPlugin


def save_checkpoint(
    strategy: Any, fname: str | os.PathLike[str] | BinaryIO, exclude: Collection[str] | None = None
) -> None:
    """Save a strategy as Avalanche's `save_checkpoint` does, between two calls of `train` and `eval`.

    The file is replaced atomically: a failed save leaves the previous checkpoint intact.

    Args:
        strategy: The strategy.
        fname: Where to save it.
        exclude: Names of attributes of the strategy to leave out.
    """
    if not isinstance(fname, (str, os.PathLike)):
        with _optimizers_by_name():
            avalanche_save_checkpoint(strategy, fname, exclude)
        return
    temporary = Path(f"{os.fspath(fname)}.tmp")
    try:
        with _optimizers_by_name(), temporary.open("wb") as file:
            avalanche_save_checkpoint(strategy, file, exclude)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, fname)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    strategy: Any,
    fname: str | os.PathLike[str] | BinaryIO,
    map_location: Any = None,
    unique_objects: Any = None,
) -> tuple[Any, int]:
    """Load a strategy as Avalanche's `maybe_load_checkpoint` does, and let TensorBoard's curves continue from there.

    From now on `NTKPlugin.of(strategy)` measures, not the plugin given to the new strategy. Loading a checkpoint
    executes code: load only files that you saved yourself.

    Args:
        strategy: A strategy constructed like the saved one.
        fname: The file; if it does not exist, nothing is loaded.
        map_location: Device to load to.
        unique_objects: Objects that need not be loaded twice, such as the benchmark.

    Returns:
        The strategy and the number of experiences it has been trained on: 0 without a checkpoint.
    """
    if isinstance(fname, (str, os.PathLike)) and not os.path.exists(fname):
        return strategy, 0
    benchmarks = [plugin.benchmark for plugin in strategy.plugins if isinstance(plugin, NTKPlugin)]
    with redirect_stdout(io.StringIO()):  # dill prints a line for each storage that it maps
        strategy, trained = maybe_load_checkpoint(strategy, fname, map_location, unique_objects)
    loaded = [plugin for plugin in strategy.plugins if isinstance(plugin, NTKPlugin)]
    for plugin, benchmark in zip(loaded, benchmarks, strict=False):
        plugin.benchmark = benchmark  # checkpoints do not hold it
    for logger in strategy.evaluator.loggers:
        if isinstance(logger, TensorboardLogger):
            # Points logged after the checkpoint will be logged again. A new event file begins with TensorBoard's mark
            # that removes them from the curves; the point at the checkpoint itself may appear twice.
            logger.writer.close()
            logger.writer.purge_step = strategy.clock.train_iterations + 1
    return strategy, int(trained)


@contextmanager
def _optimizers_by_name() -> Generator[None]:
    """Restore the submodules that `torch.optim` deletes from its namespace, and remove them again on exit."""
    hidden = {
        name.removeprefix("torch.optim."): module
        for name, module in sys.modules.items()
        if name.startswith("torch.optim.") and name.count(".") == 2 and not hasattr(torch.optim, name.split(".")[2])
    }
    for name, module in hidden.items():
        setattr(torch.optim, name, module)
    try:
        yield
    finally:
        for name in hidden:
            delattr(torch.optim, name)
