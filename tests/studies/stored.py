"""What the studies come to at their smallest, trained once and stored, so that their tests only judge and draw.

    python -m tests.studies.stored [NAME ...]

makes what is missing or out of date of the studies named (of all without a name) and stores it. To make a study anew,
for example when its `measure` returns other numbers for the same arguments, delete its archive first.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

from avalanche_ntk.reproduce import reproduce
from avalanche_ntk.reproduce.registry import STUDIES

ARCHIVES = Path(__file__).parent / "stored"
NAMES = tuple(name for name in STUDIES if name != "reactivation")  # that one makes some hundred runs with their kernels
SEEDS = 2


class OutOfDateError(Exception):
    """A stored folder lacks runs or measurements of its study."""


def smallest(name, out, *, refuse=False):
    """Make a study at its smallest in a folder; what is complete there is kept.

    With `refuse`, raises OutOfDateError where anything would have to be made.
    """

    def tell(what, done, total):
        if refuse and done < total:
            raise OutOfDateError(
                f"the stored folder of {name!r} has {done} of {total} of {what}: "
                f"make the rest with `python -m {__spec__.name} {name}`."
            )

    return reproduce(name, out, scale="tiny", seeds=SEEDS, jobs=1, on_progress=tell)


def unpack(name, out):
    """Put a study's stored folder into another folder."""
    with tarfile.open(ARCHIVES / f"{name}.tar.xz") as archive:
        archive.extractall(out, filter="data")


def kept(out):
    """Measurements and planned runs; results and figures are made by the tests, logs and jobs name local folders."""
    found = {*out.glob("measured/*.json")}
    for plan in out.glob("sweeps/*/sweep.json"):
        found.add(plan)
        for run in json.loads(plan.read_text())["runs"]:
            found |= {p for p in (plan.parent / "runs" / run["name"]).rglob("*.*") if p.is_file()}
    return sorted(found)


def pack(name, out):
    """Store a study's folder: the same bytes for the same files."""
    ARCHIVES.mkdir(exist_ok=True)
    whole = ARCHIVES / f"{name}.tar.xz"
    part = whole.with_suffix(".part")
    with tarfile.open(part, "w:xz") as archive:
        for path in kept(out):
            entry = archive.gettarinfo(path, path.relative_to(out).as_posix())
            entry.mtime = entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            with path.open("rb") as file:
                archive.addfile(entry, file)
    part.replace(whole)


def store(name):
    """Make what a study's stored folder lacks, and store it; returns whether it lacked anything."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        try:
            unpack(name, out)
            smallest(name, out, refuse=True)
            return False
        except (FileNotFoundError, OutOfDateError):
            smallest(name, out)
            pack(name, out)
            return True


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        print(name, "stored" if store(name) else "is as it should be", flush=True)
