"""The study `layers`: an end-to-end run, recomputed by hand from its files, and its statistics on made-up numbers."""

import math

import pytest

from avalanche_ntk.recorder.trajectory import Measurement, Trajectory
from avalanche_ntk.reproduce.studies import layers
from tests.studies.by_hand import run_of, spike_of


def test_the_study_at_its_smallest(smallest, tmp_path):
    outcome = smallest("layers")

    every, _, trace = outcome.claims
    assert [len(claim.findings) for claim in outcome.claims] == [2 * 5, 2 * 2 + 2 * 5, 2 + 2 * 8]
    assert {finding.verdict.value for finding in every.findings if finding.verdict} == {"undecided"}
    plan = tmp_path / "sweeps" / "boundary"
    column = "layer[features.1].velocity_per_iteration"
    expected = [
        spike_of(run_of(plan, "model=mlp", seed), column) - spike_of(run_of(plan, "control_model=mlp", seed), column)
        for seed in (0, 1)
    ]
    assert every.findings[0].case == "MLP, layer 1"
    assert every.findings[0].values == pytest.approx(expected)
    at_boundary = [f for f in trace.findings if f.statistic == "share of the trace at the boundary"]
    for model in ("MLP", "CNN"):
        of_model = [f.values for f in at_boundary if f.case.startswith(model)]
        assert [sum(values) for values in zip(*of_model, strict=True)] == pytest.approx([1.0, 1.0])
    assert (tmp_path / "figures" / "layers.svg").is_file()


def test_a_number_that_rises_with_depth_in_one_seed_and_falls_in_another():
    assert layers.rises_with_depth([[1.0, 9.0, 1.0], [2.0, 3.0, 1.0], [4.0, 2.0, 1.0]])[:2] == pytest.approx(
        [1.0, -1.0]
    )
    assert layers.rises_with_depth([[1.0], [3.0], [2.0]]) == pytest.approx([0.5])


def test_a_trend_over_equal_or_undefined_numbers_is_undefined():
    assert all(map(math.isnan, layers.rises_with_depth([[1.0, math.nan], [1.0, 2.0]])))


def test_how_far_the_head_stands_apart():
    assert layers.head_apart([[1.0, 2.0], [2.0, 4.0], [0.0, 9.0]]) == [-1.5, 6.0]


def test_redistribution_is_none_for_equal_and_all_for_disjoint_shares():
    assert layers.redistribution([0.2, 0.8], [0.2, 0.8]) == 0.0
    assert layers.redistribution([1.0, 0.0], [0.0, 1.0]) == 1.0
    assert layers.redistribution([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]) == 0.25


def test_layers_come_from_the_input_to_the_output_and_the_last_is_the_head():
    trajectory = Trajectory("probe", [0, 1])
    values = {"layer[features.1].trace_share": 0.5, "kernel_norm": 1.0, "layer[classifier].trace_share": 0.5}
    trajectory.measurements.append(Measurement(0, clock=None, values=values))
    assert layers.layers_of(trajectory) == ["features.1", "classifier"]
    assert layers.called(["features.1", "features.3", "classifier"]) == ["layer 1", "layer 2", "head"]
