"""One measurement of one probe: a record that readers cannot change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avalanche_ntk.frozen import frozen
from avalanche_ntk.recorder.clock import TrainingClock


@dataclass(frozen=True)
class Measurement:
    """One measurement of one probe.

    Attributes:
        index: Position in the trajectory, from 0; failures count.
        clock: When it was taken.
        segment: Incremented when the model is reinitialised; nothing is compared across segments.
        values: The numbers, by column name; undefined ones are absent.
        reasons: Why a number is undefined, by column name.
        notes: Events (a head grew, the model was reinitialised).
        trust: How the kernel was computed and how far it can be trusted.
        kernel: Path of the kernel inside the run folder, if it was stored.
        failure: Why there are no numbers, or None.
    """

    index: int
    clock: TrainingClock
    segment: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trust: Mapping[str, Any] = field(default_factory=dict)
    kernel: str | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        for name in ("values", "reasons", "trust"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def as_record(self, probe: str) -> dict[str, Any]:
        """Return the record for `measurements.jsonl`."""
        return {
            "kind": "measurement",
            "probe": probe,
            "index": self.index,
            "clock": self.clock.as_dict(),
            "segment": self.segment,
            "values": dict(self.values),
            "reasons": dict(self.reasons),
            "notes": list(self.notes),
            "trust": dict(self.trust),
            "kernel": self.kernel,
            "failure": self.failure,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Measurement:
        """Restore a measurement from its record in `measurements.jsonl`."""
        return cls(
            index=record["index"],
            clock=TrainingClock.from_dict(record["clock"]),
            segment=record["segment"],
            values={name: float(value) for name, value in record["values"].items()},
            reasons=dict(record["reasons"]),
            notes=tuple(record["notes"]),
            trust=dict(record["trust"]),
            kernel=record["kernel"],
            failure=record["failure"],
        )
