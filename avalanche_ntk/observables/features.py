"""The kernel of the features beside the kernel of the gradients."""

from __future__ import annotations

from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register


@register
class FeatureKernel(Observable):
    """The feature (conjugate) kernel: the Gram matrix of what the last linear layer sees, followed as the NTK is.

    When it moves, the features move; when only the NTK does, the gradients change behind features that stay.
    """

    name = "feature_kernel"
    flag = "features"
    metrics = (
        Metric("NTK_FeatureVelocity", "features.velocity_per_iteration", "1/iteration"),
        Metric("NTK_FeatureDistanceInit", "features.distance_init"),
        Metric("NTK_FeatureAlignment", "features.alignment"),
    )

    def observe(self, moment: Moment) -> Observation:
        """Compute the kernel; it is called `features`."""
        features = moment.features()
        return Observation(kernels={"features": (features @ features.T).cpu().numpy()})
