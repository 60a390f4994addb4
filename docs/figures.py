"""The figures of `docs/reading.md`: `python docs/figures.py [NAME …]` writes `docs/assets/NAME.svg`, or all of them.

Each trains small networks on scikit-learn's digits or on generated data, on one thread: about two minutes for all of
them. Look at what was drawn before you keep it: the sentences beside a figure tell its numbers, which are printed.
"""

import argparse
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from avalanche.logging import TextLogger
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, Trajectory
from avalanche_ntk.lab.benchmarks import class_overlap_shift, load_data, no_shift
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import kernel_distance
from avalanche_ntk.report.style import FAINT, PAGE_INCHES, drawing, look, new_figure

ASSETS = Path(__file__).parent / "assets"
CLASSES = 5


class NewOptimizer(SupervisedPlugin):
    """Forgets the optimizer's state at each boundary, as a script does that makes a new optimizer for each task."""

    def before_training_exp(self, strategy: Any, **arguments: Any) -> None:
        """Forget it."""
        strategy.optimizer.state.clear()


@dataclass
class Line:
    """One curve.

    Attributes:
        name: What the legend says.
        x: Iterations since the boundary.
        y: The values.
    """

    name: str
    x: np.ndarray
    y: np.ndarray


def watch(
    benchmark: Any,
    model: nn.Module | None = None,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    rates: tuple[float, ...] = (0.1, 0.1),
    epochs: int = 8,
    every: int = 2,
    plugins: tuple[SupervisedPlugin, ...] = (),
    **arguments: Any,
) -> tuple[Trajectory, Any]:
    """Train Naive on two tasks and measure the first one's kernel.

    Args:
        benchmark: The stream.
        model: The network; an MLP of width 128 when None.
        optimizer: Class of the optimizer.
        rates: Step size in each task.
        epochs: Epochs of each task.
        every: Iterations between two measurements.
        plugins: Further plugins.
        **arguments: Of `NTKPlugin`.

    Returns:
        The series, and the strategy as training left it.
    """
    torch.manual_seed(0)
    model = model if model is not None else MLP(64, 10, width=128, depth=2)
    ntk = NTKPlugin(ProbeSpec(size=50), Schedule.every_iterations(every), on_error="raise", **arguments)
    strategy = Naive(
        model=model,
        optimizer=optimizer(model.parameters(), lr=rates[0]),
        train_mb_size=16,
        train_epochs=epochs,
        plugins=[*plugins, ntk],
        evaluator=EvaluationPlugin(loggers=[TextLogger(io.StringIO())]),
    )
    for experience, rate in zip(benchmark.train_stream, rates, strict=True):
        for group in strategy.optimizer.param_groups:
            group["lr"] = rate
        strategy.train(experience)
    return ntk.trajectory, strategy


def around(trajectory: Trajectory, column: str, name: str, before: int = 80, after: int = 80) -> Line:
    """Return a column's curve, with iterations counted from the first boundary."""
    table = trajectory.to_pandas()
    boundary = table.loc[(table["experience"] == 1) & (table["event"] == "experience_start"), "iteration"].iloc[0]
    if not before:
        table = table[table["experience"] == 1]  # the first task's end stands at the same iteration
    shown = table[table["iteration"].between(boundary - before, boundary + after) & pd.notna(table[column])]
    return Line(name, (shown["iteration"] - boundary).to_numpy(float), shown[column].to_numpy(float))


def ratio(trajectory: Trajectory) -> str:
    """Return the ratio of the first boundary, for a legend."""
    found = trajectory.reactivations[1]
    return f"ratio {found.ratio:.0f}" if found.ratio is not None and found.ratio >= 10 else f"ratio {found.ratio:.1f}"


def panel(axes: Axes, lines: list[Line], label: str, *, log: bool = False, title: str = "") -> None:
    """Draw curves around a boundary into one panel."""
    for position, line in enumerate(lines):
        print(f"  {title or label.replace(chr(10), ' ')}: {line.name}, last {line.y[-1]:.2g}", flush=True)
        axes.plot(line.x, line.y, label=line.name, **look(position))
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel("iterations since the boundary")
    axes.set_ylabel(label)
    if log:
        axes.set_yscale("log")
    # Above the axes, where it lies on no curve.
    axes.legend(title=title or None, alignment="left", loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)


