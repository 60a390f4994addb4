"""The study `reactive`: an end-to-end run, recomputed by hand from its files, and its statistics by hand."""

import math
import statistics
from types import SimpleNamespace

import pytest

from avalanche_ntk.reproduce.studies import reactive
from tests.studies.by_hand import run_of, spike_of


def test_the_study_at_its_smallest(smallest, tmp_path):
    outcome = smallest("reactive")

    accuracy, _, spike, boundary = outcome.claims
    assert [len(claim.findings) for claim in outcome.claims] == [5 + 5 + 5, 5 + 5, 5 + 5, 5]
    plan = tmp_path / "sweeps" / "tasks"

    def spikes(start):
        folders = [run_of(plan, start, seed) for seed in (0, 1)]
        return [statistics.mean(spike_of(folder, experience=b) for b in range(1, 5)) for folder in folders]

    naive, drift = spikes("strategy=Naive"), spikes("strategy=KernelDrift")
    values = {f.case: f.values for f in spike.findings}
    assert values["Naive"] == pytest.approx(naive)
    assert values["KernelDrift minus Naive"] == pytest.approx([a - b for a, b in zip(drift, naive, strict=True)])
    control = spikes("control_strategy=Naive")
    assert boundary.findings[0].values == pytest.approx([a - b for a, b in zip(naive, control, strict=True)])
    assert all(0 <= v <= 1 for f in accuracy.findings if f.verdict is None for v in f.values)
    assert (tmp_path / "figures" / "reactive.svg").is_file()


def test_what_was_learned_is_the_accuracy_just_after_each_task():
    later = [(0, 5, 0.8), (1, 10, 0.1)]
    assert reactive.learned([later, [(0, 5, 0.3), (1, 10, 0.6)]]) == pytest.approx(0.7)
    assert math.isnan(reactive.learned([later, [(0, 5, 0.3)]]))


class Row:
    row = SimpleNamespace(values={"accuracy": 0.25})


def test_a_column_that_a_comparison_does_not_have_is_undefined():
    assert reactive.number("accuracy")(Row()) == 0.25
    assert math.isnan(reactive.number("spike")(Row()))
