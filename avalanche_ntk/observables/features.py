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
        labels = {"task_labels": moment.probe.task_labels} if moment.multi_task else {}
        kernel = feature_kernel(
            moment.model,
            moment.probe.x,
            output_selector=moment.options.get("output_selector"),
            dtype=moment.options.get("dtype"),
            **labels,
        )
        return Observation(kernels={"features": kernel.detach().cpu().numpy()})
