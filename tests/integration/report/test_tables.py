"""Run folders are found, named and read into tables that say what the folders hold."""

import doctest
import json
import math
import subprocess
import sys

import pandas as pd
import pytest

from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report import boundary_table, load
from avalanche_ntk.report import text as text_module
from avalanche_ntk.report.answer import answer
from avalanche_ntk.report.runs import find_runs, read_run, read_runs
from tests.integration.report.conftest import STEPS


def test_examples_in_the_docstrings():
    found = doctest.testmod(text_module)
    assert (found.failed, found.attempted >= 8) == (0, True)


def test_measurements_have_a_row_each_and_the_trajectory_s_numbers(make_run):
    path = make_run(fail=(4,))
    table = load(path)
    trajectory = Trajectory.load(str(path))
    assert list(table["measurement"]) == list(range(3 * (STEPS + 1)))
    assert set(table["run"]) == {"run"} and set(table["probe"]) == {"Exp000"}
    for row, m in zip(table.to_dict("records"), trajectory, strict=True):
        assert (row["event"], row["iteration"]) == (m.clock.event, m.clock.iteration)
        for name, value in m.values.items():
            assert row[name] == value
    assert table["failure"].dropna().to_dict() == {4: "KernelError: <b>not</b> finite"}
    assert pd.isna(table["spectral_norm"][4])


def test_boundaries_have_the_reactivation_and_what_was_forgotten(make_run):
    path = make_run(accuracies=(0.75, 0.5, 0.125))
    table = load({"mine": path}, "boundaries")
    trajectory = Trajectory.load(str(path))
    assert list(table["run"]) == ["mine"] * 3
    assert list(table["accuracy"]) == [0.75, 0.5, 0.125]
    assert list(table["forgetting"]) == [0.0, 0.25, 0.625]
    for row in table.to_dict("records"):
        r = trajectory.reactivations[row["experience"]]
        for name in ("spike", "ratio", "z", "moved", "norm_dip", "half_life", "alignment_drop"):
            value = getattr(r, name)
            assert pd.isna(row[name]) if value is None else row[name] == value
    assert table["reasons"][0].startswith("base, base_in_onset, peak, spike, ratio, ")
    assert table["reasons"][0].count("the first experience has no boundary before it") == 1
    short = boundary_table({"mine": path})
    assert list(short["forgetting_first_task"]) == list(table["forgetting"])
    assert list(short["spike"][1:]) == list(table["spike"][1:])


def test_evaluations_have_a_row_for_each_number(make_run):
    table = load([make_run()], "evaluations")
    first = table[table["tag"] == "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"]
    assert list(first["value"]) == [1.0, 0.25, 0.0]
    assert list(first["iteration"]) == [40, 80, 120]
    assert len(table) == 9


def test_an_unknown_table_is_named(make_run):
    with pytest.raises(ArgumentError) as caught:
        load(make_run(), "boundary")
    assert str(caught.value) == (
        "unknown table 'boundary': expected one of 'boundaries', 'evaluations', 'measurements'. "
        "Did you mean 'boundaries'?"
    )


def test_a_tag_without_task_and_a_stream_that_is_no_test_stream_are_understood(make_run):
    path = make_run(accuracies=None)
    with RunFolder.resume(path) as folder:
        for iteration, values in (
            (1, {"Top1_Acc_Exp/eval_phase/test_stream/Exp000": 0.5}),
            (2, {"Top1_Acc_Exp/eval_phase/valid_stream/Task000/Exp000": 0.25}),
            (
                3,
                {"Top1_Acc_Exp/eval_phase/valid_stream/Exp000": 0.0, "Top1_Acc_Exp/eval_phase/test_stream/Exp000": 1.0},
            ),
            (4, {"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp0001": 0.5, "Top1_Acc_Exp/eval_phase/test_stream": 9}),
            (5, {"Top1_Acc_Exp/eval_phase/test_stream/Exp000": math.nan}),
        ):
            folder.append({"kind": "evaluation", "experience": 0, "iteration": iteration, "values": values})
    assert read_run(path).accuracies(0) == [(0, 1, 0.5), (0, 2, 0.25), (0, 3, 1.0)]


