"""Model + inputs → empirical neural tangent kernel. Pure torch; the entry point is `empirical_ntk`."""

from avalanche_ntk.kernels._generic.features import feature_kernel, penultimate_features
from avalanche_ntk.kernels._generic.linearise import jvp_prediction
from avalanche_ntk.kernels._generic.operator import NTKOperator, ntk_operator
from avalanche_ntk.kernels._generic.reference import reference_jacobian, reference_ntk
from avalanche_ntk.kernels._generic.spot_check import spot_check
from avalanche_ntk.kernels._guard.policy import Checks
from avalanche_ntk.kernels.disk import top_eigenvalues
from avalanche_ntk.kernels.empirical import empirical_ntk, empirical_ntk_by_group
from avalanche_ntk.kernels.info import KernelInfo, Method
from avalanche_ntk.kernels.preconditioners import adam_preconditioner

__all__ = [
    "Checks",
    "KernelInfo",
    "Method",
    "NTKOperator",
    "adam_preconditioner",
    "empirical_ntk",
    "empirical_ntk_by_group",
    "feature_kernel",
    "jvp_prediction",
    "ntk_operator",
    "penultimate_features",
    "reference_jacobian",
    "reference_ntk",
    "spot_check",
    "top_eigenvalues",
]
