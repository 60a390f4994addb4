"""No command ends because a terminal lacks a character: a question mark stands for it.

`demo`, `kernel`, `reproduce` and the processes of a sweep are called so where their own tests call them.
"""

import json
import os
import subprocess

import pytest

from avalanche_ntk.experiments.config import load_config
from avalanche_ntk.experiments.runner import git_state
from avalanche_ntk.files import write_whole
from tests.integration.experiments.small import TINY
from tests.integration.experiments.test_commands import COMMANDS, call
from tests.integration.experiments.test_comparison import make_run
from tests.integration.report.conftest import Made

# Names of files are bytes: this one is no text.
NO_TEXT = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a letter that the terminal lacks: a run that is complete, and one with kernels."""
    folder = tmp_path_factory.mktemp("characters") / "β"
    folder.mkdir()
    make_run(folder / "ω", config=TINY, label="κ")
    Made(experiences=2, notes=("λ → 0",)).write(folder / "κ")
    (folder / "plan.yaml").write_text(json.dumps(TINY))
    return folder


CALLS = {
    "doctor": (["doctor"], 0, ["each is shown as ?", "PYTHONIOENCODING=utf-8"]),
    "compare": (["compare", "../β"], 0, ["?_max dip", "What was learnt"]),
    "inspect": (["inspect", "../β"], 0, ["/?/?\nMade: ", "2 of 2 runs are intact."]),
    "inspect of nothing": (["inspect", "δ"], 1, ["there is no run folder", "/\\u03b2/\\u03b4"]),
    "report": (["report", "κ", "--out", "δ", "--format", "png"], 0, ["/?/?/report.html"]),
    "run": (["run", "plan.yaml", "--out", "ω"], 0, ["This run is complete", "?_max dip 0.600", "Run folder: ?\n"]),
    "run of nothing": (["run", "δ.yaml"], 2, ["avalanche-ntk: \\u03b4.yaml cannot be read"]),
    "run --keys": (["run", "--keys"], 0, ["benchmark.similarity"]),
    "sweep": (["sweep", "sweep-width", "--plan"], 0, ["lazy"]),
    "sweep --list": (["sweep", "--list"], 0, ["sweep-frequency-shift"]),
    "reproduce": (["reproduce", "--list"], 0, ["reactivation"]),
    **{f"{command} --help": ([command, "--help"], 0, [f"Usage: avalanche-ntk {command}"]) for command in COMMANDS},
}


@pytest.mark.parametrize(("arguments", "code", "words"), CALLS.values(), ids=CALLS)
def test_a_terminal_that_has_ascii_only(folder, arguments, code, words):
    done = call(*arguments, cwd=folder, encoding="ascii", PYTHONIOENCODING="ascii")
    told = done.stdout + done.stderr
    assert done.returncode == code, told
    assert "Traceback" not in told
    for word in words:
        assert word in told


def test_a_terminal_of_windows(folder):
    done = call("compare", "κ", "ω", cwd=folder, encoding="cp1252", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert "What was learnt (mean over the seeds ± half of its 95 % interval" in done.stdout  # what it has is shown
    assert "?_max dip" in done.stdout


def test_a_configuration_in_a_pipe_loses_no_letter(tmp_path):
    wanted = ("--set", "benchmark.data_root=δ")
    done = call("run", "--check", *wanted, cwd=tmp_path, encoding="ascii", PYTHONIOENCODING="ascii")
    (tmp_path / "resolved.yaml").write_text(done.stdout)
    assert load_config(tmp_path / "resolved.yaml").benchmark.data_root == "δ"
    assert "data_root: δ\n" in call("run", "--check", *wanted, cwd=tmp_path).stdout


def test_a_name_that_is_no_text(tmp_path):
    make_run(tmp_path / NO_TEXT)
    told = call("inspect", NO_TEXT, cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    done = call("compare", NO_TEXT, "--each", "--markdown", "t.md", "--csv", "t.csv", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("t.md", "t.csv"):
        assert "caf\\udce9" in (tmp_path / name).read_text(encoding="utf-8")


def test_text_that_utf_8_lacks_is_written_as_an_escape(tmp_path):
    write_whole(tmp_path / "t", "λ \udce9")
    assert (tmp_path / "t").read_bytes() == b"\xce\xbb \\udce9"


def test_names_in_git_are_no_matter(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init")
    git("config", "core.quotePath", "false")
    (tmp_path / NO_TEXT).write_text("")
    git("add", ".")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
    (tmp_path / NO_TEXT).write_text("changed")
    assert git_state(tmp_path)["dirty"] is True
