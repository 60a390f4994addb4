"""The table of measurements, one row each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from avalanche_ntk.recorder.clock import TrainingClock


def as_csv(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the measurements among records as CSV, with the columns given in `RunFolder.export_csv`."""
    rows = [record for record in records if record["kind"] == "measurement"]
    numbers = list(dict.fromkeys(name for row in rows for name in row["values"]))
    clock = list(TrainingClock.__dataclass_fields__)
    buffer = io.StringIO(newline="")
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["probe", "index", *clock, "segment", *numbers, "kernel", "failure"])
    for row in rows:
        table.writerow(
            [row["probe"], row["index"]]
            + [row["clock"].get(name) for name in clock]
            + [row["segment"], *(row["values"].get(name) for name in numbers), row["kernel"], row["failure"]]
        )
    return buffer.getvalue().encode("utf-8", "backslashreplace")
