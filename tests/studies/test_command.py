"""`avalanche-ntk reproduce`, as a user runs it."""

import json

import pytest

from avalanche_ntk.reproduce.registry import STUDIES
from tests.integration.experiments.test_commands import call


def test_the_list_names_every_study(tmp_path):
    done = call("reproduce", "--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in STUDIES:
        assert f" {name} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "avalanche-ntk: reproduce needs the name of a result, found none. See reproduce --list.\n"),
        (
            ["chaos", "--scale", "large"],
            "avalanche-ntk: unknown scale 'large': expected one of 'tiny', 'small', 'paper'.\n",
        ),
    ],
)
def test_mistakes_are_told(arguments, message, tmp_path):
    done = call("reproduce", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_name_gets_a_suggestion(tmp_path):
    done = call("reproduce", "caos", cwd=tmp_path)
    assert done.returncode == 2
    assert "unknown result 'caos'" in done.stderr
    assert done.stderr.endswith("Did you mean 'chaos'?\n")


def test_a_result_from_the_shell(tmp_path):
    done = call("reproduce", "chaos", "--scale", "tiny", "--out", "φ", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "φ" / "results.json").read_text())
    told = " ".join(done.stdout.split())
    for claim in results["claims"]:
        assert claim["told"].encode("ascii", "replace").decode() in told
    assert done.stdout.endswith("Results: ?/results.md\nFigures: ?/figures\n")
    assert results["command"] == "avalanche-ntk reproduce chaos --scale tiny --data digits --seeds 2 --jobs 1"
    assert "measurements: " in done.stderr
