"""Probes: fixed sets of samples whose kernel is measured.

A probe is chosen once, by its own random generator, and never changes: kernels are only comparable on the same samples
in the same order. Its content hash is stored with every measurement on it.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from avalanche_ntk.errors import ArgumentError, ProbeError, ProbeWarning, checked_seed, is_whole, unknown_name
from avalanche_ntk.randomness import preserved_rng_state
from avalanche_ntk.recorder.labels import are_classes, in_form
from avalanche_ntk.recorder.names import checked_name
from avalanche_ntk.recorder.samples import Reader, Samples, as_array, read_samples

BALANCES = ("class", "none")
SPLITS = ("train", "test")


class Probe:
    """A fixed, ordered, labelled set of N inputs.

    A probe owns its memory: it copies its arguments and returns copies.

    Args:
        x: Inputs, a tensor or a numpy array (or a tuple, list or dict of them) whose first dimension is N. Other
            entries (None, numbers, text) are passed to the model unchanged.
        y: Labels: N classes, or numeric targets of shape `(N, K)`. Whole numbers of shape `(N,)` or `(N, 1)` are
            classes. Floating-point numbers are targets, even if their values are whole. Rows of zeros and ones are
            multi-hot targets; one-hot rows are converted to classes.
        task_labels: Avalanche's task label of each sample, or one for all.
        name: Name of the probe in metric tags and in the run folder.
        experience: Position in the stream of the experience it was chosen from; None when it was given as tensors.
        indices: Positions of the samples in that experience's dataset; empty when it was given as tensors.

    Raises:
        ProbeError: The first dimensions differ, there are no samples, or labels or inputs are not numbers.
        ArgumentError: The name cannot stand in a metric's tag.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        task_labels: int | Tensor | Sequence[int] = 0,
        name: str = "probe",
        experience: int | None = None,
        indices: Sequence[int] = (),
    ) -> None:
        self._name = checked_name(name)
        self._x = _owned(x)
        self._y = torch.from_numpy(in_form(as_array(y)))
        leaves = self._leaves()
        if not leaves:
            raise ProbeError(
                f"a probe needs inputs as a tensor, or a tuple or dict of tensors; found {type(x).__name__}. "
                "Give Probe(x=tensor, y=labels, task_labels=...)."
            )
        self._task_labels = _tasks(task_labels, len(self._y))
        self._tasks = self._task_labels.to(leaves[0].device)
        self._place: torch.device | None = None
        self._experience = experience
        self._indices = tuple(indices)
        sizes = {
            "x": sorted({leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}),
            "y": [len(self._y)],
            "task_labels": [len(self._task_labels)],
        }
        if len({n for counts in sizes.values() for n in counts}) != 1:
            found = ", ".join(f"{name}: {' and '.join(map(str, counts))}" for name, counts in sizes.items())
            raise ProbeError(
                f"a probe needs the same number (at least 1) of inputs, labels and task labels; found {found}. "
                "Give one label and one task label for each input."
            )
        self._hash = _content_hash(leaves, self._y, self._task_labels)

    def __repr__(self) -> str:
        shapes = [tuple(leaf.shape[1:]) for leaf in self._leaves()]
        told = shapes[0] if len(shapes) == 1 else shapes
        return (
            f"Probe(name={self.name!r}, size={self.size}, shape={told}, experience={self.experience}, "
            f"hash={self.hash[:12]!r})"
        )

    @classmethod
    def from_tensors(cls, x: Any, y: Any, task_labels: int | Tensor | Sequence[int] = 0, name: str = "probe") -> Probe:
        """Make a probe from given samples.

        Args:
            x: Inputs, first dimension N.
            y: N labels: whole numbers for classes, floating-point numbers `(N,)` or `(N, K)` for numeric targets.
            task_labels: One task label for all, or N of them.
            name: Name of the probe.

        Returns:
            The probe.
        """
        return cls(x, y, task_labels, name)

    @property
    def x(self) -> Any:
        """A copy of the inputs; `read_only` avoids the copy."""
        return _owned(self._x)

    @property
    def y(self) -> Tensor:
        """The labels on the CPU, a copy: classes, int64 `(N,)`, or numeric targets, float64 `(N, K)`."""
        return self._y.clone()

    @property
    def task_labels(self) -> Tensor:
        """The task label of each sample on the CPU, a copy: int64, shape `(N,)`."""
        return self._task_labels.clone()

    @property
    def name(self) -> str:
        """Name of the probe in metric tags and in the run folder."""
        return self._name

    @property
    def experience(self) -> int | None:
        """Position in the stream of the experience it was chosen from; None when it was given as tensors."""
        return self._experience

    @property
    def indices(self) -> tuple[int, ...]:
        """Positions of the samples in that experience's dataset; empty when it was given as tensors."""
        return self._indices

    @property
    def hash(self) -> str:
        """SHA-256 of inputs, labels and task labels, whatever the device."""
        return self._hash

    @property
    def size(self) -> int:
        """Number of samples N."""
        return len(self._y)

    @property
    def has_classes(self) -> bool:
        """Whether the labels are classes; otherwise they are numeric targets."""
        return are_classes(self._y.numpy())

    def read_only(self) -> tuple[Any, Tensor]:
        """Return inputs and task labels without a copy, for forward passes."""
        return self._x, self._tasks

    def to(self, device: torch.device | str) -> Probe:
        """Return the probe with its inputs and task labels on `device` (the same object if it is already there)."""
        place = torch.device(device)
        if self._place == place:
            return self
        moved = copy.copy(self)
        moved._place = place
        moved._x = tree_map_only(Tensor, lambda leaf: leaf.to(place), self._x)
        moved._tasks = self._tasks.to(place)
        before, after = ([*probe._leaves(), probe._tasks] for probe in (self, moved))
        if any(a is not b for a, b in zip(before, after, strict=True)):
            return moved
        self._place = place
        return self

    def describe(self) -> dict[str, Any]:
        """Return the identity of the probe, as stored in `run.json`."""
        return {
            "name": self.name,
            "size": self.size,
            "hash": self.hash,
            "experience": self.experience,
            "indices": list(self.indices),
            "labels": self._y.tolist(),
            "task_labels": self._task_labels.tolist(),
        }

    def __getstate__(self) -> dict[str, Any]:
        # The loading machine may have other devices.
        return {**self.__dict__, "_place": None}

    def _leaves(self) -> list[Tensor]:
        return [leaf for leaf in tree_flatten(self._x)[0] if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class ProbeSpec:
    """How to choose a probe: `size` samples of one experience, chosen once when training reaches it.

    Args:
        size: Number of samples N.
        from_experience: Position in the stream of the experience to choose from; 0 is the first task. None chooses one
            probe of each task when training reaches it.
        balance: "class" takes the same number of each class of the experience (a remainder goes to the first classes,
            and a class with too few samples gives its share to the others); "none" draws uniformly.
        seed: Seed of the probe's own random generator; training's random numbers are unaffected.
        split: "train" chooses from the experience's training set, "test" from the same experience of the test stream.
        name: How the probe is called in metric tags and in the run folder; `Exp000` and the like when None.

    Raises:
        ArgumentError: A value is out of range or unknown.
    """

    size: int = 64
    from_experience: int | None = 0
    balance: str = "class"
    seed: int = 0
    split: str = "train"
    name: str | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.size) or self.size < 1:
            raise ArgumentError(
                f"a probe needs at least 1 sample, a whole number; found size={self.size!r}. Give size=64, for example."
            )
        if self.from_experience is not None and (not is_whole(self.from_experience) or self.from_experience < 0):
            raise ArgumentError(
                f"from_experience counts from 0 (the first task); found {self.from_experience!r}. "
                "Give from_experience=0."
            )
        if self.balance not in BALANCES:
            raise unknown_name("balance", self.balance, BALANCES)
        if self.split not in SPLITS:
            raise unknown_name("split", self.split, SPLITS)
        if self.name is not None:
            checked_name(self.name)
        checked_seed(self.seed)

    @property
    def label(self) -> str:
        """The probe's name: as given, or made from experience and split."""
        if self.name is not None:
            return self.name
        place = "each_task" if self.from_experience is None else f"Exp{self.from_experience:03d}"
        return place + ("" if self.split == "train" else "_test")

    @classmethod
    def each_task(cls, size: int = 64, *, balance: str = "class", seed: int = 0, split: str = "train") -> ProbeSpec:
        """Return the spec of one probe of each task, chosen when training reaches it.

        Args:
            size: Number of samples of each probe.
            balance: As for `ProbeSpec`.
            seed: As for `ProbeSpec`.
            split: As for `ProbeSpec`.

        Returns:
            The spec.
        """
        return cls(size=size, from_experience=None, balance=balance, seed=seed, split=split)

    def choose(self, dataset: Any, read: Reader = read_samples) -> Probe:
        """Choose the probe from a dataset.

        Samples, labels and task labels are those of a batch in evaluation mode: the outputs of the dataset's transforms
        and collate function. Classes are balanced by these labels too. A dataset's `targets` only say which items to
        read first: if the N items chosen by them have the same partition into classes, no more are read. Otherwise, or
        if the dataset has no `targets`, 10·N items are drawn and read, and the probe is balanced among them. Numeric
        targets have no classes: they are drawn uniformly, with a warning. Training's random numbers are unaffected,
        even if a transform draws some.

        Args:
            dataset: An `AvalancheDataset`, or any dataset with a length whose items are `(x, y, …)`.
            read: Function that reads the samples at given positions; the plugin's reads as the strategy's evaluation
                does.

        Returns:
            The probe, on the CPU, class by class and then by position in the dataset.

        Raises:
            ProbeError: The dataset has too few samples, or they have no labels or cannot be read.
        """
        if self.size > len(dataset):
            raise ProbeError(
                f"the probe asks for {self.size} samples and experience {self.from_experience} has {len(dataset)} "
                f"({self.split} set). Give ProbeSpec(size={len(dataset)}) or less, or choose another experience."
            )
        with preserved_rng_state():
            indices, found = self._chosen(dataset, read)
        tasks = 0 if found.task_labels is None else found.task_labels
        return Probe(found.x, found.y, tasks, self.label, self.from_experience, indices).to("cpu")

    def _chosen(self, dataset: Any, read: Reader) -> tuple[list[int], Samples]:
        """Return the positions chosen and the samples there."""
        total = len(dataset)
        if self.balance == "none":
            return _read(read, dataset, self._uniform(total, self.size))
        told = _told_classes(dataset)
        if told is not None:
            indices, found = _read(read, dataset, self._balanced(told, self.size))
            if _same_partition([told[i] for i in indices], found.y):
                return indices, found
        more = min(total, _POOL * self.size)
        pool = sorted(self._uniform(total, more) if told is None else self._balanced(told, more))
        parts = [read(dataset, pool[i : i + self.size]).y for i in range(0, len(pool), self.size)]
        if all(map(are_classes, parts)):
            given = np.concatenate(parts).tolist()
            return _read(read, dataset, [pool[i] for i in self._balanced(given, self.size)])
        warnings.warn(
            f"the samples of probe {self.label!r} have numeric targets and no classes to balance: they were drawn "
            'uniformly. ProbeSpec(balance="none") asks for that.',
            ProbeWarning,
            stacklevel=4,
        )
        return _read(read, dataset, self._uniform(total, self.size))

    def _generator(self) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(self.seed)

    def _uniform(self, total: int, size: int) -> list[int]:
        return sorted(torch.randperm(total, generator=self._generator(), device="cpu")[:size].tolist())

    def _balanced(self, classes: Sequence[Any], size: int) -> list[int]:
        generator = self._generator()
        members: dict[Any, list[int]] = {}
        for index, c in enumerate(classes):
            members.setdefault(c, []).append(index)
        share = _balanced_shares({c: len(m) for c, m in members.items()}, size)
        chosen: list[int] = []
        for c in sorted(members):
            order = torch.randperm(len(members[c]), generator=generator, device="cpu")[: share[c]].tolist()
            chosen += sorted(members[c][i] for i in order)
        return chosen


