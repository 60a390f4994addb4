"""What text loggers print of the metrics: a few of them, each value once, with enough digits.

Avalanche's `TextLogger` and `InteractiveLogger` print the last value of every metric after each epoch and each
evaluation, with four decimals, and have no setting for either. They format a float with `.4f` and pass over images. So
a value is a float that knows how many digits it needs, or, where it is not to be printed, a float that is an image
besides. TensorBoard's and the CSV logger ask for a float first, and take both as the numbers they are. Where a logger
is of a kind that is not known here, every value is a plain float, and text loggers print them all.
"""

from __future__ import annotations

import torch
from avalanche.evaluation.metric_results import TensorImage

PRINTED = (
    "NTK_SpectralNorm",
    "NTK_DistanceInit",
    "NTK_Velocity",
    "NTK_Alignment",
    "NTK_Spike",
    "NTK_Ratio",
    "NTK_NormDip",
    "NTK_Moved",
)
"""The metrics that text loggers print unless told otherwise."""


class Printed(float):
    """A number with four significant digits where a text logger would write four decimals.

    >>> f"{Printed(0.000012345):.4f}", f"{Printed(1234.5):.4f}", f"{Printed(0.5):.1f}"
    ('1.234e-05', '1234', '0.5')
    """

    def __format__(self, spec: str) -> str:
        return float(self).__format__(".4g" if spec == ".4f" else spec)


class Unprinted(float, TensorImage):
    """A number that text loggers pass over, as they do over images."""

    def __init__(self, value: float) -> None:
        """Leave the base class's image alone: this is a number."""

    @property
    def image(self) -> torch.Tensor:  # type: ignore[override]
        """The number as an image of one pixel, for a logger that asks for images first."""
        return torch.tensor(float(self)).reshape(1, 1, 1)
