"""A TensorBoard dashboard: the kernel's curves next to accuracy, strategies side by side.

One line after training adds both to a logger's folder:

    add_dashboard(logger, strategy, width=256)

The curves themselves come from `ntk_metrics(...)` and Avalanche's own metrics, and the pictures of kernels from
`ntk_metrics(ntk, kernel_image=True)`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from torch.utils.tensorboard.summary import hparams

from avalanche_ntk.adapters.plugin import NTKPlugin
from avalanche_ntk.errors import ArgumentError

BOUNDARIES = "Kernel beside accuracy"
REACTIVATION = "At each boundary"
INSIDE = "Inside the kernel"

# Charts by category: each chart's title and its tags, as regular expressions. The tasks' accuracies are in the same
# category as the kernel's curves and have the same horizontal axis.
LAYOUT: dict[str, dict[str, list[str]]] = {
    BOUNDARIES: {
        "Spectral norm λ_max": [r"NTK_SpectralNorm/"],
        "Distance from initialisation": [r"NTK_DistanceInit/"],
        "Alignment with the labels": [r"NTK_Alignment/"],
        "Velocity (1/iteration)": [r"NTK_Velocity/"],
        "Accuracy of each experience": [r"Top1_Acc_Exp/eval_phase/"],
        "Forgetting of each experience": [r"ExperienceForgetting/eval_phase/"],
        "Accuracy of the stream": [r"Top1_Acc_Stream/eval_phase/"],
    },
    REACTIVATION: {
        "Spike (1/iteration)": [r"NTK_Spike/"],
        "Ratio": [r"NTK_Ratio/"],
        "λ_max: lowest, and at the end": [r"NTK_NormDip/", r"NTK_NormRecovery/"],
        "Alignment drop": [r"NTK_AlignmentDrop/"],
        "Distance moved": [r"NTK_Moved/"],
        "Forgetting of the stream": [r"StreamForgetting/eval_phase/"],
    },
    INSIDE: {
        "Effective rank": [r"NTK_EffectiveRank/"],
        "Velocity of each layer": [r"NTK_LayerVelocity/"],
        "Distance of each layer from initialisation": [r"NTK_LayerDistanceInit/"],
        "Feature kernel": [r"NTK_FeatureDistanceInit/", r"NTK_FeatureAlignment/"],
        "Error of the linearised network": [r"NTK_LinearisationError(Boundary|Init)/"],
        "Task overlap": [r"NTK_TaskOverlap/"],
        "Share of the time spent measuring": [r"NTK_MeasuringShare/"],
    },
}


def add_dashboard(logger: Any, strategy: Any, **settings: Any) -> None:
    """Add the layout of charts and the run's hyperparameters: one line after training.

    Args:
        logger: Avalanche's `TensorboardLogger` of this run.
        strategy: The strategy, trained, with its `NTKPlugin`.
        settings: Further settings that distinguish this run from others, such as `width=256` or `regime="lazy"`.

    Raises:
        ArgumentError: `logger` is not a TensorBoard logger.
        PluginError: The strategy has no `NTKPlugin`.
    """
    add_layout(logger)
    add_hparams(logger, strategy, **settings)


def add_layout(logger: Any) -> None:
    """Lay out TensorBoard's page "Custom scalars": the kernel's curves beside accuracy and forgetting.

    Args:
        logger: Avalanche's `TensorboardLogger`; once for each folder of curves is enough.

    Raises:
        ArgumentError: `logger` is not a TensorBoard logger.
    """
    writer = _writer(logger)
    writer.add_custom_scalars(
        {
            category: {title: ["Multiline", tags] for title, tags in charts.items()}
            for category, charts in LAYOUT.items()
        }
    )
    writer.flush()


def add_hparams(logger: Any, strategy: Any, **settings: Any) -> None:
    """Put the run into TensorBoard's page "HParams", where strategies are compared.

    A row has `Strategy`, `Model`, `Optimizer`, `lr`, `momentum`, `batch_size`, `epochs`, `seed`, the kernel's
    `reduction`, the `schedule` and the `settings`. Its metrics are `Summary/accuracy` and `Summary/forgetting` of the
    last evaluation of the test stream, and over all boundaries `Summary/largest_spike`, `Summary/median_ratio` (without
    those that are only lower bounds), `Summary/deepest_norm_dip`, `Summary/largest_alignment_drop`, and
    `Summary/distance_init` at the end. Undefined numbers are absent.

    Args:
        logger: Avalanche's `TensorboardLogger` of this run.
        strategy: The strategy, trained, with its `NTKPlugin`.
        settings: Further settings that distinguish this run from others.

    Raises:
        ArgumentError: `logger` is not a TensorBoard logger.
        PluginError: The strategy has no `NTKPlugin`.
    """
    writer = _writer(logger)
    ntk = NTKPlugin.of(strategy)
    metrics = {**_performance(strategy), **_kernel(ntk)}
    step = ntk.trajectory[-1].clock.iteration if ntk.trajectories and len(ntk.trajectory) else 0
    for summary in hparams({**_settings(strategy, ntk), **_plain(settings)}, metrics):
        writer.file_writer.add_summary(summary)
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)
    writer.flush()


def _writer(logger: Any) -> Any:
    writer = getattr(logger, "writer", None)
    if not hasattr(writer, "add_custom_scalars"):
        raise ArgumentError(
            f"expected Avalanche's TensorboardLogger, found {type(logger).__name__}. Give the logger that the "
            "evaluator has: logger = TensorboardLogger('tb/naive')."
        )
    return writer


def _settings(strategy: Any, ntk: NTKPlugin) -> dict[str, Any]:
    # TensorBoard shows the first five by name by default; capitals come first.
    optimizer = getattr(strategy, "optimizer", None)
    groups = [] if optimizer is None else optimizer.param_groups
    return _plain(
        {
            "Strategy": type(strategy).__name__,
            "Model": type(strategy.model).__name__,
            "Optimizer": type(optimizer).__name__,
            "lr": groups[0].get("lr") if groups else None,
            "momentum": groups[0].get("momentum") if groups else None,
            "batch_size": getattr(strategy, "train_mb_size", None),
            "epochs": getattr(strategy, "train_epochs", None),
            "seed": ntk.seed,
            "reduction": ntk.reduction,
            "schedule": ntk.schedule.cadence,
        }
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Drop settings that are None, and convert those that are neither numbers nor text to text."""
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in settings.items()
        if value is not None
    }


