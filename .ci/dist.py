"""Make wheel and source distribution: `python .ci/dist.py FOLDER`.

They are made twice and must be the same to the byte, so that anyone can make what was published again, and `twine`
must find nothing to say of them. Times are `SOURCE_DATE_EPOCH`, or that of the last commit. setuptools takes it for
wheels only (pypa/setuptools#2133): the source distribution is packed again, with these times, sorted, with no owner.
"""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def last_commit() -> str:
    """Return the time of the last commit, in seconds since 1970."""
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def pack_again(path: Path, epoch: int) -> None:
    """Write a `.tar.gz` anew in which nothing depends on who made it, where, and when."""
    raw = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda m: m.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed:
        packed.write(raw.getvalue())


def build(folder: Path, epoch: str) -> dict[str, str]:
    """Build into a folder; return SHA-256 by file name."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, env=os.environ | {"SOURCE_DATE_EPOCH": epoch}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    for path in folder.glob("*.tar.gz"):
        pack_again(path, int(epoch))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def main() -> None:
    """Build, build again, compare, check."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; expected a new or an empty folder. Give another one.")
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or last_commit()
    once = build(folder, epoch)
    with tempfile.TemporaryDirectory() as other:
        again = build(Path(other), epoch)
    if once != again:
        raise SystemExit(f"Two builds of the same tree differ: {once} and {again}")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, folder.iterdir())], check=True)
    for name, digest in once.items():
        print(digest, name)


if __name__ == "__main__":
    main()
