"""Definition of a study: runs, measurements, claims and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.verdicts import Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from avalanche_ntk.reproduce.results import Results


@dataclass(frozen=True)
class Context:
    """The setting of a study.

    Attributes:
        scale: Its scale.
        data: Argument of `benchmarks.load_data`: digits, a name of torchvision.datasets, a folder, a zip.
        data_root: Folder of torchvision's datasets.
        seeds: The seeds.
        device: Device for training and measuring.
    """

    scale: Scale
    data: str = "digits"
    data_root: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    device: str = "cpu"

    @property
    def is_digits(self) -> bool:
        """Whether the data are scikit-learn's 8×8 digits: 1,797 grey images, about 180 of each class."""
        return self.data == "digits"

    def pick(self, tiny: Any, small: Any, paper: Any) -> Any:
        """Return the value for this scale."""
        return {Scale.TINY: tiny, Scale.SMALL: small, Scale.PAPER: paper}[self.scale]


Plan = Mapping[str, Any]
"""A sweep's plan for `experiments.load_sweep`: `base`, `grid`, `runs`, `control`; without `seeds`."""


def _no_plans(context: Context) -> Mapping[str, Plan]:
    return {}


def _no_parts(context: Context) -> Mapping[str, Mapping[str, Any]]:
    return {}


def _no_measure(context: Context, arguments: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    raise NotImplementedError("a study that has parts needs a function that measures one.")


@dataclass(frozen=True)
class Study:
    """A published result, or an open question, as a runnable study.

    Attributes:
        judge: Returns claims with verdicts from the results.
        draw: Returns figures by file name from the results.
        plans: Sweeps of ordinary runs by name; every run is made for every seed, in a run folder.
        parts: Further measurements for every seed: arguments of `measure` by name of the part.
        measure: Measures one part with one seed: `(context, arguments, seed)` to plain values (numbers, text, lists,
            mappings; NaN if undefined), stored as JSON. It runs in a separate process with torch seeded and on one
            thread.
    """

    judge: Callable[[Results], Sequence[Claim]]
    draw: Callable[[Results], Mapping[str, Figure]]
    plans: Callable[[Context], Mapping[str, Plan]] = _no_plans
    parts: Callable[[Context], Mapping[str, Mapping[str, Any]]] = _no_parts
    measure: Callable[[Context, Mapping[str, Any], int], Mapping[str, Any]] = _no_measure


@dataclass(frozen=True)
class Place:
    """Location of a study's files.

    Attributes:
        out: Its folder.
    """

    out: Path

    def sweep(self, plan: str) -> Path:
        """The folder of a plan's runs."""
        return self.out / "sweeps" / plan

    def measured(self, part: str, seed: int) -> Path:
        """The result file of a part with a seed."""
        return self.out / "measured" / f"{part}-seed={seed}.json"
