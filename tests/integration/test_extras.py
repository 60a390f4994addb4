"""A number beside the kernel that cannot be had is absent with its reason; the measurement stays."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import avalanche_ntk.kernels._generic.spot_check
import avalanche_ntk.recorder.measurer
from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, empirical_ntk
from avalanche_ntk.errors import MeasurementFailedWarning
from avalanche_ntk.kernels import reference_ntk, spot_check
from avalanche_ntk.kernels.support import spot_check_in_double
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.measures import kernel_distance
from avalanche_ntk.observables import ClassBlocks, Observable, Observation, PerLayer
from avalanche_ntk.recorder.runfolder import RunFolder
from tests.support.lines import Models, make_strategy, run, tiny_stream

ONCE = "(Warned once; each failure is in the trajectory. NTKPlugin(on_error='raise') stops instead.)"


class Casts(nn.Module):
    """A forward pass that casts its inputs, as timm's example for Avalanche has it: none in float64."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.net(x.float())


def trained(model=None, **arguments):
    """Train on two tasks; return plugin, the models by iteration, and our warnings."""
    torch.manual_seed(0)
    arguments = {"probe": ProbeSpec(size=8), "schedule": Schedule.every_iterations(1), **arguments}
    ntk, models = NTKPlugin(**arguments), Models()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(make_strategy(model=model, plugins=[ntk, models]), tiny_stream())
    told = [str(w.message) for w in caught if issubclass(w.category, MeasurementFailedWarning)]
    return ntk, models.at, told


def by_the_oracle(ntk, models, outputs=None):
    """Check that every measurement is there, with the right kernel and the distance to the first one."""
    x = ntk.probes["Exp000"].x
    assert [m.failure for m in ntk.trajectory] == [None] * 16
    first = None
    for m in ntk.trajectory:
        expected = reference_ntk(models[m.clock.iteration], x, outputs=outputs, dtype=None).double().numpy()
        np.testing.assert_allclose(ntk.trajectory.kernel(m.index), expected, rtol=1e-4, atol=1e-5 * expected.max())
        first = expected if first is None else first
        if m.clock.iteration:
            assert m.values["distance_init"] == pytest.approx(kernel_distance(first, expected), rel=1e-3)


def test_a_model_that_refuses_float64_is_checked_in_its_own_precision():
    ntk, models, told = trained(Casts(), spot_check_every=5, on_error="raise")
    assert told == []
    by_the_oracle(ntk, models)
    checked = {m.index: m.trust for m in ntk.trajectory if "spot_check_precision" in m.trust}
    assert list(checked) == [0, 5, 10, 15]
    for trust in checked.values():
        assert trust["spot_check_precision"] == "float32"
        assert 0 <= trust["spot_check_max_relative_error"] < 1e-5  # both are of float32
    plain, _, _ = trained(MLP(6, 4, width=8, depth=1))
    assert plain.trajectory[0].trust["spot_check_precision"] == "float64"


def test_the_check_finds_a_wrong_kernel_in_either_precision():
    x = torch.randn(4, 6)
    for model, precision in ((Casts(), "float32"), (MLP(6, 4, width=8, depth=1), "float64")):
        kernel = empirical_ntk(model, x)
        error, found = spot_check_in_double(model, x, kernel, n_entries=16)
        assert (found, error < 1e-5) == (precision, True)
        error, _ = spot_check_in_double(model, x, 1.01 * kernel, n_entries=16)
        assert error == pytest.approx(0.01, rel=1e-3)  # of an entry on the diagonal
    with pytest.raises(ValueError, match="n_entries must be a whole number of at least 1, found 0"):
        spot_check_in_double(model, x, kernel, n_entries=0)
    assert spot_check(model, x, kernel.double(), 4, dtype=torch.float32) < 1e-5


def test_a_check_that_fails_is_no_loss(monkeypatch, tmp_path):
    def fails(*arguments, **options):
        raise RuntimeError("no luck")

    monkeypatch.setattr(avalanche_ntk.kernels._generic.spot_check, "spot_check", fails)
    ntk, models, told = trained(Casts(), run_folder=tmp_path / "run")
    by_the_oracle(ntk, models)
    name = "spot_check_max_relative_error"
    assert told == [f"{name} of the NTK failed at iteration 0 and training goes on: RuntimeError: no luck {ONCE}"]
    assert [m.reasons.get(name) for m in ntk.trajectory] == ["RuntimeError: no luck"] + [None] * 15
    assert not any(key.startswith("spot_check") for key in ntk.trajectory[0].trust)
    with pytest.raises(RuntimeError, match=r"^no luck$"):
        trained(Casts(), run_folder=tmp_path / "raises", on_error="raise")
    # The measurement was recorded before training was stopped.
    (only,) = [r for r in RunFolder.open(tmp_path / "raises").records() if r["kind"] == "measurement"]
    assert only["failure"] is None and only["kernel"] is not None


