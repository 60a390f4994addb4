"""The demonstration: Split-Digits with two strategies, logged by Avalanche's own loggers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import CSVLogger, TensorboardLogger, TextLogger
from avalanche.training import Naive, Replay
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure

from avalanche_ntk.adapters.evaluation import ntk_metrics
from avalanche_ntk.adapters.plugin import NTKPlugin
from avalanche_ntk.adapters.tensorboard import add_dashboard
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.experiments.quiet import without_avalanches_own_warnings
from avalanche_ntk.files import write_whole
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.recorder.probes import ProbeSpec
from avalanche_ntk.recorder.schedule import Schedule
from avalanche_ntk.report import four_panels

STRATEGIES: dict[str, tuple[type, dict[str, Any]]] = {"naive": (Naive, {}), "replay": (Replay, {"mem_size": 200})}
EXPERIENCES = 5
EPOCHS = 10
MARK = "demo.json"  # marks the folder as a demonstration's
CONTENTS = {
    MARK: None,
    "reactivation.png": None,
    "boundaries.csv": None,
    "runs": frozenset(STRATEGIES),
    "tensorboard": frozenset(STRATEGIES),
    "csv": frozenset(STRATEGIES),
    "text": frozenset(f"{name}.txt" for name in STRATEGIES),
}
"""The files and folders that a demonstration writes, with the contents of the folders."""


@dataclass(frozen=True)
class DemoFolders:
    """Where the demonstration writes.

    Attributes:
        out: The folder that holds everything.
    """

    out: Path

    @property
    def runs(self) -> dict[str, Path]:
        """Run folders by strategy."""
        return {name: self.out / "runs" / name for name in STRATEGIES}

    @property
    def tensorboard(self) -> Path:
        """The folder to give to `tensorboard --logdir`."""
        return self.out / "tensorboard"

    @property
    def figure(self) -> Path:
        """The figure of the four curves."""
        return self.out / "reactivation.png"

    @property
    def table(self) -> Path:
        """The table of the boundaries."""
        return self.out / "boundaries.csv"

    def prepare(self, overwrite: bool) -> None:
        """Create the folder; refuse one that holds files, or with `overwrite` remove an earlier demonstration's files.

        Raises:
            RunFolderError: The folder holds files and `overwrite` is False, or holds files that no demonstration wrote.
        """
        if self.out.exists() and not self.out.is_dir():
            raise RunFolderError(
                f"{self.out} is a file; expected a folder that is empty or does not exist. Give another --out."
            )
        found = sorted(p.name for p in self.out.iterdir()) if self.out.exists() else []
        strange = [name for name in found if name not in CONTENTS]
        strange += [
            f"{name}/{path.name}"
            for name in found
            if CONTENTS.get(name) is not None and (self.out / name).is_dir()
            for path in sorted((self.out / name).iterdir())
            if path.name not in (CONTENTS[name] or ())
        ]
        if found and MARK not in found:
            strange = found
        if strange:
            raise RunFolderError(
                f"{self.out} holds files that no demonstration wrote ({', '.join(strange[:3])}); "
                "expected an empty folder or one that does not exist. Give another --out."
            )
        if found and not overwrite:
            raise RunFolderError(
                f"{self.out} already holds a demonstration; expected an empty folder or one that does not exist. "
                "Give another --out, or --overwrite to replace it."
            )
        for name in found:
            path = self.out / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / MARK, json.dumps({"made by": "avalanche-ntk demo"}) + "\n")


def run_demo(
    out: Path,
    *,
    overwrite: bool = False,
    seed: int = 0,
    epochs: int = EPOCHS,
    on_progress: Callable[[str, int], None] = lambda strategy, experiences: None,
) -> DemoFolders:
    """Train the strategies one after the other, each measured and logged.

    Args:
        out: Folder to write to.
        overwrite: Whether an earlier demonstration in that folder may be replaced.
        seed: Seed of data split, models and training.
        epochs: Epochs for each experience.
        on_progress: Called with the strategy's name and its number of finished experiences.

    Returns:
        The folders written.

    Raises:
        RunFolderError: The folder is in use or cannot be written.
    """
    folders = DemoFolders(out)
    folders.prepare(overwrite)
    (out / "text").mkdir()
    for name in STRATEGIES:
        text_file = (out / "text" / f"{name}.txt").open("w", encoding="utf-8")
        with text_file as text, without_avalanches_own_warnings():
            _train(name, folders, text, seed, epochs, on_progress)
    return folders


def draw_demo(folders: DemoFolders) -> Figure:
    """Draw the four curves of both strategies.

    Args:
        folders: Where a demonstration was written.

    Returns:
        The figure.
    """
    return four_panels(folders.runs, title="Kernel of task 1 while Split-Digits is learnt, task by task")


def _train(
    name: str, folders: DemoFolders, text: TextIO, seed: int, epochs: int, on_progress: Callable[[str, int], None]
) -> None:
    torch.manual_seed(seed)
    benchmark = split_digits(EXPERIENCES, seed=seed)
    model = MLP(in_features=64, n_classes=10, width=256, depth=2)
    # A constant cadence before and after a boundary makes velocities, and so their ratio, comparable.
    schedule = Schedule.every_iterations(5) | Schedule.at([1])
    ntk = NTKPlugin(ProbeSpec(size=64, from_experience=0), schedule, run_folder=folders.runs[name], seed=seed)
    tensorboard = TensorboardLogger(folders.tensorboard / name)
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        ntk_metrics(ntk, kernel_image=True),
        loggers=[tensorboard, CSVLogger(folders.out / "csv" / name), TextLogger(text)],
    )
    strategy_class, arguments = STRATEGIES[name]
    strategy = strategy_class(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=16,
        train_epochs=epochs,
        eval_mb_size=256,
        plugins=[ntk],
        evaluator=evaluator,
        **arguments,
    )
    for number, experience in enumerate(benchmark.train_stream, start=1):
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        on_progress(name, number)
    add_dashboard(tensorboard, strategy, run=name)
