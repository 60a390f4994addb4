"""The run folder: what is written comes back, and what cannot be used is refused with a whole sentence."""

import copy
import csv
import json
import math
import os
import pickle
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from avalanche_ntk.errors import ArgumentError, NTKWarning, RunFolderError
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.runfolder import RunFolder

META = {"seed": 3, "probes": [{"name": "Exp000", "hash": "abc", "labels": [0, 1]}], "cadence": "every_iterations:10"}


def measurement(number=0, /, probe="Exp000", kernel=None, **changes):
    clock = TrainingClock("iteration", 10 * number, 0, 10 * number, 0, 0, 10 * number, 0)
    record = {
        "kind": "measurement",
        "probe": probe,
        "index": number,
        "clock": clock.as_dict(),
        "segment": 0,
        "values": {"NTK_Norm": 1.5 * number},
        "reasons": {},
        "notes": [],
        "trust": {},
        "kernel": kernel,
        "failure": None,
    }
    return {**record, **changes}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


def write_run(path, count=3):
    with RunFolder.create(path, META) as folder:
        for index in range(count):
            kernel = folder.save_kernel("Exp000", index, {"kernel": np.eye(3) * index})
            folder.append(measurement(index, kernel=kernel))
    return path


def snapshot(path):
    """Every file below `path` with its content; the lock's content names the last holder only."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def message_of(call, *arguments, kind=RunFolderError, **keywords):
    with pytest.raises(kind) as error:
        call(*arguments, **keywords)
    assert type(error.value) is kind
    return str(error.value)


# --- writing and reading back ---


def test_records_and_meta_come_back_as_they_were(path):
    folder = RunFolder.create(path, META)
    records = [measurement(0), {"kind": "reactivation", "probe": "Exp000", "anything": [1, None, True, "é\ud800"]}]
    for record in records:
        folder.append(record)
    assert folder.records() == records
    assert RunFolder.open(path).records() == records
    assert RunFolder.open(path).meta == META
    assert folder.path == path
    folder.close()
    assert sorted(p.name for p in path.iterdir()) == ["lock", "measurements.jsonl", "run.json"]


def test_run_json_has_schema_time_and_versions(path):
    RunFolder.create(path, {"seed": None}).close()
    run = json.loads((path / "run.json").read_text())
    assert list(run) == ["schema", "schema_version", "created", "versions", "meta"]
    assert (run["schema"], run["schema_version"]) == ("avalanche-ntk-run", 1)
    assert run["created"].endswith("+00:00") and RunFolder.open(path).created == run["created"]
    assert run["versions"]["numpy"] == np.__version__
    assert run["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(run["versions"]) == {
        *("python", "avalanche-ntk", "avalanche-lib", "torch", "torchvision", "numpy", "safetensors")
    }
    assert RunFolder.open(path).versions == run["versions"]


def test_floats_that_are_not_finite_are_strict_json_and_come_back(path):
    with RunFolder.create(path, {"bound": math.inf}) as folder:
        folder.append(measurement(0, values={"a": math.nan, "b": -math.inf, "c": np.float32(0.1), "d": 1e-320}))
    line = (path / "measurements.jsonl").read_text()
    assert (
        '"values": {"a": {"nonfinite": "nan"}, "b": {"nonfinite": "-inf"}, "c": 0.10000000149011612, "d": 1e-320}'
        in line
    )
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    values = RunFolder.open(path).records()[0]["values"]
    assert math.isnan(values["a"]) and values["b"] == -math.inf
    assert (values["c"], values["d"]) == (float(np.float32(0.1)), 1e-320)
    assert RunFolder.open(path).meta == {"bound": math.inf}


def test_numpy_values_and_tuples_are_stored_as_plain_ones(path):
    with RunFolder.create(path) as folder:
        folder.append({"kind": "x", "a": (np.int64(1), np.bool_(True)), "b": np.array([[1.0, np.nan]]), "c": 2**64 - 1})
    record = RunFolder.open(path).records()[0]
    assert record["a"] == [1, True] and record["a"][1] is True
    assert record["b"][0][0] == 1.0 and math.isnan(record["b"][0][1])
    assert record["c"] == 2**64 - 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int8", "uint16", "bool", ">f8"])
def test_kernels_come_back_exactly(path, dtype):
    array = (np.random.default_rng(0).normal(size=(4, 6)) * 50).astype(dtype)
    arrays = {"kernel": array.T, "zero-dimensional": np.array(array[0, 0]), "empty": np.zeros((0, 3), dtype)}
    with RunFolder.create(path) as folder:
        where = folder.save_kernel("Exp000", 12, arrays, {"reduction": "trace"})
        assert where == "kernels/Exp000/000012.safetensors"
        loaded = folder.load_kernel(where)
        assert folder.load_kernel_metadata(where) == {"reduction": "trace"}
    assert set(loaded) == set(arrays)
    for name, stored in arrays.items():
        assert loaded[name].dtype == stored.dtype.newbyteorder("=") and loaded[name].shape == stored.shape
        np.testing.assert_array_equal(loaded[name], stored)
    # Any other reader of safetensors reads the same.
    np.testing.assert_array_equal(safetensors.numpy.load_file(path / where)["kernel"], array.T)


def test_resuming_goes_on_with_the_same_series(path):
    write_run(path, 2)
    with RunFolder.resume(path) as folder:
        folder.append(measurement(2))
        folder.append(measurement(0, probe="Exp001"))
    assert RunFolder.open(path).records()[2:] == [measurement(2), measurement(0, probe="Exp001")]
    straight = path.with_name("straight")
    write_run(straight, 2)
    assert (straight / "measurements.jsonl").read_bytes() == b"".join(
        (path / "measurements.jsonl").read_bytes().splitlines(True)[:2]
    )


def test_update_meta_changes_the_given_keys_only(path):
    with RunFolder.create(path, META) as folder:
        folder.update_meta({"seed": 4, "new": [math.nan]})
        assert folder.meta["seed"] == 4
    meta = RunFolder.open(path).meta
    assert math.isnan(meta.pop("new")[0])
    assert meta == {**META, "seed": 4}


def test_meta_is_a_copy(path):
    folder = RunFolder.open(write_run(path))
    folder.meta["probes"].clear()
    assert folder.meta == META


def test_csv_has_a_row_a_measurement(path):
    with RunFolder.create(path, META) as folder:
        folder.append(measurement(0, values={"NTK_Norm": 2.5}))
        folder.append({"kind": "reactivation", "probe": "Exp000"})
        folder.append(measurement(1, values={"NTK_Velocity_per_iteration": math.nan}, failure="out, of\nmemory"))
        assert folder.export_csv() == path / "measurements.csv"
    with open(path / "measurements.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        (
            "probe index event iteration experience exp_iteration epoch exp_epoch optimizer_step "
            "task_label segment NTK_Norm NTK_Velocity_per_iteration kernel failure"
        ).split(),
        ["Exp000", "0", "iteration", "0", "0", "0", "0", "0", "0", "0", "0", "2.5", "", "", ""],
        ["Exp000", "1", "iteration", "10", "0", "10", "0", "0", "10", "0", "0", "", "nan", "", "out, of\nmemory"],
    ]
    other = RunFolder.open(path).export_csv(path.with_name("other.csv"))
    assert other.read_bytes() == (path / "measurements.csv").read_bytes()


def test_reader_sees_what_a_writer_appends(path):
    with RunFolder.create(path) as writer:
        reader = RunFolder.open(path)
        assert reader.records() == []
        writer.append(measurement(0))
        assert reader.records() == [measurement(0)]


def test_module_imports_neither_torch_nor_avalanche_nor_pandas():
    code = (
        "import sys, avalanche_ntk.recorder.runfolder\n"
        "print([m for m in ('torch', 'avalanche', 'pandas') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout == "[]\n"


# --- handles: closing, pickling, copying ---


def test_a_closed_writer_takes_the_lock_again_when_it_writes(path):
    folder = RunFolder.create(path)
    folder.append(measurement(0))
    folder.close()
    folder.close()
    with RunFolder.resume(path) as other:
        other.append(measurement(1))
    folder.append(measurement(2))
    assert [r["index"] for r in folder.records()] == [0, 1, 2]
    assert "is being written by process" in message_of(RunFolder.resume, path)
    folder.close()


@pytest.mark.parametrize("copied_by", [lambda f: pickle.loads(pickle.dumps(f)), copy.deepcopy])
def test_a_copy_holds_nothing_and_writes_once_the_original_is_closed(path, copied_by):
    original = RunFolder.create(path, META)
    original.append(measurement(0))
    copied = copied_by(original)
    assert (copied.path, copied.mode, copied.meta, copied.records()) == (path, "a", META, [measurement(0)])
    assert "is being written by process" in message_of(copied.append, measurement(1))
    original.close()
    copied.append(measurement(1))
    copied.close()
    assert len(RunFolder.open(path).records()) == 2


def test_pickles_hold_path_mode_and_count_only(path):
    with RunFolder.create(path) as folder:
        assert folder.__getstate__() == {"path": str(path), "mode": "a", "count": 0}
        assert str(path).encode() in pickle.dumps(folder)


def test_a_handle_that_is_dropped_gives_the_lock_up(path):
    folder = RunFolder.create(path)
    del folder
    RunFolder.resume(path).close()


def test_a_relative_path_is_made_absolute(path, monkeypatch):
    path.parent.joinpath("elsewhere").mkdir()
    monkeypatch.chdir(path.parent)
    folder = RunFolder.create("run")
    monkeypatch.chdir(path.parent / "elsewhere")
    folder.append(measurement(0))
    folder.close()
    assert len(RunFolder.open(path).records()) == 1


# --- going back to a checkpoint ---


def write_numbered(folder, indices, value):
    for index in indices:
        where = folder.save_kernel("Exp000", index, {"kernel": np.full(2, value)})
        folder.append(measurement(index, kernel=where, values={"NTK_Norm": value}))


def test_rewinding_to_a_checkpoint_sets_what_came_after_it_aside(path):
    folder = RunFolder.create(path, META)
    write_numbered(folder, range(2), 1.0)
    checkpoint = pickle.dumps(folder)
    folder.append({"kind": "reactivation", "probe": "Exp000"})
    write_numbered(folder, [2, 3], 2.0)
    folder.close()

    resumed = pickle.loads(checkpoint)
    assert resumed.rewind() == 3
    assert resumed.rewind() == 0
    write_numbered(resumed, [2], 3.0)
    resumed.close()
    records = RunFolder.open(path).records()
    assert [(r["index"], r["values"]["NTK_Norm"]) for r in records] == [(0, 1.0), (1, 1.0), (2, 3.0)]
    assert [resumed.load_kernel(r["kernel"])["kernel"][0] for r in records] == [1.0, 1.0, 3.0]

    aside = [json.loads(line) for line in (path / "measurements.rewound001.jsonl").read_text().splitlines()]
    kernels = [None, "kernels/Exp000/000002.rewound001.safetensors", "kernels/Exp000/000003.rewound001.safetensors"]
    assert [r.get("kernel") for r in aside] == kernels
    assert [resumed.load_kernel(where)["kernel"][0] for where in kernels[1:]] == [2.0, 2.0]
    assert not (path / "kernels/Exp000/000003.safetensors").exists()

    again = pickle.loads(checkpoint)
    assert again.rewind() == 1
    again.close()
    assert json.loads((path / "measurements.rewound002.jsonl").read_text())["values"] == {"NTK_Norm": 3.0}
    RunFolder.create(path, overwrite=True).close()
    assert set(snapshot(path)) == {"run.json", "measurements.jsonl"}


def test_rewinding_where_files_can_have_one_name_only(path, monkeypatch):
    def refused(*arguments, **keywords):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with RunFolder.create(path) as folder:
        write_numbered(folder, range(2), 1.0)
        assert folder.rewind(0) == 2
        assert folder.records() == []
        assert folder.load_kernel("kernels/Exp000/000001.rewound001.safetensors")["kernel"][0] == 1.0
        write_numbered(folder, [0], 2.0)


def test_what_cannot_be_rewound_is_refused(path):
    with RunFolder.create(path) as folder:
        write_numbered(folder, range(2), 1.0)
        assert message_of(folder.rewind, 3) == (
            f"run folder {path} cannot be rewound to 3 records: it has 2. Give the folder that belongs to the "
            "checkpoint."
        )
        assert message_of(folder.rewind, -1, kind=ArgumentError) == (
            "rewind: count must be an integer of at least 0, found -1."
        )
        assert message_of(folder.rewind, kind=ArgumentError) == (
            "rewind: count must be an integer of at least 0, found no count, by a handle that was neither copied nor "
            "closed."
        )


# --- a folder that is there already ---


def test_an_existing_run_is_not_replaced_unasked(path):
    write_run(path)
    before = snapshot(path)
    assert message_of(RunFolder.create, path, {}) == (
        f"run folder {path} exists already and is not empty: found a run of 3 records. Choose another folder, "
        "continue it with NTKPlugin(resume=True) (RunFolder.resume), or replace it with overwrite=True (--overwrite); "
        "only a run is ever replaced, no other files."
    )
    assert snapshot(path) == before


def test_a_run_that_recorded_nothing_is_replaced_unasked(path):
    RunFolder.create(path, {"seed": 1}).close()
    with RunFolder.create(path, {"seed": 2}) as folder:
        assert folder.meta == {"seed": 2}
        with pytest.raises(RunFolderError, match="is being written by process"):
            RunFolder.create(path, {"seed": 3})
    (path / "notes.txt").write_text("mine")
    assert "found a run of 0 records" in message_of(RunFolder.create, path, {"seed": 4})
    assert RunFolder.open(path).meta == {"seed": 2}


def test_overwrite_replaces_the_run_and_leaves_other_files(path):
    write_run(path)
    RunFolder.open(path).export_csv()
    (path / "notes.txt").write_text("mine")
    (path / "kernels" / "Exp000" / "mine.npy").write_text("mine")
    with RunFolder.create(path, {"seed": 9}, overwrite=True) as folder:
        assert folder.records() == []
        folder.append(measurement(0, kernel=folder.save_kernel("Exp000", 0, {"kernel": np.ones(1)})))
    assert RunFolder.open(path).meta == {"seed": 9}
    assert set(snapshot(path)) == {
        *("run.json", "measurements.jsonl", "notes.txt"),
        *("kernels/Exp000/mine.npy", "kernels/Exp000/000000.safetensors"),
    }


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_strangers_folder_is_never_touched(path, overwrite):
    path.mkdir()
    for name in "fbadceg":
        (path / f"{name}.txt").write_text(name)
    before = snapshot(path)
    found = "'a.txt', 'b.txt', 'c.txt', 'd.txt', 'e.txt' and 2 more"
    expected = {
        False: f"{path} holds files of another kind ({found}) and no run: expected an empty folder or one that does "
        "not exist. Choose another folder; only a run is ever replaced.",
        True: f"overwrite: {path} is not replaced, since it is not recognised as a run folder ({path} is not "
        f"a run folder: expected run.json in it, found {found}. Give the folder that RunFolder.create made.) Choose "
        "another folder, or remove this one by hand.",
    }
    assert message_of(RunFolder.create, path, overwrite=overwrite) == expected[overwrite]
    assert snapshot(path) == before
    assert not (path / "lock").exists()


def test_someone_elses_run_json_is_not_overwritten(path):
    path.mkdir()
    (path / "run.json").write_text('{"schema": "theirs"}')
    assert message_of(RunFolder.create, path, overwrite=True) == (
        f"overwrite: {path} is not replaced, since it is not recognised as a run folder (run folder {path}: run.json "
        'cannot be used: expected an object with "schema": "avalanche-ntk-run", so it is not a file of this package.) '
        "Choose another folder, or remove this one by hand."
    )
    assert snapshot(path) == {"run.json": b'{"schema": "theirs"}'}


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_folder_and_one_left_by_a_killed_creation_are_used(path, overwrite):
    path.mkdir()
    RunFolder.create(path, overwrite=overwrite).close()
    other = path.with_name("killed")
    other.mkdir()
    (other / "lock").touch()
    (other / "run.json.tmp").write_text('{"schema')
    RunFolder.create(other, overwrite=overwrite).close()
    assert set(snapshot(other)) == {"run.json", "measurements.jsonl"}


def test_a_file_in_the_folders_place(path):
    path.write_text("x")
    assert message_of(RunFolder.create, path, overwrite=True) == (
        f"{path} exists and is not a folder: choose another path for the run folder."
    )
    assert message_of(RunFolder.open, path) == (
        f"{path} is not a run folder: expected a folder with run.json in it, found a file."
    )


def test_overwrite_goes_through_no_link(path):
    write_run(path)
    before = snapshot(path)
    link = path.with_name("link")
    link.symlink_to(path)
    assert message_of(RunFolder.create, link, overwrite=True) == (
        f"{link} is a symbolic link, and overwriting does not follow links: give the folder that it points to."
    )
    assert snapshot(path) == before


def test_links_inside_a_folder_are_not_followed(path):
    outside = write_run(path.with_name("outside"))
    before = snapshot(outside)
    write_run(path, 1)
    kernels, probe = path / "kernels", path / "kernels" / "Exp000"
    (probe / "000000.safetensors").unlink()
    (probe / "000000.safetensors").symlink_to(outside / "kernels/Exp000/000000.safetensors")
    assert message_of(RunFolder.open(path).load_kernel, "kernels/Exp000/000000.safetensors") == (
        f"run folder {path}: kernels/Exp000/000000.safetensors cannot be read: Too many levels of symbolic links."
    )
    (probe / "000000.safetensors").unlink()
    probe.rmdir()
    probe.symlink_to(outside / "kernels/Exp000")
    assert message_of(RunFolder.open(path).load_kernel, "kernels/Exp000/000000.safetensors") == (
        f"run folder {path}: kernels/Exp000/000000.safetensors cannot be used: Exp000 is not a folder, or is a "
        "symbolic link, which is not followed."
    )
    with RunFolder.resume(path) as folder:
        assert message_of(folder.save_kernel, "Exp000", 1, {"kernel": np.eye(2)}) == (
            f"run folder {path}: could not write kernels/Exp000/000001.safetensors: Exp000 is not a folder, or is a "
            "symbolic link, which is not followed. What was recorded before is intact. Make room or allow writing "
            "there, then "
            "write again or continue with RunFolder.resume."
        )
    RunFolder.create(path, overwrite=True).close()
    probe.unlink()
    kernels.rmdir()
    kernels.symlink_to(outside / "kernels")
    RunFolder.create(path, overwrite=True).close()
    for name in ("run.json.tmp", "measurements.torn"):
        (path / name).symlink_to(outside / "run.json")
    with RunFolder.resume(path) as folder:
        folder.update_meta({"a": 1})
    (path / "measurements.jsonl").write_bytes(b"torn")
    assert message_of(RunFolder.resume, path) == (
        f"run folder {path}: could not write measurements.jsonl: Too many levels of symbolic links. What was recorded "
        "before is intact. Make room or allow writing there, then write again or continue with RunFolder.resume."
    )
    for name in ("measurements.jsonl", "lock"):
        (path / name).unlink()
        (path / name).symlink_to(outside / "measurements.jsonl")
        message_of(RunFolder.resume, path)
    assert snapshot(outside) == before


def test_a_pipe_in_a_files_place_does_not_block(path):
    write_run(path, 1)
    (path / "measurements.jsonl").unlink()
    os.mkfifo(path / "measurements.jsonl")
    assert message_of(RunFolder.open(path).records) == (
        f"run folder {path}: measurements.jsonl cannot be read: it is not a regular file."
    )


# --- run.json that cannot be used ---


def test_no_folder_and_no_run(path):
    assert message_of(RunFolder.open, path) == (
        f"there is no run folder {path}: nothing exists at that path. Check it."
    )
    path.mkdir()
    assert message_of(RunFolder.resume, path) == (
        f"{path} is not a run folder: expected run.json in it, found nothing. Give the folder that RunFolder.create "
        "made."
    )


GOOD_RUN = {"schema": "avalanche-ntk-run", "schema_version": 1, "created": "now", "versions": {}, "meta": {}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not JSON (Expecting value at character 0)"),
        (b'{"schema": ', "it is not JSON (Expecting value at character 11)"),
        (b'{"schema": "\xff"}', "expected UTF-8 text, found the byte 0xff"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b"[]", 'expected an object with "schema": "avalanche-ntk-run", so it is not a file of this package'),
        (
            {"schema_version": 2},
            "it has schema version 2, and this avalanche-ntk reads versions up to 1; install a newer one",
        ),
        ({"schema_version": True}, "expected a schema_version of at least 1, found True"),
        ({"schema_version": 0}, "expected a schema_version of at least 1, found 0"),
        ({"created": 5}, "expected 'created' to be a string, found 5"),
        ({"versions": []}, "expected 'versions' to be an object, found []"),
        ({"versions": {"torch": 2}}, "expected versions to hold strings, found {'torch': 2}"),
        ({"meta": None}, "expected 'meta' to be an object, found None"),
        ({"meta": {"seed": "a"}}, "expected 'seed' to be an integer, found 'a'"),
        ({"meta": {"seed": 2**64}}, "expected integers below 2**64, found one of 20 digits"),
        ({"meta": {"probes": {}}}, "expected 'probes' to be a list, found {}"),
        ({"meta": {"probes": [3]}}, "expected 'probes' to hold objects, found 3"),
        ({"meta": {"probes": [{"name": "a"}]}}, "the key 'hash' is missing"),
        (
            {"meta": {"probes": [{"name": "../a", "hash": ""}]}},
            "expected 'name' to be at most 100 letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            "found '../a'",
        ),
        (
            {"meta": {"probes": [{"name": "a", "hash": ""}, {"name": "a", "hash": ""}]}},
            "expected 'probes' with different names, found ['a', 'a']",
        ),
        ({"meta": {"a": {"nonfinite": 1}}}, 'expected {"nonfinite": "nan"}, "inf" or "-inf", found {\'nonfinite\': 1}'),
        (
            b'{"meta": NaN}',
            'expected strict JSON, found NaN; floats that are not finite are written {"nonfinite": "nan"}',
        ),
        (b'{"meta": 1e999}', "expected floats within double precision, found 1e999"),
    ],
)
def test_a_run_json_that_cannot_be_used_is_refused(path, content, reason):
    path.mkdir()
    (path / "run.json").write_bytes(
        content if isinstance(content, bytes) else json.dumps({**GOOD_RUN, **content}).encode()
    )
    assert message_of(RunFolder.open, path) == f"run folder {path}: run.json cannot be used: {reason}."


def test_unknown_keys_are_allowed(path):
    path.mkdir()
    (path / "run.json").write_text(json.dumps({**GOOD_RUN, "later": 1, "meta": {"x": {"y": 1}}}))
    (path / "measurements.jsonl").write_text(json.dumps(measurement(0, later=2)) + "\n")
    assert RunFolder.open(path).meta == {"x": {"y": 1}}
    assert RunFolder.open(path).records()[0]["later"] == 2


def test_a_run_json_that_is_too_large_is_not_read(path, monkeypatch):
    write_run(path)
    size = (path / "run.json").stat().st_size
    monkeypatch.setattr("avalanche_ntk.recorder.runfolder.description.MAX_RUN_JSON_BYTES", 10)
    assert message_of(RunFolder.open, path) == (
        f"run folder {path}: run.json cannot be used: expected at most 10 bytes, found {size}."
    )


# --- lines that cannot be used ---


def without(key):
    return {name: value for name, value in measurement(1).items() if name != key}


BAD_RECORDS = [
    ([1], "expected an object, found [1]"),
    ({}, "the key 'kind' is missing"),
    ({"kind": 1}, "expected 'kind' to be a string, found 1"),
    *((without(key), f"the key {key!r} is missing") for key in measurement() if key != "kind"),
    (
        measurement(1, probe="a/b"),
        "expected 'probe' to be at most 100 letters, digits, '.', '_' and '-', beginning with a letter or digit, found "
        "'a/b'",
    ),
    (measurement(0), "expected the index of probe 'Exp000' to be above 0, found 0"),
    (measurement(1, index=-1), "expected 'index' to be at least 0, found -1"),
    (measurement(1, index=1.0), "expected 'index' to be an integer, found 1.0"),
    (measurement(1, clock={"event": "iteration"}), None),
    (
        measurement(1, clock={**measurement(1)["clock"], "epoch": -1}),
        "clock: epoch must be an integer of at least 0, found -1",
    ),
    (measurement(1, segment=True), "expected 'segment' to be an integer, found True"),
    (measurement(1, values={"a": None}), "expected 'values' to hold numbers, found a=None"),
    (measurement(1, reasons={"a": 1}), "expected 'reasons' to hold strings, found a=1"),
    (measurement(1, notes=[1]), "expected 'notes' to hold strings, found 1"),
    (measurement(1, trust=[]), "expected 'trust' to be an object, found []"),
    (
        measurement(1, kernel="/etc/passwd"),
        "expected 'kernel' to be a path such as kernels/Exp000/000000.safetensors, found '/etc/passwd'",
    ),
    (measurement(1, failure=0), "expected 'failure' to be a string or null, found 0"),
]
BAD_RECORDS = [
    (
        record,
        reason
        or "clock: expected the fields event, iteration, experience, exp_iteration, epoch, exp_epoch, optimizer_step, "
        "task_label; missing: iteration, experience, exp_iteration, epoch, exp_epoch, optimizer_step",
    )
    for record, reason in BAD_RECORDS
]


@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS, ids=range(len(BAD_RECORDS)))
def test_a_bad_line_is_refused_and_named(path, record, reason):
    write_run(path, 1)
    with open(path / "measurements.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n" + json.dumps(measurement(2)) + "\n")
    before = snapshot(path)
    expected = f"run folder {path}: measurements.jsonl cannot be used: line 2: {reason}."
    assert message_of(RunFolder.open(path).records) == expected
    assert message_of(RunFolder.resume, path) == expected
    assert snapshot(path) == before


@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS[1:], ids=range(1, len(BAD_RECORDS)))
def test_a_bad_record_is_not_written(path, record, reason):
    write_run(path, 1)
    before = snapshot(path)
    with RunFolder.resume(path) as folder:
        assert message_of(folder.append, record, kind=ArgumentError) == f"record: {reason}"
    assert snapshot(path) == before


def test_a_damaged_line_before_the_last_is_refused(path):
    write_run(path, 2)
    lines = (path / "measurements.jsonl").read_bytes().splitlines(True)
    (path / "measurements.jsonl").write_bytes(b"damaged\n" + lines[1])
    assert message_of(RunFolder.resume, path) == (
        f"run folder {path}: measurements.jsonl cannot be used: line 1: it is not JSON (Expecting value at "
        "character 0)."
    )


def test_a_line_that_is_too_long_is_not_read(path, monkeypatch):
    write_run(path, 1)
    monkeypatch.setattr("avalanche_ntk.recorder.runfolder.lines.MAX_LINE_BYTES", 100)
    assert message_of(RunFolder.open(path).records) == (
        f"run folder {path}: measurements.jsonl cannot be used: line 1: expected at most 100 bytes, found more."
    )


@pytest.mark.parametrize("torn", [b'{"kind": "meas', b"\0\0\0\0", b'{"kind": \n', b"\xff\n"])
def test_a_torn_last_line_is_set_aside(path, torn):
    write_run(path, 2)
    good = (path / "measurements.jsonl").read_bytes()
    (path / "measurements.jsonl").write_bytes(good + torn)
    assert len(RunFolder.open(path).records()) == 2
    assert (path / "measurements.jsonl").read_bytes() == good + torn
    with pytest.warns(NTKWarning) as caught:
        folder = RunFolder.resume(path)
    assert [str(w.message) for w in caught] == [
        f"{path / 'measurements.jsonl'} ended in an incomplete line of {len(torn)} bytes, left by a process that was "
        "stopped while writing it; it was moved to measurements.torn. The 2 records before it are intact."
    ]
    assert caught[0].filename == __file__
    assert (path / "measurements.torn").read_bytes() == torn + b"\n"
    assert (path / "measurements.jsonl").read_bytes() == good
    folder.append(measurement(2))
    folder.close()
    assert [r["index"] for r in RunFolder.open(path).records()] == [0, 1, 2]


def test_a_missing_measurements_file_is_no_records(path):
    write_run(path, 1)
    (path / "measurements.jsonl").unlink()
    assert RunFolder.open(path).records() == []


# --- arguments ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "record.x: expected strings, numbers, booleans, None, lists, mappings or numpy arrays, found set. "),
        (
            [0, 1j],
            "record.x[1]: expected strings, numbers, booleans, None, lists, mappings or numpy arrays, found complex. ",
        ),
        ({1: 2}, "record.x: expected strings as keys, found 1."),
        ({"nonfinite": 2}, "record.x: the key 'nonfinite' is reserved for floats that are not finite; rename it."),
        (2**64, "record.x: expected integers below 2**64, found one of 65 bits."),
    ],
)
def test_what_json_cannot_hold_is_refused(path, value, message):
    with RunFolder.create(path) as folder:
        found = message_of(folder.append, {"kind": "x", "x": value}, kind=ArgumentError)
    assert found == message + ("Convert it first." if message.endswith(" ") else "")


def test_a_record_that_contains_itself_is_refused(path):
    loop = []
    loop.append(loop)
    with RunFolder.create(path) as folder:
        assert message_of(folder.append, {"kind": "x", "x": loop}, kind=ArgumentError) == (
            "record.x" + "[0]" * 24 + ": expected at most 50 levels of nesting, found more (or a loop)."
        )


def test_a_record_that_is_too_long_is_refused(path, monkeypatch):
    monkeypatch.setattr("avalanche_ntk.recorder.runfolder.lines.MAX_LINE_BYTES", 50)
    with RunFolder.create(path) as folder:
        assert message_of(folder.append, {"kind": "x", "x": "y" * 50}, kind=ArgumentError) == (
            "record: expected at most 50 bytes of JSON, found 73. Store arrays by save_kernel."
        )


def test_a_record_that_names_a_kernel_not_yet_saved_is_refused(path):
    where = "kernels/Exp000/000000.safetensors"
    with RunFolder.create(path) as folder:
        assert message_of(folder.append, measurement(0, kernel=where), kind=ArgumentError) == (
            f"record: it names the kernel {where}, which is not there; call save_kernel first"
        )


def test_a_bad_meta_is_refused_before_anything_is_made(path):
    assert message_of(RunFolder.create, path, {"seed": 1.5}, kind=ArgumentError) == (
        "meta: expected 'seed' to be an integer, found 1.5"
    )
    assert message_of(RunFolder.create, path, {"f": len}, kind=ArgumentError) == (
        "meta.f: expected strings, numbers, booleans, None, lists, mappings or numpy arrays, found "
        "builtin_function_or_method. Convert it first."
    )
    assert not path.exists()
    write_run(path)
    before = snapshot(path)
    with RunFolder.resume(path) as folder:
        assert message_of(folder.update_meta, {"probes": 1}, kind=ArgumentError) == (
            "meta: expected 'probes' to be a list, found 1"
        )
    assert snapshot(path) == before


def test_a_reader_does_not_write(path):
    folder = RunFolder.open(write_run(path))
    expected = f"run folder {path} was opened for reading: use RunFolder.resume to continue writing it."
    assert message_of(folder.append, measurement(3)) == expected
    assert message_of(folder.save_kernel, "Exp000", 3, {"kernel": np.eye(2)}) == expected
    assert message_of(folder.update_meta, {}) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("../up", 0, {"k": np.eye(2)}),
            "probe must be 1 to 100 letters, digits, '.', '_' and '-' that begin with a letter or digit, since it "
            "stands in metric tags; found '../up'. Give probe='first_task', for example.",
        ),
        (("a", -1, {"k": np.eye(2)}), "index: expected an integer of at least 0 and below 10**12, found -1."),
        (("a", True, {"k": np.eye(2)}), "index: expected an integer of at least 0 and below 10**12, found True."),
        (("a", 0, {}), "arrays: expected at least one, found none."),
        (("a", 0, {"": np.eye(2)}), "arrays: expected names that are strings, not empty, found ''."),
        (("a", 0, {"k": [1.0]}), "arrays: expected 'k' to be a numpy array, found list."),
        (
            ("a", 0, {"k": np.eye(2, dtype=complex)}),
            "arrays: expected 'k' to hold real numbers of at most 64 bits, integers or booleans, found complex128. "
            "Convert it first.",
        ),
        (
            ("a", 0, {"k": np.array([None])}),
            "arrays: expected 'k' to hold real numbers of at most 64 bits, integers or booleans, found object. "
            "Convert it first.",
        ),
        (
            ("a", 0, {"k": np.eye(2)}, {"content_sha256": "0"}),
            "metadata: expected strings by names other than 'content_sha256', found 'content_sha256': '0'.",
        ),
        (
            ("a", 0, {"k": np.eye(2)}, {"n": 1}),
            "metadata: expected strings by names other than 'content_sha256', found 'n': 1.",
        ),
        (
            ("Exp000", 2, {"k": np.eye(2)}),
            "index: probe 'Exp000' has records up to index 2, whose kernels are never replaced: found 2. Pass 3.",
        ),
    ],
)
def test_what_cannot_be_a_kernel_is_refused(path, arguments, message):
    write_run(path)
    before = snapshot(path)
    with RunFolder.resume(path) as folder:
        assert message_of(folder.save_kernel, *arguments, kind=ArgumentError) == message
    assert snapshot(path) == before


# --- kernel files that cannot be used ---


def safetensors_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F64", shape=(1,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


WHERE = "kernels/Exp000/000000.safetensors"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected a safetensors file, found 0 bytes"),
        (b"\xff" * 20, "its header claims 18446744073709551615 bytes, and the file has 20: it is cut off or damaged"),
        (safetensors_file(b"[]"), "expected an object as header, found []"),
        (safetensors_file(b"{}}"), "it is not JSON (Extra data at character 2)"),
        (safetensors_file({"k": 1}), "expected an object for array 'k', found 1"),
        (safetensors_file({"__metadata__": {"a": 1}}), "expected strings as metadata, found {'a': 1}"),
        (safetensors_file({"k": {"dtype": "F64"}}), "the key 'shape' is missing"),
        (
            safetensors_file({"k": entry("BF16")}),
            "expected real numbers, integers or booleans in array 'k', found 'BF16'",
        ),
        (safetensors_file({"k": entry(shape=(-1,))}), "expected sizes of at least 0 in array 'k', found [-1]"),
        (safetensors_file({"k": entry(offsets=(0,))}), "expected two offsets for array 'k', found [0]"),
        # A shape that would need 8 EiB is refused by arithmetic, before anything is allocated.
        (
            safetensors_file({"k": entry(shape=(2**30, 2**30), offsets=(0, 2**63))}),
            "its arrays need 9223372036854775808 bytes, and the file has 0: it is cut off or damaged",
        ),
        (
            safetensors_file({"k": entry(shape=(3,))}, b"\0" * 8),
            "array 'k': shape [3] of F64 does not fill bytes [0, 8]",
        ),
        (
            safetensors_file({"k": entry(offsets=(8, 16))}, b"\0" * 16),
            "its arrays overlap or leave gaps",
        ),
        (
            safetensors_file({"k": entry()}, b"\0" * 9),
            "its arrays need 8 bytes, and the file has 9: it is cut off or damaged",
        ),
        (safetensors_file({"k": entry()}, b"\0" * 8), "it has no content_sha256, so save_kernel did not write it"),
        (
            safetensors_file({"__metadata__": {"content_sha256": "0"}, "k": entry()}, b"\0" * 8),
            "its content does not match its checksum: it was changed or damaged after it was written",
        ),
    ],
)
def test_a_kernel_file_that_cannot_be_used_is_refused(path, content, reason):
    write_run(path)
    (path / WHERE).write_bytes(content)
    folder = RunFolder.open(path)
    assert message_of(folder.load_kernel, WHERE) == f"run folder {path}: {WHERE} cannot be used: {reason}."
    assert len(folder.records()) == 3
    np.testing.assert_array_equal(folder.load_kernel("kernels/Exp000/000001.safetensors")["kernel"], np.eye(3))


def test_every_flipped_bit_of_a_kernel_file_is_noticed(path):
    write_run(path, 1)
    content = (path / WHERE).read_bytes()
    folder = RunFolder.open(path)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        (path / WHERE).write_bytes(damaged)
        try:
            loaded = folder.load_kernel(WHERE)
        except RunFolderError:
            continue
        # Only a flip that leaves the header's meaning as it is may pass, such as a space made another blank.
        np.testing.assert_array_equal(loaded["kernel"], np.zeros((3, 3)))
        assert position < 8 + int.from_bytes(content[:8], "little")


def test_a_missing_or_too_large_kernel_file(path):
    folder = RunFolder.open(write_run(path))
    missing = "kernels/Exp000/000009.safetensors"
    assert message_of(folder.load_kernel, missing) == (
        f"run folder {path}: {missing} cannot be used: the file is missing."
    )
    assert message_of(folder.load_kernel, "kernels/Exp001/000000.safetensors") == (
        f"run folder {path}: kernels/Exp001/000000.safetensors cannot be used: the file is missing."
    )
    size = (path / WHERE).stat().st_size
    assert message_of(folder.load_kernel, WHERE, max_bytes=50) == (
        f"run folder {path}: {WHERE} cannot be used: expected at most 50 bytes, found {size}."
    )


@pytest.mark.parametrize(
    "where",
    [
        *("/etc/passwd", "../run/kernels/Exp000/000000.safetensors", "kernels/../kernels/Exp000/000000.safetensors"),
        *("kernels/Exp000/000000.safetensors\n", "kernels//000000.safetensors", "run.json", "", 3, None),
        *(
            "kernels/Exp000/../../../x/000000.safetensors",
            "kernels/../000000.safetensors",
            "kernels/é/000000.safetensors",
        ),
    ],
)
def test_paths_stay_inside(path, where):
    folder = RunFolder.open(write_run(path))
    assert message_of(folder.load_kernel, where) == (
        f"expected the path of a kernel of run folder {path}, such as kernels/Exp000/000000.safetensors, found "
        f"{where!r}. Take it from a record."
    )


# --- one writer ---


def test_a_second_writer_in_this_process_is_refused(path):
    with RunFolder.create(path):
        found = message_of(RunFolder.resume, path)
        since = json.loads((path / "lock").read_text())["since"]
        assert found == (
            f"run folder {path} is being written by process {os.getpid()} on host {socket.gethostname()} (this "
            f"process) since {since}: two writers would mix their measurements. Wait until it has ended or close it "
            "there (NTKPlugin.close), or choose another folder. Reading with RunFolder.open is possible meanwhile."
        )
        assert message_of(RunFolder.create, path, overwrite=True) == found
        assert RunFolder.open(path).records() == []
    assert (path / "lock").read_bytes() == b""
    RunFolder.resume(path).close()


def test_a_lock_file_with_anything_in_it_is_no_obstacle(path):
    write_run(path)
    (path / "lock").write_bytes(b"\xff{")
    RunFolder.resume(path).close()
    with RunFolder.resume(path):
        Path(path / "lock").write_bytes(b"[]")
        assert message_of(RunFolder.resume, path).startswith(
            f"run folder {path} is being written by another process (it left no process id): two writers"
        )


def test_a_file_changed_under_the_writer_is_noticed(path):
    write_run(path, 1)
    with RunFolder.resume(path) as folder:
        size = (path / "measurements.jsonl").stat().st_size
        with open(path / "measurements.jsonl", "a") as file:
            file.write("x")
        assert message_of(folder.append, measurement(1)) == (
            f"{path / 'measurements.jsonl'} was changed by something else while this process was writing it: expected "
            f"{size} bytes, found {size + 1}. Close the folder and resume it."
        )


def test_a_writer_left_open_at_the_interpreters_end_is_silent(tmp_path):
    code = (
        "from avalanche_ntk.recorder.runfolder import RunFolder\n"
        "import sys\n"
        "class Keeper: pass\n"
        "k = Keeper(); k.me = k; k.folder = RunFolder.create(sys.argv[1], {})\n"
        "sys.modules['keeper'] = k\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
