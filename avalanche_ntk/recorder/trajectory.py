"""The time series of one probe: clocks, kernels and numbers.

A trajectory computes the numbers of `docs/definitions.md` from each new kernel and writes them to the run folder. It
keeps only three kernels in memory (the previous one, the one at the experience's start, the first one), however long
the run is.
"""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from avalanche_ntk import measures
from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.recorder.boundaries import reactivation_at, reactivation_row, reactivation_types
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.frames import CLOCK, COUNT, NUMBER, TEXT, make_frame
from avalanche_ntk.recorder.labels import are_classes, from_json, in_form
from avalanche_ntk.recorder.measurement import Measurement as Measurement
from avalanche_ntk.recorder.runfolder import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    import xarray
    from matplotlib.axes import Axes

EXPERIENCE_START = "experience_start"
PLOTTED = ("spectral_norm", "distance_init", "alignment", "velocity_per_iteration")

_BOTH = ("", "_uncentred")
_DISTANCES = tuple(f"distance_{to}{how}" for to in ("previous", "experience_start", "init") for how in _BOTH)
_VELOCITIES = tuple(f"velocity_per_{unit}{how}" for unit in ("iteration", "step", "epoch") for how in _BOTH)
_RANKS = (1, 5, 20)
_ALIGNMENTS = ("alignment", *(f"eigenvector_alignment_{rank}" for rank in _RANKS))
_NORMS = ("kernel_norm", "kernel_trace", "spectral_norm", "effective_rank", "condition_number")
NUMBERS = (*_NORMS, *_ALIGNMENTS, *_DISTANCES, *_VELOCITIES)
"""Columns of every trajectory; a column is present even if its number was never defined."""

# Columns of a layer's or the features' kernel that locate the motion of the whole kernel.
_FOLLOWED = {
    "kernel_norm",
    "spectral_norm",
    "alignment",
    "distance_previous",
    "distance_experience_start",
    "distance_init",
    "velocity_per_iteration",
}


