"""Generated token sequences: chains by hand, frequencies against the chains, and models that learn them."""

import numpy as np
import pytest
import torch
from avalanche_ntk.strategies.recipes import build

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule
from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import reference_ntk
from avalanche_ntk.lab.benchmarks import class_incremental, load_data, markov_chains, markov_sequences, no_shift
from avalanche_ntk.lab.models import build_model


def message(call) -> str:
    with pytest.raises(ArgumentError) as error:
        call()
    return str(error.value)


def test_chains_are_permutations_with_uniform_noise():
    chains = markov_chains(5, vocabulary=6, noise=0.3, seed=1)
    assert chains.shape == (5, 6, 6)
    # The larger of the two values that there are stands once in every row and column.
    assert np.allclose(np.unique(chains.round(12)), [0.05, 0.75])
    for axis in (1, 2):
        assert np.array_equal((chains > 0.5).sum(axis), np.ones((5, 6)))
        assert np.allclose(chains.sum(axis), 1, rtol=1e-15)
    assert len({c.tobytes() for c in chains}) == 5


def test_every_permutation_can_be_asked_for():
    chains = markov_chains(6, vocabulary=3, noise=0.0)
    assert len({tuple(c.argmax(1)) for c in chains}) == 6


def test_sequences_of_a_chain_without_noise_follow_it():
    x, y, x_test, y_test = markov_sequences(4, per_class=9, test_per_class=5, length=7, vocabulary=5, noise=0.0, seed=3)
    chains = markov_chains(4, vocabulary=5, noise=0.0, seed=3)
    assert x.shape == (36, 7) and x_test.shape == (20, 7)
    assert {t.dtype for t in (x, y, x_test, y_test)} == {torch.int64}
    assert y.bincount().tolist() == [9] * 4 and y_test.bincount().tolist() == [5] * 4
    for tokens, labels in ((x, y), (x_test, y_test)):
        for row, c in zip(tokens.tolist(), labels.tolist(), strict=True):
            assert row[1:] == [int(chains[c, token].argmax()) for token in row[:-1]]
    assert len({tuple(row) for row in x[y == 0].tolist()}) > 1


def test_frequencies_are_those_of_the_chain_and_single_tokens_tell_nothing():
    x, y, *_ = markov_sequences(2, per_class=20_000, length=3, vocabulary=4, noise=0.4, seed=0)
    chains = markov_chains(2, vocabulary=4, noise=0.4, seed=0)
    for c in (0, 1):
        tokens = x[y == c]
        for t in range(3):
            share = tokens[:, t].bincount(minlength=4) / 20_000
            # 5 standard errors of a share of 1/4.
            assert np.allclose(share, 0.25, atol=5 * (0.25 * 0.75 / 20_000) ** 0.5)
        pairs = (4 * tokens[:, 1] + tokens[:, 2]).bincount(minlength=16).reshape(4, 4)
        found = pairs / pairs.sum(1, keepdim=True)
        # 5 standard errors of a share of at most 1/2 among 5,000.
        assert np.allclose(found, chains[c], atol=5 * (0.25 / 5_000) ** 0.5)


def test_a_class_is_the_same_among_more_classes_and_parts_are_drawn_apart():
    few, many = (markov_sequences(n, per_class=6, test_per_class=6, seed=2) for n in (2, 5))
    assert torch.equal(few[0], many[0][:12]) and torch.equal(few[2], many[2][:12])
    assert not torch.equal(few[0], few[2])
    assert not torch.equal(few[0], markov_sequences(2, per_class=6, test_per_class=6, seed=3)[0])


def test_load_data_makes_them_and_shifts_take_them():
    data = load_data("markov", n_classes=4, per_class=10, test_per_class=4, length=6, vocabulary=5, seed=7)
    assert (data.name, data.n_classes, data.input_shape) == ("markov", 4, (6,))
    assert data.train[0][0].dtype == torch.int64
    stream = class_incremental(data, 2, seed=0)
    assert [len(e.dataset) for e in stream.train_stream] == [20, 20]
    assert stream.description.sentence.startswith("class-incremental: 2 tasks of 2 classes of markov")
    control = no_shift(data, classes_per_task=2, seed=0)
    assert control.train_stream[0].classes_in_this_experience == stream.train_stream[0].classes_in_this_experience
    default = load_data("markov", seed=1)
    assert (default.n_classes, default.input_shape, len(default.train), len(default.test)) == (10, (16,), 2000, 500)


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_a_strategy_learns_them_and_the_plugin_measures_the_kernel(cell):
    data = load_data("markov", n_classes=4, per_class=60, test_per_class=20, length=8, vocabulary=4, noise=0.0, seed=0)
    stream = class_incremental(data, 2, seed=0)
    model = build_model(cell, input_shape=data.input_shape, n_classes=4, width=16, vocabulary=4, seed=0)
    ntk = NTKPlugin(ProbeSpec(size=6), Schedule.boundaries_only(), dtype=torch.float64, on_error="raise")
    strategy = build(
        "Naive",
        benchmark=stream,
        model=model,
        lr=0.01,
        epochs=20,
        mb_size=20,
        plugins=[ntk],
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        seed=0,
    )
    strategy.train(stream.train_stream[0])
    after = {n: p.detach().clone() for n, p in model.state_dict().items()}
    strategy.train(stream.train_stream[1])
    test = stream.test_stream[1].dataset
    x, y = torch.stack([row[0] for row in test]), torch.tensor([row[1] for row in test])
    model.eval()
    # Without noise one pair tells the classes apart wherever their permutations differ.
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    # The last measurement but one stands at the boundary; its kernel is the oracle's there.
    boundary = next(m for m in ntk.trajectory if m.clock.experience == 1)
    model.load_state_dict(after)
    probe = ntk.probes["Exp000"]
    expected = reference_ntk(model.double(), probe.x, reduction="trace")
    found = torch.from_numpy(ntk.trajectory.kernel(boundary.index))
    assert torch.linalg.norm(found - expected) < 1e-10 * torch.linalg.norm(expected)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: markov_chains(0), "n_classes must be an integer of at least 1, found 0. Give n_classes=1 or more."),
        (
            lambda: markov_chains(vocabulary=1),
            "vocabulary must be an integer of at least 2, found 1. Give vocabulary=2 or more.",
        ),
        (lambda: markov_chains(noise=1.0), "noise must lie in [0, 1), found 1.0. Use 0.1, for example."),
        (
            lambda: markov_chains(7, vocabulary=3),
            "each class has its own permutation of the 3 tokens and there are 6; found n_classes=7. Use"
            " n_classes=6 or less, or a larger vocabulary.",
        ),
        (
            lambda: markov_sequences(length=1),
            "length must be an integer of at least 2, found 1. Give length=2 or more.",
        ),
        (
            lambda: load_data("markov", per_class=0),
            "per_class must be an integer of at least 1, found 0. Give per_class=1 or more.",
        ),
    ],
)
def test_messages(call, expected):
    assert message(call) == expected
