"""The kernel by class."""

from __future__ import annotations

import math
import warnings

from avalanche_ntk import measures
from avalanche_ntk.errors import UndefinedMeasureWarning
from avalanche_ntk.observables.base import Moment, Observable, Observation
from avalanche_ntk.observables.declaration import Metric
from avalanche_ntk.observables.registry import register
from avalanche_ntk.recorder.labels import NO_CLASSES


@register
class ClassBlocks(Observable):
    """Mean entry of each block of classes, `class_block[a,b]`, and the means within and between classes.

    Undefined, with the reason, if the probe has numeric targets.
    """

    name = "class_blocks"
    flag = "class_blocks"
    metrics = (
        Metric("NTK_ClassBlock", "class_block[{A,B}]"),
        Metric("NTK_ClassBlockWithin", "class_block_within"),
        Metric("NTK_ClassBlockBetween", "class_block_between"),
    )

    def observe(self, moment: Moment) -> Observation:
        """Average the kernel over the blocks."""
        if not moment.probe.has_classes:
            return Observation(reasons=dict.fromkeys(("class_block_within", "class_block_between"), NO_CLASSES))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMeasureWarning)
            blocks = measures.class_block_means(moment.kernel, moment.probe.y.numpy())
        values = {"class_block_within": blocks.within, "class_block_between": blocks.between}
        for i, a in enumerate(blocks.classes.tolist()):
            for j, b in enumerate(blocks.classes.tolist()[i:], start=i):
                values[f"class_block[{a},{b}]"] = float(blocks.means[i, j])
        return Observation(values={name: value for name, value in values.items() if not math.isnan(value)})
