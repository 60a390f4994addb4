"""Nothing lands on torch's default device unasked: hooks of ours in a session that sets another one.

The device `meta` holds no numbers. A tensor that is made there by mistake cannot be used beside those of the model, as
one on a GPU could not beside a model on the CPU.
"""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk.strategies import RECIPES, build, drift, memory, orthogonal, reactive, spectral
from avalanche_ntk.strategies.directions import Directions

from avalanche_ntk import NTKPlugin, Probe, Schedule
from avalanche_ntk.lab.benchmarks import split_digits
from tests.integration.strategies.unchanged import digest

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
]

OWN = [name for name, recipe in RECIPES.items() if recipe.strategy.startswith("avalanche_ntk.strategies:")]
ARGUMENTS = {"ReactivationAwareLR": {"threshold": 0.1}, "ReactivationReplay": {"threshold": 0.1, "mem_size": 8}}


def under_another_default(plugin):
    """Let every hook of a plugin run as in a session with another default device; training itself stays."""

    def wrapped(hook):
        def call(strategy, **kwargs):
            with torch.device("meta"):
                return hook(strategy, **kwargs)

        return call

    for name in dir(type(plugin)):
        if name.startswith(("before_", "after_")):
            setattr(plugin, name, wrapped(getattr(plugin, name)))


def weights(name, another_default):
    benchmark = split_digits(5)
    arguments = dict(ARGUMENTS.get(name, {}))
    samples = [benchmark.train_stream[0].dataset[i] for i in range(0, 256, 16)]  # of both classes
    probe = Probe.from_tensors(torch.stack([sample[0] for sample in samples]), [sample[1] for sample in samples])
    ntk = NTKPlugin(probe, Schedule.every_iterations(2), on_error="raise")
    if name.startswith("Reactivation"):
        arguments["ntk"] = ntk
    strategy = build(
        name,
        benchmark=benchmark,
        seed=3,
        mb_size=32,
        lr=0.05,
        plugins=[ntk],
        evaluator=EvaluationPlugin(loggers=[]),
        **arguments,
    )
    if another_default:
        for plugin in strategy.plugins:
            if type(plugin).__module__.startswith("avalanche_ntk"):
                under_another_default(plugin)
    for experience in benchmark.train_stream[:3]:
        strategy.train(experience)
    assert len(ntk.trajectory) == 18
    for plugin in strategy.plugins:
        assert sum(getattr(plugin, "replayed", [1])) > 0  # where there is replay, some of it took place
    return digest(strategy.model.state_dict())


@pytest.mark.parametrize("name", OWN)
def test_a_strategy_is_what_it_is_with_any_default_device(name, monkeypatch):
    real = memory.remember

    def remember(strategy, size, seed):
        # Torch's own data loader reads a number from a tensor that it makes on the default device.
        with torch.device("cpu"):
            return real(strategy, size, seed)

    for module in (drift, orthogonal, reactive, spectral):
        monkeypatch.setattr(module, "remember", remember)
    assert weights(name, True) == weights(name, False)


def test_the_first_directions_are_where_their_columns_are():
    shapes = {"weight": (2, 3), "bias": (2,)}
    columns = torch.randn(8, 2, dtype=torch.float64)
    stored = Directions()
    with torch.device("meta"):
        assert stored.add(columns, shapes) == 2
        assert Directions().basis({}).device.type == "cpu"
    basis = stored.basis(shapes)
    assert basis.device.type == "cpu"
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
