"""Computation of a single kernel to a file, and measurement of checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save as safetensors_bytes

from avalanche_ntk import __version__, measures
from avalanche_ntk.errors import ArgumentError, RunFolderError, unknown_name
from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.recorder.afterwards import measure_checkpoints
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.recorder.trajectory import Trajectory

REDUCTIONS = ("trace", "sum_logits", "projected", "full")
DTYPES = ("float32", "float64")
SUFFIXES = (".safetensors", ".npy")


def kernel_to_file(
    model: str,
    data: str,
    out: str | Path,
    *,
    size: int = 64,
    split: str = "train",
    reduction: str = "trace",
    n_projections: int | None = None,
    weights: str | Path | None = None,
    n_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    dtype: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict[str, str]:
    """Compute a kernel and store it.

    Args:
        model: Argument of `build_model`, such as `module:factory`.
        data: Argument of `load_data`, or a `.npy` file of inputs, first dimension n.
        out: File ending in `.safetensors` (`kernel`, `indices`, and `labels` if known) or `.npy` (the kernel).
        size: Number of samples N, balanced over classes as far as possible; the first N of a `.npy` file.
        split: "train" or "test".
        reduction: "trace", "sum_logits", "projected" or "full".
        n_projections: Number of sign vectors, for "projected".
        weights: State dict to load into the model: `.safetensors`, or from `torch.save` (loaded without executing
            code).
        n_classes: Number of outputs C; None for that of the data.
        arguments: Arguments of the model.
        data_root: Folder of torchvision's datasets.
        download: Whether torchvision may download the data.
        dtype: "float32" or "float64"; None for the model's own.
        seed: Seed of the weights and for choosing samples.
        device: Device.
        overwrite: Whether to replace an existing file.

    Returns:
        Output for the user: the file, the shape, and the main numbers.

    Raises:
        ArgumentError: An argument cannot be used.
        RunFolderError: The file exists, or cannot be written.
    """  # noqa: DOC501
    out = Path(out)
    for kind, found, choices in (("split", split, ("train", "test")), ("reduction", reduction, REDUCTIONS)):
        if found not in choices:
            raise unknown_name(kind, found, choices)
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if out.suffix not in SUFFIXES:
        raise ArgumentError(
            f"a kernel is stored as .safetensors or .npy, found {out.name!r}. Give --out kernel.safetensors."
        )
    if out.exists() and not overwrite:
        raise RunFolderError(f"{out} exists already. Give another --out, or --overwrite to replace it.")
    x, labels, indices, found_classes = _samples(data, split, size, seed, data_root, download)
    factories_of_this_folder()
    net = build_model(
        model, input_shape=tuple(x.shape[1:]), n_classes=n_classes or found_classes, seed=seed, **(arguments or {})
    )
    if weights is not None:
        _load_weights(net, Path(weights))
    net, x = on_device(net, x, device)
    kernel = empirical_ntk(
        net, x, reduction=reduction, n_projections=n_projections, dtype=None if dtype is None else getattr(torch, dtype)
    )
    array = kernel.detach().cpu().numpy()
    content = {"kernel": np.ascontiguousarray(array), "indices": indices}
    if labels is not None:
        content["labels"] = labels
    about = {"model": model, "data": data, "split": split, "reduction": reduction, "seed": str(seed)}
    _write(out, content, about if n_projections is None else about | {"n_projections": str(n_projections)})
    return {"file": str(out), "shape": str(tuple(array.shape)), **_told(array, labels, reduction)}


def factories_of_this_folder() -> None:
    """Add the current folder to the import path, so that user factories are found, as with `python -m`."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def on_device(net: torch.nn.Module, x: torch.Tensor, device: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a model and inputs on a device.

    Args:
        net: The model.
        x: The inputs.
        device: The device.

    Returns:
        Both.

    Raises:
        ArgumentError: There is no such device.
    """
    try:
        return net.to(device), x.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(
            f"device {device!r} cannot be used ({error}). Use cpu, or see avalanche-ntk doctor."
        ) from None


def _samples(
    data: str, split: str, size: int, seed: int, data_root: str | Path | None, download: bool
) -> tuple[torch.Tensor, np.ndarray | None, np.ndarray, int]:
    if Path(data).suffix == ".npy":
        try:
            inputs = np.load(data, allow_pickle=False, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ArgumentError(
                f"{data} cannot be read as an array ({error}): expected numbers stored by numpy.save. Check the path."
            ) from None
        if inputs.ndim < 2 or len(inputs) < size or inputs.dtype.kind not in "fiu":
            raise ArgumentError(
                f"{data} holds an array of shape {inputs.shape} and dtype {inputs.dtype}: expected numbers of shape "
                f"(n, …) with n at least size={size}. Give a smaller --size, or other inputs."
            )
        chosen = np.array(inputs[:size])
        x = torch.from_numpy(chosen if chosen.dtype == np.float64 else chosen.astype(np.float32))
        return x, None, np.arange(size), 10
    loaded = load_data(data, data_root=data_root, download=download, seed=seed)
    part = loaded.train if split == "train" else loaded.test
    known = (loaded.train_labels if split == "train" else loaded.test_labels).numpy()
    if len(known) < size:
        raise ArgumentError(f"{data} has {len(known)} {split} samples, found size={size}. Give a smaller --size.")
    # Take the next sample of each class in turn, in an order drawn from the seed, until there are enough.
    order = np.random.default_rng(seed).permutation(len(known))
    turn = np.empty(len(known), dtype=int)
    for c in np.unique(known):
        of_class = order[known[order] == c]
        turn[of_class] = np.arange(len(of_class))
    indices = np.sort(np.lexsort((known, turn))[:size])
    x = torch.stack([part[int(i)][0] for i in indices])
    return x, known[indices], indices, loaded.n_classes


def _load_weights(net: torch.nn.Module, path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
        net.load_state_dict(state)
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise ArgumentError(
            f"the weights in {path} cannot be loaded into {type(net).__name__} ({type(error).__name__}: {told}). "
            "Give a state dict of this model."
        ) from None


def checkpoints_to_run(
    checkpoints: Sequence[str | Path],
    model: str,
    data: str,
    out: str | Path,
    *,
    size: int = 64,
    split: str = "train",
    n_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    dtype: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Trajectory:
    """Measure checkpoints on samples of a data set, see `avalanche_ntk.measure_checkpoints`.

    Args:
        checkpoints: Files.
        model: Argument of `build_model`, such as `module:factory`.
        data: Argument of `load_data`.
        out: The run folder.
        size: Number of samples N, balanced over classes as far as possible.
        split: "train" or "test".
        n_classes: Number of outputs C; None for that of the data.
        arguments: Arguments of the model.
        data_root: Folder of torchvision's datasets.
        download: Whether torchvision may download the data.
        dtype: "float32" or "float64"; None for the model's own.
        seed: Seed for choosing samples.
        **options: Further arguments of `measure_checkpoints`.

    Returns:
        The trajectory.

    Raises:
        ArgumentError: An argument cannot be used.
    """  # noqa: DOC501  (made by unknown_name)
    x, labels, _, found_classes = _samples(data, split, size, seed, data_root, download)
    if labels is None:
        raise ArgumentError(f"a probe needs labels, and {data} holds inputs only. Give --data a labelled data set.")
    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    factories_of_this_folder()
    make = partial(
        build_model,
        model,
        input_shape=tuple(x.shape[1:]),
        n_classes=n_classes or found_classes,
        seed=seed,
        **(arguments or {}),
    )
    probe = Probe.from_tensors(x, torch.from_numpy(labels), name="probe")
    precision = None if dtype is None else getattr(torch, dtype)
    return measure_checkpoints(checkpoints, make, probe, out, dtype=precision, **options)


def _write(out: Path, content: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    temporary = out.with_name(out.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            if out.suffix == ".npy":
                np.save(file, content["kernel"], allow_pickle=False)
            else:
                file.write(safetensors_bytes(content, {**metadata, "avalanche-ntk": __version__}))
        os.replace(temporary, out)
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be written ({error.strerror or error}): expected a file in a folder that exists. "
            "Give another --out."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _told(kernel: np.ndarray, labels: np.ndarray | None, reduction: str) -> dict[str, str]:
    if reduction == "full":
        n, m, c, d = kernel.shape
        kernel = kernel.transpose(0, 2, 1, 3).reshape(n * c, m * d)
        labels = None
    view = measures.KernelView(kernel)
    found = measures.summary(view, labels).values
    names = {"spectral_norm": "λ_max", "kernel_trace": "trace", "effective_rank": "effective rank"}
    names["alignment"] = "alignment with the labels"
    return {told: f"{found[name]:.6g}" for name, told in names.items() if name in found}
