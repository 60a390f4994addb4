"""The kernel of the features beside the kernel of the gradients."""

from __future__ import annotations

from avalanche_ntk.kernels import feature_kernel
from avalanche_ntk.observables.base import Moment, Observable, Observation


class FeatureKernel(Observable):
    """The feature (conjugate) kernel: the Gram matrix of what the last linear layer sees, followed as the NTK is.

    When it moves, the features move; when only the NTK does, the gradients change behind features that stay.
    """

    name = "feature_kernel"

    def observe(self, moment: Moment) -> Observation:
        """Compute the kernel; it is called `features`."""
        kernel = feature_kernel(moment.model, moment.inputs, **moment.feature_options)
        return Observation(kernels={"features": kernel.detach().cpu().numpy()})
