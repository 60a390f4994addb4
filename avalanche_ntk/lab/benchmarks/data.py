"""Labelled samples with a training and a test part: generated, or from tensors, scikit-learn, torchvision or files.

Labels are 0 … C−1 in the order of the classes' names. Pixels are float32 in [0, 1] unless standardised; tokens are
int64.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from avalanche_ntk.errors import ArgumentError, checked_seed
from avalanche_ntk.lab.benchmarks.images import read_folder, read_zip
from avalanche_ntk.lab.benchmarks.sequences import markov_sequences


@dataclass(frozen=True, eq=False)
class LabelledData:
    """A training and a test set with integer labels, the input of every shift.

    Attributes:
        train: Map-style dataset of `(input, label)`.
        test: The same for the test stream.
        train_labels: The labels of `train`, shape `(n,)`; 0 … C−1, all present.
        test_labels: The labels of `test`.
        name: Name of the data in descriptions.
        class_names: The classes' names by label.

    Raises:
        ArgumentError: Sizes do not fit, labels are not 0 … C−1, or a class is missing from one of the parts.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    train_labels: Tensor
    test_labels: Tensor
    name: str = "data"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, labels in (("train", self.train_labels), ("test", self.test_labels)):
            size = len(getattr(self, part))
            if labels.ndim != 1 or len(labels) != size or labels.is_floating_point():
                raise ArgumentError(
                    f"{part} labels must be one integer for each of the {size} samples, found a tensor of shape"
                    f" {tuple(labels.shape)} and dtype {labels.dtype}. Give labels as int64 of shape ({size},)."
                )
        found, tested = (sorted(set(labels.tolist())) for labels in (self.train_labels, self.test_labels))
        if not found or found != list(range(len(found))):
            raise ArgumentError(
                f"labels must be the integers 0 … C−1, each with at least one sample; found {_few(found)}."
                " Renumber them (torch.unique(y, return_inverse=True)[1])."
            )
        if tested != found:
            lacking, foreign = sorted(set(found) - set(tested)), sorted(set(tested) - set(found))
            raise ArgumentError(
                "train and test set must have the same classes; found "
                + (f"no test sample of classes {_few(lacking)}" if lacking else f"test classes {_few(foreign)} unseen")
                + ". Take both from one source, or leave those classes out."
            )
        names = self.class_names or tuple(map(str, found))
        if len(names) != len(found):
            raise ArgumentError(
                f"class_names must name {len(found)} classes, found {len(names)} names. Give one name for each label."
            )
        object.__setattr__(self, "class_names", tuple(names))

    @property
    def n_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train[0][0].shape)

    @classmethod
    def from_tensors(
        cls,
        x: Tensor,
        y: Tensor | Sequence[int],
        x_test: Tensor | None = None,
        y_test: Tensor | Sequence[int] | None = None,
        *,
        test_share: float = 0.25,
        seed: int = 0,
        name: str = "tensors",
        class_names: Sequence[str] = (),
    ) -> LabelledData:
        """Make data from tensors; without a test part, `test_share` of each class is used for it.

        Args:
            x: Inputs, first dimension n; bytes are divided by 255 when read.
            y: n integer labels, 0 … C−1.
            x_test: Test inputs, or None.
            y_test: Their labels, or None.
            test_share: Share of each class for the test part, if none is given.
            seed: Seed of that split.
            name: Name of the data in descriptions.
            class_names: The classes' names by label.

        Returns:
            The data.

        Raises:
            ArgumentError: Only inputs or only labels of a test part are given, sizes do not fit, or the labels are not
                0 … C−1.
        """
        y = torch.as_tensor(y, device="cpu")  # data are on the CPU, whatever torch's default device
        if (x_test is None) != (y_test is None):
            lacking = "x_test" if x_test is None else "y_test"
            raise ArgumentError(
                f"a test set needs inputs and labels, found no {lacking}. Give x_test and y_test, or neither of them."
            )
        if len(x) != len(y):
            raise ArgumentError(
                f"each input needs one label, found {len(x)} inputs and {len(y)} labels. Give as many labels as inputs."
            )
        if x_test is None or y_test is None:
            is_test = split_by_class(y, test_share, seed)
            x, y, x_test, y_test = x[~is_test], y[~is_test], x[is_test], y[is_test]
        y_test = torch.as_tensor(y_test, device="cpu")
        return cls(TensorImages(x, y), TensorImages(x_test, y_test), y, y_test, name, tuple(class_names))


