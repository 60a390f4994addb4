"""Experiments: one configuration is one run in one run folder; sweeps of many; tables that compare them.

    from avalanche_ntk.experiments import run
    folder = run({"strategy": "Replay", "model": {"width": 128}}, out="runs/replay")

Names are imported on first use, so configurations can be checked, and runs compared, without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avalanche_ntk.experiments.comparison import Comparison, compare
    from avalanche_ntk.experiments.config import RunConfig, load_config, ready
    from avalanche_ntk.experiments.runner import run
    from avalanche_ntk.experiments.schema import ConfigError
    from avalanche_ntk.experiments.sweep import Sweep, load_sweep, run_sweep

_WHERE = {
    "Comparison": "comparison",
    "compare": "comparison",
    "ConfigError": "schema",
    "RunConfig": "config",
    "Sweep": "sweep",
    "load_config": "config",
    "load_sweep": "sweep",
    "ready": "config",
    "run": "runner",
    "run_sweep": "sweep",
}

__all__ = [
    "Comparison",
    "ConfigError",
    "RunConfig",
    "Sweep",
    "compare",
    "load_config",
    "load_sweep",
    "ready",
    "run",
    "run_sweep",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"avalanche_ntk.experiments.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
