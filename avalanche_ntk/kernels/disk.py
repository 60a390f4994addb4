"""Kernels too large for memory: computed in bands of rows, written to a `.npy` file, resumable after a kill.

A second file, `<name>.json`, identifies the kernel (digests of the model's tensors and of the inputs, the options) and
lists the written bands. Until the last one is written, the kernel is in `<name>.partial`.
"""

from __future__ import annotations

import hashlib
import json
import os
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from tqdm import tqdm

from avalanche_ntk.errors import ArgumentError, KernelError, is_whole
from avalanche_ntk.files import write_whole
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.wrappers import unwrap
from avalanche_ntk.kernels.info import KernelInfo
from avalanche_ntk.kernels.measured import measured
from avalanche_ntk.kernels.request import Request
from avalanche_ntk.kernels.sharing import Part, parts

_BANDS = 8  # least number of bands; a kill loses at most one
_PASSING = 64  # samples per pass, so that memory does not grow with N


def on_disk(request: Request, path: str | os.PathLike[str]) -> tuple[Tensor, KernelInfo]:
    """Compute a kernel into a file, or continue an interrupted computation.

    Args:
        request: What is asked for.
        path: The file, `*.npy`.

    Returns:
        The kernel, memory-mapped copy-on-write from the file, and how the last band was computed.

    Raises:
        ArgumentError: The file holds another kernel, or the interrupted one has another model, batch or options.
    """
    path = _checked(Path(path), request)
    description = _description(request)
    progress = path.with_name(path.name + ".json")
    found = json.loads(progress.read_text("utf-8")) if progress.exists() else None
    if found is None and path.exists():
        raise ArgumentError(
            f"{path} exists already, without {progress.name}, which identifies its kernel. Give another name, or move "
            "the file away."
        )
    if found is not None:
        _require_same(found, description, path)
    info = KernelInfo()
    if found is None or not path.exists():
        info = _Bands(request, path, progress, description, found).compute()
    return torch.from_numpy(np.load(path, mmap_mode="c")), info


