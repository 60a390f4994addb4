"""The command line, run as a user runs it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from avalanche_ntk.demo import DemoFolders, draw_demo
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.recorder.trajectory import Trajectory

COMMAND = [str(Path(sys.executable).parent / "avalanche-ntk")]


def call(*arguments, cwd, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demonstration on a terminal that has neither λ nor an arrow."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, call("demo", "--out", "out", "--epochs", 2, cwd=folder, PYTHONIOENCODING="ascii")


def test_demo_leaves_runs_tables_figures_and_says_where(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    out = folder / "out"
    assert f"tensorboard --logdir {Path('out') / 'tensorboard'}" in done.stdout
    assert (out / "reactivation.png").read_bytes().startswith(b"\x89PNG")
    for name in ("naive", "replay"):
        trajectory = Trajectory.load(str(out / "runs" / name))
        assert [m.failure for m in trajectory if m.failure] == []
        assert sorted(trajectory.reactivations) == [0, 1, 2, 3, 4]
        assert list((out / "tensorboard" / name).glob("events*"))
        assert (out / "text" / f"{name}.txt").read_text().count("End of training phase") == 5
        assert (out / "csv" / name / "eval_results.csv").exists()


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_texts_of_the_demo_s_figure_can_be_read(demo, kind):
    figure = draw_demo(DemoFolders(demo[0] / "out"))
    figure.savefig(io.BytesIO(), format=kind)  # every figure that a test saves is checked
    assert figure.legends[0].get_title().get_text() == "Kernel of task 1 while Split-Digits is learnt, task by task"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["naive", "replay"]


def test_demo_table_agrees_with_the_run_folders(demo):
    folder, done = demo
    table = pd.read_csv(folder / "out" / "boundaries.csv")
    assert list(zip(table["run"], table["experience"], strict=True)) == [
        (r, e) for r in ("naive", "replay") for e in range(5)
    ]
    naive = Trajectory.load(str(folder / "out" / "runs" / "naive"))
    for row in table[table["run"] == "naive"].to_dict("records"):
        found = naive.reactivations[row["experience"]]
        for name in ("moved", "spike", "ratio", "norm_dip", "alignment_drop"):
            value = getattr(found, name)
            assert pd.isna(row[name]) if value is None else row[name] == pytest.approx(value)
    first = table[table["run"] == "naive"].iloc[0]
    assert pd.isna(first["spike"])  # the first task has no boundary before it
    assert first["forgetting_first_task"] == 0
    last = table[table["run"] == "naive"].iloc[-1]
    assert last["forgetting_first_task"] == pytest.approx(first["accuracy_first_task"] - last["accuracy_first_task"])
    for text in ("naive", "replay", "start ? task 1", "task 4 ? 5", "spike", "ratio"):
        assert text in done.stdout


def test_a_second_demo_refuses_and_overwrite_replaces(demo):
    folder, _ = demo
    before = (folder / "out" / "runs" / "naive" / "run.json").read_bytes()
    again = call("demo", "--out", "out", cwd=folder)
    assert again.returncode == 1
    assert again.stderr == (
        "avalanche-ntk: out already holds a demonstration; expected an empty folder or one that does not exist. "
        "Give another --out, or --overwrite to replace it.\n"
    )
    assert (folder / "out" / "runs" / "naive" / "run.json").read_bytes() == before


def test_a_strangers_files_are_never_removed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    done = call("demo", "--out", "out", "--overwrite", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "avalanche-ntk: out holds files that no demonstration wrote (thesis.tex); expected an empty folder or one that "
        "does not exist. Give another --out.\n"
    )
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_overwrite_starts_afresh(tmp_path):
    folders = DemoFolders(tmp_path / "out")
    folders.prepare(overwrite=False)
    (tmp_path / "out" / "runs" / "naive").mkdir(parents=True)
    folders.figure.write_bytes(b"old")
    folders.prepare(overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["demo.json"]


@pytest.mark.parametrize("theirs", ["boundaries.csv", "text/notes.txt"])
def test_a_strangers_files_of_a_demonstrations_names_stay(tmp_path, theirs):
    folders = DemoFolders(tmp_path / "out")
    if "/" in theirs:
        folders.prepare(overwrite=False)
    path = tmp_path / "out" / theirs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("years of work")
    with pytest.raises(RunFolderError) as error:
        folders.prepare(overwrite=True)
    assert str(error.value) == (
        f"{tmp_path / 'out'} holds files that no demonstration wrote ({theirs}); expected an empty folder or one that "
        "does not exist. Give another --out."
    )
    assert path.read_text() == "years of work"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help(arguments, tmp_path):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: avalanche-ntk" in done.stdout
    assert "demo" in done.stdout


def test_wrong_use_exits_with_2(tmp_path):
    done = call("demo", "--epochs", 0, cwd=tmp_path)
    assert done.returncode == 2
    assert "Invalid value for '--epochs'" in done.stderr
    assert not (tmp_path / "ntk-demo").exists()


def test_version(tmp_path):
    import avalanche_ntk

    assert call("version", cwd=tmp_path).stdout == f"{avalanche_ntk.__version__}\n"
