"""The study of plasticity: verdicts of made-up networks, its numbers from a second training, a tiny run."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.lab.models import build_model
from avalanche_ntk.observables.plasticity import Plasticity
from avalanche_ntk.recorder.probes import Probe
from avalanche_ntk.reproduce.deciding import decided
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.studies import plasticity as study
from avalanche_ntk.reproduce.studies import plasticity_claims as claims
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.training import samples
from avalanche_ntk.reproduce.verdicts import Verdict
from tests.studies.by_hand import orders

ARMS = (claims.NAIVE, *claims.REMEDIES, claims.REPEATED)
TASKS = 24


def made_up(seed):
    """What 24 tasks of one seed come to: learning gets worse along a line, and goes up and down with the seed.

    The rank of the kernel falls with both. That of the features falls with the line alone, and the number of dormant
    units rises with it. All else is drawn. Weight decay halves every loss, layer norm
    changes them by a hundredth.
    """
    draw = np.random.default_rng(seed)
    line, waves = np.linspace(0, 0.3, TASKS), draw.normal(size=TASKS) * 0.3
    badly = line + waves  # log₁₀
    arms = {claims.FRESH: {"loss": [1.0] * TASKS}, claims.FRESH_NORM: {"loss": [1.0] * TASKS}}
    for arm in ARMS:
        columns = {column: draw.normal(size=TASKS - 1) + 10 for column in claims.COLUMNS}
        columns["kernel_rank_approximate"] = -badly[1:]
        columns["feature_rank_srank"] = -line[1:]
        columns["dormant_share"] = line[1:]
        loss = 10**badly / (2 if arm == claims.DECAY else 1)
        if arm == claims.NORM:
            loss = loss * (1 + 0.01 * draw.normal(size=TASKS))
        if arm == claims.REPEATED:
            columns["trainability_area"] = np.full(TASKS - 1, 1.0)
        arms[arm] = {"loss": loss.tolist(), **{k: v.tolist() for k, v in columns.items()}}
    return arms


class Made:
    def __init__(self, seeds):
        self.seeds = seeds

    def measured(self, part):
        assert part in claims.STREAMS
        return self.seeds


@pytest.fixture(scope="module")
def judged():
    return {claim.key: decided([claim], [12], 1) for claim in claims.judge(Made([made_up(s) for s in range(12)]))}


def verdicts(claim, ending, case="permuted, ahead by one"):
    return [f.verdict for f in claim.judged if f.case == case and f.statistic.endswith(ending)]


def test_a_number_that_foretells_does_so_beyond_other_seeds(judged):
    own = "with how badly a task is learnt"
    assert verdicts(judged["kernel-rank"], own) == [Verdict.HOLDS]
    assert verdicts(judged["kernel-rank"], "minus other seeds'") == [Verdict.HOLDS]
    assert verdicts(judged["kernel-rank"], own, "permuted, ahead by five") != [Verdict.FAILS]


def test_what_follows_the_course_of_time_says_no_more_than_other_seeds(judged):
    assert verdicts(judged["feature-rank"], "minus other seeds'") == [Verdict.SAME]
    assert verdicts(judged["dormant"], "minus other seeds'") == [Verdict.SAME]
    assert judged["dormant"].verdict is Verdict.FAILS


def test_a_rank_that_says_everything_is_not_beaten_by_noise(judged):
    (rank,) = verdicts(judged["better-than-rank"], "minus that of the kernel rank")
    assert rank is Verdict.FAILS


def test_remedies_are_compared_with_plain_training(judged):
    found = {f.case: f.verdict for f in judged["remedies"].judged}
    assert found["permuted, weight decay"] is Verdict.HOLDS
    assert found["permuted, layer norm"] is Verdict.SAME


def test_a_remedy_with_the_same_numbers_changes_nothing_and_a_turned_one_does():
    seeds = [made_up(s) for s in range(12)]
    for one in seeds:
        one[claims.REPLAY] = copy.deepcopy(one[claims.NAIVE])
        turned = copy.deepcopy(one[claims.NAIVE])
        for column in claims.COLUMNS:
            turned[column] = [-v for v in turned[column]]
        one[claims.PERTURBED] = turned
    claim = decided([claims.judge(Made(seeds))[-1]], [12], 1)
    found = {f.case: f for f in claim.judged}
    assert found["relabelled, replay"].values == tuple([0.0] * 12)
    assert found["relabelled, replay"].verdict is Verdict.FAILS  # exactly alike is not less alike
    assert found["relabelled, shrink-and-perturb"].verdict is Verdict.HOLDS


def test_foretelling_is_the_correlation_with_a_later_task():
    seeds = [made_up(s) for s in range(3)]
    own, others = claims.foretelling(seeds, claims.NAIVE, "churn", 5)
    badly = [np.log10(one[claims.NAIVE]["loss"]) for one in seeds]
    table = [[spearmanr(one[claims.NAIVE]["churn"][:-4], b[5:]).statistic for b in badly] for one in seeds]
    assert own == pytest.approx([table[i][i] for i in range(3)])
    assert others[1] == pytest.approx((table[1][0] + table[1][2]) / 2)


def test_a_layer_norm_is_compared_with_a_fresh_layer_norm():
    arms = {"fresh": {"loss": [1.0]}, "fresh-layer-norm": {"loss": [10.0]}}
    arms |= {arm: {"loss": [100.0]} for arm in ("naive", "layer-norm")}
    assert (claims.learnt(arms, "naive"), claims.learnt(arms, "layer-norm")) == ([2.0], [1.0])


def test_tasks_have_the_same_pixels_in_another_order():
    x, y = torch.arange(24.0).view(6, 1, 2, 2), torch.tensor([0, 0, 1, 1, 2, 2])
    moved, labels = study.task(x, y, False, [0, 1])
    assert not torch.equal(moved, x)
    assert moved.shape == x.shape
    assert torch.equal(moved.flatten(1).sort()[0], x.flatten(1))
    order = moved[0].flatten().long()  # the first sample's pixels are their own numbers
    assert torch.equal(moved.flatten(1), x.flatten(1)[:, order])
    names = labels[::2]
    assert torch.equal(labels, names[y])
    assert sorted(names.tolist()) == [0, 1, 2]
    many = torch.arange(3).repeat_interleave(50)
    drawn = study.task(torch.zeros(150, 1, 2, 2), many, True, [0, 1])[1]
    assert {tuple(sorted(set(drawn[many == c].tolist()))) for c in range(3)} == {(0, 1, 2)}


class Hand:
    """An MLP and Adam written out: `m`, `v`, bias corrections, decay that is not in the gradient."""

    def __init__(self, a, seed, decay=0.0, norm=False):
        self.p = [p.detach().clone() for p in build_model(
            "mlp", input_shape=(1, 8, 8), n_classes=10, width=a["width"], depth=2, seed=seed).parameters()]  # fmt: skip
        self.a, self.decay, self.norm, self.t = a, decay, norm, 0
        if norm:  # scales and shifts of both hidden layers, behind the rest
            self.p += [torch.ones(a["width"]), torch.zeros(a["width"])] * 2
        self.p = [p.clone().requires_grad_() for p in self.p]
        self.m, self.v = ([torch.zeros_like(p) for p in self.p] for _ in range(2))

    def __call__(self, x):
        h = x.flatten(1)
        for i in (0, 1):
            h = h @ self.p[2 * i].T + self.p[2 * i + 1]
            if self.norm:
                h = F.layer_norm(h, h.shape[1:], self.p[6 + 2 * i], self.p[7 + 2 * i])
            h = h.clamp(min=0)
        return h @ self.p[4].T + self.p[5]

    def step(self, loss):
        self.t += 1
        for i, g in enumerate(torch.autograd.grad(loss, self.p)):
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g**2
            mean, square = self.m[i] / (1 - 0.9**self.t), self.v[i] / (1 - 0.999**self.t)
            with torch.no_grad():
                self.p[i] *= 1 - self.a["lr"] * self.decay
                self.p[i] -= self.a["lr"] * mean / (square.sqrt() + 1e-8)

    def learn(self, x, y, seed, memory=None):
        """Mean loss after each epoch."""
        batches, again = orders(len(x), self.a["batch"], seed), None
        if memory is not None:
            again = orders(len(memory[0]), self.a["batch"], seed + 1)
        losses = []
        for _ in range(self.a["epochs"]):
            for _ in range(math.ceil(len(x) / self.a["batch"])):
                chosen = next(batches)
                loss = F.cross_entropy(self(x[chosen]), y[chosen])
                if memory is not None:
                    old = next(again)
                    loss = 0.5 * loss + 0.5 * F.cross_entropy(self(memory[0][old]), memory[1][old])
                self.step(loss)
            losses.append(F.cross_entropy(self(x), y).item())
        return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def measured():
    a = {**study.parts(Context(Scale.TINY))["relabelled"], "tasks": 3, "lr": 0.02, "decay": 5.0}
    return a, study.measure(Context(Scale.TINY), a, 1)


def the_stream(a, seed):
    x, y = samples(Context(Scale.TINY), range(10), a["per_class"], seed=seed)
    return [study.task(x, y, True, [seed, number]) for number in (1, 2, 3)]


@pytest.mark.parametrize("arm", ["naive", "weight-decay", "layer-norm", "replay", "repeated", "shrink-and-perturb"])
def test_a_second_training_gives_the_same_losses(arm, measured):
    a, found = measured
    stream = the_stream(a, 1)
    hand = Hand(a, 1, decay=5.0 if arm == "weight-decay" else 0.0, norm=arm == "layer-norm")
    losses = []
    for number, (x, y) in enumerate(stream if arm != "repeated" else stream[:1] * 3):
        seed = 20_000 + 10 * number
        memory = None
        if arm == "replay" and number:
            old_x, old_y = (torch.cat(parts) for parts in zip(*stream[:number], strict=True))
            chosen = np.random.default_rng(seed).permutation(len(old_x))[: a["memory"]]
            memory = old_x[chosen], old_y[chosen]
        if arm == "shrink-and-perturb" and number:
            with torch.no_grad():
                for p, q in zip(hand.p, Hand(a, seed).p, strict=True):
                    p.copy_(0.6 * p + 0.4 * q)
        losses.append(hand.learn(x, y, seed, memory))
    assert found[arm]["loss"] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("norm", [False, True])
def test_the_untrained_network_begins_anew_at_each_task(norm, measured):
    a, found = measured
    losses = [Hand(a, 1, norm=norm).learn(x, y, 20_000 + 10 * i) for i, (x, y) in enumerate(the_stream(a, 1))]
    assert found["fresh-layer-norm" if norm else "fresh"]["loss"] == pytest.approx(losses, rel=1e-4)
    assert found["layer-norm" if norm else "naive"]["loss"][0] == pytest.approx(losses[0])


def test_the_numbers_are_those_of_the_fresh_task():
    a = study.parts(Context(Scale.TINY))["permuted"]
    model = study.network(a, (1, 8, 8), 10, 0, False)
    x, y = samples(Context(Scale.TINY), range(10), 1, seed=0)
    found = study.numbers(Plasticity(steps=2), model, Probe.from_tensors(x, y), 3)
    kernel = reference_ntk(model, x, reduction="trace").numpy()
    values = np.sort(np.linalg.eigvalsh(kernel))[::-1]
    assert found["kernel_rank_approximate"] == np.argmax(np.cumsum(values) >= 0.99 * values.sum()) + 1
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    assert found["gradient_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()), rel=1e-5)
    assert found["weight_norm"] == pytest.approx(
        float(torch.cat([p.detach().flatten() for p in model.parameters()]).norm()), rel=1e-5
    )
    assert {"feature_rank_srank", "dormant_share", "gradient_cosine", "trainability_area"} <= set(found)


def test_churn_is_the_change_in_the_last_epoch():
    a = {**study.parts(Context(Scale.TINY))["permuted"], "epochs": 3}
    x, y = samples(Context(Scale.TINY), range(10), 2, seed=0)
    other, _ = samples(Context(Scale.TINY), range(10), 1, seed=0, skip=2)
    outputs = {}
    for epochs in (2, 3):
        hand = Hand(a, 0)
        hand.a = {**a, "epochs": epochs}
        hand.learn(x, y, 7)
        outputs[epochs] = hand(other).detach()
    model = study.network(a, (1, 8, 8), 10, 0, False)
    _, churn = study.learn(model, torch.optim.Adam(model.parameters(), lr=a["lr"]), (x, y), None, other, a, 7)
    assert churn == pytest.approx(float((outputs[3] - outputs[2]).norm(dim=1).mean()), rel=1e-3)


def test_the_study_runs_from_end_to_end(smallest, tmp_path):
    outcome = smallest("plasticity")
    found = {claim.key: claim for claim in outcome.claims}
    assert [*found] == ["loses", *claims.NUMBERS, "better-than-rank", "remedies", "change"]
    assert {key: len(claim.judged) for key, claim in found.items()} == {
        "loses": 6, **dict.fromkeys(claims.NUMBERS, 8), "better-than-rank": 8, "remedies": 8, "change": 8,
    }  # fmt: skip
    values = [
        json.loads((tmp_path / "measured" / f"relabelled-seed={seed}.json").read_text())["values"] for seed in (0, 1)
    ]
    badly = [np.log10(np.divide(one["naive"]["loss"], one["fresh"]["loss"])) for one in values]
    expected = [spearmanr(one["naive"]["weight_norm"], b[1:]).statistic for one, b in zip(values, badly, strict=True)]
    assert next(f.values for f in found["weights"].judged if f.case == "relabelled, ahead by one") == pytest.approx(
        expected
    )
    assert next(f.values for f in found["loses"].judged if f.case == "relabelled") == pytest.approx(
        [b[-2:].mean() for b in badly]  # nine tasks: a quarter are two
    )
    assert (tmp_path / "figures" / "plasticity.svg").stat().st_size > 1000
