"""Whatever a run folder holds, reading it gives data or `RunFolderError`, and nothing else."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avalanche_ntk.errors import ArgumentError, NTKWarning, RunFolderError
from avalanche_ntk.recorder.clock import TrainingClock
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.schedule import Schedule

WHERE = "kernels/Exp000/000000.safetensors"
MEASUREMENT = {
    "kind": "measurement",
    "probe": "Exp000",
    "index": 0,
    "clock": TrainingClock("iteration", 1, 0, 1, 0, 0, 1, 0).as_dict(),
    "segment": 0,
    "values": {"NTK_Norm": 1.5, "NTK_Velocity": {"nonfinite": "nan"}},
    "reasons": {"NTK_Velocity": "first"},
    "notes": ["a"],
    "trust": {"dtype": "float32"},
    "kernel": WHERE,
    "failure": None,
}

fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.builds(dict, nonfinite=st.just("inf")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("nonfinite"), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def altered(draw, original):
    """The object with some of its parts, at any depth, replaced, removed or joined by others."""
    found = json.loads(json.dumps(original))
    for _ in range(draw(st.integers(1, 3))):
        spot = found
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(spot[key], (dict, list)) and spot[key] and draw(st.booleans()):
                spot = spot[key]
                continue
            action = draw(st.sampled_from(["replace", "remove", "add"]))
            if action == "remove":
                del spot[key]
            elif action == "replace" or isinstance(spot, list):
                spot[key] = draw(json_values)
            else:
                spot[draw(st.text(max_size=5))] = draw(json_values)
            break
    return json.dumps(found).encode()


@st.composite
def damaged(draw, original):
    """The bytes with some of them changed, cut out, cut off, doubled or joined by others."""
    found = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        to = min(len(found), at + draw(st.integers(0, 8)))
        action = draw(st.sampled_from(["flip", "cut out", "cut off", "double", "insert"]))
        if action == "flip" and found:
            found[at] ^= draw(st.integers(1, 255))
        elif action == "cut out":
            del found[at:to]
        elif action == "cut off":
            del found[at:]
        elif action == "double":
            found[at:at] = found[at:to]
        else:
            found[at:at] = draw(st.binary(max_size=8))
    return bytes(found)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "run"
    with RunFolder.create(path, {"seed": 1, "probes": [{"name": "Exp000", "hash": "a"}], "bound": math.inf}) as folder:
        folder.save_kernel("Exp000", 0, {"kernel": np.arange(6.0).reshape(2, 3), "mask": np.ones(2, bool)}, {"a": "b"})
        folder.append({**MEASUREMENT, "values": {"NTK_Norm": 1.5, "NTK_Velocity": math.nan}})
        folder.append({**MEASUREMENT, "index": 1, "values": {"NTK_Norm": 2.5}, "kernel": None})
    return path


def read_everything(path):
    """Read all there is; returns the records, or None where the folder was refused."""
    try:
        folder = RunFolder.open(path)
        assert isinstance(folder.meta, dict) and isinstance(folder.created, str) and isinstance(folder.versions, dict)
        records = folder.records()
        for record in records:
            assert isinstance(record["kind"], str)
            if record["kind"] == "measurement":
                TrainingClock.from_dict(record["clock"])
                assert all(isinstance(float(value), float) for value in record["values"].values())
        folder.export_csv(path.parent / "table.csv")
        json.dumps(records)
        return records
    except RunFolderError as error:
        assert str(path) in str(error)
        return None


def with_content(original, name, content):
    """The run with one file's content replaced, for the length of a `with`."""

    class Replaced:
        def __enter__(self):
            self.before = (original / name).read_bytes()
            (original / name).write_bytes(content)
            return original

        def __exit__(self, *exception):
            (original / name).write_bytes(self.before)

    return Replaced()


def run_json(original):
    return (original / "run.json").read_bytes()


