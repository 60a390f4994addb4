"""The study of polynomial networks: its own statistics by hand, and a small run from end to end."""

import json
import math

import numpy as np
import pytest
import torch

from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from avalanche_ntk.reproduce.studies import pi_nets


def test_a_run_judges_what_its_files_hold(smallest, tmp_path):
    outcome = smallest("pi-nets")
    assert [claim.key for claim in outcome.claims] == ["decay", "higher", "order"]
    stored = {
        name: [json.loads((tmp_path / "measured" / f"{name}-seed={s}.json").read_text())["values"] for s in (0, 1)]
        for name in ("pi-2", "mlp-1")
    }
    difference = [
        np.mean([math.log(v / one["eigenvalues"][0]) for v in one["eigenvalues"][1:]])
        - np.mean([math.log(v / other["eigenvalues"][0]) for v in other["eigenvalues"][1:]])
        for one, other in zip(stored["pi-2"], stored["mlp-1"], strict=True)
    ]
    assert outcome.claims[1].findings[0].values == pytest.approx(difference, rel=1e-9)
    assert all(one["loss"][1] < one["loss"][0] for ones in stored.values() for one in ones)
    assert (tmp_path / "figures" / "pi-nets.svg").stat().st_size > 0


def test_a_product_is_a_product_and_its_kernel_is_exact():
    torch.manual_seed(0)
    model = pi_nets.PiNet(3, width=5, degree=3).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    layers = [torch.relu(x @ f.weight.T / math.sqrt(3) + 0.1 * f.bias) for f in model.factors]
    head = model.classifier
    product = layers[0] * layers[1] * layers[2]
    expected = 2**1.5 / math.sqrt(5) * product @ head.weight.T + 0.1 * head.bias
    assert torch.allclose(model(x), expected, atol=1e-12)
    assert torch.allclose(empirical_ntk(model, x), reference_ntk(model, x), rtol=1e-10)


def test_frequencies_of_a_stationary_kernel():
    # Θ = Σ_k c_k cos(k(θ − θ')) has the eigenvalues N c_k / 2 on cosine and sine: λ_k = c_k / 2.
    angles = 2 * math.pi * np.arange(16) / 16
    difference = angles[:, None] - angles[None, :]
    kernel = 3.0 + 4.0 * np.cos(difference) + 0.5 * np.cos(3 * difference)
    assert pi_nets.by_frequency(kernel, 4) == pytest.approx([2.0, 0.0, 0.25, 0.0], abs=1e-12)
    wave = 0.7 * np.cos(2 * angles + 1.0) - 0.1 * np.sin(3 * angles)
    assert pi_nets.amplitude(wave, 4) == pytest.approx([0.0, 0.7, 0.1, 0.0], abs=1e-12)


def test_times_and_slowdown():
    assert math.isnan(pi_nets.half_time([1.0, 0.6]))
    assert pi_nets.slowdown({"half": [2.0, 9.0, 50.0]}) == pytest.approx(math.log(25))
    assert math.isnan(pi_nets.slowdown({"half": [2.0, math.nan]}))
    assert pi_nets.slowdown({"half": [2.0, math.nan]}, censored_at=200) == pytest.approx(math.log(100))
