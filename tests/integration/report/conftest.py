"""Run folders made without training: the kernel turns slowly, and faster where a task begins."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory

LABELS = [0, 0, 0, 0, 1, 1, 1, 1]
STEPS = 8  # measurements of an experience after its start, 5 iterations apart
CADENCE = "every_iterations:5"


def clock(event: str, experience: int, step: int, steps: int) -> TrainingClock:
    iteration = (experience * steps + step) * 5
    return TrainingClock(event, iteration, experience, step * 5, experience, 0, iteration, 0)


@dataclass
class Made:
    """How to make a run folder; `write` makes it."""

    experiences: int = 3
    probe: str = "Exp000"
    steps: int = STEPS
    seed: int = 0
    jump: float = 0.5
    accuracies: Any = (1.0, 0.25, 0.0)
    keep_kernels: bool = True
    rich: bool = False
    fail: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    cadence: str = CADENCE
    meta: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ("features.1", "classifier")

    def write(self, path: Path) -> Path:
        rng = np.random.default_rng(self.seed)
        factor = rng.normal(size=(len(LABELS), 12))
        probes = [
            {"name": self.probe, "hash": f"hash{self.seed}", "experience": 0, "labels": LABELS, "size": len(LABELS)}
        ]
        meta = {"probes": probes, "cadence": self.cadence, "strategy": "Naive", "reduction": "trace", "seed": self.seed}
        with RunFolder.create(path, {**meta, **self.meta}) as folder:
            series = Trajectory(self.probe, LABELS, folder=folder, cadence=self.cadence, keep_kernels=self.keep_kernels)
            index = 0
            for experience in range(self.experiences):
                for step in range(self.steps + 1):
                    event = "experience_start" if step == 0 else "experience_end" if step == self.steps else "iteration"
                    size = 0.02 + (self.jump * 0.5**step if experience and step else 0)
                    factor = factor + size * rng.normal(size=factor.shape)
                    now = clock(event, experience, step, self.steps)
                    if index in self.fail:
                        series._add_failure(now, "KernelError: <b>not</b> finite")
                    else:
                        self._add(series, now, factor, first=index == 0)
                    index += 1
                series._close_experience(experience)
                self._evaluate(folder, experience)
        return path

    def _add(self, series: Trajectory, now: TrainingClock, factor: np.ndarray, first: bool) -> None:
        kernel = factor @ factor.T
        extra, kernels = {"measuring_share": 0.25}, {}
        if self.rich:
            extra |= {"linearisation_error_init": 0.5, "linearisation_error_boundary": 0.25}
            half = factor[:, :6] @ factor[:, :6].T
            first_layer, *others = self.layers
            kernels = {f"layer[{first_layer}]": half, **{f"layer[{name}]": kernel - half for name in others}}
            kernels["features"] = half
            if now.is_boundary:
                matrix = [[1.0, 0.5], [0.5, 1.0]]
                record = {"kind": "task_overlap", "clock": now.as_dict(), "probes": ["Exp000", "Exp001"]}
                series.note({**record, "matrix": matrix})
        trust = {"methods": {"gram": 4}, "asymmetry": 1e-8, "min_eigenvalue": 0.5, "max_eigenvalue": 50.0}
        if first:
            trust["spot_check_max_relative_error"] = 3e-7
        series.add(now, kernel, notes=self.notes if first else (), trust=trust, extra=extra, extra_kernels=kernels)

    def _evaluate(self, folder: RunFolder, experience: int) -> None:
        if self.accuracies is None:
            return
        values = {
            "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000": self.accuracies[experience],
            "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp001": 0.125,
            "Top1_Acc_Stream/eval_phase/test_stream/Task000": 0.5,
        }
        iteration = (experience + 1) * self.steps * 5
        folder.append({"kind": "evaluation", "experience": experience, "iteration": iteration, "values": values})


@pytest.fixture
def make_run(tmp_path):
    """Make a run folder in the test's own folder."""

    def make(name: str = "run", **arguments: Any) -> Path:
        return Made(**arguments).write(tmp_path / name)

    return make
