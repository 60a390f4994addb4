"""The units of the penultimate layer while a strategy trains, against the stored models' own activations."""

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk import NTKPlugin, ProbeSpec, Schedule, ntk_metrics
from avalanche_ntk.errors import ArgumentError, UndefinedMeasureWarning
from avalanche_ntk.kernels import feature_kernel, penultimate_features
from avalanche_ntk.lab.models import MLP
from avalanche_ntk.observables import Neurons
from tests.support.lines import Models, make_strategy, run, tiny_stream


def observed(neurons):
    torch.manual_seed(0)
    models = Models()
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), observe=[neurons], on_error="raise")
    model = MLP(6, 4, width=8, depth=1, activation="tanh")
    run(make_strategy(model=model, plugins=[ntk, models], batch=8, epochs=2, lr=0.1), tiny_stream())
    return ntk, models.at


def test_columns_are_those_of_the_models_own_activations():
    ntk, models = observed(Neurons(sweeps=["Exp000"]))
    x = ntk.probes["Exp000"].x
    pairs = np.triu_indices(8, k=1)

    def units(iteration):
        with torch.no_grad():
            return models[iteration].eval().features(x).numpy().astype(float)

    for m in ntk.trajectory:
        now, before = units(m.clock.iteration), units(0 if m.clock.experience == 0 else 6)
        unit, old = now / np.linalg.norm(now, axis=0), before / np.linalg.norm(before, axis=0)
        cosines, correlations = np.abs(unit.T @ unit)[pairs], np.abs(np.corrcoef(now.T))[pairs]
        # Activations of the model are in float32.
        close = {"rel": 1e-4}
        assert m.values["neuron_similarity"] == pytest.approx(cosines.mean(), **close)
        assert m.values["neuron_similarity_max"] == pytest.approx(cosines.max(), **close)
        assert m.values["neuron_similarity_centred"] == pytest.approx(correlations.mean(), **close)
        assert m.values["neuron_similarity_max_centred"] == pytest.approx(correlations.max(), **close)
        assert m.values["neuron_tuning"] == pytest.approx((unit * old).sum(0).mean(), **close)
        own = [np.corrcoef(now[:, i], before[:, i])[0, 1] for i in range(8)]
        assert m.values["neuron_tuning_centred"] == pytest.approx(np.mean(own), **close)
        assert m.values["neurons_silent"] == 0.0
        power = np.abs(np.fft.rfft(now - now.mean(0), axis=0)[1:]) ** 2 * np.array([[2], [2], [2], [1]])
        assert m.values["neuron_period"] == np.median(8 / (1 + power.argmax(0)))
        share = power.max(0) / power.sum(0)
        assert m.values["neurons_periodic"] == np.mean((share >= 0.5) & (power.argmax(0) >= 1))
    starts = [m for m in ntk.trajectory if m.clock.event == "experience_start"]
    assert [m.values["neuron_tuning"] for m in starts] == pytest.approx([1.0, 1.0], rel=1e-12)
    assert ntk.trajectory[-1].values["neuron_tuning"] < 0.99999


def test_the_flag_asks_for_it_and_probes_that_are_no_sweeps_have_no_period():
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.boundaries_only(), on_error="raise")
    metrics = ntk_metrics(ntk, neurons=True)
    assert [o.describe() for o in ntk.observables] == [{"name": "neurons", "sweeps": []}]
    strategy = make_strategy(plugins=[ntk], metrics=[metrics])
    run(strategy, tiny_stream())
    assert "neuron_period" not in ntk.trajectory[0].values
    tags = strategy.evaluator.get_all_metrics()
    assert "NTK_NeuronTuning/train_phase/train_stream/Task000/Exp000" in tags
    assert not any(tag.startswith("NTK_NeuronPeriod") for tag in tags)


def test_training_is_as_it_was():
    from tests.support.lines import differences, fingerprint, seed_everything

    results = []
    for on in (False, True):
        seed_everything()
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), observe=[Neurons()], on_error="raise")
        strategy = make_strategy(model=MLP(6, 4, width=8, depth=1), plugins=[ntk] if on else [])
        run(strategy, tiny_stream())
        results.append(fingerprint(strategy))
    assert differences(*results) == []


def test_a_resumed_run_and_a_dead_layer_say_why():
    neurons = Neurons()
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), observe=[neurons], on_error="raise")
    model = MLP(6, 4, width=8, depth=1)
    nn.init.constant_(model.features[1].bias, -1e3)
    with pytest.warns(UndefinedMeasureWarning):  # a dead layer leaves other measures undefined too
        run(make_strategy(model=model, plugins=[ntk], batch=8, epochs=1, lr=0.0), tiny_stream())
    m = ntk.trajectory[-1]
    assert m.values["neurons_silent"] == 1.0
    assert m.reasons["neuron_similarity"] == (
        "neuron_similarity is undefined (NaN): 0 of 8 units has a direction, and a pair needs two"
    )
    assert m.reasons["neuron_tuning"] == (
        "tuning_similarity is undefined (NaN): no unit has a direction both now and before"
    )
    neurons.reset()
    assert neurons._tuning("Exp000", np.eye(3), False) == "there was no measurement at the last boundary"
    neurons.resumed({})
    assert neurons._tuning("Exp000", np.eye(3), False) == (
        "the run was resumed: the activations at the last boundary are not stored"
    )


def test_features_are_what_the_last_layer_reads():
    model = MLP(6, 4, width=5, depth=2)
    x = torch.rand(3, 6)
    h = penultimate_features(model, x)
    assert torch.equal(h, model.features(x).detach())
    assert torch.equal(h @ h.T, feature_kernel(model, x))
    assert penultimate_features(model, x, dtype=torch.float64).dtype == torch.float64


def test_sweeps_are_a_list():
    with pytest.raises(ArgumentError) as error:
        Neurons("ring")
    assert str(error.value) == "sweeps must be a list of names of probes, found the text 'ring'. Give ['ring']."
