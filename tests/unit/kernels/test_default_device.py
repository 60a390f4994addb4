"""What a measurement creates follows the model's device, whatever torch's default device and default precision are."""

import pytest
import torch

from avalanche_ntk.kernels import (
    empirical_ntk,
    feature_kernel,
    jvp_prediction,
    ntk_operator,
    reference_ntk,
    spot_check,
)
from tests.unit.kernels.test_exact import CASES, build

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def runs_elsewhere(name):
    """Whether the model itself makes tensors on the default device, which is no matter of a measurement."""
    _, model, x, _, one, _ = build(name, 2)
    want = reference_ntk(model, x, **one)
    try:
        with torch.device("meta"):
            return not torch.equal(reference_ntk(model, x, **one), want)
    except Exception:  # noqa: BLE001
        return True


OWN_DEVICE = [name for name in CASES if runs_elsewhere(name)]
NAMES = [name for name in CASES if name not in OWN_DEVICE]


def test_few_models_make_tensors_on_the_default_device():
    assert len(OWN_DEVICE) < 10, OWN_DEVICE


@pytest.mark.parametrize("name", NAMES)
def test_kernels_under_a_default_device_without_numbers(name):
    _, model, x, x2, one, two = build(name, CASES[name].n)
    for second, kwargs in ((None, one), (x2, two)):
        want = empirical_ntk(model, x, second, **kwargs)
        with torch.device("meta"):  # nothing that were made there would have numbers
            got = empirical_ntk(model, x, second, **kwargs)
        assert got.device.type == "cpu" and torch.equal(got, want)


MEASUREMENTS = {
    "jacobian": lambda m, x: empirical_ntk(m, x, method="jacobian"),
    "loop": lambda m, x: empirical_ntk(m, x, method="loop"),
    "estimate": lambda m, x: empirical_ntk(m, x, estimator="rademacher", n_projections=4),
    "blocks": lambda m, x: empirical_ntk(m, x, block=2),
    "outputs": lambda m, x: empirical_ntk(m, x, outputs=[0, 2]),
    "features": feature_kernel,
    "jvp": lambda m, x: jvp_prediction(m, x, {}, {k: p.detach() for k, p in m.named_parameters()}),
    "operator": lambda m, x: ntk_operator(m, x).top_eigenvalues(2),
    "trace of the operator": lambda m, x: torch.tensor(ntk_operator(m, x).trace(4), device="cpu"),
    "spot check": lambda m, x: torch.as_tensor(spot_check(m, x, x @ x.T, 4), device="cpu"),
}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_other_measurements_under_a_default_device_without_numbers(measure):
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)), torch.randn(5, 4)
    want = measure(model, x)
    torch.set_default_device("meta")
    try:
        got = measure(model, x)
    finally:
        torch.set_default_device(None)
    assert got.device.type == "cpu" and torch.equal(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_in_single_precision_under_a_default_of_double(name):
    _, model, x, _, one, _ = build(name, CASES[name].n)
    want = empirical_ntk(model, x, **one)
    torch.set_default_dtype(torch.float64)
    try:
        got = empirical_ntk(model, x, **one)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want)
