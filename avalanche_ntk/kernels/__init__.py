"""Model + inputs → empirical neural tangent kernel. Pure torch; `empirical_ntk` is the door."""

from avalanche_ntk.kernels.empirical import KernelInfo, empirical_ntk
from avalanche_ntk.kernels.reference import reference_jacobian, reference_ntk

__all__ = ["KernelInfo", "empirical_ntk", "reference_jacobian", "reference_ntk"]
