"""The fixed set of samples whose kernel is watched.

A probe is chosen once, by a generator of its own, and never changes: kernels are only comparable on the same samples in
the same order. Its content hash is stored beside everything measured on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.data import default_collate

from avalanche_ntk.errors import ArgumentError, ProbeError, checked_seed, unknown_name
from avalanche_ntk.randomness import preserved_rng_state

BALANCES = ("class", "none")
SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Probe:
    """A fixed, ordered, labelled set of N inputs.

    Args:
        x: Inputs, a tensor (or a tuple or dict of tensors) whose first dimension is N.
        y: Labels, int64, shape `(N,)`.
        task_labels: Avalanche's task label of each sample, int64, shape `(N,)`.
        name: How the probe is called in metric tags and in the run folder.
        experience: Position in the stream of the experience it was chosen from; None when it was given as tensors.
        indices: Positions of the samples in that experience's dataset; empty when it was given as tensors.

    Raises:
        ProbeError: The first dimensions differ or there are no samples.
    """

    x: Any
    y: Tensor
    task_labels: Tensor
    name: str = "probe"
    experience: int | None = None
    indices: tuple[int, ...] = ()
    hash: str = field(init=False, default="")

    def __post_init__(self) -> None:
        leaves = [leaf for leaf in tree_flatten(self.x)[0] if isinstance(leaf, Tensor)]
        if not leaves:
            raise ProbeError(
                f"a probe needs inputs as a tensor, or a tuple or dict of tensors; found {type(self.x).__name__}. "
                "Give Probe(x=tensor, y=labels, task_labels=...)."
            )
        sizes = {
            "x": sorted({leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}),
            "y": [self.y.shape[0] if self.y.ndim else 0],
            "task_labels": [self.task_labels.shape[0] if self.task_labels.ndim else 0],
        }
        if len({n for counts in sizes.values() for n in counts}) != 1 or sizes["y"] == [0]:
            found = ", ".join(f"{name}: {' and '.join(map(str, counts))}" for name, counts in sizes.items())
            raise ProbeError(
                f"a probe needs the same number (at least 1) of inputs, labels and task labels; found {found}. "
                "Give one label and one task label for each input."
            )
        object.__setattr__(self, "hash", _content_hash(leaves, self.y, self.task_labels))

    def __repr__(self) -> str:
        shapes = [tuple(leaf.shape[1:]) for leaf in tree_flatten(self.x)[0] if isinstance(leaf, Tensor)]
        told = shapes[0] if len(shapes) == 1 else shapes
        return (
            f"Probe(name={self.name!r}, size={self.size}, shape={told}, experience={self.experience}, "
            f"hash={self.hash[:12]!r})"
        )

    @classmethod
    def from_tensors(
        cls, x: Any, y: Tensor | Sequence[int], task_labels: int | Tensor | Sequence[int] = 0, name: str = "probe"
    ) -> Probe:
        """Make a probe of given samples.

        Args:
            x: Inputs, first dimension N.
            y: N labels.
            task_labels: One task label for all, or N of them.
            name: How the probe is called.

        Returns:
            The probe.
        """
        labels = torch.as_tensor(y, dtype=torch.int64).clone()
        tasks = torch.as_tensor(task_labels, dtype=torch.int64).clone()
        return cls(x, labels, tasks.expand(len(labels)).clone() if tasks.ndim == 0 else tasks, name)

    @property
    def size(self) -> int:
        """Number of samples N."""
        return len(self.y)

    def to(self, device: torch.device | str) -> Probe:
        """Return the probe with its inputs and task labels on `device` (the same object when it is there already)."""
        target = torch.device(device)
        leaves = [leaf for leaf in tree_flatten(self.x)[0] if isinstance(leaf, Tensor)]
        if all(leaf.device == target for leaf in [*leaves, self.task_labels]):
            return self
        return replace(
            self, x=tree_map_only(Tensor, lambda leaf: leaf.to(target), self.x), task_labels=self.task_labels.to(target)
        )

    def describe(self) -> dict[str, Any]:
        """Return what identifies the probe, as stored in `run.json`."""
        return {
            "name": self.name,
            "size": self.size,
            "hash": self.hash,
            "experience": self.experience,
            "indices": list(self.indices),
            "labels": self.y.tolist(),
            "task_labels": self.task_labels.tolist(),
        }


@dataclass(frozen=True)
class ProbeSpec:
    """Which samples to watch: `size` of one experience, chosen once when training reaches the stream.

    Args:
        size: Number of samples N.
        from_experience: Position in the stream of the experience to choose from; 0 is the first task. None takes one
            probe of each task when training reaches it.
        balance: "class" takes the same number of each class of the experience (a remainder goes to the first classes,
            and a class with too few samples gives its share to the others); "none" draws uniformly.
        seed: Seed of the generator used for choosing; it is the probe's own, training's random numbers are untouched.
        split: "train" chooses from the experience's training set, "test" from the same experience of the test stream.
        name: How the probe is called in the run folder; `Exp000` and the like when None.

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
        if self.size < 1:
            raise ArgumentError(f"a probe needs at least 1 sample; found size={self.size}. Give size=64, for example.")
        if self.from_experience is not None and self.from_experience < 0:
            raise ArgumentError(
                f"from_experience counts from 0 (the first task); found {self.from_experience}. Give from_experience=0."
            )
        if self.balance not in BALANCES:
            raise unknown_name("balance", self.balance, BALANCES)
        if self.split not in SPLITS:
            raise unknown_name("split", self.split, SPLITS)
        checked_seed(self.seed)

    @property
    def label(self) -> str:
        """The probe's name: as given, or made from experience and split."""
        place = "each_task" if self.from_experience is None else f"Exp{self.from_experience:03d}"
        return self.name or place + ("" if self.split == "train" else "_test")

    @classmethod
    def each_task(cls, size: int = 64, *, balance: str = "class", seed: int = 0, split: str = "train") -> ProbeSpec:
        """Return the spec of one probe of each task, chosen when training reaches it.

        Args:
            size: Number of samples of each probe.
            balance: As above.
            seed: As above.
            split: As above.

        Returns:
            The spec.
        """
        return cls(size=size, from_experience=None, balance=balance, seed=seed, split=split)

    def choose(self, dataset: Any) -> Probe:
        """Choose the probe from an Avalanche dataset.

        The samples are read through the dataset's evaluation transform. Random numbers of training are not touched,
        even when that transform draws some.

        Args:
            dataset: An `AvalancheDataset` with `targets` and `targets_task_labels`.

        Returns:
            The probe, on the CPU, ordered by class and then by position in the dataset.

        Raises:
            ProbeError: The dataset has fewer samples than asked for, or no labels.
        """
        targets = _labels(dataset, "targets")
        if targets is None:
            raise ProbeError(
                "a probe is chosen by class and needs a dataset with `targets`; found none on "
                f"{type(dataset).__name__}. Wrap it with avalanche.benchmarks.utils.as_classification_dataset, "
                "or give the samples with Probe.from_tensors(x, y)."
            )
        if self.size > len(targets):
            raise ProbeError(
                f"the probe asks for {self.size} samples and experience {self.from_experience} has {len(targets)} "
                f"({self.split} set). Give ProbeSpec(size={len(targets)}) or less, or choose another experience."
            )
        tasks = _labels(dataset, "targets_task_labels") or [0] * len(targets)
        indices = self._indices(targets)
        evaluation = dataset.eval() if hasattr(dataset, "eval") else dataset
        with preserved_rng_state():
            x = default_collate([evaluation[i][0] for i in indices])
        return Probe(
            x=x,
            y=torch.tensor([targets[i] for i in indices], dtype=torch.int64),
            task_labels=torch.tensor([tasks[i] for i in indices], dtype=torch.int64),
            name=self.label,
            experience=self.from_experience,
            indices=tuple(indices),
        )

    def _indices(self, targets: Sequence[int]) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed)
        if self.balance == "none":
            return sorted(torch.randperm(len(targets), generator=generator)[: self.size].tolist())
        members: dict[int, list[int]] = {}
        for index, target in enumerate(targets):
            members.setdefault(int(target), []).append(index)
        share = _balanced_shares({c: len(m) for c, m in members.items()}, self.size)
        chosen: list[int] = []
        for c in sorted(members):
            order = torch.randperm(len(members[c]), generator=generator)[: share[c]].tolist()
            chosen += sorted(members[c][i] for i in order)
        return chosen


def _balanced_shares(available: dict[int, int], total: int) -> dict[int, int]:
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


def _labels(dataset: Any, attribute: str) -> list[int] | None:
    values = getattr(dataset, attribute, None)
    return None if values is None else [int(v) for v in values]


def _content_hash(leaves: Sequence[Tensor], y: Tensor, task_labels: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in [*leaves, y, task_labels]:
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{data.dtype}{tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
