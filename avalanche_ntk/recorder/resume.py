"""Continuing a run on disk: stored state and compatibility checks.

At the end of each experience the plugin writes a record of the kind "state": the counts, the outputs of the kernel, and
a digest of every parameter. A run can be continued after each of these records. Later records are set aside, not lost
(`RunFolder.rewind`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from avalanche_ntk.errors import ProbeError, RunFolderError
from avalanche_ntk.recorder.runfolder import RunFolder

STATE = "state"
SETTINGS = ("reduction", "n_projections", "outputs", "params", "dtype", "schedule", "observables")
"""Keys of `meta` that must be equal for the numbers of a series to be comparable."""

RUN_SETTINGS = ("strategy", "optimizer", "model", *SETTINGS)
"""Keys of `meta` that describe a run without a configuration."""

COUNTS = ("iteration", "epoch", "optimizer_step")


@dataclass(frozen=True)
class State:
    """The state of a run at the end of an experience.

    Attributes:
        counts: Iterations, epochs and optimizer steps done in the whole run.
        outputs: The outputs used in each probe's kernel, by probe name.
        parameters: Shape and SHA-256 of every parameter, by name.
        trainable: Names of the parameters that required a gradient.
        training_seconds: Seconds spent in training.
        measuring_seconds: Seconds spent in measurements.
    """

    counts: dict[str, int]
    outputs: dict[str, list[int]]
    parameters: dict[str, tuple[tuple[int, ...], str]]
    trainable: tuple[str, ...]
    training_seconds: float
    measuring_seconds: float

    def as_record(self, experience: int) -> dict[str, Any]:
        """Return the record for `measurements.jsonl`."""
        return {
            "kind": STATE,
            "experience": experience,
            "counts": self.counts,
            "outputs": self.outputs,
            "parameters": {name: [list(shape), digest] for name, (shape, digest) in self.parameters.items()},
            "trainable": list(self.trainable),
            "training_seconds": self.training_seconds,
            "measuring_seconds": self.measuring_seconds,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> State:
        """Restore the state from its record; raise KeyError, TypeError or ValueError if it is invalid."""
        if unknown := set(record["trainable"]) - set(record["parameters"]):
            raise ValueError(f"trainable names no parameters: {sorted(unknown)}")
        return cls(
            counts={name: int(record["counts"][name]) for name in COUNTS},
            outputs={str(name): [int(i) for i in indices] for name, indices in record["outputs"].items()},
            parameters={
                str(name): (tuple(int(size) for size in shape), str(digest))
                for name, (shape, digest) in record["parameters"].items()
            },
            trainable=tuple(map(str, record["trainable"])),
            training_seconds=float(record["training_seconds"]),
            measuring_seconds=float(record["measuring_seconds"]),
        )


def is_run(path: str | PathLike[str]) -> bool:
    """Return whether `path` holds a run that could be continued."""
    return (Path(path) / "run.json").exists()


def reopen(
    path: str | PathLike[str],
    experience: int | None,
    meta: Mapping[str, Any],
    probe_names: Sequence[str],
    shapes: Mapping[str, Sequence[int]],
) -> tuple[RunFolder, int, State | None]:
    """Open a run to continue it, and set aside records beyond the point at which training continues.

    Args:
        path: The run folder.
        experience: Number of the experience, in the order of training, that is about to begin; None for the one after
            the last complete one.
        meta: The description that a new run would store.
        probe_names: Names of the probes that the plugin follows.
        shapes: Shapes of the model's parameters before anything adapted the model to the new experience.

    Returns:
        The folder, the experience's number, and the state at the end of the previous one; None if it is the first.

    Raises:
        RunFolderError: There is no such run, its settings or its model differ, or earlier experiences are incomplete.
    """  # noqa: DOC501
    folder = RunFolder.resume(path)
    try:
        records = folder.records()
        complete = {r["experience"]: i for i, r in enumerate(records) if r["kind"] == STATE and _is_number(r)}
        if experience is None:
            experience = max(complete, default=-1) + 1
        if experience > 0 and experience - 1 not in complete:
            raise _refused(
                folder,
                f"with experience {experience}: it holds {_complete(complete)}. Load the model that belongs to the run "
                f"and train from {_possible(complete)}, or measure into another folder.",
            )
        _check_settings(folder, meta)
        check_probes(folder, meta["probes"])
        if missing := [p["name"] for p in folder.meta.get("probes", []) if p["name"] not in probe_names]:
            raise _refused(
                folder,
                f"without all of its probes: expected {', '.join(map(repr, missing))} too, found "
                f"{', '.join(map(repr, probe_names))}. Give the same probes as before.",
            )
        if experience == 0:
            _check_model(folder, _shapes_of(folder.meta), meta["model"]["parameters"], "at its start")
            folder.rewind(0)
            return folder, 0, None
        state = _read_state(folder, records[complete[experience - 1]])
        known = {name: shape for name, (shape, _) in state.parameters.items()}
        _check_model(folder, known, shapes, f"at the end of experience {experience - 1}")
        keep = complete[experience - 1] + 1
        while keep < len(records) and _experience_of(records[keep]) < experience:
            keep += 1
        folder.rewind(keep)
    except BaseException:
        folder.close()
        raise
    return folder, experience, state


def check_probes(folder: RunFolder, probes: Sequence[Mapping[str, Any]]) -> set[str]:
    """Check that probes have the same samples as those of a run.

    Args:
        folder: The run.
        probes: `Probe.describe` of the probes chosen now.

    Returns:
        Names of those that the run has; others may be added.

    Raises:
        ProbeError: A probe has different samples.
    """  # noqa: DOC501
    known = {p["name"]: p for p in folder.meta.get("probes", [])}
    for probe in probes:
        if probe["name"] in known and known[probe["name"]]["hash"] != probe["hash"]:
            raise _other_probe(folder, known[probe["name"]], probe)
    return {probe["name"] for probe in probes} & known.keys()


def _other_probe(folder: RunFolder, known: Mapping[str, Any], probe: Mapping[str, Any]) -> ProbeError:
    differences = [
        f"{key} {_brief(known.get(key))} there and {_brief(probe[key])} here"
        for key in ("size", "experience", "indices", "labels", "task_labels")
        if known.get(key) != probe[key]
    ]
    what = "; ".join(differences) or "the same places in the stream, and other inputs at them"
    return ProbeError(
        f"run folder {folder.path} cannot be continued with another probe: {probe['name']!r} has the hash "
        f"{known['hash'][:12]} there and {probe['hash'][:12]} here ({what}). Kernels are only comparable on the same "
        "samples: give the same benchmark, transforms and ProbeSpec as before, or measure into another folder."
    )


def _check_settings(folder: RunFolder, meta: Mapping[str, Any]) -> None:
    known = folder.meta
    different = [
        f"{key} is {known.get(key)!r} there and {meta.get(key)!r} here"
        for key in SETTINGS
        if known.get(key) != _plain(meta.get(key))
    ]
    if different:
        raise _refused(
            folder,
            f"with other settings: {'; '.join(different)}. Give the same ones as before, or measure into another "
            "folder.",
        )
    if meta["online"] and "online" not in known:
        raise _refused(
            folder,
            "on an online stream: it took each piece of a task for an experience, and boundaries are changes of task "
            "now. Measure into another folder.",
        )
    there, here = _model_of(known).get("name"), meta["model"]["name"]
    if there != here:
        raise _refused(
            folder,
            f"with another model: it is a {there} there and a {here} here. Give the same model as before, or measure "
            "into another folder.",
        )


def _check_model(
    folder: RunFolder, there: Mapping[str, Sequence[int]], here: Mapping[str, Sequence[int]], when: str
) -> None:
    different = [
        f"{name} has shape {list(there[name])} there and {list(here[name])} here"
        for name in there
        if name in here and list(there[name]) != list(here[name])
    ]
    different += [f"{name} is only there" for name in there if name not in here]
    different += [f"{name} is only here" for name in here if name not in there]
    if different:
        more = f", and {len(different) - 5} more" if len(different) > 5 else ""
        raise _refused(
            folder,
            f"with another model than it had {when}: {'; '.join(different[:5])}{more}. Give the same model as before "
            "(a head that has grown must have grown before its weights are loaded), or measure into another folder.",
        )


def _read_state(folder: RunFolder, record: Mapping[str, Any]) -> State:
    try:
        return State.from_record(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused(
            folder,
            f"behind experience {record['experience']}: the state recorded there cannot be used "
            f"({type(error).__name__}: {error}). Go on behind an earlier one.",
        ) from None


def _model_of(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    model = meta.get("model")
    return model if isinstance(model, Mapping) else {}


def _shapes_of(meta: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    found = _model_of(meta).get("parameters")
    if not isinstance(found, Mapping):
        return {}
    return {name: shape for name, shape in found.items() if isinstance(shape, list)}


def _is_number(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("experience"), int) and not isinstance(record["experience"], bool)


def _experience_of(record: Mapping[str, Any]) -> int:
    clock = record.get("clock")
    number = clock.get("experience") if isinstance(clock, Mapping) else record.get("experience")
    return number if isinstance(number, int) else -1


def _refused(folder: RunFolder, why: str) -> RunFolderError:
    return RunFolderError(f"run folder {folder.path} cannot be continued {why}")


def _complete(complete: Mapping[int, int]) -> str:
    if not complete:
        return "no complete experience"
    return f"the complete experiences {', '.join(map(str, sorted(complete)))}"


def _possible(complete: Mapping[int, int]) -> str:
    return "experience " + " or ".join(str(e + 1) for e in sorted({-1, *complete}))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
