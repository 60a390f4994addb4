"""Tables of many runs can be read together: a column's type does not depend on what is in it."""

import os

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet
import pytest

from avalanche_ntk.experiments import compare
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.trajectory import Trajectory
from avalanche_ntk.report import boundary_table, load
from tests.integration.experiments.test_comparison import make_run as make_run_by_hand
from tests.integration.report.conftest import STEPS, Made

NO_TEXT = os.fsdecode(b"caf\xe9")
KINDS = {
    "clean": Made(),
    "with a failure": Made(fail=(4,), notes=("a note; another",)),
    "every measurement failed": Made(fail=tuple(range(3 * (STEPS + 1)))),
    "one experience": Made(experiences=1),
    "nothing yet": Made(experiences=0),
    "in text that is none": Made(fail=(0,), notes=(NO_TEXT, "a, \"b\"\nc")),
}  # fmt: skip
TEXTS = ("event", "reasons", "notes", "failure")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    return {kind: made.write(folder / (NO_TEXT if "text" in kind else kind)) for kind, made in KINDS.items()}


def together(tables, folder):
    """Read the tables as one from Parquet files; their columns' types are the same."""
    folder.mkdir()
    for number, table in enumerate(tables):
        table.to_parquet(folder / f"{number}.parquet", index=False)
    files = [folder / f"{number}.parquet" for number in range(len(tables))]
    schemas = [pyarrow.parquet.read_schema(file) for file in files]
    whole = pyarrow.unify_schemas(schemas)
    for schema in schemas:
        assert {name: schema.field(name).type for name in schema.names} == {
            name: whole.field(name).type for name in schema.names
        }
    read = pyarrow.dataset.dataset(files, schema=whole).to_table()
    assert read.num_rows == sum(map(len, tables))
    return read.to_pandas()


def test_series_of_all_kinds_of_runs_are_one_table(folders, tmp_path):
    series = [Trajectory.load(str(path)) for path in folders.values()]
    for number, one in enumerate(series):
        one.to_parquet(tmp_path / f"{number}.parquet")
        assert pd.read_parquet(tmp_path / f"{number}.parquet").equals(one.to_pandas())
    schemas = [pyarrow.parquet.read_schema(tmp_path / f"{number}.parquet") for number in range(len(series))]
    assert schemas[0].equals(schemas[1])
    # Where nothing was measured, it is not known what is measured beside the kernel.
    assert {*schemas[0].names} - {*schemas[4].names} == {"measuring_share"}
    table = together([one.to_pandas() for one in series], tmp_path / "all")
    failed = [m.failure for one in series for m in one if m.failure is not None]
    assert table["failure"].dropna().tolist() == failed
    assert table["condition_number"].notna().sum() == sum(m.failure is None for one in series for m in one)


def test_what_a_column_holds(folders):
    frame = Trajectory.load(str(folders["with a failure"])).to_pandas()
    kinds = frame.dtypes.astype(str).to_dict()
    assert [kinds.pop(name) for name in TEXTS] == ["string"] * 4
    assert kinds.pop("task_label") == "Int64"
    counts = ["measurement", "iteration", "experience", "exp_iteration", "epoch", "exp_epoch", "optimizer_step"]
    assert [kinds.pop(name) for name in [*counts, "segment"]] == ["int64"] * 8
    assert set(kinds.values()) == {"float64"}
    assert Trajectory("p", [0, 1]).to_pandas().dtypes.astype(str).to_dict().keys() >= {*kinds} - {"measuring_share"}


def test_the_types_survive_csv(folders, tmp_path):
    for number, path in enumerate(folders.values()):
        frame = Trajectory.load(str(path)).to_pandas()
        Trajectory.load(str(path)).to_csv(tmp_path / f"{number}.csv")
        read = pd.read_csv(tmp_path / f"{number}.csv", dtype=frame.dtypes.to_dict())
        for name in ("reasons", "notes"):  # an empty text is a missing one in CSV
            read[name] = read[name].fillna("")
        pd.testing.assert_frame_equal(read, frame, rtol=1e-14)


def test_boundaries_of_all_kinds_of_runs_are_one_table(folders, tmp_path):
    series = [Trajectory.load(str(path)) for path in folders.values()]
    table = together([one.summary() for one in series], tmp_path / "summaries")
    censored = [r.half_life_censored for one in series for r in one.reactivations.values()]
    assert [None if pd.isna(x) else x for x in table["half_life_censored"]] == censored
    assert True in censored or False in censored


@pytest.mark.parametrize("name", ["measurements", "boundaries", "evaluations"])
def test_the_report_s_tables_of_all_kinds_of_runs_are_one(folders, tmp_path, name):
    table = together([load(path, name) for path in folders.values()], tmp_path / "all")
    assert "caf\\udce9" in set(table["run"])


def test_short_tables_of_all_kinds_of_runs_are_one(folders, tmp_path):
    together([boundary_table({"run": path}) for path in folders.values()], tmp_path / "all")


def test_whole_numbers_stay_numbers_like_others(folders):
    # A table's accuracies are all 0 or 1, or are not.
    found = load(folders["one experience"], "boundaries")
    assert found["accuracy"].tolist() == [1.0]
    assert str(found["accuracy"].dtype) == "Float64"


def test_comparisons_of_all_kinds_of_runs_are_one(tmp_path):
    paths = [
        make_run_by_hand(tmp_path / "a" / "seed", seed=3),
        make_run_by_hand(tmp_path / "b" / NO_TEXT, accuracy={}),
        Made(experiences=1, meta={"seed": None}).write(tmp_path / "c" / "no seed"),
    ]
    found = [compare([path]) for path in paths]
    runs = together([one.runs for one in found], tmp_path / "runs")
    assert runs["run"].tolist() == ["seed", "caf\\udce9", "no seed"]
    assert [None if pd.isna(seed) else seed for seed in runs["seed"]] == [3, 0, None]
    together([one.groups for one in found], tmp_path / "groups")
    together([one.correlations for one in found], tmp_path / "correlations")


def test_an_empty_data_set_has_the_types_of_a_full_one():
    series = Trajectory("p", [0, 1])
    series._add_failure(TrainingClock("experience_start", 0, 0, 0, 0, 0, 0), "no kernel")
    empty = series.to_xarray()
    series.add(TrainingClock("iteration", 1, 0, 1, 0, 0, 1), np.eye(2))
    full = series.to_xarray()
    for name in ("measurement", "iteration", "experience"):
        assert empty[name].dtype == full[name].dtype == np.int64
    assert empty["event"].dtype.kind == full["event"].dtype.kind == "U"
