"""Kernel(s) → number(s): similarity, spectrum, label alignment, reactivation, in float64, without torch.

Every function takes numpy arrays, torch tensors on any device, or a `KernelView`, which caches results shared by
several measures. For an input on which it is undefined (a zero, constant or non-finite kernel, one class, too few
samples) a measure returns NaN and issues an `UndefinedMeasureWarning` with the reason; `ArgumentError` is for invalid
calls. The definitions and their sources are in `docs/definitions.md`.
"""

from avalanche_ntk.measures.alignment import eigenvector_alignment, kernel_alignment, one_hot
from avalanche_ntk.measures.blocks import ClassBlocks, class_block_means
from avalanche_ntk.measures.forecast import forecast_error, forgetting_forecast, mode_share, rank_correlation
from avalanche_ntk.measures.full import as_matrix, reduce_full
from avalanche_ntk.measures.intervals import interval, log_intervals
from avalanche_ntk.measures.linearisation import linearisation_error
from avalanche_ntk.measures.neurons import (
    NeuronPeriodicity,
    NeuronSimilarity,
    neuron_periodicity,
    neuron_similarity,
    tuning_similarity,
)
from avalanche_ntk.measures.norms import kernel_norm, kernel_trace
from avalanche_ntk.measures.overlap import overlap_matrix, task_overlap
from avalanche_ntk.measures.plasticity import (
    churn,
    dormant_share,
    gradient_cosine,
    loss_gradient_products,
    relative_kernel_change,
    zero_gradient_share,
)
from avalanche_ntk.measures.ranks import FeatureRanks, KernelRanks, feature_ranks, kernel_ranks
from avalanche_ntk.measures.reactivation import Reactivation, reactivation
from avalanche_ntk.measures.regression import KernelRegression, kernel_regression, kernel_ridge
from avalanche_ntk.measures.similarity import (
    centre,
    centred_kernel_alignment,
    distance_floor,
    drift_at_rest,
    kernel_distance,
    kernel_velocity,
    uncentred_alignment,
)
from avalanche_ntk.measures.spectrum import (
    EigenspaceRotation,
    ModeResponse,
    condition_number,
    effective_rank,
    eigenspace_rotation,
    eigenvalues,
    label_signed_kernel,
    mode_response,
    sharpness_ratio,
    spectral_norm,
)
from avalanche_ntk.measures.summary import Summary, summary
from avalanche_ntk.measures.threads import few_threads
from avalanche_ntk.measures.verdicts import SeedVerdict, Verdict, compare_ratios, verdict, verdict_over_seeds
from avalanche_ntk.measures.view import KernelView

__all__ = [
    "ClassBlocks",
    "EigenspaceRotation",
    "FeatureRanks",
    "KernelRanks",
    "KernelRegression",
    "KernelView",
    "ModeResponse",
    "NeuronPeriodicity",
    "NeuronSimilarity",
    "Reactivation",
    "SeedVerdict",
    "Summary",
    "Verdict",
    "as_matrix",
    "centre",
    "centred_kernel_alignment",
    "churn",
    "class_block_means",
    "compare_ratios",
    "condition_number",
    "distance_floor",
    "dormant_share",
    "drift_at_rest",
    "effective_rank",
    "eigenspace_rotation",
    "eigenvalues",
    "eigenvector_alignment",
    "feature_ranks",
    "few_threads",
    "forecast_error",
    "forgetting_forecast",
    "gradient_cosine",
    "interval",
    "kernel_alignment",
    "kernel_distance",
    "kernel_norm",
    "kernel_ranks",
    "kernel_regression",
    "kernel_ridge",
    "kernel_trace",
    "kernel_velocity",
    "label_signed_kernel",
    "linearisation_error",
    "log_intervals",
    "loss_gradient_products",
    "mode_response",
    "mode_share",
    "neuron_periodicity",
    "neuron_similarity",
    "one_hot",
    "overlap_matrix",
    "rank_correlation",
    "reactivation",
    "reduce_full",
    "relative_kernel_change",
    "sharpness_ratio",
    "spectral_norm",
    "summary",
    "task_overlap",
    "tuning_similarity",
    "uncentred_alignment",
    "verdict",
    "verdict_over_seeds",
    "zero_gradient_share",
]
