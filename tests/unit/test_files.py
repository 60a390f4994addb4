"""A file is there whole or as it was before."""

import os

import pytest

from avalanche_ntk import files


def test_text_and_bytes_are_written_and_nothing_is_left_beside_them(tmp_path):
    path = tmp_path / "a.json"
    files.write_whole(path, "λ\n")
    assert path.read_bytes() == "λ\n".encode()
    files.write_whole(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_stood_there_stays_when_the_new_content_cannot_be_put_in_its_place(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(source, target):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        files.write_whole(path, "new")
    assert path.read_text() == "old"
