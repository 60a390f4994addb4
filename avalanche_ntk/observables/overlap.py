"""Overlap of the tasks' gradient directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Image, Metric
from avalanche_ntk.observables.kernel_numbers import when
from avalanche_ntk.observables.registry import register
from avalanche_ntk.observables.undefined import value_or_reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from avalanche_ntk.recorder.trajectory import Measurement, Trajectory


def _draw(trajectory: Trajectory, measurement: Measurement) -> Figure | None:
    from avalanche_ntk.report.images import overlap_figure

    pairs = {c[len("task_overlap[") : -1]: v for c, v in measurement.values.items() if c.startswith("task_overlap[")}
    if not pairs:
        return None
    names = list(dict.fromkeys(name for pair in pairs for name in pair.split(",")))
    matrix = np.full((len(names), len(names)), np.nan)  # NaN for undefined pairs, not 0
    np.fill_diagonal(matrix, 1.0)
    for pair, value in pairs.items():
        i, j = (names.index(name) for name in pair.split(","))
        matrix[i, j] = matrix[j, i] = value
    return overlap_figure(matrix, names, when(measurement))


@register
class TaskOverlap(Observable):
    """The overlap of every pair of probes, at the boundaries: `‖Θ(X_i,X_j)‖² / (‖Θ(X_i,X_i)‖ ‖Θ(X_j,X_j)‖)`.

    Uses all outputs of the model (or those that the user chose by indices), since tasks may have separate heads. Needs
    at least two probes, for example `NTKPlugin(ProbeSpec.each_task(size=64))`. The numbers are `task_overlap[A,B]`; the
    matrix goes to the run folder as a record of kind "task_overlap". Source: after Doan et al. 2021.
    """

    name = "task_overlap"
    flag = "task_overlap"
    metrics = (Metric("NTK_TaskOverlap", "task_overlap[{A,B}]", missed=True),)
    images = (Image("NTK_TaskOverlapMatrix", _draw),)
    when = "boundaries, from the second probe on"
    at_boundaries_only = True

    def observe(self, moment: Moment) -> Observation:
        """Compute the matrix once for all probes, with the first of them."""
        names = list(moment.probes)
        if moment.probe.name != names[0]:
            return Observation()
        if len(names) < 2:  # with a probe for each task, the first task has only one
            told = "there is one probe so far, and an overlap needs two"
            return Observation(reasons={self.name: told} if moment.clock.experience > 0 else {})
        probes = [moment.probes[name] for name in names]
        found = Observation()
        # Tasks may have separate heads, so use every output, not only those of each probe's series.
        own = [moment.ntk(p, every_output=True).cpu().numpy() for p in probes]
        matrix = np.eye(len(names))
        for i in range(len(probes)):
            for j in range(i + 1, len(probes)):
                cross = moment.ntk(probes[i], probes[j], every_output=True).cpu().numpy()
                column = f"task_overlap[{names[i]},{names[j]}]"
                value_or_reason(found, column, measures.task_overlap, cross, own[i], own[j])
                matrix[i, j] = matrix[j, i] = found.values.get(column, np.nan)
        record = {"kind": "task_overlap", "clock": moment.clock.as_dict(), "probes": names, "matrix": matrix.tolist()}
        found.records.append(record)
        return found