def _checked(path: Path, r: Request) -> Path:
    if path.suffix != ".npy":
        raise ArgumentError(f"out must name a .npy file, found {str(path)!r}. Give for example 'kernel.npy'.")
    if not path.parent.is_dir():
        raise ArgumentError(f"out names a file in {path.parent}, which does not exist. Create it first.")
    if r.processes.size > 1:
        raise ArgumentError("out and process_group cannot be combined. Leave one of them out.")
    if r.reduction == "full":
        raise ArgumentError(
            "out cannot be combined with reduction='full', whose kernel has shape (N, N, C, C)."
            " Use 'trace', 'projected' or 'sum_logits', or outputs= for one output at a time."
        )
    if r.estimator is not None:
        raise ArgumentError(
            "out was given with estimator='rademacher', whose standard error is as large as the kernel. Use"
            " reduction='projected'."
        )
    return path


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        for piece in t.detach().contiguous().flatten().split(2**22):
            digest.update(piece.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _inputs(batch: Batch | None) -> str:
    if batch is None:
        return ""
    whole = "" if isinstance(batch.task_labels, Tensor) else repr(batch.task_labels)
    return _digest({f"{k} {whole}": t for k, t in enumerate(batch.tensors())})


def _description(r: Request) -> dict[str, Any]:
    """Return the data that identify a kernel."""
    model: nn.Module = unwrap(r.model)
    return {
        "model": type(model).__name__,
        "parameters and buffers": _digest(dict(model.named_parameters()) | dict(model.named_buffers())),
        "inputs": _inputs(r.b1),
        "second inputs": _inputs(r.b2),
        "reduction": r.reduction,
        "n_projections": None if r.n_projections is None else int(r.n_projections),
        "seed": int(r.seed) if r.reduction == "projected" else 0,
        "params": repr(r.params),
        "layers": repr(r.layers),
        "outputs": repr(r.outputs),
        "output_selector": getattr(r.output_selector, "__qualname__", repr(type(r.output_selector).__name__)),
        "dtype": str(r.dtype),
        "preconditioner": _digest(dict(r.preconditioner)) if r.preconditioner else "",
    }


def _require_same(found: dict[str, Any], description: dict[str, Any], path: Path) -> None:
    before = found["kernel"]
    other = [name for name, value in description.items() if before.get(name) != value]
    if other:
        raise ArgumentError(
            f"{path} is another kernel: {', '.join(other)} changed since it was begun. Give another name, or delete "
            f"it with {path.name}.json to start again."
        )


class _Bands:
    """The computation of a kernel, band by band.

    Args:
        request: What is asked for.
        path: The file.
        progress: The progress file.
        description: The kernel's identity.
        found: Content of the progress file; None at the beginning.
    """

    def __init__(
        self, request: Request, path: Path, progress: Path, description: dict[str, Any], found: dict[str, Any] | None
    ) -> None:
        self.request, self.path, self.progress = request, path, progress
        self.partial = path.with_name(path.name + ".partial")
        self.n, self.m = len(request.b1), None if request.b2 is None else len(request.b2)
        self.columns = self.m or self.n
        if found is None or not self.partial.exists():
            found = {"kernel": description, "rows": self._rows(request.budget), "done": []}
        self.state = found

    def compute(self) -> KernelInfo:
        """Compute the missing bands and move the file to its path."""
        info, r = KernelInfo(), self.request
        budget, r.budget, r.report = r.budget, r.budget * 3 // 4, False
        r.block = r.block or _PASSING
        try:
            bands = parts(self.n, self.m, self.state["rows"])
            for k, band in enumerate(tqdm(bands, desc=self.path.name, unit="band", disable=None)):
                if k in self.state["done"]:
                    continue
                kernels, info = measured(r, band)
                self._write(band, kernels.pop(""))
                self.state["done"].append(k)
                write_whole(self.progress, json.dumps(self.state, indent=1))
        finally:
            r.budget = budget
        os.replace(self.partial, self.path)
        return info

    def _rows(self, budget: int) -> int:
        """Return the rows of a band: at least a few bands, each within a quarter of the budget."""
        entry = 3 * 8  # a band is copied while it is checked, made symmetric and written
        return max(1, min(ceil(self.n / _BANDS), budget // (4 * entry * self.columns)))

    def _write(self, band: Part, kernel: Tensor) -> None:
        """Write a band and, of a self-kernel, its mirror image, row by row."""
        if self.m is None:
            kernel = band.own(kernel)
        # Overwrite a file left by a kill before the first band: its kernel is unknown.
        with self.partial.open("r+b" if self.state["done"] else "w+b") as file:
            if not self.state["done"]:
                self._allocate(file, kernel)
            file.seek(0)
            _header(file)
            first = file.tell()
            self._put(file, first, kernel, band.rows.start, band.columns.start)
            if self.m is None:
                size = band.rows.stop - band.rows.start
                self._put(file, first, kernel.T[size:], band.rows.stop, band.rows.start)
            file.flush()
            os.fsync(file.fileno())

    def _put(self, file: BinaryIO, first: int, part: Tensor, row: int, column: int) -> None:
        """Write a part from a row and a column on; the kernel's first entry is at byte `first`."""
        for i, numbers in enumerate(part.cpu(), row):
            file.seek(first + (i * self.columns + column) * part.element_size())
            file.write(numbers.contiguous().numpy().data)

    def _allocate(self, file: BinaryIO, like: Tensor) -> None:
        kind = np.dtype(str(like.dtype).removeprefix("torch."))
        shape = (self.n, self.columns)
        npy.write_array_header_2_0(file, {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + self.n * self.columns * kind.itemsize)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    npy.read_magic(file)
    return npy.read_array_header_2_0(file)


def top_eigenvalues(path: str | os.PathLike[str], k: int = 10, memory_budget: int = 2**26) -> np.ndarray:
    """Largest eigenvalues of a self-kernel in a file, by Lanczos' method, which reads it row by row.

    Args:
        path: A file that `empirical_ntk(..., out=path)` wrote, `(N, N)`.
        k: Number of eigenvalues, below N.
        memory_budget: Bytes of rows to read at a time.

    Returns:
        `(k,)` in float64, the largest first.

    Raises:
        ArgumentError: It is not such a file, or k is out of range.
        KernelError: The file is truncated.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            shape, _, kind = _header(file)
        except ValueError as exc:
            raise ArgumentError(f"{path} is not a kernel written by empirical_ntk(..., out=...) ({exc}).") from exc
        first = file.tell()
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ArgumentError(f"{path} has shape {shape}: expected a self-kernel (N, N).")
        n = shape[0]
        if not is_whole(k) or not 1 <= k < n:
            raise ArgumentError(f"k must be between 1 and {n - 1} (one less than the samples), found {k!r}.")
        rows = max(1, memory_budget // (n * 8))

        def times(v: np.ndarray) -> np.ndarray:
            file.seek(first)
            found = np.empty(n)
            for i in range(0, n, rows):
                some = np.fromfile(file, kind, min(rows, n - i) * n)
                if some.size < min(rows, n - i) * n:
                    raise KernelError(
                        f"{path} ends in row {i + some.size // n} of {n}. Delete it and compute it again."
                    )
                found[i : i + rows] = some.reshape(-1, n).astype(np.float64) @ v.ravel()
            return found

        start = np.random.default_rng(0).standard_normal(n)
        operator = LinearOperator((n, n), matvec=times, dtype=np.float64)  # type: ignore[call-arg, misc]
        return np.sort(eigsh(operator, k=k, which="LA", v0=start, return_eigenvectors=False))[::-1]
