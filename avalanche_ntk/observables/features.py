"""The feature kernel, beside the NTK."""

from __future__ import annotations

from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register


@register
class FeatureKernel(Observable):
    """The feature (conjugate) kernel: the Gram matrix of the last linear layer's inputs, followed like the NTK.

    If it moves, the features move; if only the NTK moves, the gradients change while the features stay.
    """

    name = "feature_kernel"
    flag = "features"
    metrics = (
        Metric("NTK_FeatureVelocity", "features.velocity_per_iteration", "1/iteration"),
        Metric("NTK_FeatureDistanceInit", "features.distance_init"),
        Metric("NTK_FeatureAlignment", "features.alignment"),
    )

    def observe(self, moment: Moment) -> Observation:
        """Compute the kernel, under the name `features`."""
        features = moment.features()
        return Observation(kernels={"features": (features @ features.T).cpu().numpy()})
