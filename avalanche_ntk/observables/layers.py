"""The kernel of each layer's parameters, to locate the kernel's motion in the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels.support import select_parameters
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register


@register
class PerLayer(Observable):
    """The kernel of each group of parameters, followed like the whole kernel, which is their sum.

    Args:
        groups: Shell patterns of parameters by name of group, in order: a parameter belongs to the first group that
            matches, or else to the group "other". None makes a group of each module that has its own trainable
            parameters.

    Raises:
        ArgumentError: `groups` is empty.
    """

    name = "per_layer"
    flag = "per_layer"
    metrics = (
        Metric("NTK_LayerVelocity", "layer[{LAYER}].velocity_per_iteration", "1/iteration"),
        Metric("NTK_LayerDistanceInit", "layer[{LAYER}].distance_init"),
        Metric("NTK_LayerTraceShare", "layer[{LAYER}].trace_share"),
    )

    def __init__(self, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        if groups is not None and not groups:
            raise ArgumentError(
                "groups needs at least one group, such as {'features': ['features.*']}; found none. "
                "Give None for a group of each module."
            )
        self.patterns = None if groups is None else {name: list(patterns) for name, patterns in groups.items()}

    def describe(self) -> dict[str, Any]:
        """Return its name and groups."""
        return {"name": self.name, "groups": self.patterns}

    def groups(self, model: nn.Module, params: str | Sequence[str] | None) -> dict[str, list[str]]:
        """Return each group's parameters, without empty groups."""
        members: dict[str, list[str]] = {name: [] for name in self.patterns or {}}
        for name in select_parameters(model, params):
            members.setdefault(self._group_of(name), []).append(name)
        return {name: found for name, found in members.items() if found}

    def observe(self, moment: Moment) -> Observation:
        """Return all groups' kernels, under the names `layer[GROUP]`."""
        return Observation(kernels={f"layer[{name}]": k for name, k in moment.groups[self.name].items()})

    def _group_of(self, parameter: str) -> str:
        if self.patterns is None:
            return parameter.rpartition(".")[0] or parameter
        fits = (g for g, patterns in self.patterns.items() if any(fnmatchcase(parameter, p) for p in patterns))
        return next(fits, "other")
