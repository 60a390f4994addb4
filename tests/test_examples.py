"""Every example runs, in a process of its own: the quickstart as it stands, the others at their smallest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from avalanche_ntk.reproduce.registry import STUDIES

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
QUICKSTART = "quickstart"


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem == QUICKSTART else pytest.mark.slow, id=p.stem) for p in EXAMPLES],
)
def test_example_runs(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path, *([] if path.stem == QUICKSTART else ["--tiny"])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) >= 2


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) < (41 if path.stem == QUICKSTART else 60)


def test_every_result_has_an_example():
    assert {name.replace("-", "_") for name in STUDIES} | {QUICKSTART} == {path.stem for path in EXAMPLES}
