"""The study of many tasks: one tiny run, recomputed from what it left on disk, and its own statistics."""

import json
import math

import numpy as np
import pytest

from avalanche_ntk.recorder.runfolder import RunFolder
from avalanche_ntk.reproduce.studies import many_tasks


def folders_of(out, regime, benchmark):
    found = {}
    for path in (out / "sweeps" / "tasks" / "runs").iterdir():
        config = json.loads((path / "run.json").read_text())["meta"]["config"]
        if (config["regime"]["name"], config["benchmark"]["name"]) == (regime, benchmark):
            found[config["seed"]] = RunFolder.open(path)
    return [found[seed] for seed in (0, 1)]


def distance_at_the_end(folder):
    """`1 − CKA` between the kernels at the first boundary and at the end, by the textbook formula."""
    measured = [r for r in folder.records() if r["kind"] == "measurement"]
    starts = [r for r in measured if r["clock"]["event"] == "experience_start" and r["clock"]["experience"] == 1]
    a, b = (np.asarray(folder.load_kernel(r["kernel"])["kernel"], dtype=np.float64) for r in (starts[0], measured[-1]))
    h = np.eye(len(a)) - 1 / len(a)
    a, b = h @ a @ h, h @ b @ h
    return 1 - (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


def test_a_tiny_run_from_end_to_end(smallest):
    outcome = smallest("many-tasks")
    claims = {claim.key: claim for claim in outcome.claims}
    assert {key: len(claim.findings) for key, claim in claims.items()} == {
        "spike-decays": 2 * 2,
        "spike-stays": 2 * 3,
        "adds-up": 2 * 3,
        "settles": 2 * 2,
        "goes-back": 2 * 2,
        "rank-grows": 2 * 3,
    }
    end = next(f for f in claims["adds-up"].findings if (f.case, f.statistic) == ("rich", "distance at the end"))
    by_hand = [distance_at_the_end(folder) for folder in folders_of(outcome.out, "rich", "permuted")]
    # The textbook formula cancels: distances of 1e-3 keep some 1e-13 of their value.
    assert end.values == pytest.approx(by_hand, rel=1e-9)
    mean = next(f for f in claims["spike-stays"].findings if f.statistic == "mean spike of all boundaries, control")
    by_hand = []
    for folder in folders_of(outcome.out, "rich", "no_shift"):
        there = [r for r in folder.records() if r["kind"] == "reactivation" and r["experience"] > 0]
        assert [r["experience"] for r in there] == [1, 2, 3, 4]
        by_hand.append(np.mean([r["reactivation"]["peak"] - r["reactivation"]["base"] for r in there]))
    assert mean.values == pytest.approx(by_hand, rel=1e-12)
    for kind in ("svg", "png", "pdf"):
        assert (outcome.out / "figures" / f"boundary-by-boundary.{kind}").stat().st_size > 1000


def test_what_the_last_quarter_adds():
    # v = i: slope 1, a quarter of 16 is 4, the mean of 13 … 16 is 14.5.
    assert many_tasks.gained_late([float(i) for i in range(1, 17)]) == pytest.approx(4 / 14.5, abs=1e-14)
    assert many_tasks.gained_late([1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0]) == 0.0
    assert many_tasks.gained_late([0.0] * 6 + [3.0, 1.0]) == pytest.approx(-2 * 2 / 2, abs=1e-14)
    assert math.isnan(many_tasks.gained_late([0.0] * 8))
    assert math.isnan(many_tasks.gained_late([1.0] * 7 + [math.nan]))


def test_a_trend_is_that_of_each_seed():
    assert many_tasks.over_time([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]) == [1.0, -1.0]


def test_means_leave_out_what_is_undefined():
    assert many_tasks.means([[1.0, math.nan, 3.0], [5.0]]) == [2.0, 5.0]
    assert math.isnan(many_tasks.means([[math.nan]])[0])


def test_late_is_the_last_quarter():
    assert many_tasks.late([float(i) for i in range(19)]) == [15.0, 16.0, 17.0, 18.0]
    assert many_tasks.late([1.0, 2.0, 3.0]) == [2.0, 3.0]
    assert many_tasks.minus([2.0], [0.5]) == [1.5]
