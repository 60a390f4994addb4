"""The numbers of the kernel itself, which every trajectory has without further measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_ntk import measures
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.observables.declaration import Family, Image, Metric

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from avalanche_ntk.recorder.trajectory import Measurement, Trajectory


def when(measurement: Measurement) -> str:
    """Return the title of a figure: the moment of a measurement."""
    event = measurement.clock.event.replace("_", " ")
    return f"{event} {measurement.clock.experience}, iteration {measurement.clock.iteration}"


def _kernel_of(trajectory: Trajectory, measurement: Measurement) -> np.ndarray | None:
    try:
        return trajectory.kernel(measurement.index)
    except RunFolderError:  # kernels were not kept or the file is missing: nothing to draw
        return None


def _draw_kernel(trajectory: Trajectory, measurement: Measurement) -> Figure | None:
    from avalanche_ntk.report.images import kernel_figure

    kernel = _kernel_of(trajectory, measurement)
    return None if kernel is None else kernel_figure(kernel, trajectory.labels, when(measurement))


def _draw_spectrum(trajectory: Trajectory, measurement: Measurement) -> Figure | None:
    from avalanche_ntk.report.images import spectrum_figure

    kernel = _kernel_of(trajectory, measurement)
    if kernel is None:
        return None
    with measures.few_threads(len(kernel)):
        eigenvalues = measures.eigenvalues(kernel)
    return spectrum_figure(eigenvalues, when(measurement))


_DISTANCES = tuple(
    Metric(f"NTK_Distance{tag}{suffix}", f"distance_{column}{suffix and '_uncentred'}", missed=True)
    for tag, column in (("Previous", "previous"), ("ExperienceStart", "experience_start"), ("Init", "init"))
    for suffix in ("", "Uncentred")
)

NORMS = Family(
    "norms",
    (
        Metric("NTK_SpectralNorm", "spectral_norm", note="λ_max", missed=True),
        Metric("NTK_KernelNorm", "kernel_norm", note="Frobenius", missed=True),
        Metric("NTK_KernelTrace", "kernel_trace", missed=True),
    ),
    on=True,
)
DISTANCE = Family("distance", _DISTANCES, on=True)
VELOCITY = Family(
    "velocity",
    (
        Metric("NTK_Velocity", "velocity_per_iteration", "1/iteration", "per training iteration"),
        Metric("NTK_VelocityUncentred", "velocity_per_iteration_uncentred", "1/iteration"),
        Metric("NTK_VelocityPerStep", "velocity_per_step", "1/step", "per optimizer step"),
        Metric("NTK_VelocityPerEpoch", "velocity_per_epoch", "1/epoch"),
    ),
    on=True,
)
ALIGNMENT = Family("alignment", (Metric("NTK_Alignment", "alignment", note="CKA(Θ, YYᵀ)", missed=True),), on=True)
SPECTRUM = Family(
    "spectrum",
    (
        Metric("NTK_EffectiveRank", "effective_rank", missed=True),
        Metric("NTK_ConditionNumber", "condition_number"),
        Metric("NTK_EigenvectorAlignment", "eigenvector_alignment_{K}", note="of the leading K eigenvectors"),
    ),
    (Image("NTK_Spectrum", _draw_spectrum),),
)
_FIRST = "end of the first experience"
REACTIVATION = Family(
    "reactivation",
    (
        Metric("NTK_Spike", "spike", "1/iteration"),
        Metric("NTK_Ratio", "ratio"),
        Metric("NTK_Z", "z"),
        Metric("NTK_OnsetRatio", "onset_ratio"),
        Metric("NTK_NormDip", "norm_dip"),
        Metric("NTK_NormRecovery", "norm_recovery"),
        Metric("NTK_AlignmentDrop", "alignment_drop"),
        Metric("NTK_Moved", "moved"),
        Metric("NTK_TimeToPeak", "time_to_peak", "iterations"),
        Metric("NTK_HalfLife", "half_life", "iterations"),
        Metric("NTK_OnsetVelocity", "onset", "1/iteration", when=_FIRST),
    ),
    on=True,
    when="end of each experience from the second on",
    of_boundaries=True,
)
KERNEL_IMAGE = Family("kernel_image", images=(Image("NTK_Kernel", _draw_kernel),), when="boundaries")
COST = Family(
    "cost",
    (
        Metric("NTK_MeasurementSeconds", "measurement_seconds", "s"),
        Metric("NTK_MeasuringShare", "measuring_share", note="of the time since training began"),
    ),
    on=True,
)

FAMILIES = (NORMS, DISTANCE, VELOCITY, ALIGNMENT, SPECTRUM, REACTIVATION, KERNEL_IMAGE, COST)
