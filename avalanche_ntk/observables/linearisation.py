"""Linearisation error of the network: the test of the static-kernel approximation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_ntk import measures
from avalanche_ntk.kernels import jvp_prediction
from avalanche_ntk.kernels.support import fast_double
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register
from avalanche_ntk.observables.undefined import values_or_reason


@dataclass(frozen=True, eq=False)
class _Anchor:
    """A point of linearisation: the parameters and the outputs on the probe there."""

    parameters: dict[str, Tensor]
    outputs: Tensor

    def kept(self) -> _Anchor:
        """Return a copy that later training does not change."""
        return _Anchor({name: p.clone() for name, p in self.parameters.items()}, self.outputs)


@register
class Linearisation(Observable):
    """`linearisation_error_boundary` and `linearisation_error_init`, by one forward-mode pass per distinct base.

    `‖f(X;θ_t) − f(X;θ_b) − J_b(X)(θ_t − θ_b)‖ / ‖f(X;θ_t) − f(X;θ_b)‖` with b the last boundary, or initialisation: 0
    if the kernel at b explains the change, 1 if it explains nothing. Source: Chizat et al. 2019; Ortiz-Jiménez et al.
    2021. It keeps two copies of the parameters.
    """

    name = "linearisation"
    flag = "linearisation"
    metrics = (
        Metric("NTK_LinearisationErrorBoundary", "linearisation_error_boundary"),
        Metric("NTK_LinearisationErrorInit", "linearisation_error_init"),
    )

    def __init__(self) -> None:
        self._anchors: dict[tuple[str, str], _Anchor] = {}
        self._start_is_known = True

    def reset(self) -> None:
        """Forget both anchors."""
        self._anchors.clear()
        self._start_is_known = True

    def resumed(self, values: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Note that the parameters at initialisation are lost: a run folder does not hold them."""
        self._start_is_known = False

    def observe(self, moment: Moment) -> Observation:
        """Compare with both anchors; set missing ones."""
        found = Observation()
        outputs = moment.kept_outputs(moment.outputs(moment.probe))
        here = _Anchor({n: p.detach() for n, p in moment.model.named_parameters()}, outputs)
        name = moment.probe.name
        if moment.clock.event == "experience_start":
            self._anchors[name, "boundary"] = here.kept()
        if not self._start_is_known:
            found.reasons["linearisation_error_init"] = "the run was resumed: its initial parameters are not stored"
        elif (name, "init") not in self._anchors:
            self._anchors[name, "init"] = self._anchors.get((name, "boundary")) or here.kept()
        anchors = {which: self._anchors.get((name, which)) for which in ("boundary", "init")}
        # In the first experience both anchors are the same, and so are the errors.
        for anchor in dict.fromkeys(anchors.values()):
            if anchor is not None:
                mine = [f"linearisation_error_{which}" for which, other in anchors.items() if other is anchor]
                values_or_reason(found, mine, self._errors, moment, anchor, here, len(mine))
        return found

    @staticmethod
    def _errors(moment: Moment, anchor: _Anchor, here: _Anchor, times: int) -> list[float] | str:
        shapes = {name: p.shape for name, p in anchor.parameters.items()}
        if {name: p.shape for name, p in here.parameters.items()} != shapes:
            return "the model's parameters were added, removed or resized since"
        delta = {name: here.parameters[name] - p for name, p in anchor.parameters.items()}
        if not any(bool(d.any()) for d in delta.values()):
            return "the parameters have not moved since"
        predicted = moment.kept_outputs(_predicted(moment, anchor.parameters, delta))
        return [measures.linearisation_error(here.outputs, anchor.outputs, predicted)] * times


def _predicted(moment: Moment, base: dict[str, Tensor], delta: dict[str, Tensor]) -> Tensor:
    """Return `J_b(X)·δ` in float64, or in the model's precision if float64 is slow or the model refuses it.

    In float32 the reported error is off by about 1e-6 times `‖f‖ / ‖f(X;θ_t) − f(X;θ_b)‖`.
    """
    here = next(iter(base.values()))
    options = {"output_selector": moment.options.get("output_selector")}
    if moment.multi_task:
        options["task_labels"] = moment.probe.read_only()[1]
    if not fast_double(here.device):
        return jvp_prediction(moment.model, moment.inputs, base, delta, **options)
    try:
        return jvp_prediction(moment.model, moment.inputs, base, delta, dtype=torch.float64, **options)
    except Exception:  # noqa: BLE001  (whatever it is: it is raised again below unless float64 was to blame)
        return jvp_prediction(moment.model, moment.inputs, base, delta, **options)
