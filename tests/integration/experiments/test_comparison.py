"""The comparison of runs, on folders written by hand whose numbers can be worked out on paper."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from avalanche_ntk.errors import ArgumentError, RunFolderError
from avalanche_ntk.experiments import compare, load_config, tables
from avalanche_ntk.experiments.comparison import find_runs, read_run
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.runfolder import RunFolder

# Accuracy on experience j after training on i.
ACCURACY = {0: {0: 0.8, 1: 0.1, 2: 0.0}, 1: {0: 0.9, 1: 0.7, 2: 0.0}, 2: {0: 0.3, 1: 0.6, 2: 1.0}}
BOUNDARIES = {
    0: {"moved": 9.0, "spike": None, "ratio": None},
    1: {"moved": 0.2, "spike": 0.01, "ratio": 4.0, "norm_dip": 0.5, "norm_recovery": 1.1, "alignment_drop": 0.3},
    2: {"moved": 0.4, "spike": 0.03, "ratio": None, "norm_dip": 0.7, "norm_recovery": 0.9, "alignment_drop": 0.1},
}


def make_run(
    path,
    *,
    config=None,
    label=None,
    seed=0,
    accuracy=ACCURACY,
    cadence="every_iterations:5",
    probe=None,
    tags=None,
    **values,
):
    """Write a run folder by hand; `values` are added to each boundary."""
    resolved = load_config({**(config or {}), "seed": seed})
    known = {"name": "Exp000", "size": 8, "hash": f"{seed}" * 8, "experience": 0, "labels": [0, 1] * 4, **(probe or {})}
    meta = {
        "seed": seed,
        "probes": [known],
        "config": resolved.as_dict(),
        "config_hash": resolved.hash,
        "status": "complete",
        "cadence": cadence,
        "strategy": "Naive",
        "tags": ({"label": label} if label else {}) | (tags or {}),
    }
    with RunFolder.create(path, meta) as folder:
        for experience, row in accuracy.items():
            clock = TrainingClock("experience_end", 8 * (experience + 1), experience, 8, 1, 1, 8)
            folder.append(
                {
                    "kind": "measurement", "probe": "Exp000", "index": experience, "clock": clock.as_dict(),
                    "segment": 0,
                    "values": {"effective_rank": 2.0 + experience, "linearisation_error_boundary": 0.1 * experience},
                    "reasons": {}, "notes": [], "trust": {}, "kernel": None, "failure": None,
                }
            )  # fmt: skip
            found = {**BOUNDARIES.get(experience, {}), **(values if experience else {})}
            folder.append({"kind": "reactivation", "probe": "Exp000", "experience": experience, "reactivation": found})
            folder.append(
                {"kind": "state", "experience": experience, "training_seconds": 3.0, "measuring_seconds": 1.0}
            )
            tags = {f"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp{j:03d}": a for j, a in row.items()}
            folder.append({"kind": "evaluation", "experience": experience, "iteration": 8, "values": tags})
    return path


def test_the_columns_are_those_of_their_definitions(tmp_path):
    row = read_run(make_run(tmp_path / "a"))
    expected = {
        "accuracy": (0.3 + 0.6 + 1.0) / 3,
        "forgetting": ((0.9 - 0.3) + (0.7 - 0.6)) / 2,  # from the best before the last experience
        "backward_transfer": ((0.3 - 0.8) + (0.6 - 0.7)) / 2,  # from right after the experience itself
        "moved": 0.3,  # the first experience has no boundary before it
        "spike": 0.02,
        "ratio": 4.0,  # of the boundaries where it is defined
        "norm_dip": 0.6,
        "norm_recovery": 1.0,
        "alignment_drop": 0.2,
        "effective_rank": 4.0,
        "linearisation_error": 0.15,
        "measuring_share": 0.25,
    }
    assert dict(row.values) == pytest.approx(expected)
    assert list(row.values) == list(expected)
    assert row.complete


def test_what_was_not_measured_is_missing_and_not_zero(tmp_path):
    row = read_run(make_run(tmp_path / "a", accuracy={0: {0: 0.8}}))
    assert row.values["accuracy"] == 0.8
    assert row.values["effective_rank"] == 2
    undefined = {name for name, value in row.values.items() if math.isnan(value)}
    assert undefined == {
        "forgetting", "backward_transfer", "moved", "spike", "ratio", "norm_dip", "norm_recovery", "alignment_drop",
        "linearisation_error",
    }  # fmt: skip


def test_runs_that_differ_in_the_seed_alone_are_a_group(tmp_path):
    for seed, moved in enumerate([0.1, 0.2, 0.6]):
        make_run(tmp_path / f"narrow{seed}", config={"model": {"width": 8}}, label="width=8", seed=seed, moved=moved)
    make_run(tmp_path / "wide", config={"model": {"width": 9}}, label="width=9")
    found = compare([tmp_path])
    assert found.groups[["group", "runs"]].values.tolist() == [["width=8", 3], ["width=9", 1]]
    narrow, wide = found.groups.to_dict("records")
    assert narrow["moved"] == pytest.approx(0.3)
    assert narrow["moved_std"] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    half = stats.t.ppf(0.975, 2) * narrow["moved_std"] / math.sqrt(3)
    assert narrow["moved_low"] == pytest.approx(0.3 - half)
    assert narrow["moved_high"] == pytest.approx(0.3 + half)
    assert narrow["seeds"] == 3
    assert wide["moved"] == pytest.approx(0.3)
    assert math.isnan(wide["moved_std"])
    assert math.isnan(wide["moved_low"])
    assert found.refusals == ()
    by = compare([tmp_path], by=["model.width", "seed"]).groups
    assert by["group"].tolist() == [f"model.width=8, seed={s}" for s in range(3)] + ["model.width=9, seed=0"]


def rewrite(path, change):
    """Change the records of a folder in place."""
    lines = [json.loads(line) for line in (path / "measurements.jsonl").read_text().splitlines()]
    (path / "measurements.jsonl").write_text("".join(json.dumps(change(line)) + "\n" for line in lines))


def test_a_run_whose_measurements_failed_says_so_and_has_no_rank_of_the_last(tmp_path):
    def fail(record):
        late = record["kind"] == "measurement" and record["index"] > 0
        return {**record, "values": {}, "failure": f"KernelError: no {record['index']}."} if late else record

    rewrite(make_run(tmp_path / "a"), fail)
    found = compare([tmp_path])
    assert found.refusals == ("a: 2 of 3 measurements failed, the first for this reason: KernelError: no 1.",)
    for text in (tables.to_markdown(found), tables.to_latex(found)):
        assert "KernelError: no 1.\n" in text
    assert math.isnan(found.runs["effective_rank"][0])


def test_runs_of_scripts_are_grouped_by_their_settings(tmp_path):
    """They have no configuration: what the plugin stored of optimizer, model and measurements tells them apart."""
    for name, seed, rate in (("a", 0, 0.1), ("b", 1, 0.1), ("c", 2, 0.5)):
        make_run(tmp_path / name, seed=seed)
        text = json.loads((tmp_path / name / "run.json").read_text())
        for key in ("config", "config_hash"):
            del text["meta"][key]
        text["meta"]["optimizer"] = {"name": "SGD", "learning_rate": [rate]}
        (tmp_path / name / "run.json").write_text(json.dumps(text))
    found = compare([tmp_path])
    assert found.groups[["group", "runs"]].values.tolist() == [["Naive", 2], ["c", 1]]
    with pytest.raises(ArgumentError) as error:
        compare([tmp_path], by=["model.width"])
    assert str(error.value) == (
        "--by model.width: none of the runs has a configuration, since they were made by a script, not by "
        "avalanche-ntk run. "
        "Leave --by out: runs of the same settings are a group."
    )


def test_runs_of_one_seed_are_averaged_before_the_interval_is_taken(tmp_path):
    """Two settings at two seeds are two draws, not four."""
    for name, seed, width, moved in (("a", 0, 8, 0.1), ("b", 0, 9, 0.3), ("c", 1, 8, 0.5), ("d", 1, 9, 0.9)):
        make_run(tmp_path / name, seed=seed, config={"model": {"width": width}}, moved=moved)
    row = compare([tmp_path], by=["strategy.name"]).groups.iloc[0]
    assert (row["runs"], row["seeds"], row["moved"]) == (4, 2, pytest.approx(0.45))
    half = stats.t.ppf(0.975, 1) * abs(0.2 - 0.7) / 2  # means 0.2 and 0.7: s/√2 is half their distance
    assert (row["moved_low"], row["moved_high"]) == pytest.approx((0.45 - half, 0.45 + half))


def test_controls_are_apart_whatever_the_groups(tmp_path):
    make_run(tmp_path / "a", moved=0.5)
    make_run(tmp_path / "b", moved=0.1, tags={"control": True})
    assert compare([tmp_path], by=["model.width"]).groups[["group", "moved"]].values.tolist() == [
        ["model.width=None", 0.5],
        ["control, model.width=None", 0.1],
    ]


def with_forgetting(path, last, **arguments):
    return make_run(path, accuracy={0: {0: 0.9}, 1: {0: last, 1: 1.0}}, **arguments)


def test_rank_correlation_with_forgetting_is_within_seeds_then_over_seeds(tmp_path):
    """Seed 0: order kept; seed 1: 1, 3, 2 against 1, 2, 3. Over all six runs pooled it would be another number."""
    # Final accuracy falls as forgetting rises.
    series = {0: [(0.6, 0.1), (0.4, 0.2), (0.2, 0.3)], 1: [(0.5, 5.0), (0.3, 7.0), (0.1, 6.0)]}
    for seed, runs in series.items():
        for width, (last, moved) in enumerate(runs, start=8):
            config = {"model": {"width": width}}
            with_forgetting(tmp_path / f"{seed}-{width}", last, seed=seed, config=config, moved=moved, ratio=None)
    with_forgetting(tmp_path / "control", 0.9, seed=0, moved=9.0, tags={"control": True})
    found = compare([tmp_path]).correlations.set_index("measure")
    half = stats.t.ppf(0.975, 1) * abs(1.0 - 0.5) / 2
    assert found.loc["moved", "rho"] == pytest.approx(0.75)
    assert found.loc["moved", ["seeds", "runs"]].tolist() == [2, 6]
    assert 0.75 + half > 1 and found.loc["moved", "rho_high"] == 1.0
    assert 0.75 - half < -1 and found.loc["moved", "rho_low"] == -1.0
    assert found.loc["ratio", ["seeds", "runs"]].tolist() == [0, 0]
    assert math.isnan(found.loc["ratio", "rho"])
    assert math.isnan(found.loc["spike", "rho"])  # the same for all


def test_seeds_of_one_setting_have_no_rank_correlation(tmp_path):
    for seed, (last, m) in enumerate([(0.5, 0.1), (0.3, 0.2), (0.1, 0.3)]):
        with_forgetting(tmp_path / f"r{seed}", last, seed=seed, moved=m)
    assert compare([tmp_path]).correlations["rho"].isna().all()


def test_one_seed_has_a_rank_correlation_without_an_interval(tmp_path):
    for width, (last, m) in enumerate([(0.5, 0.1), (0.3, 0.2), (0.1, 0.3)], start=8):
        with_forgetting(tmp_path / f"r{width}", last, config={"model": {"width": width}}, moved=m)
    found = compare([tmp_path]).correlations.set_index("measure").loc["moved"]
    assert found["rho"] == pytest.approx(1) and math.isnan(found["rho_low"]) and math.isnan(found["rho_high"])


def test_a_run_that_never_began_is_left_out(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    begun = json.loads((tmp_path / "b" / "run.json").read_text())
    (tmp_path / "b" / "run.json").write_text(json.dumps(begun | {"meta": begun["meta"] | {"probes": []}}))
    found = compare([tmp_path])
    assert list(found.runs["run"]) == ["a"]
    assert found.refusals == ("b holds no probe yet and is left out",)
    with pytest.raises(RunFolderError, match="holds no probe None; it has none yet"):
        compare([tmp_path / "b"])


def test_ratios_are_not_compared_across_cadences(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", cadence="every_iterations:10", config={"epochs": 9})
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.refusals == (
        "ratio is left out: a ratio of velocities depends on the time between measurements, and the runs were measured "
        "at different cadences: every_iterations:5 (a), every_iterations:10 (b). Compare runs of one schedule",
    )
    assert found.runs["ratio"].isna().all()
    assert found.runs["spike"].tolist() == pytest.approx([0.02, 0.02])
    assert compare([tmp_path / "a"]).runs["ratio"].tolist() == [4.0]


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        ({"size": 9}, "8 samples of experience 0 (a), 9 samples of experience 0 (b)"),
        ({"experience": 1}, "8 samples of experience 0 (a), 8 samples of experience 1 (b)"),
        ({"hash": "f" * 8}, "b and a have the same seed and different samples"),
    ],
)
def test_ratios_are_not_compared_across_probes(tmp_path, probe, why):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", probe=probe, config={"epochs": 9})
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.refusals == (f"ratio is left out: the runs have different probes: {why}. Compare runs of one probe",)
    assert found.runs["ratio"].isna().all()


def test_another_seed_draws_another_probe_and_that_is_fine(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    assert compare([tmp_path]).refusals == ()


def test_a_run_that_is_not_complete_is_told(tmp_path):
    make_run(tmp_path / "a")
    with RunFolder.resume(tmp_path / "a") as folder:
        folder.update_meta({"status": "running"})
    assert compare([tmp_path]).refusals == ("a is not complete: its numbers are those of the experiences it has",)


def test_folders_of_folders_are_searched(tmp_path):
    a, b = make_run(tmp_path / "sweep" / "runs" / "a"), make_run(tmp_path / "b", seed=1)
    assert find_runs([tmp_path / "sweep", b, b]) == [a, b]
    (tmp_path / "empty").mkdir()
    for path, what in ((tmp_path / "empty", "found no run.json in it or below"),
                       (tmp_path / "none", "nothing exists at that path")):  # fmt: skip
        with pytest.raises(RunFolderError) as error:
            compare([path])
        assert str(error.value) == (
            f"{path} holds no run: expected a run folder, or a folder of run folders, {what}. Check the path."
        )


def test_runs_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("width=1024_seed=0", "width=64_seed=0", "width=64_seed=10", "width=64_seed=2", "control_seed=0"):
        make_run(tmp_path / name)
    assert [path.name for path in find_runs([tmp_path])] == [
        "control_seed=0", "width=64_seed=0", "width=64_seed=2", "width=64_seed=10", "width=1024_seed=0",
    ]  # fmt: skip


def test_wrong_names_are_refused(tmp_path):
    make_run(tmp_path / "a")
    with pytest.raises(ArgumentError, match=r"^--by: a: unknown key 'model.widht': .* Did you mean 'model.width'\?$"):
        compare([tmp_path], by=["model.widht"])
    with pytest.raises(RunFolderError) as error:
        compare([tmp_path], probe="Exp001")
    assert str(error.value) == (f"{tmp_path / 'a'} holds no probe 'Exp001'; it has 'Exp000'. Give one of these names.")


def test_comparing_imports_no_torch(tmp_path):
    make_run(tmp_path / "a")
    code = (
        "import sys\nfrom avalanche_ntk.experiments import compare\nfrom avalanche_ntk.experiments import tables\n"
        f"found = compare([{str(tmp_path / 'a')!r}])\ntables.to_latex(found)\n"
        "assert not {'torch', 'avalanche'} & set(sys.modules), 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
