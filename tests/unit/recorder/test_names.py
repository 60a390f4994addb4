"""Names of probes: refused where they are given, and folders that every file system can hold."""

import re
import shutil
import string
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_ntk import NTKPlugin, Probe, ProbeSpec, Schedule
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.recorder.names import folder_of, is_name
from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.recorder.trajectory import Trajectory
from tests.support.lines import make_strategy, run_with_ntk, tiny_stream

BAD = ["Aufgabe α/β", "", "two words", ".hidden", "-dash", "_x", "a,b", "a[0]", "x" * 101, 7, "tab\t", "line\n"]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize(
    "make", [lambda name: ProbeSpec(name=name), lambda name: Probe.from_tensors(torch.zeros(2, 1), [0, 1], name=name)]
)
def test_a_bad_name_is_refused_where_it_is_given(make, name):
    with pytest.raises(ArgumentError) as caught:
        make(name)
    assert str(caught.value) == (
        "name must be 1 to 100 letters, digits, '.', '_' and '-' that begin with a letter or digit, since it stands in "
        f"metric tags; found {name!r}. Give name='first_task', for example."
    )


def test_a_name_too_long_for_a_folder():
    name = "数" * 40
    with pytest.raises(ArgumentError) as caught:
        ProbeSpec(name=name)
    assert str(caught.value) == (
        f"name names a folder too, whose name would have 360 characters, at most 240; found {name!r}. "
        "Give a shorter one."
    )


FOLDERS = {
    "Exp000": "Exp000",
    "Exp012_test": "Exp012_test",
    "mine": "mine",
    "Mine": "+mine",
    "Aufgabe-α": "+aufgabe-%CE%B1",
    "con": "%63on",
    "CON": "+c+o+n",
    "nul.x": "%6Eul.x",
    "com1": "%63om1",
    "console": "console",
    "end.": "end%2E",
    "exp000": "%65xp000",
    "eXp000": "e+xp000",
    "हिन्दी": "%E0%A4%B9%E0%A4%BF%E0%A4%A8%E0%A5%8D%E0%A4%A6%E0%A5%80",
}


@pytest.mark.parametrize(("name", "folder"), FOLDERS.items())
def test_folders(name, folder):
    assert is_name(name)
    assert folder_of(name) == folder


def decoded(folder):
    if re.fullmatch(r"Exp\d{3,}(_test)?", folder):
        return folder
    return unquote(re.sub(r"\+([a-z])", lambda match: match[1].upper(), folder))


# What Windows refuses or changes: reserved devices, trailing dots and spaces, signs that are no part of a name.
WINDOWS = re.compile(
    r"(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[^<>:\"/\\|?*\x00-\x1f]*[^<>:\"/\\|?*\x00-\x1f. ]", re.I
)
NAMES = st.text(
    st.sampled_from(string.ascii_letters + string.digits + "._-αßÉ数"), min_size=1, max_size=12
) | st.sampled_from(
    [
        "Exp000",
        "exp000",
        "EXP000",
        "Exp000_test",
        "exp000_TEST",
        "con",
        "Con",
        "aux.",
        "AUX",
        "lpt9.x",
        "a.",
        "A.",
        "a..",
    ]
)


@given(NAMES.filter(is_name))
def test_a_folder_stands_for_one_name_on_every_file_system(name):
    folder = folder_of(name)
    assert decoded(folder) == name
    assert folder.isascii()
    assert WINDOWS.fullmatch(folder)


@given(st.lists(NAMES.filter(is_name), min_size=2, max_size=8, unique=True))
def test_no_two_names_share_a_folder_where_capitals_do_not_count(names):
    assert len({folder_of(name).lower() for name in names}) == len(names)


ODD = ["con", "Con", "end.", "Exp000", "exp000", "größe-α"]


def test_runs_with_such_names_are_written_read_and_replaced(tmp_path):
    x = torch.randn(3, 6)
    probes = [Probe.from_tensors(x + i, [0, 1, 0], name=name) for i, name in enumerate(ODD)]
    for overwrite in (False, True):
        ntk = NTKPlugin(probes, Schedule.boundaries_only(), run_folder=tmp_path / "run", overwrite=overwrite)
        strategy = make_strategy(plugins=[ntk], epochs=1)
        strategy.train(tiny_stream().train_stream[0])
        ntk.close()
    kernels = tmp_path / "run" / "kernels"
    assert sorted(p.name for p in kernels.iterdir()) == sorted(map(folder_of, ODD))
    for name in ODD:
        read = Trajectory.load(tmp_path / "run", name)
        np.testing.assert_array_equal(read.kernel(0), ntk.trajectories[name].kernel(0))
    with RunFolder.resume(tmp_path / "run") as folder:
        folder.rewind(0)
    assert not list(kernels.glob("*/000000.safetensors"))


def test_a_folder_whose_kernels_lie_under_the_plain_name_is_read(tmp_path):
    probe = Probe.from_tensors(torch.randn(3, 6), [0, 1, 0], name="Mine")
    ntk, _ = run_with_ntk(ntk=NTKPlugin(probe, Schedule.boundaries_only(), run_folder=tmp_path / "run"))
    expected = ntk.trajectory.kernel(0)
    ntk.close()
    lines = tmp_path / "run" / "measurements.jsonl"
    shutil.move(tmp_path / "run" / "kernels" / "+mine", tmp_path / "run" / "kernels" / "Mine")
    lines.write_text(lines.read_text().replace("kernels/+mine/", "kernels/Mine/"))
    np.testing.assert_array_equal(Trajectory.load(tmp_path / "run").kernel(0), expected)
    with RunFolder.create(tmp_path / "run", {}, overwrite=True):
        assert not (tmp_path / "run" / "kernels").exists()
