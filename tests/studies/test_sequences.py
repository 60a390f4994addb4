"""The study `sequences`: an end-to-end run, recomputed by hand from its files, and its statistics by hand."""

import json

import pytest

from avalanche_ntk.reproduce.studies import sequences
from tests.studies.by_hand import run_of, spike_of


def accuracies(folder):
    """The accuracy on the first task's test set after each experience, from the run folder's records."""
    records = [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]
    tags = [
        {tag: v for tag, v in r["values"].items() if tag.startswith("Top1_Acc_Exp/") and tag.endswith("Exp000")}
        for r in records
        if r["kind"] == "evaluation"
    ]
    return [next(iter(found.values())) for found in tags if found]


def test_the_study_at_its_smallest(smallest, tmp_path):
    outcome = smallest("sequences")

    spike, _, _, forgetting = outcome.claims
    assert [len(claim.findings) for claim in outcome.claims] == [2 * 2 * 2, 2 * 2 * 2, 2 * 2 * 2, 2 * 2]
    plan = tmp_path / "sweeps" / "boundaries"
    for boundary in (1, 2):
        case = [f for f in spike.findings if f.case == f"GRU, boundary {boundary}"]
        shifted = [spike_of(run_of(plan, "model=gru_", seed), experience=boundary) for seed in (0, 1)]
        control = [spike_of(run_of(plan, "control_model=gru_", seed), experience=boundary) for seed in (0, 1)]
        assert case[1].values == pytest.approx(shifted)
        assert case[0].values == pytest.approx([a - b for a, b in zip(shifted, control, strict=True)])
    lost = []
    for seed in (0, 1):
        shifted, control = (accuracies(run_of(plan, f"{start}model=rnn_", seed)) for start in ("", "control_"))
        lost.append((shifted[0] - shifted[-1]) - (control[0] - control[-1]))
    (found,) = [f for f in forgetting.findings if f.case == "plain RNN" and f.verdict is not None]
    assert found.values == pytest.approx(lost)
    assert (tmp_path / "figures" / "sequences.svg").is_file()


class Run:
    class run:
        @staticmethod
        def accuracies(experience):
            assert experience == 0
            return [(0, 10, 0.9), (1, 20, 0.4), (2, 30, 0.1)]


def test_what_is_forgotten_is_counted_from_the_end_of_the_first_task():
    assert sequences.forgetting(Run()) == pytest.approx(0.8)
