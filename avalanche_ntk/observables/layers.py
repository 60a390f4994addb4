"""Where in the network the kernel moves: the kernel of each layer's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import empirical_ntk_by_group
from avalanche_ntk.observables.base import Moment, Observable, Observation


class PerLayer(Observable):
    """The kernel of each group of parameters, followed as the whole is; the sum over all groups is the whole kernel.

    Args:
        groups: Name of a group to the patterns (as in a shell) of the parameters that it takes, in order: a parameter
            belongs to the first group that fits, and what fits none to the group "other". None makes a group of each
            module that has trainable parameters of its own.

    Raises:
        ArgumentError: `groups` is empty.
    """

    name = "per_layer"

    def __init__(self, groups: Mapping[str, Sequence[str]] | None = None) -> None:
        if groups is not None and not groups:
            raise ArgumentError(
                "groups needs at least one group, such as {'features': ['features.*']}; found none. "
                "Give None for a group of each module."
            )
        self.groups = None if groups is None else {name: list(patterns) for name, patterns in groups.items()}

    def describe(self) -> dict[str, Any]:
        """Return its name and groups."""
        return {"name": self.name, "groups": self.groups}

    def observe(self, moment: Moment) -> Observation:
        """Compute all groups' kernels in one pass; each is called `layer[GROUP]`."""
        options: dict[str, Any] = dict(moment.options)
        members = self.members(moment.model, options.pop("params", None))
        if moment.multi_task:
            options["task_labels"] = moment.probe.task_labels
        kernels = empirical_ntk_by_group(moment.model, moment.probe.x, members, reduction=moment.reduction, **options)
        return Observation(kernels={f"layer[{name}]": k.detach().cpu().numpy() for name, k in kernels.items()})

    def members(self, model: nn.Module, params: Sequence[str] | None = None) -> dict[str, list[str]]:
        """Return each group's parameters.

        Args:
            model: The model.
            params: Names of the parameters that are measured; every trainable one when None.

        Returns:
            Names of parameters by name of group, groups without any left out.
        """
        members: dict[str, list[str]] = {name: [] for name in self.groups or {}}
        for name, parameter in model.named_parameters():
            measured = parameter.requires_grad if params is None else any(fnmatchcase(name, p) for p in params)
            if measured:
                members.setdefault(self._group_of(name), []).append(name)
        return {name: found for name, found in members.items() if found}

    def _group_of(self, parameter: str) -> str:
        if self.groups is None:
            return parameter.rpartition(".")[0] or parameter
        fits = (g for g, patterns in self.groups.items() if any(fnmatchcase(parameter, p) for p in patterns))
        return next(fits, "other")
