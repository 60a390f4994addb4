"""NTK-aware continual-learning strategies, imported as `avalanche_ntk.strategies`.

Names are imported when they are first used (PEP 562): reading a configuration needs the names of the strategies and
neither torch nor Avalanche.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "avalanche_ntk.strategies":
    raise ImportError(
        f"this folder was imported as {__name__!r}; it is the package avalanche_ntk.strategies. "
        "Install the project (pip install -e .) and write `import avalanche_ntk.strategies`."
    )

if TYPE_CHECKING:
    from avalanche_ntk.strategies.drift import KernelDrift, KernelDriftPlugin
    from avalanche_ntk.strategies.linearised import Linearised, LinearisedPlugin
    from avalanche_ntk.strategies.orthogonal import OGD, PCAOGD, OGDPlugin, OGDPlus, OGDPlusPlugin, PCAOGDPlugin
    from avalanche_ntk.strategies.reactive import (
        ReactivationAwareLR,
        ReactivationAwareLRPlugin,
        ReactivationReplay,
        ReactivationReplayPlugin,
    )
    from avalanche_ntk.strategies.recipes import RECIPES, build
    from avalanche_ntk.strategies.spectral import SpectralDrift, SpectralDriftPlugin

_WHERE = {
    "OGD": "orthogonal",
    "OGDPlugin": "orthogonal",
    "OGDPlus": "orthogonal",
    "OGDPlusPlugin": "orthogonal",
    "PCAOGD": "orthogonal",
    "PCAOGDPlugin": "orthogonal",
    "Linearised": "linearised",
    "LinearisedPlugin": "linearised",
    "KernelDrift": "drift",
    "KernelDriftPlugin": "drift",
    "SpectralDrift": "spectral",
    "SpectralDriftPlugin": "spectral",
    "ReactivationAwareLR": "reactive",
    "ReactivationAwareLRPlugin": "reactive",
    "ReactivationReplay": "reactive",
    "ReactivationReplayPlugin": "reactive",
    "RECIPES": "recipes",
    "build": "recipes",
}

__all__ = [
    "OGD",
    "PCAOGD",
    "RECIPES",
    "KernelDrift",
    "KernelDriftPlugin",
    "Linearised",
    "LinearisedPlugin",
    "OGDPlugin",
    "OGDPlus",
    "OGDPlusPlugin",
    "PCAOGDPlugin",
    "ReactivationAwareLR",
    "ReactivationAwareLRPlugin",
    "ReactivationReplay",
    "ReactivationReplayPlugin",
    "SpectralDrift",
    "SpectralDriftPlugin",
    "build",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"avalanche_ntk.strategies.{_WHERE[name]}"), name)
    raise AttributeError(
        f"module 'avalanche_ntk.strategies' has no attribute {name!r}; it offers {', '.join(sorted(__all__))}"
    )


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