def test_live_outputs_that_cannot_be_found_are_all_there_are(monkeypatch):
    calls = []

    def fails(*arguments, **options):
        calls.append(1)
        raise RuntimeError("no derivative")

    monkeypatch.setattr(avalanche_ntk.recorder.measurer, "live_outputs", fails)
    ntk, models, told = trained(MLP(6, 4, width=8, depth=1))
    by_the_oracle(ntk, models, outputs=range(4))
    assert len(calls) == 1
    assert told == [
        f"live_outputs of the NTK failed at iteration 0 and training goes on: RuntimeError: no derivative {ONCE}"
    ]
    notes = [m.notes for m in ntk.trajectory if m.notes]
    assert notes == [("it is not known which outputs depend on a parameter: all of them are kept",)]


def test_a_spectrum_that_does_not_converge(monkeypatch):
    def fails(*arguments):
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    monkeypatch.setattr(np.linalg, "eigh", fails)
    ntk, models, told = trained(MLP(6, 4, width=8, depth=1), on_error="raise")
    assert told == []
    by_the_oracle(ntk, models)
    last = ntk.trajectory[-2]
    assert last.reasons["spectral_norm"] == "the decomposition failed: Eigenvalues did not converge"
    assert "spectral_norm" not in last.values
    assert last.values["alignment"] > 0 and last.values["velocity_per_iteration"] > 0


def test_groups_whose_kernels_fail_leave_the_whole_one(monkeypatch):
    def fails(*arguments, **options):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(avalanche_ntk.recorder.measurer, "empirical_ntk_by_group", fails)
    ntk, models, told = trained(MLP(6, 4, width=8, depth=1), observe=[PerLayer(), ClassBlocks()])
    by_the_oracle(ntk, models)
    assert told == [
        f"per_layer of the NTK failed at iteration 0 and training goes on: OutOfMemoryError: no memory left {ONCE}"
    ]
    assert {m.reasons["per_layer"] for m in ntk.trajectory} == {"OutOfMemoryError: no memory left"}
    assert all("class_block[0,1]" in m.values for m in ntk.trajectory)


class Returns(Observable):
    name = "mine"

    def __init__(self, **found):
        self.found = found

    def observe(self, moment):
        return Observation(**self.found)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"values": {"a": torch.ones(3)}}, "convert"),
        ({"values": {"a": "one"}}, "could not convert string to float: 'one'"),
        (
            {"kernels": {"k": np.ones((8, 7))}},
            "ValueError: the kernel 'k' must be an array of 8 by 8 real numbers, found shape (8, 7) of float64",
        ),
        (
            {"kernels": {"k": np.ones((8, 8), complex)}},
            "ValueError: the kernel 'k' must be an array of 8 by 8 real numbers, found shape (8, 8) of complex128",
        ),
    ],
)
def test_what_a_users_observable_returns_takes_nothing_with_it(found, reason, tmp_path):
    ntk, models, told = trained(
        MLP(6, 4, width=8, depth=1), observe=[Returns(**found), ClassBlocks()], run_folder=tmp_path / "run"
    )
    by_the_oracle(ntk, models)
    assert len(told) == 1 and "mine of the NTK failed at iteration 0" in told[0]
    for m in ntk.trajectory:
        assert reason in m.reasons["mine"]
        assert "a" not in m.values and "class_block[0,1]" in m.values
    assert len(RunFolder.open(tmp_path / "run").records()) == 16 + 2 + 2


def test_numbers_of_other_kinds_are_numbers_and_what_is_none_has_its_reason(tmp_path):
    values = {"a": torch.tensor(2.0), "b": np.int64(3), "c": float("nan"), "d": True}
    kernels = {"k": torch.eye(8), "empty": np.full((8, 8), np.nan)}
    ntk, models, told = trained(
        MLP(6, 4, width=8, depth=1),
        observe=[Returns(values=values, kernels=kernels)],
        run_folder=tmp_path / "run",
        on_error="raise",
    )
    by_the_oracle(ntk, models)
    assert told == []
    last = ntk.trajectory[-1]
    assert (last.values["a"], last.values["b"], last.values["d"]) == (2.0, 3.0, 1.0)
    assert "c" not in last.values and last.reasons["c"] == "it is not a number"
    assert last.values["k.kernel_norm"] == pytest.approx(np.sqrt(8))
    assert last.reasons["empty.kernel_norm"] == "the kernel has 64 non-finite entries of 64"


def test_a_further_record_that_cannot_be_stored(tmp_path):
    found = {"values": {"a": 1.0}, "records": [{"kind": "mine", "what": object()}]}
    ntk, models, told = trained(MLP(6, 4, width=8, depth=1), observe=[Returns(**found)], run_folder=tmp_path / "run")
    by_the_oracle(ntk, models)
    assert len(told) == 1 and told[0].startswith("a further record of the NTK failed at iteration 0")
    assert [m.values["a"] for m in ntk.trajectory] == [1.0] * 16


def test_a_loader_that_does_not_know_its_length(monkeypatch):
    from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader

    def unknown(self):
        raise NotImplementedError("ask again when it is over")

    monkeypatch.setattr(TaskBalancedDataLoader, "__len__", unknown)
    ntk, models, _ = trained(MLP(6, 4, width=8, depth=1), on_error="raise")
    by_the_oracle(ntk, models)
    assert not any("velocity_per_epoch" in m.values for m in ntk.trajectory)
    reason = "the number of iterations in an epoch is not known"
    assert ntk.trajectory[-1].reasons["velocity_per_epoch"] == reason
