"""The study `architectures`: an end-to-end run, recomputed by hand from its files, and its statistics by hand."""

import math

import pytest

from avalanche_ntk.reproduce.studies import architectures
from tests.studies.by_hand import run_of, series_of, spike_of


def test_the_study_at_its_smallest(smallest, tmp_path):
    outcome = smallest("architectures")

    spike, dip, _, size = outcome.claims
    assert [len(claim.findings) for claim in outcome.claims] == [4 * 3, 4 * 2, 4 * 2, 4 + 3]
    plan = tmp_path / "sweeps" / "boundary"
    for model, title in architectures.MODELS.items():
        findings = {f.statistic: f for f in spike.findings if f.case == title}
        shifted = [spike_of(run_of(plan, f"model={model}_", seed)) for seed in (0, 1)]
        control = [spike_of(run_of(plan, f"control_model={model}_", seed)) for seed in (0, 1)]
        assert findings["spike of the velocity"].values == pytest.approx(shifted)
        assert findings["spike of the velocity minus the control's"].values == pytest.approx(
            [a - b for a, b in zip(shifted, control, strict=True)]
        )

    boundaries, series = series_of(run_of(plan, "model=vit_", 1), "spectral_norm")
    at_boundary = [v for t, v in series if t == boundaries[1]][-1]
    expected = min(v for t, v in series if t > boundaries[1]) / at_boundary
    (found,) = [f for f in dip.findings if f.case == "ViT" and f.statistic == "least λ_max over that at the boundary"]
    assert found.values[1] == pytest.approx(expected)
    assert {f.verdict is None for f in size.findings if f.statistic == "the same minus the MLP's"} == {True}
    assert (tmp_path / "figures" / "architectures.svg").is_file()


class Run:
    def __init__(self, ratio):
        self.ratio = ratio

    def reactivation(self, name):
        assert name == "ratio"
        return self.ratio


def test_the_logarithm_of_the_ratio_is_undefined_where_there_is_none():
    assert architectures.log_ratio(Run(math.e**2)) == pytest.approx(2.0)
    assert math.isnan(architectures.log_ratio(Run(0.0)))
    assert math.isnan(architectures.log_ratio(Run(math.nan)))
