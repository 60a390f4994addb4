"""The study of practical widths: verdicts of made-up errors, its numbers from a second training, a tiny run."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.reproduce.deciding import decided
from avalanche_ntk.reproduce.registry import Scale
from avalanche_ntk.reproduce.studies import practical_width as study
from avalanche_ntk.reproduce.studies import practical_width_claims as claims
from avalanche_ntk.reproduce.study import Context
from avalanche_ntk.reproduce.training import samples
from avalanche_ntk.reproduce.verdicts import Verdict

SEEDS = 8
POWERS = {"standard": -0.5, "ntk": 0.0, "cnn": 0.5}
LATER = 1.5  # by which errors grow from the first loss to the second


class Made:
    """Errors of the MLP fall as the root of the width, those in NTK parametrisation stay, those of the CNN grow."""

    context = Context(Scale.SMALL, seeds=tuple(range(SEEDS)))

    def measured(self, part):
        kind, _, width = part.partition("-")
        return [self.one(kind, int(width or 256), seed) for seed in range(SEEDS)]

    def one(self, kind, width, seed):
        draw = np.random.default_rng([seed, width])
        noise = 1 + 0.02 * draw.normal()
        if kind == "head":
            error = 1e-14
        elif kind == "lazy":
            error = 0.01 * noise
        else:
            error = 0.5 * (width / 16) ** POWERS[kind] * noise
        row = {"loss": 0.5 * 0.98, "steps": 9.0, "error": error, "rise": 2.0, "rise_told": 2.0 * (1 + error)}
        row |= {"drop": 0.3, "drop_told": 0.3 + (0.1 if width < 64 and kind != "head" else 0.001) * noise}
        last = {**row, "loss": 0.1 * 0.98, "error": error * LATER}
        return {"first": [row, last], "second": [row, last], "learned": 0.9}


@pytest.fixture(scope="module")
def judged():
    return {claim.key: decided([claim], [SEEDS], 1) for claim in claims.judge(Made())}


def verdicts(claim, start):
    return {f.verdict for f in claim.judged if f.case.startswith(start)}


@pytest.mark.parametrize("key", ["from-start", "from-boundary"])
def test_errors_that_fall_stay_or_grow_with_the_width(judged, key):
    assert verdicts(judged[key], "MLP, loss") == {Verdict.HOLDS}
    assert verdicts(judged[key], "MLP in NTK") == {Verdict.SAME}
    assert verdicts(judged[key], "CNN") == {Verdict.FAILS}
    powers = next(f.values for f in judged[key].judged if f.case == "MLP, loss 0.5")
    assert np.mean(powers) == pytest.approx(-0.5, abs=0.03)


def test_the_theory_is_a_power_of_a_half(judged):
    assert verdicts(judged["as-theory"], "MLP, loss") == {Verdict.HOLDS}
    assert verdicts(judged["as-theory"], "MLP in NTK") == {Verdict.FAILS}


def test_forgetting_is_judged_by_loss_and_accuracy(judged):
    by = {(f.case, f.statistic[:5]): f.verdict for f in judged["forgetting"].judged}
    assert by["MLP, loss 0.1", "power"] is Verdict.HOLDS
    assert by["MLP, loss 0.1", "error"] is Verdict.HOLDS  # 0.1 at width 16, 0.001 at 1024
    assert by["CNN, loss 0.1", "power"] is Verdict.FAILS
    assert by["CNN, loss 0.1", "error"] is Verdict.SAME  # 0.1 throughout: its widths are all below 64


def test_what_is_close_is_asked_of_the_largest_width(judged):
    found = {(f.case, f.statistic): f.verdict for f in judged["close"].judged}
    at = "relative error, the first task, from the start"
    assert found["MLP, loss 0.5, width 1024", at] is Verdict.HOLDS  # 0.5 / 8
    assert found["MLP in NTK parametrisation, loss 0.5, width 1024", at] is Verdict.FAILS
    assert found["MLP in NTK parametrisation, loss 0.5, width 1024", "error of the drop of accuracy"] is Verdict.HOLDS


def test_the_controls(judged):
    assert judged["exact"].verdict is Verdict.HOLDS
    assert judged["matched"].verdict is Verdict.HOLDS
    assert judged["later"].verdict is Verdict.HOLDS
    assert judged["later"].judged[0].values == pytest.approx([np.log10(LATER)] * SEEDS)
    assert judged["lazier"].verdict is Verdict.HOLDS
    assert judged["forgets-less"].verdict is not Verdict.HOLDS  # the drops are the same


def test_a_loss_that_is_missed_is_not_matched():
    class Missed(Made):
        def one(self, kind, width, seed):
            found = super().one(kind, width, seed)
            if width == 1024:
                found["second"] = [found["second"][0], {**found["second"][1], "loss": 0.07 + 0.001 * seed}]
            return found

    (claim,) = [decided([c], [SEEDS], 1) for c in claims.judge(Missed()) if c.key == "matched"]
    assert [f.verdict for f in claim.judged] == [Verdict.FAILS, Verdict.FAILS, Verdict.HOLDS]  # the CNN has no 1024


def two_tasks(seed):
    context = Context(Scale.TINY)
    x, y = samples(context, range(5), 2, seed=seed)
    test, labels = samples(context, range(5), 4, seed=seed, part="test")
    new, wanted = samples(context, range(5, 10), 2, seed=seed)
    return [(x, y), (new, wanted)], test, labels


def test_a_second_training_gives_the_same_numbers():
    """Full-batch descent, and the kernel of the oracle iterated in function space, all by hand."""
    seed, losses = 3, [1.4, 1.2]
    a = {**study.parts(Context(Scale.TINY))["ntk-8"], "losses": losses}
    measured = study.measure(Context(Scale.TINY), a, seed)
    tasks, test, labels = two_tasks(seed)
    model = study.network("ntk", 8, (1, 8, 8), seed)
    for task, (x, y) in zip(("first", "second"), tasks, strict=True):

        def matrix(theta):
            n, m, c, _ = theta.shape
            return theta.double().permute(0, 2, 1, 3).reshape(n * c, m * c)

        own = matrix(reference_ntk(model, x, reduction="full"))
        cross = matrix(reference_ntk(model, test, x, reduction="full"))
        lr = len(x) / (2 * float(torch.linalg.eigvalsh(own)[-1]))
        f, before = model(x).detach().double(), model(test).detach().double()
        told, found, steps = before.clone(), [], 0
        while len(found) < len(losses):
            loss = cross_entropy(model(x), y)
            if loss.item() <= losses[len(found)]:
                after = model(test).detach().double()
                drops = [float(((z.argmax(1) == labels).double()).mean()) for z in (before, after, told)]
                rises = [float(cross_entropy(z, labels)) for z in (before, after, told)]
                found.append(
                    {
                        "loss": loss.item(),
                        "steps": steps,
                        "error": float((told - after).norm() / (after - before).norm()),
                        "rise": rises[1] - rises[0],
                        "rise_told": rises[2] - rises[0],
                        "drop": drops[0] - drops[1],
                        "drop_told": drops[0] - drops[2],
                    }
                )
                continue
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p -= lr * g
            pull = (f.softmax(1) - torch.eye(5, dtype=torch.float64)[y]).flatten() / len(x)
            told = told - lr * (cross @ pull).view_as(told)
            f = f - lr * (own @ pull).view_as(f)
            steps += 1
        for mine, theirs in zip(found, measured[task], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-3, abs=1e-5)
            assert mine["error"] > 0.01  # it is no linear model


def test_a_linear_model_is_foretold_exactly_and_a_network_is_not():
    [(x, y), _], test, labels = two_tasks(0)
    errors = []
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), study.network("standard", 8, (1, 8, 8), 0)):
        reached = study.learn(model.double(), x.double(), y, test.double(), labels, [1.0, 0.5])
        errors.append([one["error"] for one in reached])
    assert max(errors[0]) < 1e-12
    assert min(errors[1]) > 0.05


def test_of_the_head_nothing_else_is_trained():
    model = study.network("head", 8, (1, 8, 8), 0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["model.classifier.weight", "model.classifier.bias"]
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_loss_that_is_not_reached_has_no_numbers_and_no_second_task(monkeypatch):
    monkeypatch.setattr(study, "MOST_STEPS", 50)
    context = Context(Scale.SMALL, seeds=(0,))
    arguments = {"kind": "standard", "width": 8, "per_class": 2, "test": 4, "losses": [1.5, 1e-6]}
    made = study.measure(context, arguments, 0)
    reached, missed = made["first"]
    assert reached["loss"] <= 1.5 and 0 < reached["steps"] < 50
    assert {name for name, value in missed.items() if np.isnan(value)} == set(reached)
    assert all(np.isnan(value) for row in made["second"] for value in row.values())
    assert len(made["second"]) == 2


def test_a_seed_without_a_second_task_counts_in_no_case_of_it():
    """One seed of the narrowest CNN learns nothing: of every power of the CNN's width one value is undefined."""

    class Missed(Made):
        def measured(self, part):
            made = super().measured(part)
            if part == "cnn-4":
                made[3] = {"first": [study.UNREACHED] * 2, "second": [study.UNREACHED] * 2, "learned": 0.2}
            return made

    for claim in claims.judge(Missed()):
        for finding in claim.judged:
            undefined = [seed for seed, value in enumerate(finding.values) if np.isnan(value)]
            assert undefined in ([], [3] if finding.case.startswith("CNN") else [])
    found = {claim.key: claim for claim in claims.judge(Missed())}
    for key in ("matched", "from-start", "from-boundary", "forgetting", "as-theory", "forgets-less", "later"):
        lost = [f for f in found[key].judged if np.isnan(f.values).any()]
        assert {f.case[:3] for f in lost} == {"CNN"}, key


