"""Print the versions of this environment that the package, its extras and what these need are installed in.

    python .ci/freeze.py > constraints.txt

in an environment in which `.ci/run` has passed. CUDA's libraries are left out: torch names the ones that it needs.
"""

import configparser
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

LEFT_OUT = re.compile(r"nvidia-|cuda-|triton")


def named(text: str) -> list[Requirement]:
    """Return the requirements of an entry of setup.cfg, without the package itself."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [found for found in map(Requirement, lines) if found.name != "avalanche-ntk"]


def main() -> int:
    """Print the constraints; 1 where something is not installed."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg")
    todo = named(config["options"]["install_requires"])
    for extra in config["options.extras_require"].values():
        todo += named(extra)
    versions: dict[str, str] = {}
    missing = set()
    while todo:
        wanted = todo.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        extras = ["", *wanted.extras]
        if name in versions or LEFT_OUT.match(name):
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        versions[name] = found.version.split("+")[0]  # torch 2.14.1+cpu is constrained as 2.14.1
        needs = map(Requirement, found.requires or [])
        todo += [n for n in needs if n.marker is None or any(n.marker.evaluate({"extra": e}) for e in extras)]
    print("# The versions with which .ci/run has passed, and which it takes; made by .ci/freeze.py.")
    for name, version in sorted(versions.items()):
        print(f"{name}=={version}")
    for name in sorted(missing):
        print(f"{name} is not installed here", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