@fuzz
@given(data=st.data())
def test_run_json(original, data):
    content = data.draw(
        st.binary(max_size=60)
        | st.deferred(lambda: altered(json.loads(run_json(original))))
        | damaged(run_json(original))
    )
    with with_content(original, "run.json", content) as path:
        read_everything(path)


@fuzz
@given(data=st.data())
def test_measurements(original, data):
    before = (original / "measurements.jsonl").read_bytes()
    line = data.draw(st.binary(max_size=60) | altered(MEASUREMENT) | json_values.map(lambda v: json.dumps(v).encode()))
    content = data.draw(st.sampled_from([before + line, line + b"\n" + before, line + b"\n"]) | damaged(before))
    with with_content(original, "measurements.jsonl", content) as path:
        records = read_everything(path)
        # A writer takes what a reader takes, and keeps every byte: in the lines, or set aside.
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                RunFolder.resume(path).close()
        except RunFolderError:
            assert records is None
            assert (path / "measurements.jsonl").read_bytes() == content
            return
        kept = (path / "measurements.jsonl").read_bytes()
        torn = path / "measurements.torn"
        assert records is not None and content.startswith(kept)
        assert kept.count(b"\n") == len(records)
        assert (kept == content) == (not torn.exists())
        if torn.exists():
            assert torn.read_bytes() == content[len(kept) :] + b"\n"
            torn.unlink()
        assert [w.category for w in caught] == [NTKWarning] * (kept != content)


@fuzz
@given(data=st.data())
def test_kernels(original, data):
    before = (original / WHERE).read_bytes()
    length = int.from_bytes(before[:8], "little")
    header, body = json.loads(before[8 : 8 + length]), before[8 + length :]
    content = data.draw(
        st.binary(max_size=60)
        | damaged(before)
        | st.tuples(altered(header), st.just(body) | st.binary(max_size=20)).map(
            lambda parts: len(parts[0]).to_bytes(8, "little") + parts[0] + parts[1]
        )
    )
    with with_content(original, WHERE, content) as path:
        folder = RunFolder.open(path)
        try:
            loaded = folder.load_kernel(WHERE)
        except RunFolderError as error:
            assert str(error).startswith(f"run folder {path}: {WHERE} cannot be used: ")
        else:
            # The checksum lets nothing pass that differs from what was written.
            np.testing.assert_array_equal(loaded["kernel"], np.arange(6.0).reshape(2, 3))
            np.testing.assert_array_equal(loaded["mask"], [True, True])
            assert folder.load_kernel_metadata(WHERE) == {"a": "b"}


@fuzz
@given(path=st.text(max_size=30) | st.from_regex(r"kernels/[./a\0-]{0,8}/?[0-9]{6}\.safetensors", fullmatch=True))
def test_kernel_paths(original, path):
    with pytest.raises(RunFolderError):
        RunFolder.open(original).load_kernel(path)


@fuzz
@given(record=st.dictionaries(st.text(max_size=5), json_values, max_size=3))
def test_what_is_appended_comes_back(tmp_path_factory, record):
    folder = RunFolder.create(tmp_path_factory.mktemp("append") / "run")
    record = {**record, "kind": "other"}
    try:
        folder.append(record)
    except ArgumentError:
        # Refused whole: nothing was written.
        assert folder.records() == []
    else:
        # repr tells nan, -0.0 and 1 from 1.0.
        assert repr(folder.records()) == repr([record])
    folder.close()


@fuzz
@given(
    name=st.text(max_size=20)
    | st.from_regex(
        r"(boundaries_only|every_iterations|every_epochs|log_spaced|around_boundaries|at|share_of_training)"
        r"(:[0-9.,e|:-]{0,8})?",
        fullmatch=True,
    )
)
def test_schedule_names(name):
    try:
        schedule = Schedule.from_name(name)
    except ArgumentError:
        return
    assert Schedule.from_name(schedule.describe()) == schedule
    schedule.due(TrainingClock("iteration", 10**6, 0, 10**6, 0, 0, 10**6))
