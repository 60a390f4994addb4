"""How much the tasks share directions of gradient."""

from __future__ import annotations

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.undefined import value_or_reason


class TaskOverlap(Observable):
    """The overlap of every pair of probes, at the boundaries: `‖Θ(X_i,X_j)‖² / (‖Θ(X_i,X_i)‖ ‖Θ(X_j,X_j)‖)`.

    All outputs of the model take part (those that the user chose, where the plugin was given indices), since tasks may
    have heads of their own. Needs at least two probes, for example `NTKPlugin(ProbeSpec.each_task(size=64))`. Numbers
    are called `task_overlap[A,B]`; the matrix goes to the run folder as a record of kind "task_overlap". Source: after
    Doan et al. 2021.
    """

    name = "task_overlap"
    at_boundaries_only = True

    def observe(self, moment: Moment) -> Observation:
        """Compute the matrix once for all probes, with the first of them."""
        names = list(moment.probes)
        if moment.probe.name != names[0]:
            return Observation()
        if len(names) < 2:  # a probe for each task is one in the first of them, as it should be
            told = "there is one probe so far, and an overlap is that of two"
            return Observation(reasons={self.name: told} if moment.clock.experience > 0 else {})
        probes = [moment.probes[name] for name in names]
        found = Observation()
        # Tasks may have heads of their own, so every output takes part, whatever each probe's own series keeps.
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
