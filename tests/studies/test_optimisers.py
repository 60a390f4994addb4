"""The study of optimisers: its statistics by hand, a tiny run, and Adam's numbers from a second training."""

import json
import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import reference_jacobian
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.studies import optimisers as study
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.training import samples
from tests.studies.by_hand import orders, unit


def one(before, new, fresh):
    """One optimiser's plain series, measured every 10 iterations."""

    def series(values):
        return {"time": [10 * i for i in range(1, len(values) + 1)], "plain": values}

    return {"first": series(before), "new": series(new), "fresh": series(fresh)}


def test_spike_and_ratio_are_above_the_controls():
    # The base is the median of the second half's two, 1e-3; the first three decide: 8e-3 and 2e-3.
    made = one([0.5, 0.4, 1e-3, 1e-3], [1e-3, 8e-3, 2e-3, 0.9], [2e-3, 1e-3, 1e-3, 0.9])
    assert study.above_fresh(made, "plain", "spike", 40) == pytest.approx(6e-3)
    assert study.above_fresh(made, "plain", "ratio", 40) == pytest.approx(math.log10(4))


def test_the_study_runs_from_end_to_end(smallest, tmp_path):
    outcome = smallest("optimisers")
    claims = {claim.key: claim for claim in outcome.claims}
    assert {key: (len(claim.judged), len(claim.findings)) for key, claim in claims.items()} == {
        "matched": (6, 33),
        "spike": (18, 27),
        "adam": (6, 12),
        "seen": (12, 24),
        "order": (12, 12),
    }
    measured = [json.loads((tmp_path / "measured" / f"tanh-seed={s}.json").read_text())["values"] for s in (0, 1)]

    def spike(optimiser, kind):
        first, new, fresh = (optimiser[name][kind] for name in ("first", "new", "fresh"))
        ends = optimiser["first"]["time"]
        rest = [v for t, v in zip(ends, first, strict=True) if t - 2 >= ends[-1] / 2 and math.isfinite(v)][-10:]
        base = statistics.median(rest)
        return (max(new[:3]) - base) - (max(fresh[:3]) - base)

    def values(key, case, start):
        (found,) = [f.values for f in claims[key].findings if f.case == case and f.statistic.startswith(start)]
        return found

    spikes = [{name: spike(of[name], "plain") for name in study.OPTIMISERS} for of in measured]
    seen = [spike(of["Adam"], "seen") for of in measured]
    assert values("spike", "MLP, tanh, momentum", "spike") == pytest.approx([s["momentum"] for s in spikes])
    assert values("adam", "MLP, tanh, Adam", "spike") == pytest.approx([s["Adam"] - s["SGD"] for s in spikes])
    (found,) = [
        f.values
        for f in claims["seen"].judged
        if f.case == "MLP, tanh, Adam, kernel seen, as it is" and f.statistic.startswith("spike")
    ]
    assert found == pytest.approx(seen)
    agreed = [
        spearmanr([s["SGD"], s["momentum"], s["Adam"]], [s["SGD"], s["momentum"], with_p]).statistic
        for s, with_p in zip(spikes, seen, strict=True)
    ]
    name = "rank correlation over optimisers of the spike"
    assert values("order", "MLP, tanh, kernel seen, as it is", name) == pytest.approx(agreed)
    off = [abs(math.log10(of["Adam"]["loss"] / of["SGD"]["loss"])) for of in measured]
    assert values("matched", "MLP, tanh, Adam", "|log") == pytest.approx(off)
    assert all(of[name]["loss"] <= 0.5 for of in measured for name in study.OPTIMISERS)
    assert all(of["SGD"][arm]["seen"] == of["SGD"][arm]["plain"] for of in measured for arm in ("first", "new"))
    assert (tmp_path / "figures" / "optimisers.svg").stat().st_size > 1000


class AdamByHand:
    """Kingma & Ba's algorithm 1 with its bias corrections, and kernels from the oracle's Jacobian."""

    def __init__(self, a, seed):
        self.lr = a["lr"]["Adam"]
        model = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, width=16, activation="tanh", seed=seed)
        self.model, self.t = model.double(), 0
        self.m, self.v = ([torch.zeros_like(p) for p in model.parameters()] for _ in range(2))

    def step(self, x, y):
        self.t += 1
        gradients = torch.autograd.grad(cross_entropy(self.model(x), y), list(self.model.parameters()))
        for p, m, v, g in zip(self.model.parameters(), self.m, self.v, gradients, strict=True):
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.999 * v + 0.001 * g**2)
            with torch.no_grad():
                p -= self.lr * m / (1 - 0.9**self.t) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)

    def weights(self):
        return torch.cat([1 / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8).flatten() for v in self.v])

    def jacobian(self, probe):
        return reference_jacobian(self.model, probe)


def unit_of(jacobian, weights):
    return unit(torch.einsum("ncp,p,mcp->nm", jacobian, weights, jacobian).numpy())


def test_a_second_training_with_adam_gives_the_same_numbers():
    context, seed = Context(Scale.TINY), 3
    a = {**study.parts(context)["tanh"], "most_steps": 8, "watched": 4, "loss": 0.0}
    measured = study.measure(context, a, seed)["Adam"]
    x, y = samples(context, range(5), 6, seed=seed)
    x_new, y_new = samples(context, range(5, 10), 6, seed=seed)
    x, x_new = x.double(), x_new.double()
    probe = x[torch.randperm(30, generator=torch.Generator().manual_seed(seed))[:8]]
    hand = AdamByHand(a, seed)
    moments = []  # Jacobian and P after each interval of two steps
    for inputs, labels, steps, batches in (
        (x, y, 8, orders(30, 5, seed)),
        (x_new, y_new + 5, 4, orders(30, 5, seed + 1)),
    ):
        for i in range(steps):
            chosen = next(batches)
            hand.step(inputs[chosen], labels[chosen])
            if i % 2:
                moments.append((hand.jacobian(probe), hand.weights()))
        if inputs is x:
            assert measured["loss"] == pytest.approx(float(cross_entropy(hand.model(x), y).detach()), rel=1e-9)

    def distance(one, other):
        return (1 - float(np.sum(one * other))) / 2  # over two iterations

    ones = torch.ones_like(moments[0][1])
    plain = [distance(unit_of(a, ones), unit_of(b, ones)) for (a, _), (b, _) in pairwise(moments)]
    seen = [distance(unit_of(a, p), unit_of(b, q)) for (a, p), (b, q) in pairwise(moments)]
    held = [distance(unit_of(a, p), unit_of(b, p)) for (a, p), (b, _) in pairwise(moments)]
    assert min(*plain, *seen, *held) > 1e-7  # 1 − CKA cancels: below that it says nothing
    for kind, expected in (("plain", plain), ("seen", seen), ("held", held)):
        assert [*measured["first"][kind], *measured["new"][kind]][1:] == pytest.approx(expected, rel=1e-6), kind
    assert math.isnan(measured["first"]["seen"][0]) and math.isfinite(measured["first"]["plain"][0])
