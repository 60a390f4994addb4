"""What is packed is what is in the tree, and no file of the tree is missing from it."""

import configparser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.places import ROOT


def tree() -> set[str]:
    """Files that the installed package must have, as paths inside the wheel."""
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "avalanche_ntk").rglob("*") if p.is_file()}
    strategies = {
        f"avalanche_ntk/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "strategies").rglob("*") if p.is_file()
    }
    return {p for p in ours | strategies if "__pycache__" not in p}


def test_every_package_is_named_in_setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = set(config["options"]["packages"].split())
    found = {str(Path(p).parent).replace("/", ".") for p in tree() if p.endswith("__init__.py")}
    assert named == found


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_tree(tmp_path):
    pytest.importorskip("build", reason="needs the extra `dev`")
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == tree()
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = {p.removeprefix("avalanche_ntk/") if p.startswith("avalanche_ntk/strategies/") else p for p in tree()}
    assert expected <= names
    assert {"LICENSE", "README.md", "setup.cfg", "pyproject.toml"} <= names


def test_ci_runs_the_command_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    command = readme.split("<!-- tests -->")[1].split("<!-- end -->")[0]
    assert [line for line in command.splitlines() if line.startswith("python")] == [
        'python -m pip install -e ".[test]" && python -m pytest'
    ]
    assert "sed -n '/^<!-- tests -->$/,/^<!-- end -->$/p' README.md" in (ROOT / ".ci" / "run").read_text()


def test_ci_takes_versions_that_setup_cfg_allows():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    wanted = [Requirement(line) for text in texts for line in text.splitlines() if line and not line.startswith("#")]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    for requirement in wanted:
        if requirement.name != "avalanche-ntk":
            assert pinned[requirement.name] in requirement.specifier, requirement
    assert "PIP_CONSTRAINT=${PIP_CONSTRAINT-$root/constraints.txt}" in (ROOT / ".ci" / "run").read_text()
