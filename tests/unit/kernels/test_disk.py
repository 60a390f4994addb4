"""Kernels in files: the same numbers, gone on with after a kill, refused where something changed, read band by band."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk.errors import ArgumentError, KernelError
from avalanche_ntk.kernels import disk, empirical_ntk, reference_ntk, top_eigenvalues
from tests.support.places import ROOT


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def x():
    return torch.randn(21, 4, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("options", [{}, {"reduction": "sum_logits"}, {"reduction": "projected", "n_projections": 2}])
def test_the_numbers_in_the_file(tmp_path, x, options):
    path, m = tmp_path / "kernel.npy", model()
    found, info = empirical_ntk(m, x, out=path, return_info=True, **options)
    expected = empirical_ntk(m, x, **options)
    if options.get("reduction") != "projected":
        assert torch.allclose(expected, reference_ntk(m, x, reduction=options.get("reduction", "trace")))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    on_disk = np.load(path)
    assert np.array_equal(on_disk, found.numpy())
    assert np.array_equal(on_disk, on_disk.T)
    assert set(info.methods.values()) == {"gram"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernel.npy", "kernel.npy.json"]
    found += 1  # a reader's own copy
    assert np.array_equal(np.load(path), on_disk)


def test_a_cross_kernel(tmp_path, x):
    m, x2 = model(), torch.randn(5, 4, generator=torch.Generator().manual_seed(2)).double()
    found = empirical_ntk(m, x, x2, out=tmp_path / "cross.npy")
    assert torch.allclose(found, reference_ntk(m, x, x2, reduction="trace"), rtol=1e-12, atol=1e-13)


def test_what_a_kill_left_before_the_first_band_is_written_over(tmp_path, x):
    np.save(tmp_path / "kernel", np.ones((3, 3), np.float32))
    (tmp_path / "kernel.npy").rename(tmp_path / "kernel.npy.partial")
    empirical_ntk(model(), x, out=tmp_path / "kernel.npy")
    found = np.load(tmp_path / "kernel.npy")
    assert found.dtype == np.float64
    assert np.allclose(found, reference_ntk(model(), x, reduction="trace"), rtol=1e-12, atol=1e-13)


def test_finished_bands_are_not_repeated(tmp_path, x, monkeypatch):
    path, m, calls = tmp_path / "kernel.npy", model(), []
    real = disk.measured

    def broken(request, part):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(part.rows.start)
        return real(request, part)

    monkeypatch.setattr(disk, "measured", broken)
    with pytest.raises(KeyboardInterrupt):
        empirical_ntk(m, x, out=path)
    assert not path.exists()
    assert json.loads((tmp_path / "kernel.npy.json").read_text())["done"] == [0, 1, 2, 3]
    monkeypatch.setattr(disk, "measured", lambda r, part: (calls.append(part.rows.start), real(r, part))[1])
    found = empirical_ntk(m, x, out=path)
    assert calls == [0, 3, 6, 9, 12, 15, 18]
    assert torch.allclose(found, reference_ntk(m, x, reduction="trace"), rtol=1e-12, atol=1e-13)
    assert torch.equal(empirical_ntk(m, x, out=path), found)  # reads what is there
    assert len(calls) == 7


def test_what_changed_is_refused(tmp_path, x, monkeypatch):
    path, m = tmp_path / "kernel.npy", model()
    empirical_ntk(m, x, out=path)
    before = path.read_bytes()
    with pytest.raises(ArgumentError, match=r"is another kernel: inputs changed since it was begun"):
        empirical_ntk(m, x + 1, out=path)
    with pytest.raises(ArgumentError, match="another kernel: reduction changed"):
        empirical_ntk(m, x, out=path, reduction="sum_logits")
    with torch.no_grad():
        m[0].bias += 1
    with pytest.raises(ArgumentError, match="another kernel: parameters and buffers changed"):
        empirical_ntk(m, x, out=path)
    assert path.read_bytes() == before


def test_files_of_others(tmp_path, x):
    path = tmp_path / "mine.npy"
    path.write_bytes(b"precious")
    with pytest.raises(ArgumentError, match=r"exists already, without mine\.npy\.json"):
        empirical_ntk(model(), x, out=path)
    assert path.read_bytes() == b"precious"
    with pytest.raises(ArgumentError, match=r"out must name a \.npy file"):
        empirical_ntk(model(), x, out=tmp_path / "kernel.pt")
    with pytest.raises(ArgumentError, match="which does not exist"):
        empirical_ntk(model(), x, out=tmp_path / "nowhere" / "kernel.npy")
    with pytest.raises(ArgumentError, match="out cannot be combined with reduction='full'"):
        empirical_ntk(model(), x, out=tmp_path / "kernel.npy", reduction="full")


def test_leading_eigenvalues(tmp_path, x):
    path, m = tmp_path / "kernel.npy", model()
    kernel = empirical_ntk(m, x, out=path)
    expected = np.linalg.eigvalsh(kernel.numpy())[::-1][:3]
    assert np.allclose(top_eigenvalues(path, 3, memory_budget=1000), expected, rtol=1e-10)
    with pytest.raises(ArgumentError, match="k must be between 1 and 20"):
        top_eigenvalues(path, 21)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    with pytest.raises(KernelError, match="ends in row 20 of 21"):
        top_eigenvalues(path, 3)
    (tmp_path / "notes.npy").write_text("notes")
    with pytest.raises(ArgumentError, match="is not a kernel written by empirical_ntk"):
        top_eigenvalues(tmp_path / "notes.npy")


KILLED = """
import sys, torch
from avalanche_ntk.kernels import empirical_ntk
from tests.unit.kernels.test_disk import model
x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1)).double()
empirical_ntk(model(), x, out=sys.argv[1], memory_budget=2**21)
"""


@pytest.mark.slow
def test_a_kill(tmp_path):
    """A process that is killed at any moment leaves what the next one goes on with."""
    path, progress = tmp_path / "kernel.npy", tmp_path / "kernel.npy.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=environment, cwd=ROOT)
        while process.poll() is None:
            if progress.exists() and len(json.loads(progress.read_text())["done"]) >= wanted:
                process.kill()
                break
            time.sleep(0.001)
        process.wait()
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1)).double()
    found = empirical_ntk(model(), x, out=path, memory_budget=2**21)
    assert torch.allclose(found, empirical_ntk(model(), x), rtol=1e-12, atol=1e-13)
