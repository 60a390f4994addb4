"""The study of strategies: one tiny run, recomputed by hand from what it left on disk, and its own statistics."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from avalanche_ntk.lab.models import build_model
from avalanche_ntk.reproduce import Context
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.studies import strategies


def records(folder):
    return [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]


def folder_of(out, plan, seed, strategy, benchmark):
    found = []
    for folder in (out / "sweeps" / plan / "runs").iterdir():
        config = json.loads((folder / "run.json").read_text())["meta"]["config"]
        if (config["seed"], config["strategy"]["name"], config["benchmark"]["name"]) == (seed, strategy, benchmark):
            found.append(folder)
    assert len(found) == 1
    return found[0]


def spike_of(folder):
    there = [r["reactivation"] for r in records(folder) if r["kind"] == "reactivation" and r["experience"] == 1]
    return there[0]["peak"] - there[0]["base"]


def test_a_tiny_run_from_end_to_end(smallest):
    outcome = smallest("strategies")
    claims = {claim.key: claim for claim in outcome.claims}
    # Three strategies: two movements with and without PackNet; two beside Naive, and each one's own numbers.
    assert {key: len(claim.findings) for key, claim in claims.items()} == {
        "moves-less": 4,
        "spikes-less": 4,
        "forget-less": 2 + 3 + 3,
        "naive-spikes-most": 2 + 2,
        "shift-seen": 4,
    }
    replay = next(f for f in claims["naive-spikes-most"].findings if f.case == "Replay" and f.verdict is not None)
    by_hand = [
        spike_of(folder_of(outcome.out, "strategies", seed, "Replay", "permuted"))
        - spike_of(folder_of(outcome.out, "strategies", seed, "Naive", "permuted"))
        for seed in (0, 1)
    ]
    assert replay.values == pytest.approx(by_hand, rel=1e-12)
    # What PackNet has learned of the first task is fixed: it forgets nothing, and its kernel stands still.
    forgotten = next(f for f in claims["forget-less"].findings if f.case == "PackNet" and f.verdict is None)
    assert forgotten.values == (0.0, 0.0)
    for seed in (0, 1):
        there = [
            r["reactivation"]
            for r in records(folder_of(outcome.out, "packnet", seed, "PackNet", "permuted"))
            if r["kind"] == "reactivation" and r["experience"] == 1
        ]
        assert (there[0]["moved"], there[0]["path"], there[0]["peak"]) == (0.0, 0.0, 0.0)
    for kind in ("svg", "png", "pdf"):
        assert (outcome.out / "figures" / f"forgetting-and-movement.{kind}").stat().st_size > 1000


def test_the_order_of_strategies_is_compared_seed_by_seed():
    forgetting = [[0.4, 0.4, 0.4], [0.1, 0.1, 0.4], [0.3, 0.3, 0.4], [0.2, 0.2, 0.4]]
    moved = [[8.0, 1.0, 1.0], [1.0, 9.0, 2.0], [4.0, 2.0, 3.0], [2.0, 2.0, 4.0]]
    first, second, third = strategies.order_shared(forgetting, moved)
    assert first == 1.0
    # With ties: Pearson's correlation of the ranks, 2 and 3 taken as 2.5 each.
    assert second == pytest.approx(np.corrcoef([4, 1, 3, 2], rankdata([1, 9, 2, 2]))[0, 1], abs=1e-12)
    assert math.isnan(third)  # all forget alike
    assert math.isnan(strategies.order_shared([[0.1], [0.2]], [[math.nan], [1.0]])[0])


def test_differences_are_taken_seed_by_seed():
    assert strategies.minus([3.0, 1.0], [1.0, 2.0]) == [2.0, -1.0]


def test_packnets_network_begins_as_that_of_the_others():
    own = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=16, depth=2, seed=3)
    name = f"{strategies.packed_mlp.__module__}:packed_mlp"
    packed = build_model(name, input_shape=(1, 8, 8), n_classes=10, width=16, depth=2, seed=3)
    x = torch.rand(5, 1, 8, 8)
    assert torch.equal(packed(x, torch.zeros(5, dtype=torch.long)), own(x))


def test_every_strategy_but_packnet_has_a_control():
    plan = strategies.plans(Context(Scale.SMALL))
    assert [run["strategy.name"] for run in plan["strategies"]["runs"]] == [
        name for name in strategies.NAMES if name != "PackNet"
    ]
    assert plan["strategies"]["control"] == {"benchmark.name": "no_shift"}
    assert plan["packnet"]["base"]["strategy"]["name"] == "PackNet"
    assert plan["packnet"]["base"]["benchmark"] == plan["strategies"]["base"]["benchmark"]
