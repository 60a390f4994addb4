"""Model + inputs → empirical neural tangent kernel. Pure torch; `empirical_ntk` is the door."""

from avalanche_ntk.kernels.checks import spot_check
from avalanche_ntk.kernels.empirical import empirical_ntk, empirical_ntk_by_group
from avalanche_ntk.kernels.features import feature_kernel, penultimate_features
from avalanche_ntk.kernels.linearise import jvp_prediction
from avalanche_ntk.kernels.method import KernelInfo, Method
from avalanche_ntk.kernels.operator import NTKOperator, ntk_operator
from avalanche_ntk.kernels.reference import reference_jacobian, reference_ntk

__all__ = [
    "KernelInfo",
    "Method",
    "NTKOperator",
    "empirical_ntk",
    "empirical_ntk_by_group",
    "feature_kernel",
    "jvp_prediction",
    "ntk_operator",
    "penultimate_features",
    "reference_jacobian",
    "reference_ntk",
    "spot_check",
]
