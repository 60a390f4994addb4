"""Avalanche's W&B logger with today's wandb.

Avalanche 0.6 uses `wandb.util.generate_id` and `wandb.viz.CustomChart`, names that wandb 0.31 no longer has.
Avalanche's own `WandBLogger` therefore fails when it is made, or, if an id is given, at the first metric.
"""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

from avalanche import logging


class WandBLogger(logging.WandBLogger):
    """Avalanche's `WandBLogger` with the arguments and behaviour it has with older versions of wandb."""

    def import_wandb(self) -> None:
        """Import wandb and add the names that Avalanche uses."""
        super().import_wandb()
        self.wandb: Any = _OlderNames(self.wandb)

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Log a value; a number with its own text format is logged as a plain float."""
        # wandb writes any value that is not of a built-in type as text.
        super().log_single_metric(name, float(value) if isinstance(value, float) else value, x_plot)


class _OlderNames:
    """The module wandb with two of its former names."""

    def __init__(self, wandb: Any) -> None:
        self._wandb = wandb
        self.util = SimpleNamespace(generate_id=lambda: uuid.uuid4().hex[:8])
        self.viz = SimpleNamespace(CustomChart=wandb.plot.CustomChart)

    def __getattr__(self, name: str) -> Any:
        # Looked up at each access, not copied: `wandb.run` and `wandb.log` change when a run begins.
        return getattr(self._wandb, name)