def _performance(strategy: Any) -> dict[str, float]:
    last = strategy.evaluator.get_last_metrics()
    found = {}
    for name, start in (
        ("accuracy", "Top1_Acc_Stream/eval_phase/test_stream"),
        ("forgetting", "StreamForgetting/eval_phase/test_stream"),
    ):
        values = [v for tag, v in last.items() if tag.startswith(start) and isinstance(v, (int, float))]
        if values:
            found[f"Summary/{name}"] = statistics.fmean(values)
    return found


def _kernel(ntk: NTKPlugin) -> dict[str, float]:
    if not ntk.trajectories:
        return {}
    boundaries = ntk.trajectory.reactivations.values()
    ends = [m.values.get("distance_init") for m in ntk.trajectory if m.failure is None]
    found = {
        "largest_spike": max(_known(r.spike for r in boundaries), default=None),
        "median_ratio": _median(_known(r.ratio for r in boundaries if not r.at_floor)),
        "deepest_norm_dip": min(_known(r.norm_dip for r in boundaries), default=None),
        "largest_alignment_drop": max(_known(r.alignment_drop for r in boundaries), default=None),
        "distance_init": next(iter(_known(ends[-1:])), None),
    }
    return {f"Summary/{name}": value for name, value in found.items() if value is not None}


def _known(values: Iterable[float | None]) -> list[float]:
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