def test_forgetting_counts_from_when_the_probe_s_task_was_learnt(make_run):
    path = make_run(accuracies=(0.75, 0.5, 0.125))
    # Of the same run, as if the probe had been of the second task: what was known of it before it was trained on is no
    # achievement.
    lines = [json.loads(line) for line in (path / "measurements.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line.get("clock", {"experience": 1})["experience"] > 0]
    (path / "measurements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = load(path, "boundaries").set_index("experience")
    assert (table["accuracy"][1], table["forgetting"][1]) == (0.5, 0.0)
    assert (table["accuracy"][2], table["forgetting"][2]) == (0.125, 0.375)
    assert "went from 0.500 to 0.125 (forgetting 0.375)" in answer(read_run(path))


# ---------------------------------------------------------------------- finding and naming


def test_runs_inside_a_folder_are_found_and_told_apart(make_run, tmp_path):
    for name in ("sweep/a/run", "sweep/b/run", "sweep/b/other"):
        make_run(name, experiences=1)
    (tmp_path / "sweep" / "empty").mkdir()
    named, inside = find_runs(tmp_path / "sweep")
    assert named == {}
    assert inside == {
        name: tmp_path / "sweep" / name.replace("other", "b/other") for name in ("a/run", "other", "b/run")
    }
    assert [run.name for run in read_runs(tmp_path / "sweep")[0]] == ["a/run", "other", "b/run"]
    named, inside = find_runs([tmp_path / "sweep" / "a" / "run", tmp_path / "sweep"])
    assert (list(named), sorted(inside)) == (["a/run"], ["b/run", "other"])


def test_a_sweep_s_labels_name_its_runs_and_its_controls_are_known(make_run, tmp_path):
    def tags(label, control, **values):
        return {"tags": {"sweep": "s", "label": label, "control": control, "values": values}}

    make_run("sweep/1", experiences=1, meta=tags("width=8", False, width=8, overlap=0.0))
    make_run("sweep/2", experiences=1, meta=tags("width=16", False, width=16, overlap=0.0))
    make_run("sweep/3", experiences=1, meta=tags("control, width=8", True, width=8))
    make_run("sweep/4", experiences=1, seed=1, meta=tags("width=16", False, width=16, overlap=0.0))
    runs = read_runs(tmp_path / "sweep")[0]
    assert [run.name for run in runs] == ["width=8", "width=16, seed 0", "control, width=8", "width=16, seed 1"]
    assert [run.is_control for run in runs] == [False, False, True, False]
    assert [runs[2].is_control_of(run) for run in runs] == [True, False, False, False]


def test_a_link_inside_a_folder_is_not_followed(make_run, tmp_path):
    make_run("elsewhere/run", experiences=1)
    make_run("sweep/run", experiences=1)
    (tmp_path / "sweep" / "link").symlink_to(tmp_path / "elsewhere")
    assert list(find_runs(tmp_path / "sweep")[1]) == ["run"]


def test_a_folder_without_runs_and_one_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(RunFolderError) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no run: expected run.json in it or in a folder up to 5 levels below, found none. Give a run "
        "folder, or a folder that holds some."
    )
    with pytest.raises(RunFolderError) as caught:
        load([])
    assert str(caught.value) == "expected at least one run folder, found none. Name the folders of the runs."
    with pytest.raises(RunFolderError) as caught:
        load(tmp_path / "gone")
    assert str(caught.value) == f"there is no run folder {tmp_path / 'gone'}: nothing exists at that path. Check it."


def test_a_damaged_run_is_refused_by_name_and_left_out_of_many(make_run, tmp_path):
    good, bad = make_run("runs/good", experiences=1), make_run("runs/bad", experiences=1)
    (bad / "run.json").write_text("{")
    message = (
        f"run folder {bad}: run.json cannot be used: it is not JSON (Expecting property name enclosed in double quotes "
        "at character 1)."
    )
    with pytest.raises(RunFolderError) as caught:
        read_runs([good, bad])
    assert str(caught.value) == message
    runs, unreadable = read_runs(tmp_path / "runs")
    assert ([run.name for run in runs], unreadable) == (["good"], [message])
    (good / "run.json").write_text("{")
    with pytest.raises(RunFolderError):
        read_runs(tmp_path / "runs")


def test_an_unknown_probe_is_refused(make_run):
    path = make_run(experiences=1)
    with pytest.raises(RunFolderError) as caught:
        boundary_table({"run": path}, probe="Exp007")
    assert str(caught.value) == f"{path} holds no probe 'Exp007'; it has 'Exp000'. Give one of these names."


def test_what_cannot_be_used_is_said_and_the_rest_is_read(make_run):
    path = make_run(experiences=2)
    meta = json.loads((path / "run.json").read_text())
    meta["meta"]["probes"].append({"name": "nameless", "hash": "x"})
    meta["meta"]["status"] = "running"
    (path / "run.json").write_text(json.dumps(meta))
    with RunFolder.resume(path) as folder:
        folder.append({"kind": "evaluation", "experience": "two", "iteration": 1, "values": {}})
        folder.append({"kind": "evaluation", "experience": 1})
        folder.append({"kind": "reactivation", "probe": "Exp000", "experience": 1, "reactivation": {"spoke": 1}})
        folder.append({"kind": "task_overlap", "clock": {}, "probes": [], "matrix": []})
        folder.append(
            {"kind": "reactivation", "probe": "other", "experience": 1, "reactivation": {"boundary": 1, "end": 2}}
        )
        folder.append({"kind": "something of tomorrow"})
    run = read_run(path)
    assert len(run.trajectories["Exp000"]) == 2 * (STEPS + 1)
    assert run.problems == [
        "run.json has no usable labels of probe 'nameless', which is left out.",
        "a record of kind evaluation cannot be used (ValueError: expected experience to be an integer, found 'two').",
        "a record of kind evaluation cannot be used (KeyError: 'values').",
        "a record of kind reactivation cannot be used (ArgumentError: unknown field of a reactivation 'spoke': "
        "expected one of 'alignment_drop', 'at_floor', 'base', 'base_in_onset', 'boundary', 'cadence', 'end', 'floor', "
        "'half_life', 'half_life_censored', 'moved', 'norm_dip', 'norm_recovery', 'onset', 'onset_ratio', 'path', "
        "'peak', 'rank', "
        "'ratio', 'reasons', 'spike', 'time_to_peak', 'windows', 'z'. Did you mean 'spike'?).",
        "a record of kind task_overlap cannot be used (ValueError: expected a matrix of shape (0, 0), found (0,)).",
        "the run is not complete (status 'running'); the data so far are shown.",
        "measurements of probe 'other', which run.json does not describe, are left out.",
    ]


def test_load_imports_no_torch(make_run):
    path = str(make_run())
    code = f"import sys; from avalanche_ntk.report import load; print(len(load({path!r})), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "27 False\n"