_POOL = 10  # items read per chosen item, if `targets` do not give their classes


def _balanced_shares(available: Mapping[Any, int], total: int) -> dict[Any, int]:
    """Split `total` as evenly as the classes' sizes allow; a remainder goes to the lowest labels."""
    share = dict.fromkeys(sorted(available), 0)
    left = total
    while left:
        open_classes = [c for c in share if share[c] < available[c]]
        for rank, c in enumerate(open_classes):
            even = left // (len(open_classes) - rank)
            take = min(available[c] - share[c], even + (left % (len(open_classes) - rank) > 0))
            share[c] += take
            left -= take
    return share


def _read(read: Reader, dataset: Any, indices: list[int]) -> tuple[list[int], Samples]:
    return indices, read(dataset, indices)


def _told_classes(dataset: Any) -> list[Any] | None:
    """Return the class of each item by a dataset's `targets`; None if these are not classes or class names."""
    values = getattr(dataset, "targets", None)
    if values is None or len(values) != len(dataset):
        return None
    array = as_array(values if hasattr(values, "detach") else list(values))
    if array.ndim != 1 or array.dtype.kind not in "biuU":
        return None
    told: list[Any] = array.tolist()
    return told


def _same_partition(told: Sequence[Any], given: np.ndarray) -> bool:
    """Return whether two labellings define the same partition, regardless of the classes' names."""
    if not are_classes(given):
        return False
    pairs = set(zip(told, given.tolist(), strict=True))
    return len(pairs) == len(set(told)) == len(set(given.tolist()))


