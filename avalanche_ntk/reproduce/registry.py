"""The studies by name, imported on demand."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING

from avalanche_ntk.errors import unknown_name

if TYPE_CHECKING:
    from avalanche_ntk.reproduce.study import Study


class Scale(str, Enum):
    """Scale of a study."""

    TINY = "tiny"  # seconds, two seeds: only shows that the study runs
    SMALL = "small"  # minutes to an hour and a half on two cores, five seeds
    PAPER = "paper"  # the published setting, for a GPU

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Entry:
    """A study's entry, without importing it.

    Attributes:
        title: Its title.
        source: Its publication; `OPEN` for an open question.
    """

    title: str
    source: str


OPEN = "open question"

# The study `a-name` is the `STUDY` of the module `studies.a_name`.
STUDIES: dict[str, Entry] = {
    "reactivation": Entry("The kernel of the first task moves abruptly when the task changes", "arXiv 2507.16039"),
    "fort2020": Entry(
        "The kernel learns in the first epochs, when the choice among basins is still open",
        "Fort et al. 2020 (arXiv 2010.15110)",
    ),
    "strategies": Entry("Do methods that forget less move the kernel of the first task less?", OPEN),
    "layers": Entry("Which layers' kernels move at a task boundary", OPEN),
    "starvation": Entry("A feature that is learnt first starves the others", "Pezeshki et al. 2021 (arXiv 2011.09468)"),
    "eos": Entry(
        "At the edge of stability larger steps align the kernel's leading eigenvectors with the labels",
        "Jiang, Cohen & Li 2025 (arXiv 2507.12837)",
    ),
    "chaos": Entry(
        "At large step sizes training begins chaotically: perturbed twins move apart exponentially",
        "Fort et al. 2020 (arXiv 2010.15110); Jiménez-González et al. 2025 (arXiv 2506.08523)",
    ),
    "doan2021": Entry("The overlap of two tasks' kernels and forgetting", "Doan et al. 2021 (arXiv 2010.04003)"),
    "pi-nets": Entry("Networks of products learn high frequencies sooner", "Choraria et al. 2022 (arXiv 2202.13473)"),
    "linearisation": Entry("Whether the linearisation error jumps where the kernel's velocity does", OPEN),
    "architectures": Entry(
        "Reactivation beside the MLP: a CNN, a small vision transformer and a recurrent network", OPEN
    ),
    "sequences": Entry("Reactivation of recurrent classifiers of token sequences", OPEN),
    "reactive": Entry("Whether strategies that act on reactivation help", OPEN),
    "drift-at-rest": Entry("The kernel drifts when the loss has come to rest", "Avidan et al. 2023 (arXiv 2309.04522)"),
    "adversarial": Entry(
        "Adversarial training finds another, more robust kernel",
        "Loo et al. 2022 (arXiv 2210.12030); Tsilivis & Kempe 2022 (arXiv 2210.05577)",
    ),
    "difficulty": Entry(
        "The initial kernel's alignment with the labels orders tasks by difficulty",
        "Ortiz-Jiménez et al. 2021 (arXiv 2106.06770)",
    ),
    "low-rank-forgetting": Entry(
        "Forgetting is low-rank and known before the first step", "Hidekel & Raviv 2026 (arXiv 2606.18024)"
    ),
    "stability-gap": Entry(
        "The kernel in the stability gap, evaluated at every iteration", "De Lange et al. 2023 (arXiv 2205.13452)"
    ),
    "optimisers": Entry("Reactivation under SGD, momentum and Adam, and in the kernel that the optimiser sees", OPEN),
    "many-tasks": Entry("Twenty tasks in a row: does the kernel's movement add up, decay or settle?", OPEN),
    "plasticity": Entry(
        "Forty tasks in a row: which number at a boundary foretells how the next task is learnt?",
        "Tang et al. 2025 (arXiv 2506.00592); Lyle et al. 2022–2024; Sokar et al. 2023 (arXiv 2302.12902); "
        "Wang et al. 2026 (arXiv 2605.09044)",
    ),
    "practical-width": Entry(
        "Does more width bring linearised predictions, forgetting included, closer at practical widths?",
        "Wenger et al. 2023 (arXiv 2310.00137)",
    ),
}


def load_study(name: str) -> Study:
    """Import a study.

    Args:
        name: A key of `STUDIES`.

    Returns:
        The study.

    Raises:
        ArgumentError: The study is unknown.
    """  # noqa: DOC501  (`unknown_name` makes the ArgumentError)
    if name not in STUDIES:
        raise unknown_name("study", name, STUDIES)
    study: Study = import_module(f"avalanche_ntk.reproduce.studies.{name.replace('-', '_')}").STUDY
    return study
