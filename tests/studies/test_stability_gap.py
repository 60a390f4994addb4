"""The study of the stability gap: its statistics by hand, a tiny run, and its numbers from a second training."""

import json
import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.studies import stability_gap as study
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.training import samples
from tests.studies.by_hand import orders, unit

# 20 steps: a quarter are 5, the last tenth are 2 measurements.
ARM = {
    "accuracy": [0.9, 0.6, 0.5, 0.2, 0.7, 0.8] + [0.1] + [0.8] * 12 + [0.7, 0.9],
    "velocity": [3.0, 9.0, 2.0, 2.0, 1.0] + [0.9] + [0.09] * 14,
}


def test_the_statistics_of_one_arm():
    assert study.lowest(ARM) == 3  # the 0.1 lies behind the first quarter
    assert study.fastest(ARM) == 2
    assert study.at_end(ARM) == pytest.approx(0.8)
    assert study.gap(ARM) == pytest.approx(0.6)
    assert study.lost(ARM) == pytest.approx([0.3, 0.4, 0.7, 0.2, 0.1])
    assert study.changed(ARM) == pytest.approx([0.3, 0.1, 0.3, 0.5, 0.1])
    assert study.first_over_later(ARM) == pytest.approx(1)  # 9 over 0.9


def test_a_seed_is_compared_with_all_others():
    other = {**ARM, "accuracy": [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, *[0.5] * 15]}
    own, others = study.in_first_quarter([ARM, other, other], study.lost)
    velocity = ARM["velocity"][:5]
    mine = spearmanr(velocity, [0.3, 0.4, 0.7, 0.2, 0.1]).statistic
    theirs = spearmanr(velocity, [0.8, 0.7, 0.6, 0.5, 0.4]).statistic
    assert own == pytest.approx([mine, theirs, theirs])
    assert others == pytest.approx([theirs, (mine + theirs) / 2, (mine + theirs) / 2])
    assert math.isnan(study.in_first_quarter([ARM], study.lost)[1][0])


def test_the_study_runs_from_end_to_end(smallest, tmp_path):
    outcome = smallest("stability-gap")
    claims = {claim.key: claim for claim in outcome.claims}
    assert {key: (len(claim.judged), len(claim.findings)) for key, claim in claims.items()} == {
        "gap": (6, 24),
        "no-shift": (6, 6),
        "order": (3, 12),
        "moment": (3, 3),
        "together": (12, 18),
        "fastest": (12, 18),
    }
    arms = [
        json.loads((tmp_path / "measured" / f"cnn-seed={seed}.json").read_text())["values"]["arms"] for seed in (0, 1)
    ]

    def values(key, case, start, end=""):
        (one,) = [
            f.values
            for f in claims[key].findings
            if f.case.startswith(case) and f.statistic.startswith(start) and f.statistic.endswith(end)
        ]
        return one

    def gap(arm):  # 24 steps: a quarter are 6, the last tenth 2 measurements
        return statistics.mean(arm["accuracy"][-2:]) - min(arm["accuracy"][1:7])

    expected = [gap(one["replay"]) - gap(one["replay-fresh"]) for one in arms]
    assert values("gap", "CNN", "accuracy at the end minus", "minus the control's") == pytest.approx(expected)
    assert values("no-shift", "CNN, momentum 0.9, fresh samples, no replay", "accuracy") == pytest.approx(
        [gap(one["naive-fresh"]) for one in arms]
    )
    lags = []
    for one in arms:
        accuracy, velocity = one["replay"]["accuracy"][1:7], one["replay"]["velocity"]
        lags.append(accuracy.index(min(accuracy)) - velocity.index(max(velocity)))
    assert values("order", "CNN", "iterations from", "with replay") == pytest.approx(lags)
    assert values("moment", "CNN", "iterations between") == pytest.approx([abs(lag) for lag in lags])
    expected = [
        spearmanr(one["replay"]["velocity"][:6], np.abs(np.diff(one["replay"]["accuracy"][:7]))).statistic
        for one in arms
    ]
    name = "rank correlation over iterations of the velocity with the change of accuracy, with replay"
    assert values("together", "CNN", name, "the change of accuracy, with replay") == pytest.approx(expected)
    expected = [math.log10(max(one["naive"]["velocity"][:3]) / max(one["naive"]["velocity"][6:])) for one in arms]
    assert values("fastest", "CNN, momentum 0.9, new classes, no replay", "log", "quarter") == pytest.approx(expected)
    assert (tmp_path / "figures" / "stability-gap.svg").stat().st_size > 1000


class ByHand:
    """Minibatch descent with momentum, `b ← μ b + g`, `θ ← θ − η b`, and kernels from the oracle in float64."""

    def __init__(self, a, seed):
        self.a, self.model = a, build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=8, seed=seed)
        self.buffers = [torch.zeros_like(p) for p in self.model.parameters()]

    def step(self, loss):
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        with torch.no_grad():
            for p, b, g in zip(self.model.parameters(), self.buffers, gradients, strict=True):
                b.copy_(self.a["momentum"] * b + g)
                p -= self.a["lr"] * b

    def loss(self, x, y, chosen):
        return cross_entropy(self.model(x[chosen]), y[chosen])

    def unit_kernel(self, probe):
        return unit(reference_ntk(self.model, probe, reduction="trace").numpy())


def test_a_second_training_gives_the_same_numbers():
    context, seed = Context(Scale.TINY), 3
    a = {**study.parts(context)["mlp-momentum"], "steps": 20, "watched": 4}
    measured = study.measure(context, a, seed)["arms"]["replay"]
    x, y = samples(context, range(5), 6, seed=seed)
    x_new, y_new = samples(context, range(5, 10), 6, seed=seed)
    x_test, y_test = samples(context, range(5), 10, seed=seed, part="test")
    order = np.random.default_rng(seed).permutation(30)
    hand = ByHand(a, seed)
    batches = orders(30, 5, seed)
    for _ in range(20):
        hand.step(hand.loss(x, y, next(batches)))
    new, old = orders(30, 5, seed + 1), orders(10, 5, seed + 1000)
    remembered, probe = order[:10], x[order[10:18]]
    kernels, accuracies = [hand.unit_kernel(probe)], []
    for _ in range(4):
        replayed = remembered[next(old).numpy()]
        hand.step(0.5 * hand.loss(x_new, y_new + 5, next(new)) + 0.5 * hand.loss(x, y, replayed))
        kernels.append(hand.unit_kernel(probe))
        accuracies.append(float((hand.model(x_test).argmax(1) == y_test).double().mean()))
    distances = [1 - float(np.sum(one * then)) for one, then in pairwise(kernels)]
    assert min(distances) > 1e-6  # 1 − CKA cancels: below that it says nothing
    assert measured["velocity"] == pytest.approx(distances, rel=1e-3)
    assert measured["accuracy"][1:] == pytest.approx(accuracies)
