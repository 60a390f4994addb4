"""The study of tasks' difficulty: its statistics by hand, and one run from end to end."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from avalanche_ntk.reproduce import Verdict
from avalanche_ntk.reproduce.studies.difficulty import (
    CLASSES,
    EIGENVECTORS,
    RANDOM,
    linearised,
    mean_difference,
    tasks,
    tied,
    train,
)


def test_tied_is_the_rank_correlation_over_tasks():
    done = [{"a": 0.1, "b": 9.0}, {"a": 0.5, "b": 4.0}, {"a": 0.7, "b": 5.0}]
    assert tied(done, "a", "b") == pytest.approx(-0.5)  # ranks 1 2 3 and 3 1 2: 1 − 6·6/(3·8)
    assert math.isnan(tied([{"a": 1, "b": 1}, {"a": 2, "b": 1}], "a", "b"))


def test_a_mean_difference_is_over_the_tasks_of_one_kind():
    done = [{"kind": "x", "a": 3.0, "b": 1.0}, {"kind": "x", "a": 1.0, "b": 1.0}, {"kind": "y", "a": 99.0, "b": 0.0}]
    assert mean_difference(done, "x", "a", "b") == 1


def test_the_linearisation_in_closed_form_is_gradient_descent_on_the_outputs():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(9, 12))
    kernel = features @ features.T
    start, y, lr = 0.1 * generator.normal(size=9), np.array([1.0, -1, 1, 1, -1, -1, 1, -1, 1]), 0.05
    values, vectors = np.linalg.eigh(kernel[:6, :6])
    steps, accuracy = linearised((values, vectors), kernel[6:, :6], start, y, lr, 0.3)
    outputs, taken = start.copy(), 0
    while np.mean((outputs[:6] - y[:6]) ** 2) > 0.3:
        # f(x) changes by −η Σ_n Θ(x, x_n) ∂L/∂f(x_n), with ∂L/∂f(x_n) = 2 (f(x_n) − y_n)/N.
        outputs = outputs - lr * kernel[:, :6] @ (2 * (outputs[:6] - y[:6]) / 6)
        taken += 1
    assert taken > 3  # else nothing would be compared
    assert steps == taken
    assert accuracy == pytest.approx(np.mean(np.sign(outputs[6:]) == y[6:]))


def test_a_linearisation_that_is_right_from_the_start_takes_no_step():
    eigh = (np.array([1.0, 2.0]), np.eye(2))
    assert linearised(eigh, np.zeros((1, 2)), np.array([1.0, -1.0, 0.5]), np.array([1.0, -1.0, 1.0]), 0.1, 0.1) == (
        0,
        1,
    )


def test_training_a_linear_model_takes_the_steps_worked_out_by_hand():
    # Loss (w − 1)²: the residual shrinks by 1 − 2η = 0.8 a step, the loss by 0.64; 0.64^5 ≈ 0.107, 0.64^6 ≈ 0.069.
    def model():
        made = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(made.weight)
        return made

    assert train(model(), torch.ones(3, 1), torch.ones(3), 0.1, 0.1, 50) == (6, True)
    assert train(model(), torch.ones(3, 1), torch.ones(3), 0.1, 0.1, 6) == (6, True)
    assert train(model(), torch.ones(3, 1), torch.ones(3), 0.1, 0.1, 5) == (5, False)


def test_the_tasks_are_what_their_names_say():
    classes = np.repeat(np.arange(4), 5)
    vector = np.linspace(-1, 1, 20) + 0.3
    other = np.cos(np.arange(20.0))
    other -= vector * (vector @ other) / (vector @ vector)
    kernel = 3 * np.outer(vector, vector) / (vector @ vector) + np.outer(other, other) / (other @ other)
    made = tasks(kernel, classes, 10, {"eigenvectors": [1, 2], "flipped": [0.2], "drawn": 2}, seed=0)
    assert list(made) == [
        "eigenvector 1",
        "eigenvector 2",
        "odd",
        "upper",
        "half 1",
        "half 2",
        "odd, 20% flipped",
        "random",
    ]
    kinds = [kind for kind, _ in made.values()]
    assert kinds == [EIGENVECTORS] * 2 + [CLASSES] * 4 + [RANDOM] * 2
    labels = {name: y for name, (_, y) in made.items()}
    assert all(set(y) == {-1.0, 1.0} for y in labels.values())
    # The leading eigenvector rises with the index, or falls, as its sign is arbitrary: about its median, half and half.
    assert abs(labels["eigenvector 1"][:10].sum()) == 10 and labels["eigenvector 1"].sum() == 0
    assert labels["odd"].tolist() == [-1] * 5 + [1] * 5 + [-1] * 5 + [1] * 5
    assert labels["upper"].tolist() == [-1] * 10 + [1] * 10
    for name in ("half 1", "half 2"):
        by_class = labels[name].reshape(4, 5)
        assert (by_class == by_class[:, :1]).all() and by_class[:, 0].sum() == 0
    wrong = labels["odd, 20% flipped"] != labels["odd"]
    assert wrong[:10].sum() == 2 and not wrong[10:].any()


def test_the_study_runs_from_end_to_end(smallest, tmp_path):
    outcome = smallest("difficulty")
    assert [claim.key for claim in outcome.claims] == ["alignment", "order", "gap"]
    assert [len(claim.findings) for claim in outcome.claims] == [6, 19, 3]
    assert {claim.verdict for claim in outcome.claims} == {Verdict.OPEN}  # two seeds say nothing
    stored = [
        json.loads((tmp_path / "measured" / f"mlp-seed={seed}.json").read_text())["values"]["tasks"] for seed in (0, 1)
    ]
    for done in stored:
        assert len(done) == 8
        assert all(0 < task["alignment"] < 1 and task["linearised_steps"] > 0 for task in done)
    expected = [spearmanr([t["alignment"] for t in d], [t["network_steps"] for t in d]).statistic for d in stored]
    assert outcome.claims[1].findings[0].values == pytest.approx(expected)
    own = [[t for t in d if t["kind"] == EIGENVECTORS] for d in stored]
    gaps = [sum(t["network_accuracy"] - t["linearised_accuracy"] for t in of) / len(of) for of in own]
    assert outcome.claims[2].findings[0].values == pytest.approx(gaps)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"tasks.{kind}" for kind in ("svg", "png", "pdf")
    }