def test_the_study_runs_from_end_to_end(smallest, tmp_path):
    outcome = smallest("practical-width")
    found = {claim.key: claim for claim in outcome.claims}
    assert {key: len(claim.judged) for key, claim in found.items()} == {
        "exact": 2, "matched": 3, "from-start": 6, "from-boundary": 6, "forgetting": 12, "as-theory": 12, "close": 18,
        "forgets-less": 6, "later": 6, "lazier": 4,
    }  # fmt: skip

    def of(part, seed):
        return json.loads((tmp_path / "measured" / f"{part}-seed={seed}.json").read_text())["values"]

    # Two widths, 4 and 8: the power is that of their errors' ratio.
    expected = [
        np.log(of("standard-8", s)["second"][1]["error"] / of("standard-4", s)["second"][1]["error"]) / np.log(2)
        for s in (0, 1)
    ]
    (power,) = [f.values for f in found["from-boundary"].judged if f.case == "MLP, loss 1.2"]
    assert power == pytest.approx(expected)
    expected = [of("cnn-6", s)["second"][0]["drop"] - of("cnn-4", s)["second"][0]["drop"] for s in (0, 1)]
    (less,) = [f.values for f in found["forgets-less"].judged if f.case == "CNN, loss 1.4"]
    assert less == pytest.approx(expected)
    assert max(max(f.values) for f in found["exact"].judged) < 1e-12
    assert (tmp_path / "figures" / "practical-width.svg").stat().st_size > 1000
