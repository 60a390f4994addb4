"""How much the tasks share directions of gradient."""

from __future__ import annotations

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.observables.base import Moment, Observable, Observation


class TaskOverlap(Observable):
    """The overlap of every pair of probes, at the boundaries: `‖Θ(X_i,X_j)‖² / (‖Θ(X_i,X_i)‖ ‖Θ(X_j,X_j)‖)`.

    Needs at least two probes, for example `NTKPlugin(ProbeSpec.each_task(size=64))`. Numbers are called
    `task_overlap[A,B]`; the matrix goes to the run folder as a record of kind "task_overlap". Source: after Doan et al.
    2021.
    """

    name = "task_overlap"
    at_boundaries_only = True

    def observe(self, moment: Moment) -> Observation:
        """Compute the matrix once for all probes, with the first of them."""
        names = list(moment.probes)
        if moment.probe.name != names[0] or len(names) < 2:
            return Observation()
        probes = [moment.probes[name] for name in names]
        own = [moment.kernel, *[moment.ntk(p).cpu().numpy() for p in probes[1:]]]
        cross = {
            (i, j): moment.ntk(probes[i], probes[j]).cpu().numpy()
            for i in range(len(probes))
            for j in range(i + 1, len(probes))
        }
        matrix = np.asarray(measures.overlap_matrix(own, cross))
        values = {f"task_overlap[{names[i]},{names[j]}]": float(matrix[i, j]) for i, j in cross}
        record = {"kind": "task_overlap", "clock": moment.clock.as_dict(), "probes": names, "matrix": matrix.tolist()}
        return Observation(values={n: v for n, v in values.items() if np.isfinite(v)}, records=[record])
