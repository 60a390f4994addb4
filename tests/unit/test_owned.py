"""A command touches its own files only."""

import json

import pytest

from avalanche_ntk import owned
from avalanche_ntk.errors import RunFolderError
from avalanche_ntk.experiments.sweep import Sweep, _write_plan
from avalanche_ntk.owned import refuse_strangers, write_owned


def test_what_was_written_is_replaced(tmp_path):
    out = tmp_path / "new" / "out"
    assert write_owned(out, {"a.txt": "λ", "b/c.bin": b"1"}) == [out / "a.txt", out / "b" / "c.bin"]
    write_owned(out, {"a.txt": "2"})
    assert (out / "a.txt").read_text() == "2" and (out / "b" / "c.bin").read_bytes() == b"1"
    write_owned(out, {"b/c.bin": b"3"})
    assert (out / "b" / "c.bin").read_bytes() == b"3"


@pytest.mark.parametrize("name", ["a.txt", "b/c.txt", "written.json"])
def test_a_strangers_file_stays_and_nothing_is_written(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("theirs")
    with pytest.raises(RunFolderError) as error:
        write_owned(tmp_path, {"new.txt": "1", "a.txt": "2", "b/c.txt": "3"})
    assert str(error.value) == (
        f"{path} exists and was not written by this command, or was changed since: it is not replaced. Choose another "
        "--out, or move the file away."
    )
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [path.name]
    assert path.read_text() == "theirs"


def test_a_folder_or_a_link_in_the_place_of_a_file_is_a_strangers(tmp_path):
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(RunFolderError):
            refuse_strangers(tmp_path, [name])


def test_a_kill_between_two_files_leaves_nothing_that_is_refused(tmp_path, monkeypatch):
    write_owned(tmp_path, {"a.txt": "old a", "b.txt": "old b"})
    real = owned.write_whole

    def killed(path, content):
        if path.name == "b.txt":
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(owned, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        write_owned(tmp_path, {"a.txt": "new a", "b.txt": "new b"})
    monkeypatch.setattr(owned, "write_whole", real)
    write_owned(tmp_path, {"a.txt": "newer a", "b.txt": "newer b"})
    assert (tmp_path / "b.txt").read_text() == "newer b"


def test_a_sweep_does_not_replace_a_strangers_plan(tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"my": "notes"}))
    with pytest.raises(RunFolderError, match=r"sweep\.json exists and was not written by a sweep: it is not replaced"):
        _write_plan(Sweep("s", "", ()), tmp_path)
    path.unlink()
    _write_plan(Sweep("s", "", ()), tmp_path)
    _write_plan(Sweep("s", "again", ()), tmp_path)
    assert json.loads(path.read_text())["description"] == "again"
