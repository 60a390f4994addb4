"""Try other versions: Pythons, the lowest that setup.cfg allows, Avalanche's main branch.

    python .ci/matrix.py [NAME ...]      # the names are those of COMBINATIONS; all without one
    python .ci/matrix.py --avalanche SOURCE ...

Each combination gets a fresh environment (deleted afterwards), a fresh clone of this commit, a part of the tests, and
its row in docs/compatibility.md. Interpreters are found on the PATH by their names (`python3.12`); SOURCE is what pip
takes for Avalanche's main branch, its repository on GitHub by default. Warnings are not errors here: old releases warn
of what was deprecated since.
"""

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- versions -->\n", "<!-- end -->\n"
HEAD = "| combination | Python | torch | numpy | avalanche-lib | result |\n|---|---|---|---|---|---|\n"
TESTS = (
    "tests/unit/measures/test_norms.py",
    "tests/unit/measures/test_similarity.py",
    "tests/unit/kernels/test_exact.py",
    "tests/integration/test_plugin.py",
    "tests/integration/test_evaluation.py",
    "tests/unit/recorder/test_runfolder.py",
    "tests/integration/report/test_tables.py",
)
SHOWN = ("torch", "numpy", "avalanche-lib")


@dataclass(frozen=True)
class Combination:
    """What is tried.

    Attributes:
        python: Version of the interpreter.
        lowest: Whether every dependency is the lowest that setup.cfg allows.
        main: Whether Avalanche is its main branch.
    """

    python: str
    lowest: bool = False
    main: bool = False


COMBINATIONS = {
    "newest-3.10": Combination("3.10"),
    "newest-3.11": Combination("3.11"),
    "newest-3.12": Combination("3.12"),
    "newest-3.13": Combination("3.13"),
    "lowest": Combination("3.11", lowest=True),
    "avalanche-main": Combination("3.11", main=True),
}


class FailedError(Exception):
    """A step of a combination did not succeed; the text says which."""


def lower_bounds() -> list[str]:
    """Return `name==version` for every lower bound of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    text = "\n".join([config["options"]["install_requires"], extras["cluster"], extras["export"], extras["test"]])
    return [f"{name}=={version}" for name, version in re.findall(r"^([\w.-]+)>=([\w.]+)$", text, re.MULTILINE)]


def call(what: str, *command: str | Path, **options: object) -> str:
    """Return what a command prints; its last line is told when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        lines = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR", "FAILED"))] or lines
        raise FailedError(f"{what}: {errors[-1].strip() if errors else 'no word'}")
    return str(done.stdout)


def attempt(combination: Combination, avalanche: str, folder: Path) -> list[str]:
    """Return the cells of a combination's row behind its name."""
    interpreter = shutil.which(f"python{combination.python}")
    if interpreter is None:
        return [combination.python, *["" for _ in SHOWN], "no such interpreter here"]
    checkout, python = folder / "checkout", folder / "venv" / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PYTHONPATH", "VIRTUAL_ENV")}
    versions: dict[str, str] = {}
    try:
        call("clone", "git", "clone", "-q", "--depth", "1", f"file://{ROOT}", checkout)
        call("environment", interpreter, "-m", "venv", folder / "venv")
        wanted = ["-e", f"{checkout}[test]", *(lower_bounds() if combination.lowest else [])]
        call("installation", python, "-m", "pip", "install", "-q", *wanted, env=environment)
        if combination.main:
            call("Avalanche", python, "-m", "pip", "install", "-q", "--no-deps", avalanche, env=environment)
        ask = f"from importlib.metadata import version as v; print(*map(v, {SHOWN}))"
        versions = dict(zip(SHOWN, call("versions", python, "-c", ask).split(), strict=True))
        report = call(
            "tests",
            *(python, "-m", "pytest", "-q", "-o", "filterwarnings=default", "--disable-warnings", *TESTS),
            cwd=checkout,
            env=environment,
        )
        result = report.splitlines()[-1].split(" in ")[0]
    except FailedError as error:
        result = str(error).replace(str(folder), "").replace("|", "\\|")
    cells = [versions.get(name, "").split("+")[0] for name in SHOWN]
    return [combination.python, *cells, result]


def write(name: str, cells: list[str]) -> None:
    """Put the row of a combination in the place of its old one."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}
    rows[name] = f"| {' | '.join([name, *cells])} |"
    table = HEAD + "".join(f"{rows[known]}\n" for known in COMBINATIONS if known in rows)
    PAGE.write_text(before + BEGIN + table + END + after, encoding="utf-8")


def main() -> int:
    """Try the combinations named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[[], *COMBINATIONS], metavar="NAME", default=[])
    parser.add_argument("--avalanche", default="git+https://github.com/ContinualAI/avalanche")
    given = parser.parse_args()
    for name in given.names or COMBINATIONS:
        with tempfile.TemporaryDirectory() as folder:
            cells = attempt(COMBINATIONS[name], given.avalanche, Path(folder))
        print(name, *cells, sep=" | ", flush=True)
        write(name, cells)
    return 0


if __name__ == "__main__":
    sys.exit(main())
