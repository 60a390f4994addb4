"""How far the network has left its linearisation: the test of the static kernel itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_ntk import measures
from avalanche_ntk.kernels import jvp_prediction
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.undefined import value_or_reason


@dataclass(frozen=True)
class _Anchor:
    """Where the network is linearised: its parameters there and its outputs on the probe."""

    parameters: dict[str, Tensor]
    outputs: Tensor


class Linearisation(Observable):
    """`linearisation_error_boundary` and `linearisation_error_init`, by one forward-mode pass each.

    `‖f(X;θ_t) − f(X;θ_b) − J_b(X)(θ_t − θ_b)‖ / ‖f(X;θ_t) − f(X;θ_b)‖` with b the last boundary, or initialisation: 0
    when the kernel at b explains what happened, 1 when it explains nothing. Source: Chizat et al. 2019; Ortiz-Jiménez
    et al. 2021. It keeps two copies of the parameters.
    """

    name = "linearisation"

    def __init__(self) -> None:
        self._anchors: dict[tuple[str, str], _Anchor] = {}
        self._start_is_known = True

    def reset(self) -> None:
        """Forget both anchors."""
        self._anchors.clear()
        self._start_is_known = True

    def resumed(self, values: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        """Take note that the parameters at initialisation are gone: a run folder does not hold them."""
        self._start_is_known = False

    def observe(self, moment: Moment) -> Observation:
        """Compare with both anchors; set them where they are not yet."""
        found = Observation()
        outputs = moment.kept_outputs(moment.outputs(moment.probe))
        here = _Anchor({n: p.detach().clone() for n, p in moment.model.named_parameters()}, outputs)
        if moment.clock.event == "experience_start":
            self._anchors[moment.probe.name, "boundary"] = here
        if self._start_is_known:
            self._anchors.setdefault((moment.probe.name, "init"), here)
        else:
            found.reasons["linearisation_error_init"] = "the run was resumed: its initial parameters are not stored"
        for which in ("boundary", "init"):
            anchor = self._anchors.get((moment.probe.name, which))
            if anchor is not None:
                value_or_reason(found, f"linearisation_error_{which}", self._error, moment, anchor, here)
        return found

    @staticmethod
    def _error(moment: Moment, anchor: _Anchor, here: _Anchor) -> float | str:
        shapes = {name: p.shape for name, p in anchor.parameters.items()}
        if {name: p.shape for name, p in here.parameters.items()} != shapes:
            return "the model's parameters came, went or changed shape since"
        delta = {name: here.parameters[name] - p for name, p in anchor.parameters.items()}
        if not any(bool(d.any()) for d in delta.values()):
            return "the parameters have not moved since"
        labels = {"task_labels": moment.probe.read_only()[1]} if moment.multi_task else {}
        predicted = jvp_prediction(
            moment.model,
            moment.inputs,
            anchor.parameters,
            delta,
            output_selector=moment.options.get("output_selector"),
            dtype=torch.float64,
            **labels,
        )
        return measures.linearisation_error(here.outputs, anchor.outputs, moment.kept_outputs(predicted))