class Trajectory:
    """The series of measurements of one probe.

    Args:
        probe: Name of the probe.
        labels: Class of each of its N samples, whole numbers `(N,)`, or numeric targets, `(N, K)`.
        folder: Run folder to write to; None keeps everything in memory.
        keep_kernels: Whether kernels are kept (in the run folder, or in memory when there is none).
        cadence: Spacing of the measurements; stored with every reactivation.
    """

    def __init__(
        self,
        probe: str,
        labels: Sequence[Any] | np.ndarray,
        *,
        folder: RunFolder | None = None,
        keep_kernels: bool = True,
        cadence: str = "",
    ) -> None:
        self.probe = probe
        self._labels = in_form(np.asarray(labels))
        self.folder = folder
        self.keep_kernels = keep_kernels
        self.cadence = cadence
        self.measurements: list[Measurement] = []
        self.reactivations: dict[int, measures.Reactivation] = _ByExperience()
        self.segment = 0
        self.restored = 0
        self.restored_reactivations = 0
        self._kernels: dict[int, dict[str, np.ndarray]] = {}
        self._dtype = "float64"
        self._references: dict[tuple[str, str], _Reference] = {}
        self._waiting: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ reading

    @property
    def labels(self) -> np.ndarray:
        """A copy of the samples' labels: classes, int64 `(N,)`, or numeric targets, float64 `(N, K)`."""
        labels: np.ndarray = self._labels.copy()
        return labels

    def __len__(self) -> int:
        return len(self.measurements)

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self.measurements)

    def __getitem__(self, index: int) -> Measurement:
        return self.measurements[index]

    def __repr__(self) -> str:
        failed = sum(m.failure is not None for m in self.measurements)
        return f"Trajectory(probe={self.probe!r}, {len(self)} measurements, {failed} failed)"

    def kernel(self, index: int, name: str = "kernel") -> np.ndarray:
        """Return the kernel of a measurement, shape `(N, N)`.

        Args:
            index: The measurement's `index`.
            name: Another kernel measured at the same time, such as `layer[features.1]`.

        Returns:
            The kernel in the precision of its computation.

        Raises:
            RunFolderError: There is no such measurement, or its kernel was not kept.
        """
        kernels = self.kernels(index)
        if name not in kernels:
            raise RunFolderError(
                f"measurement {index} of probe {self.probe!r} has no kernel {name!r}; it has "
                f"{', '.join(map(repr, kernels))}. Give one of these names."
            )
        return kernels[name]

    def kernels(self, index: int) -> dict[str, np.ndarray]:
        """Return all kernels of a measurement by name; the whole kernel is `kernel`.

        Args:
            index: The measurement's `index`.

        Returns:
            Arrays of shape `(N, N)`.

        Raises:
            RunFolderError: There is no such measurement, or its kernels were not kept.
        """
        measurement = next((m for m in self.measurements if m.index == index), None)
        if measurement is None:
            raise RunFolderError(
                f"probe {self.probe!r} has no measurement {index}; its {len(self)} measurements have the indices "
                f"{[m.index for m in self.measurements[:3]]}… Give one of them."
            )
        if index in self._kernels:
            return {name: kernel.copy() for name, kernel in self._kernels[index].items()}
        if self.folder is not None and measurement.kernel is not None:
            return self.folder.load_kernel(measurement.kernel)
        why = "the measurement failed" if measurement.failure else "the plugin was made with keep_kernels=False"
        raise RunFolderError(
            f"measurement {index} of probe {self.probe!r} has no stored kernel: {why}. "
            "Choose another measurement, or measure with keep_kernels=True."
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return a table, one row per measurement: clock, numbers (units in column names), reasons, notes and failures.

        Undefined numbers are NaN. Every requested column is present, even without values. A column's type does not
        depend on its content, so files of many runs can be read as one table.
        """
        columns = dict.fromkeys([*NUMBERS, *(c for m in self.measurements for c in (*m.values, *m.reasons))])
        rows = [
            {
                "measurement": m.index,
                **m.clock.as_dict(),
                "segment": m.segment,
                **m.values,
                "reasons": "; ".join(f"{column}: {reason}" for column, reason in m.reasons.items()),
                "notes": "; ".join(m.notes),
                "failure": m.failure,
            }
            for m in self.measurements
        ]
        types = {"measurement": COUNT, **CLOCK, "segment": COUNT, **dict.fromkeys(columns, NUMBER)}
        return make_frame(rows, {**types, **dict.fromkeys(("reasons", "notes", "failure"), TEXT)})

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write `to_pandas()` to a CSV file."""
        self.to_pandas().to_csv(path, index=False)

    def to_parquet(self, path: str | PathLike[str]) -> None:
        """Write `to_pandas()` to a Parquet file; needs the extra `export`."""
        _needs("pyarrow", "Parquet files")
        self.to_pandas().to_parquet(path, index=False)

    def to_xarray(self) -> xarray.Dataset:
        """Return the numbers along a dimension `measurement`, and the kernels if kept; needs the extra `export`.

        Returns:
            A data set with the clock's counts as coordinates and, if every kernel was kept, a variable `kernel` of
            dimensions `(measurement, sample, sample_2)`.
        """
        _needs("xarray", "xarray data sets")
        import xarray as xr

        good = [m for m in self.measurements if m.failure is None]
        columns = dict.fromkeys(name for m in good for name in m.values)
        clocks = [m.clock.as_dict() for m in good]
        dataset = xr.Dataset(
            {name: ("measurement", [m.values.get(name, np.nan) for m in good]) for name in columns},
            coords={
                "measurement": np.array([m.index for m in good], dtype=np.int64),
                "event": ("measurement", np.array([c["event"] for c in clocks], dtype=str)),
                **{
                    name: ("measurement", np.array([c[name] for c in clocks], dtype=np.int64))
                    for name in ("iteration", "experience")
                },
            },
            attrs={"probe": self.probe, "cadence": self.cadence},
        )
        try:
            kernels = [self.kernel(m.index) for m in good]
        except RunFolderError:
            return dataset
        if kernels:
            dataset["kernel"] = (("measurement", "sample", "sample_2"), np.stack(kernels))
            dataset.coords["label"] = (("sample", "target")[: self._labels.ndim], self.labels)
        return dataset

    def plot(self, columns: Sequence[str] = PLOTTED, axes: Sequence[Axes] | None = None) -> list[Axes]:
        """Draw columns over the training iterations, with boundaries marked, in matplotlib's current style.

        Args:
            columns: Columns of `to_pandas()`; by default those of the report's first figure.
            axes: Axes to draw into, one for each column; None for a new figure of `matplotlib.pyplot`.

        Returns:
            The axes.

        Raises:
            ArgumentError: The numbers of axes and columns differ, or a column was never measured.
        """
        from avalanche_ntk.recorder.plots import plot

        return plot(self, columns, axes)

    def _repr_html_(self) -> str:
        """Return a notebook's view: the number of measurements and the table of boundaries."""
        shown = self.summary() if self.reactivations else self.to_pandas().drop(columns=["reasons", "notes"]).tail()
        told = html.escape(repr(self))
        return f"<p>{told}</p>{shown.dropna(axis='columns', how='all').to_html(index=False, float_format='%.4g')}"

    @property
    def reasons(self) -> dict[int, dict[str, str]]:
        """Reasons for undefined numbers of `summary()`, by experience and column."""
        return {experience: dict(found.reasons) for experience, found in self.reactivations.items()}

    def summary(self) -> pd.DataFrame:
        """Return a table of reactivations, one row per boundary, with undefined numbers empty.

        Returns:
            The columns are `experience` and the attributes of `measures.Reactivation`; `reasons` explains empty
            numbers.
        """
        rows = [{"experience": e, **reactivation_row(found)} for e, found in self.reactivations.items()]
        return make_frame(rows, {"experience": COUNT, **reactivation_types(NUMBER)}).drop(columns="reasons")

    def verdicts(self, control: Any) -> dict[int, measures.Verdict]:
        """Decide at each boundary whether the kernel was reactivated, by comparison with runs without a task change.

        Fresh samples of the same classes alone make the kernel move faster, so a verdict needs a control: the same
        training on the same classes with fresh samples at each boundary.

        Args:
            control: One trajectory (or plugin), or several, of control runs at the same cadence.

        Returns:
            The verdict by experience, from the second on.

        Raises:
            ArgumentError: The cadences differ, the probes have different classes or targets, or a control is this run
                itself.
        """
        given = list(control) if isinstance(control, (list, tuple)) else [control]
        controls = [getattr(one, "trajectory", one) for one in given]
        for one in controls:
            if not isinstance(one, Trajectory):
                raise ArgumentError(
                    f"controls are trajectories of control runs, or their plugins; found {type(one).__name__}."
                )
            if one is self:
                raise ArgumentError("a run cannot be its own control: give the trajectories of runs without a shift.")
            if are_classes(one._labels) != are_classes(self._labels) or (
                sorted(one._labels.tolist()) != sorted(self._labels.tolist())
            ):
                what = "classes" if are_classes(self._labels) else "numeric targets"
                raise ArgumentError(
                    f"a control watches a probe of the same {what}: expected {_counts(self._labels)}, "
                    f"found {_counts(one._labels)}. Train the control on the same first task."
                )
        return {
            experience: measures.verdict(
                found, [c.reactivations[experience] for c in controls if experience in c.reactivations]
            )
            for experience, found in list(self.reactivations.items())[1:]
        }

    @classmethod
    def load(cls, folder: RunFolder | str, probe: str | None = None) -> Trajectory:
        """Read a trajectory from a run folder.

        Args:
            folder: The run folder or its path.
            probe: Name of the probe; None for the folder's first.

        Returns:
            The trajectory; it can be continued if the folder was opened by `RunFolder.resume`.

        Raises:
            RunFolderError: The folder has no such probe.
        """
        opened = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
        probes = {p["name"]: p for p in opened.meta.get("probes", [])}
        name = probe if probe is not None else next(iter(probes), None)
        if name is None or name not in probes:
            raise RunFolderError(
                f"{opened.path} holds no probe {probe!r}; it has {', '.join(map(repr, probes)) or 'none yet'}. "
                "Give one of these names."
            )
        labels = from_json(probes[name].get("labels"))
        if labels is None:
            raise RunFolderError(f"{opened.path} holds no usable labels of probe {name!r}. It was changed or damaged.")
        trajectory = cls(name, labels, folder=opened, cadence=opened.meta.get("cadence", ""))
        for record in opened.records():
            if record.get("probe") != name:
                continue
            if record["kind"] == "measurement":
                trajectory.measurements.append(Measurement.from_record(record))
            elif record["kind"] == "reactivation":
                trajectory.reactivations[record["experience"]] = measures.Reactivation.from_dict(record["reactivation"])
        trajectory.restored, trajectory.restored_reactivations = len(trajectory), len(trajectory.reactivations)
        trajectory._restore_references()
        return trajectory

    # ------------------------------------------------------------------ writing

    def add(
        self,
        clock: TrainingClock,
        kernel: np.ndarray,
        *,
        view: measures.KernelView | None = None,
        iterations_per_epoch: float | None = None,
        notes: Sequence[str] = (),
        trust: Mapping[str, Any] | None = None,
        extra: Mapping[str, float] | None = None,
        extra_reasons: Mapping[str, str] | None = None,
        extra_kernels: Mapping[str, np.ndarray] | None = None,
    ) -> Measurement:
        """Add a kernel: compute its numbers, store it and write the record.

        Args:
            clock: When it was measured.
            kernel: Self-kernel of the probe, shape `(N, N)`.
            view: Its view, if it exists already.
            iterations_per_epoch: Training iterations in one epoch of the present task, for the velocity per epoch.
            notes: Events to record.
            trust: How the kernel was computed.
            extra: Further numbers measured at the same time.
            extra_reasons: Reasons for undefined ones.
            extra_kernels: Further kernels of the same samples by name (of a layer, of the features); each is followed
                like the whole kernel, in columns `NAME.COLUMN`.

        Returns:
            The measurement.
        """
        index = self._next_index()
        kernel = np.array(kernel)  # the stored kernel must not change with the caller's array
        extra_kernels = {name: np.array(k) for name, k in (extra_kernels or {}).items()}
        view = measures.KernelView(kernel) if view is None else view
        others = {name: measures.KernelView(k) for name, k in extra_kernels.items()}
        self._dtype = str(kernel.dtype)
        with measures.few_threads(len(kernel)):
            values, reasons = self._numbers(clock, view, iterations_per_epoch)
            for name, other in others.items():
                theirs, why = self._numbers(clock, other, iterations_per_epoch, name)
                values.update({f"{name}.{column}": theirs[column] for column in theirs.keys() & _FOLLOWED})
                reasons.update({f"{name}.{column}": why[column] for column in why.keys() & _FOLLOWED})
                if values["kernel_trace"]:
                    values[f"{name}.trace_share"] = other.matrix.trace() / values["kernel_trace"]
        values.update(extra or {})
        reasons.update(extra_reasons or {})
        path, unsaved = self._keep(index, {"kernel": kernel, **extra_kernels})
        measurement = Measurement(
            index=index,
            clock=clock,
            segment=self.segment,
            values=values,
            reasons=reasons,
            notes=tuple(notes),
            trust=dict(trust or {}),
            kernel=path,
        )
        # In memory first: the series is complete even if writing fails.
        self.measurements.append(measurement)
        self._remember(clock, view)
        for name, other in others.items():
            self._remember(clock, other, name)
        self._write(measurement.as_record(self.probe))
        if unsaved is not None and index in self._kernels:
            raise unsaved
        return measurement

    def _add_failure(self, clock: TrainingClock, reason: str) -> Measurement:
        """Record a failed measurement and its reason."""
        measurement = Measurement(index=self._next_index(), clock=clock, segment=self.segment, failure=reason)
        self.measurements.append(measurement)
        self._write(measurement.as_record(self.probe))
        return measurement

    def new_segment(self) -> None:
        """Begin a new segment after a reinitialisation; later measurements are not compared with earlier ones."""
        self.segment += 1
        self._references.clear()

    def _close_experience(self, experience: int) -> measures.Reactivation | None:
        """Compute and record the reactivation of the experience that has just ended.

        Args:
            experience: Number of the experience in the order of training.

        Returns:
            The reactivation; None if the experience was not measured.
        """
        result = self.reactivation(experience)
        if result is not None:
            self.reactivations[experience] = result
            self._write(
                {
                    "kind": "reactivation",
                    "probe": self.probe,
                    "experience": experience,
                    "reactivation": result.as_dict(),
                }
            )
        return result

    # ------------------------------------------------------------------ numbers

    def _numbers(
        self, clock: TrainingClock, view: measures.KernelView, iterations_per_epoch: float | None, name: str = ""
    ) -> tuple[dict[str, float], dict[str, str]]:
        found = measures.summary(
            view,
            self._labels,
            previous=self._reference_view(name, "previous"),
            start=self._reference_view(name, "start"),
            init=self._reference_view(name, "init"),
            ranks=_RANKS if not name else (),
            only=_FOLLOWED if name else None,
        )
        values, reasons = dict(found.values), dict(found.reasons)
        previous = self._references.get((name, "previous"))
        if previous is not None:
            spans = {
                "per_iteration": float(clock.iteration - previous.clock.iteration),
                "per_step": float(clock.optimizer_step - previous.clock.optimizer_step),
            }
            if iterations_per_epoch:
                spans["per_epoch"] = spans["per_iteration"] / iterations_per_epoch
            for unit, span in spans.items():
                for suffix in ("", "_uncentred"):
                    distance = f"distance_previous{suffix}"
                    # No time passes between the end of a task and the next boundary: no velocity is defined there.
                    if span > 0 and distance in values:
                        values[f"velocity_{unit}{suffix}"] = values[distance] / span
        return values, reasons

    def reactivation(self, experience: int) -> measures.Reactivation | None:
        """Compute the reactivation at the boundary at which an experience began.

        Args:
            experience: Number of the experience in the order of training.

        Returns:
            The reactivation; for the first experience only its onset velocity is defined. None if the experience was
            not measured.
        """
        with measures.few_threads(len(self._labels)):
            return reactivation_at(self, experience)

    @property
    def kernel_dtype(self) -> str:
        """The precision in which the kernels were computed, such as "float32"."""
        return self._dtype

    def _reference_view(self, name: str, which: str) -> measures.KernelView | None:
        reference = self._references.get((name, which))
        return None if reference is None or reference.view.shape[0] != len(self._labels) else reference.view

    def _remember(self, clock: TrainingClock, view: measures.KernelView, name: str = "") -> None:
        reference = _Reference(clock, view)
        self._references[name, "previous"] = reference
        self._references.setdefault((name, "init"), reference)
        if clock.event == EXPERIENCE_START:
            self._references[name, "start"] = reference

    def _restore_references(self) -> None:
        """Reload the kernels with which the next measurement is compared."""
        good = [m for m in self.measurements if m.failure is None]
        self.segment = self.measurements[-1].segment if self.measurements else 0
        now = [m for m in good if m.segment == self.segment]
        starts = [m for m in now if m.clock.event == EXPERIENCE_START]
        for which, found in (("init", now[:1]), ("start", starts[-1:]), ("previous", now[-1:])):
            if not found or found[0].kernel is None:
                continue
            for name, kernel in self.kernels(found[0].index).items():
                self._dtype = str(kernel.dtype)
                name = "" if name == "kernel" else name
                self._references[name, which] = _Reference(found[0].clock, measures.KernelView(kernel))

    def _next_index(self) -> int:
        return self.measurements[-1].index + 1 if self.measurements else 0

    def _keep(self, index: int, kernels: dict[str, np.ndarray]) -> tuple[str | None, RunFolderError | None]:
        """Store the kernels; if writing fails, keep them in memory and return the error."""
        if not self.keep_kernels:
            return None, None
        if self.folder is None:
            self._kernels[index] = kernels
            return None, None
        try:
            arrays = {name: np.ascontiguousarray(k) for name, k in kernels.items()}
            return self.folder.save_kernel(self.probe, index, arrays), None
        except RunFolderError as error:
            self._kernels[index] = kernels
            return None, error

    def note(self, record: dict[str, Any]) -> None:
        """Write another record about this probe to the run folder, if there is one.

        Args:
            record: Plain values with a `kind`.

        Raises:
            RunFolderError: It cannot be written.
        """
        self._write({**record, "probe": self.probe})

    def _write(self, record: dict[str, Any]) -> None:
        """Write the records that failed before, then this one."""
        if self.folder is None:
            return
        self._waiting.append(record)
        while self._waiting:
            first = self._waiting[0]
            try:
                self._save_late(first)
                self.folder.append(first)
            except RunFolderError:
                raise  # kept for the next attempt
            except BaseException:
                del self._waiting[0]
                raise
            del self._waiting[0]

    def _save_late(self, record: dict[str, Any]) -> None:
        """Try again to store kernels whose writing failed; if it fails again, they stay in memory."""
        index = record.get("index")
        if record["kind"] != "measurement" or record["kernel"] is not None or index not in self._kernels:
            return
        path, unsaved = self._keep(index, self._kernels[index])
        if unsaved is None:
            del self._kernels[index]
            record["kernel"] = path
            at = next(i for i, m in enumerate(self.measurements) if m.index == index)
            self.measurements[at] = replace(self.measurements[at], kernel=path)


class _ByExperience(dict[int, measures.Reactivation]):
    """Reactivations by experience, with an explanation for missing ones."""

    def __missing__(self, experience: int) -> measures.Reactivation:
        known = ", ".join(map(str, self)) or "none yet"
        raise ArgumentError(
            f"there is no reactivation of experience {experience!r}: it is computed when an experience has ended, and "
            f"these have ended: {known}."
        )


def _counts(labels: np.ndarray) -> str:
    if not are_classes(labels):
        return f"other numbers of shape {labels.shape}"
    classes, counts = np.unique(labels, return_counts=True)
    return ", ".join(f"{n} of class {c}" for c, n in zip(classes.tolist(), counts.tolist(), strict=True))


def _needs(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"{what} need the package {package}, which is not installed. Run: pip install 'avalanche-ntk[export]'"
        )


@dataclass(frozen=True)
class _Reference:
    clock: TrainingClock
    view: measures.KernelView
