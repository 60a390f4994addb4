"""Measure the empirical neural tangent kernel of a fixed probe set while an Avalanche strategy trains.

Names are imported on first use (PEP 562): `import avalanche_ntk` is fast, and the report does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avalanche_ntk.adapters.evaluation import ntk_metrics
    from avalanche_ntk.adapters.plugin import NTKPlugin
    from avalanche_ntk.kernels import empirical_ntk
    from avalanche_ntk.recorder.afterwards import measure_checkpoints
    from avalanche_ntk.recorder.probes import Probe, ProbeSpec
    from avalanche_ntk.recorder.recorder import NTKRecorder
    from avalanche_ntk.recorder.schedule import Schedule
    from avalanche_ntk.recorder.trajectory import Trajectory

_WHERE = {
    "NTKPlugin": "avalanche_ntk.adapters.plugin",
    "NTKRecorder": "avalanche_ntk.recorder.recorder",
    "Probe": "avalanche_ntk.recorder.probes",
    "ProbeSpec": "avalanche_ntk.recorder.probes",
    "Schedule": "avalanche_ntk.recorder.schedule",
    "Trajectory": "avalanche_ntk.recorder.trajectory",
    "empirical_ntk": "avalanche_ntk.kernels",
    "measure_checkpoints": "avalanche_ntk.recorder.afterwards",
    "ntk_metrics": "avalanche_ntk.adapters.evaluation",
}

__all__ = [
    "NTKPlugin",
    "NTKRecorder",
    "Probe",
    "ProbeSpec",
    "Schedule",
    "Trajectory",
    "empirical_ntk",
    "measure_checkpoints",
    "ntk_metrics",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'avalanche_ntk' has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("avalanche-ntk")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