def _owned(x: Any) -> Any:
    """Return a copy of inputs, with arrays as tensors and mappings as dicts."""
    if isinstance(x, Tensor):
        return x.detach().clone().as_subclass(Tensor)
    if isinstance(x, np.ndarray):
        try:
            return torch.from_numpy(x.copy())
        except TypeError:
            raise ProbeError(
                f"a probe's inputs must be numbers, found an array of dtype {x.dtype}. Convert it first."
            ) from None
    if isinstance(x, Mapping):
        return {key: _owned(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        parts = [_owned(value) for value in x]
        return type(x)(*parts) if hasattr(x, "_fields") else parts if isinstance(x, list) else tuple(parts)
    return x


def _tasks(values: Any, size: int) -> Tensor:
    """Return task labels as a tensor, with a single one repeated for each sample."""
    array = as_array(values)
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise ProbeError(
            f"task_labels must be one whole number, or one for each sample; found {array.dtype} of shape "
            f"{array.shape}. Give task_labels=0 where there are no tasks."
        )
    labels = torch.from_numpy(array.astype(np.int64))
    return labels.expand(size).clone() if labels.ndim == 0 else labels


def _content_hash(leaves: Sequence[Tensor], y: Tensor, task_labels: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in [*leaves, y, task_labels]:
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
