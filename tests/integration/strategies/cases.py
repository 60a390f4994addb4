"""The matrix: which strategy is built how and on which stream, small enough for an ordinary test run."""

from __future__ import annotations

from typing import Any

import torch
import torchvision.models
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk.strategies.recipes import RECIPES, build
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.lab.benchmarks import split_digits
from tests.integration.strategies.unchanged import Job, Run
from tests.support.lines import tiny_stream

split_digits(5)  # the first call imports scikit-learn, which draws from Python's generator

HEAVY = {"AR1"}  # a MobileNet on images of 128 pixels

# Smaller arguments where the usual ones take seconds.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "MER": {"n_inner_steps": 1, "batch_size_mem": 2},
    "AR1": {"rm_sz": 4},
}
SIZES: dict[str, dict[str, Any]] = {
    "AR1": {"mb_size": 4, "lr": 0.001},
    "ExpertGate": {"mb_size": 8, "lr": 0.01},
    "LearningToPrompt": {"mb_size": 8},
}


class TinyAlexNet(nn.Module):
    """The three parts of AlexNet that ExpertGate takes, with features of the shape it insists on, in few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 256, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(6))
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def avoid_downloads(monkeypatch: Any) -> None:
    """Give the strategies that would download weights random ones, of a small network where the big one is needless."""
    import avalanche.models.mobilenetv1 as mobilenetv1

    original = mobilenetv1.mobilenet_w1
    monkeypatch.setattr(mobilenetv1, "mobilenet_w1", lambda pretrained: original(pretrained=False))
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights=None: TinyAlexNet())


def stream(name: str) -> Any:
    """The stream on which a recipe is tried."""
    labels = RECIPES[name].task_labels
    if name == "AR1":
        return tiny_stream(2, per_class=4, shape=(3, 128, 128))
    if name == "ExpertGate":
        return tiny_stream(2, shape=(1, 8, 8), task_labels=labels)
    if name == "LearningToPrompt":
        return tiny_stream(2, shape=(6,))
    return split_digits(5, task_labels=labels)


def evaluator(name: str, plugins: list[Any]) -> EvaluationPlugin:
    """Loss, accuracy where it exists, and the plugin's metrics where there is a plugin."""
    metrics = [loss_metrics(epoch=True, stream=True)]
    if RECIPES[name].accuracy:
        metrics.append(accuracy_metrics(epoch=True, stream=True))
    metrics += [ntk_metrics(p) for p in plugins if isinstance(p, NTKPlugin)]
    return EvaluationPlugin(*metrics, loggers=[])


def job(name: str, plugins: list[Any], **overrides: Any) -> Job:
    """Build a recipe and what it is trained on: two experiences of Split-Digits, or of a tiny stream."""
    benchmark = stream(name)
    strategy = build(
        name,
        benchmark=benchmark,
        plugins=plugins,
        evaluator=evaluator(name, plugins),
        **{"mb_size": 32, **SIZES.get(name, {}), **ARGUMENTS.get(name, {}), **overrides},
    )
    experiences = list(benchmark.train_stream)
    # ExpertGate answers for one task at a time.
    tests = benchmark.test_stream[:1] if name == "ExpertGate" else benchmark.test_stream[:2]
    return Job(strategy, [experiences[:3]] if RECIPES[name].whole_stream else experiences[:2], tests)


def plugin(**arguments: Any) -> NTKPlugin:
    """The plugin under test: a small probe of the first task, measured at boundaries and every fourth iteration."""
    return NTKPlugin(
        **{"probe": ProbeSpec(size=6), "schedule": Schedule.every_iterations(4), "on_error": "raise", **arguments}
    )


def plugin_for(name: str) -> NTKPlugin:
    """The plugin for a recipe."""
    if name == "AR1":
        # 3.2 million parameters and 50 outputs: one backward pass in place of fifty, and no oracle.
        return plugin(probe=ProbeSpec(size=2), reduction="sum_logits", spot_check_every=0)
    return plugin(output_selector=RECIPES[name].output_selector)


def _of_tasks(counts: list[int], pieces: int) -> list[int]:
    return [sum(counts[i : i + pieces]) for i in range(0, len(counts), pieces)]


def check_trajectory(run: Run, pieces: int = 1) -> None:
    """Assert that every task has its start and end, at the right counts, and that nothing failed.

    Args:
        run: What was trained.
        pieces: Experiences that make one task.
    """
    ntk, recorder = run.plugins[0], run.recorder
    measurements = list(ntk.trajectory)
    assert [m.failure for m in measurements if m.failure] == []
    assert all("spectral_norm" in m.values for m in measurements)
    iterations = steps = 0
    counts = _of_tasks(recorder.iterations, pieces), _of_tasks(recorder.steps, pieces)
    for number, (own_iterations, own_steps) in enumerate(zip(*counts, strict=True)):
        mine = [m.clock for m in measurements if m.clock.experience == number]
        starts = [c for c in mine if c.event == "experience_start"]
        assert {(c.iteration, c.optimizer_step) for c in starts} == {(iterations, steps)}
        due = [i for i in range(1, own_iterations + 1) if i % 4 == 0]
        assert [c.exp_iteration for c in mine if c.event == "iteration"] == due
        iterations, steps = iterations + own_iterations, steps + own_steps
        ends = [c for c in mine if c.event == "experience_end"]
        assert [(c.iteration, c.exp_iteration, c.optimizer_step) for c in ends] == [(iterations, own_iterations, steps)]
    assert len(recorder.iterations) == pieces * (measurements[-1].clock.experience + 1)
    assert any(tag.startswith("NTK_SpectralNorm/train_phase/") for tag in run.strategy.evaluator.get_all_metrics())


def summary(run: Run) -> str:
    """What the trajectory looked like, in words for the table."""
    measurements, recorder = list(run.plugins[0].trajectory), run.recorder
    segments = measurements[-1].segment + 1
    parts = [
        "complete",
        "one segment" if segments == 1 else f"{segments} segments in {len(recorder.steps)} experiences",
    ]
    if any(note.startswith("trainable parameters") for m in measurements for note in m.notes):
        parts.append("change of parameters noted")
    if sum(recorder.steps) == 0:
        parts.append("no optimizer step")
    elif recorder.steps != recorder.iterations:
        fewer = sum(recorder.steps) < sum(recorder.iterations)
        parts.append(f"{'fewer' if fewer else 'more'} optimizer steps than iterations, counted")
    return ", ".join(parts)
