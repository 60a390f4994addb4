"""Construction of a standard Avalanche benchmark from chosen samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from avalanche.benchmarks import CLScenario, DatasetExperience, EagerCLStream, with_classes_timeline, with_task_labels
from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_ntk.lab.benchmarks.data import LabelledData


@dataclass(frozen=True)
class Description:
    """Description of the change between tasks.

    Attributes:
        kind: The name of the shift.
        sentence: The change in words.
        facts: The change in numbers; JSON-compatible values.
    """

    kind: str
    sentence: str
    facts: dict[str, Any]

    def __str__(self) -> str:
        return self.sentence

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"kind": self.kind, "sentence": self.sentence, **deepcopy(self.facts)}


@dataclass(frozen=True)
class Part:
    """Samples of one experience: positions in a dataset with labels, and a transform of the inputs.

    Attributes:
        source: The dataset.
        samples: Position and label of each sample.
        transform: Applied to each input, or None.
    """

    source: Dataset[Any]
    samples: Sequence[tuple[int, int]]
    transform: Callable[[Tensor], Tensor] | None = None

    def changed(self, transform: Callable[[Tensor], Tensor] | None, labels: Mapping[int, int] | None) -> Part:
        """Return a copy with inputs transformed and labels renamed."""
        samples = self.samples if labels is None else [(i, labels[y]) for i, y in self.samples]
        return replace(self, samples=samples, transform=transform)


class _PartDataset(Dataset[Any]):
    def __init__(self, part: Part) -> None:
        self.part = part
        self.targets = [y for _, y in part.samples]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        position, label = self.part.samples[index]
        x = self.part.source[position][0]
        return x if self.part.transform is None else self.part.transform(x), label


class Experience(DatasetExperience):
    """An experience with a replaceable dataset: BiC and other strategies remove samples from it."""

    @property
    def dataset(self) -> Any:
        """The samples, an Avalanche dataset."""
        return self._dataset

    @dataset.setter
    def dataset(self, dataset: Any) -> None:
        self._dataset = dataset


def benchmark_of(
    data: LabelledData,
    train: Sequence[Part],
    test: Sequence[Part],
    *,
    kind: str,
    sentence: str,
    facts: dict[str, Any],
    task_labels: bool = False,
) -> Any:
    """Make a benchmark that also has the attributes `description`, `n_classes` and `n_experiences`.

    Args:
        data: Source of the samples.
        train: The experiences of the training stream.
        test: The experiences of the test stream.
        kind: The name of the shift.
        sentence: The change in words.
        facts: The change in numbers.
        task_labels: Whether each experience has its own task label; otherwise all have 0.

    Returns:
        An Avalanche `CLScenario`.
    """
    streams = [
        EagerCLStream(
            name,
            [
                Experience(dataset=_dataset(part, number if task_labels else 0), current_experience=number)
                for number, part in enumerate(parts)
            ],
        )
        for name, parts in (("train", train), ("test", test))
    ]
    benchmark = with_task_labels(with_classes_timeline(CLScenario(streams)))
    for stream in benchmark.streams.values():
        stream.benchmark = benchmark
        for experience in stream:
            experience.benchmark = benchmark
            # Plain sorted lists, as in Avalanche's own class-incremental benchmarks.
            for name in ("classes_in_this_experience", "previous_classes", "classes_seen_so_far", "future_classes"):
                setattr(experience, name, sorted(getattr(experience, name)))
    benchmark.n_classes = data.n_classes
    benchmark.n_experiences = len(train)
    benchmark.n_classes_per_exp = [len(e.classes_in_this_experience) for e in benchmark.train_stream]
    # iCaRL reads the order of classes.
    benchmark.classes_order = list(dict.fromkeys(y for part in train for _, y in part.samples))
    benchmark.description = Description(kind, sentence, {"data": data.name, "n_classes": data.n_classes, **facts})
    return benchmark


def _dataset(part: Part, task_label: int) -> Any:
    dataset = _PartDataset(part)
    return TaskAwareSupervisedClassificationDataset(
        [dataset],
        data_attributes=[
            DataAttribute(dataset.targets, "targets"),
            TaskLabels(ConstantSequence(task_label, len(dataset))),
        ],
    )