def page(panels: int) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with panels beside each other."""
    figure = new_figure(PAGE_INCHES, 3.0)
    return figure, [figure.add_subplot(1, panels, i + 1) for i in range(panels)]


def fresh_samples() -> Figure:
    """New classes beside fresh samples of the same classes, and beside the very same samples."""
    digits = load_data("digits")
    streams = {
        "new classes": class_overlap_shift(digits, 0, classes_per_task=CLASSES, seed=0),
        "same classes, fresh samples": no_shift(digits, classes_per_task=CLASSES, seed=0),
        "same samples": no_shift(digits, fresh=False, classes_per_task=CLASSES, seed=0),
    }
    found = {name: watch(stream)[0] for name, stream in streams.items()}
    figure, (left, right) = page(2)
    velocities = [around(t, "velocity_per_iteration", f"{name}, {ratio(t)}") for name, t in found.items()]
    panel(left, velocities, "velocity (1/iteration)", log=True)
    panel(right, [around(t, "spectral_norm", name) for name, t in found.items()], "spectral norm $\\lambda_{\\max}$")
    return figure


def adam() -> Figure:
    """Nothing changes at the boundary but what the optimizer remembers."""
    stream = no_shift("digits", fresh=False, classes_per_task=CLASSES, seed=0)
    adam = {"optimizer": torch.optim.Adam, "rates": (3e-3, 3e-3)}
    found = {
        "SGD": watch(stream)[0],
        "Adam, state kept": watch(stream, **adam)[0],
        "Adam, a new one": watch(stream, **adam, plugins=(NewOptimizer(),))[0],
    }
    figure, [axes] = page(1)
    lines = [around(t, "velocity_per_iteration", f"{name}, {ratio(t)}") for name, t in found.items()]
    panel(axes, lines, "velocity (1/iteration)", log=True, title="the same samples before and after")
    return figure


def cadence() -> Figure:
    """One run, its velocities taken over intervals of three lengths."""
    stream = class_overlap_shift("digits", 0, classes_per_task=CLASSES, seed=0)
    trajectory, _ = watch(stream, every=1)
    table = trajectory.to_pandas()
    boundary = table.loc[(table["experience"] == 1) & (table["event"] == "experience_start"), "iteration"].iloc[0]
    at = {int(t): i for i, t in enumerate(table["iteration"])}
    figure, [axes] = page(1)
    lines = []
    for step in (1, 5, 20):
        ends = np.arange(boundary - 80, boundary + 80, step)
        speeds = [
            kernel_distance(trajectory.kernel(at[int(a)]), trajectory.kernel(at[int(a) + step])) / step for a in ends
        ]
        before, after = np.array(speeds)[ends < boundary], np.array(speeds)[ends >= boundary]
        quotient = after[:3].max() / np.median(before[-10:])
        lines.append(Line(f"every {step}, ratio {quotient:.0f}", ends - boundary + step, np.array(speeds)))
    panel(axes, lines, "velocity (1/iteration)", log=True, title="the same run, measured every 1, 5 and 20 iterations")
    return figure


class Growing(nn.Module):
    """An MLP whose head has outputs for the classes met so far."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU())
        self.classifier = IncrementalClassifier(128, initial_out_features=2, masking=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return as many logits as there are classes so far."""
        return self.classifier(self.features(x))


def growing_heads() -> Figure:
    """The first task's kernel while a head grows at the boundary, over the first outputs and over all."""
    stream = class_overlap_shift("digits", 0, classes_per_task=CLASSES, seed=0)
    found = {
        'outputs="first" (default)': watch(stream, Growing())[0],
        'outputs="all"': watch(stream, Growing(), outputs="all")[0],
    }
    figure, (left, right) = page(2)
    panel(left, [around(t, "kernel_trace", name) for name, t in found.items()], "trace of the kernel")
    panel(right, [around(t, "distance_init", name) for name, t in found.items()], "distance from initialisation")
    return figure


def normalised(kind: str) -> nn.Module:
    """Return an MLP with BatchNorm or LayerNorm."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d if kind == "BatchNorm" else nn.LayerNorm
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), norm(128), nn.ReLU(), nn.Linear(128, 10))


def batch_norm() -> Figure:
    """A second task in which no weight moves: the step size is zero."""
    stream = class_overlap_shift("digits", 0, classes_per_task=CLASSES, seed=0)
    figure, (left, right) = page(2)
    column, label = "distance_experience_start", "distance from the\nlast boundary"
    for axes, rates, title in ((left, (0.1, 0.0), "step size 0"), (right, (0.1, 0.1), "step size 0.1")):
        found = {kind: watch(stream, normalised(kind), rates=rates)[0] for kind in ("BatchNorm", "LayerNorm")}
        lines = [around(t, column, kind, before=0, after=90) for kind, t in found.items()]
        panel(axes, lines, label, title=title)
    return figure


def by_heart() -> Figure:
    """No task changes; one network has seen its few samples often, the other many samples, in as many iterations."""
    figure, axes = page(2)
    for place, fresh in zip(axes, (True, False), strict=True):
        lines = []
        for per_class, epochs in ((10, 80), (60, 14)):
            stream = no_shift("digits", fresh=fresh, classes_per_task=10, per_class=per_class, seed=0)
            trajectory, _ = watch(stream, epochs=epochs, every=4)
            name = f"{per_class} samples a class, {epochs} epochs, {ratio(trajectory)}"
            lines.append(around(trajectory, "velocity_per_iteration", name, 160, 160))
        title = "the second task: fresh samples" if fresh else "the second task: the same samples"
        panel(place, lines, "velocity (1/iteration)", log=True, title=title)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "fresh-samples": fresh_samples,
    "adam": adam,
    "cadence": cadence,
    "growing-heads": growing_heads,
    "batch-norm": batch_norm,
    "by-heart": by_heart,
}


def main(arguments: list[str]) -> None:
    """Draw the figures that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to")
    given = parser.parse_args(arguments)
    unknown = sorted({*given.names} - {*FIGURES})
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}: expected one of {', '.join(FIGURES)}.")
    torch.set_num_threads(1)
    for name in given.names or FIGURES:
        print(name)
        with drawing(**{"svg.hashsalt": name}):
            FIGURES[name]().savefig(given.out / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Avalanche's own
        matplotlib.use("Agg")
        main(sys.argv[1:])
