"""Declarations of observables: the numbers that loggers show, their columns and units, the images, the flag.

They are the single source for `ntk_metrics`, the words of a configuration, the table in `docs/metrics.md`, the warnings
of undefined numbers and the report's further curves. This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from avalanche_ntk.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from avalanche_ntk.recorder.trajectory import Measurement, Trajectory

_VARYING = re.compile(r"\{(.+?)\}")


@dataclass(frozen=True)
class Metric:
    """A number that loggers show.

    Attributes:
        tag: First part of its tag, such as `NTK_Velocity`.
        column: Its column in `Trajectory.to_pandas()`. A part in braces varies, as in `layer[{LAYER}].distance_init`;
            its value ends the tag.
        unit: Its unit; empty for a pure number.
        note: Short description for the table of metrics.
        when: When it is defined, if that differs from its family.
        missed: Whether to warn if it is undefined.
    """

    tag: str
    column: str
    unit: str = ""
    note: str = ""
    when: str = ""
    missed: bool = False

    def __post_init__(self) -> None:
        if not self.tag or "/" in self.tag or not self.column:
            raise ArgumentError(
                f"a metric needs a tag without '/' and a column; found tag {self.tag!r}, column {self.column!r}. "
                "Give Metric('NTK_Mine', 'mine'), for example."
            )

    @property
    def varies(self) -> bool:
        """Whether it stands for several columns."""
        return _VARYING.search(self.column) is not None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Pattern of its columns; the group `part` is the varying part."""
        before, _, after = _VARYING.sub("\0", self.column, count=1).partition("\0")
        part = "(?P<part>.+)" if self.varies else "(?P<part>)"
        return re.compile(re.escape(before) + part + re.escape(after))

    @property
    def shown_tag(self) -> str:
        """The tag as the table of metrics shows it."""
        match = _VARYING.search(self.column)
        return self.tag if match is None else f"{self.tag}/…/{match[1]}"

    @property
    def shown_column(self) -> str:
        """The column as the table of metrics shows it."""
        return _VARYING.sub(r"\1", self.column)


@dataclass(frozen=True)
class Image:
    """A figure at each boundary; loggers that show images show it.

    Attributes:
        tag: First part of its tag.
        draw: Makes the figure of a measurement of a trajectory; None if there is nothing to draw.
    """

    tag: str
    draw: Callable[[Trajectory, Measurement], Figure | None]


@dataclass(frozen=True)
class Family:
    """The metrics that one flag of `ntk_metrics` switches on.

    Attributes:
        flag: The flag.
        metrics: The numbers.
        images: The figures.
        on: Whether it is on by default.
        when: When it is measured.
        of_boundaries: Whether the columns are those of `Trajectory.summary()`, with one number per boundary.
        observable: The observable that the plugin must measure for it; None for numbers of the kernel itself.
    """

    flag: str
    metrics: tuple[Metric, ...] = ()
    images: tuple[Image, ...] = ()
    on: bool = False
    when: str = "each measurement"
    of_boundaries: bool = False
    observable: type[Any] | None = None
