"""Values for text loggers: a few metrics, each value printed once, with enough digits.

Avalanche's `TextLogger` and `InteractiveLogger` print the last value of every metric after each epoch and each
evaluation, with four decimals, and have no setting for either. They format a float with `.4f` and pass over images. So
a printed value is a float that formats itself with enough digits, and an unprinted value is a float that is also an
image. The TensorBoard and CSV loggers check for floats first and log both as numbers. If the evaluator has a logger of
unknown kind, every value is a plain float and text loggers print them all.
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
"""The metrics that text loggers print by default."""


class Printed(float):
    """A number that the format `.4f` of text loggers writes with four significant digits.

    >>> f"{Printed(0.000012345):.4f}", f"{Printed(1234.5):.4f}", f"{Printed(0.5):.1f}"
    ('1.234e-05', '1234', '0.5')
    """

    def __format__(self, spec: str) -> str:
        return float(self).__format__(".4g" if spec == ".4f" else spec)


class Unprinted(float, TensorImage):
    """A number that text loggers skip, as they skip images."""

    def __init__(self, value: float) -> None:
        """Do not initialise the base class's image: this is a number."""

    @property
    def image(self) -> torch.Tensor:  # type: ignore[override]
        """The number as an image of one pixel, for a logger that asks for images first."""
        return torch.tensor(float(self)).reshape(1, 1, 1)
