"""Helpers of the kernel engine shared with this package's other modules; not for users."""

from avalanche_ntk.kernels._device.profile import fast_double, in_double, synchronise
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.projections import check_exact_or_projected
from avalanche_ntk.kernels._function.subject import Subject, checked_precision, select_parameters, swapped
from avalanche_ntk.kernels._function.wrappers import unwrap
from avalanche_ntk.kernels._generic.jacobians import jacobian
from avalanche_ntk.kernels._generic.linearise import live_outputs
from avalanche_ntk.kernels._generic.spot_check import spot_check_in_double
from avalanche_ntk.kernels._guard.hooks import hooks_as
from avalanche_ntk.kernels._guard.isolation import measuring

__all__ = [
    "Batch",
    "Subject",
    "check_exact_or_projected",
    "checked_precision",
    "fast_double",
    "hooks_as",
    "in_double",
    "jacobian",
    "live_outputs",
    "measuring",
    "select_parameters",
    "spot_check_in_double",
    "swapped",
    "synchronise",
    "unwrap",
]
