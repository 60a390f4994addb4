"""The share of the kernel's motion since a boundary that is due to buffers such as running statistics."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from avalanche_ntk import measures
from avalanche_ntk.kernels.support import swapped
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register
from avalanche_ntk.observables.undefined import value_or_reason
from avalanche_ntk.recorder.parameters import same_bits


@dataclass(frozen=True, eq=False)
class _Boundary:
    """The kernel and the buffers at a boundary."""

    kernel: measures.KernelView
    buffers: dict[str, Tensor]


@register
class BufferShare(Observable):
    """`buffer_share`: the part of the kernel's distance to the boundary that is due to buffers alone.

    `S(Θ(θ_t, β_t), Θ(θ_t, β_b)) / S(Θ(θ_b, β_b), Θ(θ_t, β_t))` with weights θ and buffers β now (t) and at the last
    boundary (b), S the centred kernel distance. In eval mode BatchNorm's running statistics are part of the function:
    they follow the new task's data and move the kernel even if no weight moves. Near 0 the weights have moved the
    kernel; near 1 the buffers alone would have. Distances do not add up, so it can exceed 1. Costs one more kernel per
    measurement. Undefined, with the reason, for a model without buffers and while none has moved.
    """

    name = "buffers"
    flag = "buffer_share"
    metrics = (Metric("NTK_BufferShare", "buffer_share"),)
    when = "each measurement since which a buffer has moved"

    def __init__(self) -> None:
        self._boundaries: dict[str, _Boundary] = {}

    def reset(self) -> None:
        """Forget the boundary."""
        self._boundaries.clear()

    def observe(self, moment: Moment) -> Observation:
        """Compare the kernel with the kernel of the present weights and the boundary's buffers."""
        if moment.clock.event == "experience_start":
            copies = {name: buffer.detach().clone() for name, buffer in moment.model.named_buffers()}
            self._boundaries[moment.probe.name] = _Boundary(moment.view, copies)
        found = Observation()
        value_or_reason(found, "buffer_share", self._share, moment)
        return found

    def _share(self, moment: Moment) -> float | str:
        boundary = self._boundaries.get(moment.probe.name)
        now = dict(moment.model.named_buffers())
        if boundary is None:
            return "there was no measurement at the last boundary"
        if not now:
            return "the model has no buffers"
        before = boundary.buffers
        if {name: b.shape for name, b in now.items()} != {name: b.shape for name, b in before.items()}:
            return "the model's buffers were added, removed or resized since the boundary"
        if all(same_bits(buffer, before[name]) for name, buffer in now.items()):
            return "no buffer has moved since the boundary"
        # Pass copies of the buffers, since a forward pass may write to them.
        with swapped(moment.model, {name: buffer.clone() for name, buffer in before.items()}):
            kernel = moment.ntk(moment.probe).detach().cpu().numpy()
        moved = measures.kernel_distance(boundary.kernel, moment.view)
        alone = measures.kernel_distance(kernel, moment.view)
        return alone / moved if moved else "the kernel has not moved since the boundary"
