"""Avalanche's W&B logger with today's wandb.

Avalanche 0.6 asks wandb for `wandb.util.generate_id` and `wandb.viz.CustomChart`, which wandb 0.31 no longer has under
these names: its own `WandBLogger` fails when it is made, or at the first metric when an id is given.
"""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

from avalanche import logging


class WandBLogger(logging.WandBLogger):
    """Avalanche's `WandBLogger`, with the arguments and the behaviour that it has with an older wandb."""

    def import_wandb(self) -> None:
        """Import wandb and give it the names that Avalanche knows."""
        super().import_wandb()
        self.wandb: Any = _OlderNames(self.wandb)

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Log a value; a number that knows how text loggers print it is a plain number here."""
        # wandb writes whatever is not of a built-in type as text.
        super().log_single_metric(name, float(value) if isinstance(value, float) else value, x_plot)


class _OlderNames:
    """The module wandb, with two names that it had."""

    def __init__(self, wandb: Any) -> None:
        self._wandb = wandb
        self.util = SimpleNamespace(generate_id=lambda: uuid.uuid4().hex[:8])
        self.viz = SimpleNamespace(CustomChart=wandb.plot.CustomChart)

    def __getattr__(self, name: str) -> Any:
        # Asked for what is not here only, and at each call: `wandb.run` and `wandb.log` change when a run begins.
        return getattr(self._wandb, name)