class TensorImages(Dataset[Any]):
    """Inputs held in memory; bytes are kept as bytes and become float32 in [0, 1] when read.

    Args:
        x: Inputs, first dimension n.
        y: Labels, n integers.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self.x[index]
        return x.float() / 255 if x.dtype == torch.uint8 else x, int(self.y[index])


def split_by_class(y: Tensor, test_share: float, seed: int) -> Tensor:
    """Choose `round(test_share · n_c)` samples of each class c for testing.

    Args:
        y: Labels, shape `(n,)`.
        test_share: Share of each class, between 0 and 1 (both excluded).
        seed: Seed of the choice.

    Returns:
        True for test samples, shape `(n,)`.

    Raises:
        ArgumentError: The share is out of range, or leaves a class without training or test samples.
    """
    if not 0 < test_share < 1:
        raise ArgumentError(f"test_share must lie between 0 and 1; found {test_share}. Use 0.25, for example.")
    labels = y.numpy()
    generator = np.random.default_rng(checked_seed(seed))
    is_test = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    for c in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == c))
        n_test = round(test_share * len(members))
        if not 0 < n_test < len(members):
            raise ArgumentError(
                f"class {c} has {len(members)} samples, of which test_share={test_share} leaves"
                f" {len(members) - n_test} for training and {n_test} for testing; expected at least one of each."
                " Change test_share, or give a test set."
            )
        is_test[members[:n_test]] = True
    return is_test


def load_data(
    source: str | Path | LabelledData,
    *,
    data_root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    test_share: float = 0.25,
    seed: int = 0,
    standardise: bool = False,
    **arguments: Any,
) -> LabelledData:
    """Load labelled data by name or path.

    Args:
        source: `"digits"` (scikit-learn's 8×8 digits, without a download); `"markov"` (`markov_sequences`, generated
            token sequences); the name of a classification dataset of `torchvision.datasets`, such as `"CIFAR10"`; a
            folder of images or a zip of one, `train/CLASS/…` and `test/CLASS/…`, or `CLASS/…` (then `test_share` of
            each class is for testing); or data already loaded.
        data_root: Folder of torchvision's datasets.
        download: Whether torchvision may download what `data_root` lacks.
        image_size: Side to which images from files are resized (shorter side, then centre crop); None keeps them, which
            requires equal sizes.
        test_share: Share of each class for testing, if the source has no test part.
        seed: Seed of that split, or of generated data.
        standardise: Whether to standardise each channel to mean 0 and standard deviation 1 over the training pixels.
        **arguments: Further arguments of torchvision's dataset, such as EMNIST's `split`, or of `markov_sequences`.

    Returns:
        The data.

    Raises:
        ArgumentError: The source is unknown, missing, or cannot be read safely; or tokens are to be standardised.
    """
    data = _loaded(source, data_root, download, image_size, test_share, seed, arguments)
    return standardised(data) if standardise else data


def standardised(data: LabelledData) -> LabelledData:
    """Return data whose channels have mean 0 and standard deviation 1 over all pixels of the training part.

    Args:
        data: Inputs of shape `(channels, …)` in floating point.

    Returns:
        The same samples, read as `(x − mean)/std` by channel; a constant channel is only centred.

    Raises:
        ArgumentError: The inputs are integers, such as tokens.

    >>> x = torch.tensor([0.0, 2.0, 4.0, 6.0]).reshape(4, 1, 1)
    >>> data = LabelledData.from_tensors(x, [0, 0, 1, 1], x, [0, 0, 1, 1])
    >>> [round(float(standardised(data).train[i][0]), 3) for i in range(4)]
    [-1.342, -0.447, 0.447, 1.342]
    """
    first = data.train[0][0]
    if not first.is_floating_point():
        raise ArgumentError(
            f"standardised inputs must be numbers, found {data.name} with inputs of dtype {first.dtype}. "
            "Leave standardise out: tokens have no mean."
        )
    total = torch.zeros(len(first), dtype=torch.float64, device="cpu")
    squares = total.clone()
    for index in range(len(data.train_labels)):
        pixels = data.train[index][0].to(torch.float64).flatten(1)
        total += pixels.mean(1)
        squares += (pixels**2).mean(1)
    mean = total / len(data.train_labels)
    spread = (squares / len(data.train_labels) - mean**2).clamp_min(0).sqrt()
    spread[spread <= 1e-6 * squares.sqrt()] = 1.0
    shape = (-1, *[1] * (first.ndim - 1))
    shift, scale = mean.reshape(shape).float(), spread.reshape(shape).float()
    train, test = (_scaled(part, shift, scale) for part in (data.train, data.test))
    return replace(data, train=train, test=test)


def _scaled(part: Dataset[Any], mean: Tensor, std: Tensor) -> Dataset[Any]:
    if isinstance(part, TensorImages) and part.x.is_floating_point():  # bytes would take four times the memory
        return TensorImages((part.x - mean) / std, part.y)
    return _Standardised(part, mean, std)


class _Standardised(Dataset[Any]):
    """A dataset with inputs shifted and scaled by channel."""

    def __init__(self, inner: Any, mean: Tensor, std: Tensor) -> None:
        self.inner, self.mean, self.std = inner, mean, std

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.inner[index]
        return (x - self.mean) / self.std, y


def _loaded(
    source: str | Path | LabelledData,
    data_root: str | Path | None,
    download: bool,
    image_size: int | None,
    test_share: float,
    seed: int,
    arguments: dict[str, Any],
) -> LabelledData:
    if isinstance(source, LabelledData):
        return source
    text = str(source)
    path = Path(source)
    if text == "digits":
        return _digits(test_share, seed)
    if text == "markov":
        return _markov(seed, arguments)
    if path.suffix.lower() == ".zip" or path.is_dir():
        read = read_folder if path.is_dir() else read_zip
        parts, names = read(path, image_size)
        return _of_parts(parts, names, path.name, test_share, seed)
    if path.parent != Path(".") or path.suffix:
        raise ArgumentError(
            f"no data at {text}: expected a folder of images or a zip of one, found"
            f" {'a file of another kind' if path.exists() else 'nothing'}. Check the path."
        )
    return _torchvision(text, data_root, download, image_size, test_share, seed, arguments)


def _digits(test_share: float, seed: int) -> LabelledData:
    # scikit-learn takes a second to import, so import it only when needed.
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32, device="cpu").unsqueeze(1) / 16
    y = torch.tensor(digits.target, device="cpu")
    return LabelledData.from_tensors(x, y, test_share=test_share, seed=seed, name="digits")


def _markov(seed: int, arguments: dict[str, Any]) -> LabelledData:
    return LabelledData.from_tensors(*markov_sequences(seed=seed, **arguments), name="markov")


def _of_parts(
    parts: dict[str, tuple[Tensor, Tensor]], names: Sequence[str], name: str, test_share: float, seed: int
) -> LabelledData:
    x, y = parts["train"]
    x_test, y_test = parts.get("test", (None, None))
    return LabelledData.from_tensors(
        x, y, x_test, y_test, test_share=test_share, seed=seed, name=name, class_names=names
    )


class _Labelled(Dataset[Any]):
    """A torchvision dataset whose labels are replaced by 0 … C−1."""

    def __init__(self, inner: Any, labels: Tensor) -> None:
        self.inner, self.labels = inner, labels

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inner[index][0], int(self.labels[index])


def _torchvision(
    name: str,
    data_root: str | Path | None,
    download: bool,
    image_size: int | None,
    test_share: float,
    seed: int,
    further: dict[str, Any],
) -> LabelledData:
    zoo = importlib.import_module("torchvision.datasets")
    if name not in zoo.__all__:
        near = get_close_matches(name, ["digits", "markov", *zoo.__all__], n=3)
        hint = f" The nearest: {', '.join(map(repr, near))}." if near else ""
        raise ArgumentError(
            f"unknown data {name!r}: expected 'digits', 'markov', a classification dataset of torchvision.datasets, a"
            f" folder of images or a zip of one.{hint}"
        )
    dataset_class = getattr(zoo, name)
    parameters = inspect.signature(dataset_class).parameters
    root = {}
    if "root" in parameters:
        if data_root is None:
            raise ArgumentError(
                f"torchvision's {name} is read from a folder, found data_root=None. Give data_root (--data-root), the "
                "folder that holds it or will hold it."
            )
        root = {"root": str(data_root)}
    arguments = {**root, "transform": _to_tensor(image_size), **further}
    if "download" in parameters:
        arguments["download"] = download

    def build(**which: Any) -> Any:
        try:
            return dataset_class(**arguments, **which)
        except (RuntimeError, FileNotFoundError, OSError, ValueError, TypeError) as exc:
            remedy = (
                "Check data_root." if download else "Give download=True (--download) to fetch it, or check data_root."
            )
            raise ArgumentError(
                f"torchvision's {name} cannot be read{f' from {data_root}' if root else ''}"
                f" ({type(exc).__name__}: {exc}). {remedy}"
            ) from exc

    if "train" in parameters:
        parts = [build(train=True), build(train=False)]
    elif "split" in parameters and "split" not in further:
        parts = [build(split="train"), build(split="test")]
    else:
        parts = [build()]
    labels = [_labels_of(part, name) for part in parts]
    values = torch.unique(torch.cat(labels))
    labels = [torch.searchsorted(values, part) for part in labels]
    names = [str(n) for n in getattr(parts[0], "classes", values.tolist())]
    if len(names) != len(values):
        names = [str(n) for n in values.tolist()]
    if len(parts) == 2:
        train, test = (_Labelled(part, own) for part, own in zip(parts, labels, strict=True))
        return LabelledData(train, test, labels[0], labels[1], name, tuple(names))
    is_test = split_by_class(labels[0], test_share, seed)
    halves = [torch.flatten(torch.nonzero(mask)) for mask in (~is_test, is_test)]
    whole = _Labelled(parts[0], labels[0])
    rest, held_out = (Subset(whole, half.tolist()) for half in halves)
    return LabelledData(rest, held_out, labels[0][~is_test], labels[0][is_test], name, tuple(names))


def _to_tensor(image_size: int | None) -> Callable[[Any], Tensor]:
    transforms = importlib.import_module("torchvision.transforms")
    steps = [transforms.ToTensor()]
    if image_size is not None:
        steps = [transforms.Resize(image_size), transforms.CenterCrop(image_size), *steps]
    made: Callable[[Any], Tensor] = transforms.Compose(steps)
    return made


def _labels_of(dataset: Any, name: str) -> Tensor:
    """Labels of all samples, from the attribute used by torchvision's datasets, or sample by sample."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            break
    else:
        values = [dataset[i][1] for i in range(len(dataset))]
    try:
        labels = torch.as_tensor(np.asarray(values), device="cpu")
    except (TypeError, ValueError):
        labels = torch.empty(0, device="cpu")
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        raise ArgumentError(
            f"torchvision's {name} has no single integer label for each sample: expected a dataset for classification."
            " Choose another, or give LabelledData of your own."
        )
    return labels.to(torch.int64)


def _few(values: Sequence[int]) -> str:
    text = ", ".join(map(str, values[:6]))
    return f"{text}, …" if len(values) > 6 else text or "none"
