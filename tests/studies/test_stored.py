"""The stored folders of the studies are complete."""

import pytest

from tests.studies import stored


@pytest.mark.slow
@pytest.mark.parametrize("name", stored.NAMES)
def test_nothing_has_to_be_trained(name, tmp_path):
    stored.unpack(name, tmp_path)
    outcome = stored.smallest(name, tmp_path, refuse=True)
    assert outcome.claims


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(stored.OutOfDateError) as caught:
        stored.smallest("chaos", tmp_path, refuse=True)
    assert str(caught.value) == (
        "the stored folder of 'chaos' has 0 of 4 of measurements: "
        "make the rest with `python -m tests.studies.stored chaos`."
    )


def test_the_same_files_are_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "ARCHIVES", tmp_path / "archives")
    archives = []
    for folder in ("first", "second"):
        out = tmp_path / folder
        (out / "measured").mkdir(parents=True)
        (out / "measured" / "part-seed=0.json").write_text("{}")
        (out / "results.json").write_text(folder)
        (out / "sweeps" / "plan" / "runs" / "old").mkdir(parents=True)
        (out / "sweeps" / "plan" / "runs" / "old" / "run.json").write_text(folder)
        (out / "sweeps" / "plan" / "sweep.json").write_text('{"runs": []}')
        stored.pack("name", out)
        archives.append((tmp_path / "archives" / "name.tar.xz").read_bytes())
    assert archives[0] == archives[1]
    stored.unpack("name", tmp_path / "again")
    assert {p.relative_to(tmp_path / "again").as_posix() for p in (tmp_path / "again").rglob("*.*")} == {
        "measured/part-seed=0.json", "sweeps/plan/sweep.json",
    }  # fmt: skip
