"""Measure while a model trains, in any training loop: probes, schedule, trajectory, run folder.

Nothing here imports Avalanche. `NTKRecorder` is imported on first use, so reading run folders needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avalanche_ntk.recorder.recorder import NTKRecorder

__all__ = ["NTKRecorder"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from avalanche_ntk.recorder import recorder

        return getattr(recorder, name)
    raise AttributeError(f"module 'avalanche_ntk.recorder' has no attribute {name!r}")
