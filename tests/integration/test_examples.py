"""Every example runs, in a process of its own: the quickstart as it stands, the others at their smallest."""

import os
import subprocess
import sys

import pytest

from avalanche_ntk.reproduce.registry import STUDIES
from tests.support.places import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUICKSTART, OBSERVABLE = "quickstart", "custom_observable"
SHORT = (QUICKSTART, OBSERVABLE)
NEEDS = {"lora": "peft"}  # what an example cannot do without


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem in SHORT else pytest.mark.slow, id=p.stem) for p in EXAMPLES],
)
def test_example_runs(path, tmp_path):
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem], reason="needs the extra `zoo`")
    done = subprocess.run(
        [sys.executable, path, *([] if path.stem in SHORT else ["--tiny"])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) >= 2
    if path.stem == QUICKSTART:
        shows_a_spike(done.stdout)


def shows_a_spike(printed):
    """The first boundary that the quickstart prints: experience, base, peak, spike, ratio, …"""
    lines = printed.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:3] == ["experience", "base", "peak"])
    row = dict(zip(lines[head].split(), map(float, lines[head + 1].split()), strict=True))
    assert row["experience"] == 1
    assert row["spike"] == pytest.approx(row["peak"] - row["base"], rel=1e-3)
    assert row["spike"] > 0 and row["ratio"] > 3 and row["norm_dip"] < 0.9 and row["alignment_drop"] > 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_short(path):
    assert len(path.read_text().splitlines()) < (41 if path.stem in SHORT else 60)


def test_what_is_missing_is_told(tmp_path):
    """Without peft, the example says what to install."""
    (tmp_path / "peft.py").write_text("raise ImportError('not here')")
    path = next(p for p in EXAMPLES if p.stem == "lora")
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "This example needs peft: python -m pip install peft\n")


def test_every_result_has_an_example():
    examples = {name.replace("-", "_") for name in STUDIES} | {*SHORT, *NEEDS}
    assert examples == {path.stem for path in EXAMPLES}
