"""Every strategy of this package: the same seed, the same run; a checkpoint goes on as if never stopped."""

import doctest
import random
import re
import subprocess
import sys

import avalanche_ntk.strategies
import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche_ntk.strategies import RECIPES, build, directions, drift, linearised, orthogonal, reactive, spectral

from avalanche_ntk.adapters.checkpoints import load_checkpoint, save_checkpoint
from avalanche_ntk.lab.benchmarks import split_digits
from tests.integration.strategies.scenarios import growing
from tests.integration.strategies.unchanged import Job, digest, train
from tests.support.lines import tiny_stream
from tests.support.places import DOCS

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
]

OWN = [name for name, recipe in RECIPES.items() if recipe.strategy.startswith("avalanche_ntk.strategies:")]
# A low threshold, so that it is passed.
ARGUMENTS = {"ReactivationAwareLR": {"threshold": 0.1, "restart": 2.0}, "ReactivationReplay": {"threshold": 0.1}}


def test_every_strategy_of_ours_has_a_recipe():
    exported = [getattr(avalanche_ntk.strategies, name) for name in avalanche_ntk.strategies.__all__]
    ready = {cls.__name__ for cls in exported if isinstance(cls, type) and issubclass(cls, SupervisedTemplate)}
    assert ready == set(OWN)
    assert len(OWN) == 8
    assert {name: RECIPES[name].strategy_class.__name__ for name in OWN} == {name: name for name in OWN}


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError) as error:
        _ = avalanche_ntk.strategies.OGDD
    assert str(error.value) == (
        "module 'avalanche_ntk.strategies' has no attribute 'OGDD'; it offers "
        + ", ".join(sorted(avalanche_ntk.strategies.__all__))
    )


def test_importing_the_package_imports_neither_torch_nor_avalanche():
    code = "import sys, avalanche_ntk.strategies; print({'torch', 'avalanche'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def made(name, benchmark, **arguments):
    return build(
        name, benchmark=benchmark, seed=3, mb_size=8, lr=0.05, epochs=8, **ARGUMENTS.get(name, {}), **arguments
    )


@pytest.mark.parametrize("name", OWN)
def test_the_same_seed_makes_the_same_run(name):
    states = []
    for _ in range(2):
        benchmark = tiny_stream(3)
        strategy = made(name, benchmark)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        states.append(digest(strategy.model.state_dict()))
    assert states[0] == states[1]


@pytest.mark.parametrize("name", OWN)
def test_it_does_something(name):
    states = []
    for which in (name, "Naive"):
        benchmark = tiny_stream(3)
        strategy = made(which, benchmark)
        for experience in benchmark.train_stream:
            strategy.train(experience)
            states.append(digest(strategy.model.state_dict()))
    assert states[0] == states[3]  # the first task is trained as ever
    assert states[2] != states[5]


def seeded():
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


@pytest.mark.parametrize("name", OWN)
def test_a_checkpoint_goes_on_as_if_never_stopped(name, tmp_path):
    benchmark = tiny_stream(3)
    whole = made(name, benchmark)
    for experience in benchmark.train_stream[:2]:
        whole.train(experience)
    save_checkpoint(whole, tmp_path / "checkpoint")
    seeded()
    whole.train(benchmark.train_stream[2])
    loaded, trained = load_checkpoint(made(name, benchmark), tmp_path / "checkpoint")
    assert trained == 2
    seeded()
    loaded.train(benchmark.train_stream[2])
    assert loaded.model is not whole.model
    assert digest(loaded.model.state_dict()) == digest(whole.model.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(loaded.model(x), whole.model(x))


@pytest.mark.parametrize("name", OWN)
def test_it_trains_a_head_that_grows(name):
    benchmark = split_digits(5)

    def make(plugins):
        strategy = build(name, benchmark=benchmark, model=growing(), plugins=plugins, mb_size=64, lr=0.05)
        return Job(strategy, list(benchmark.train_stream)[:3], benchmark.test_stream)

    run = train(make)
    assert run.error is None
    assert all(torch.isfinite(p).all() for p in run.strategy.model.parameters())
    assert isinstance(run.strategy.evaluator, EvaluationPlugin)


def test_the_code_of_the_documentation_runs():
    text = (DOCS / "strategies.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert type(names["strategy"]).__name__ == "KernelDrift"


@pytest.mark.parametrize("module", [directions, drift, linearised, orthogonal, reactive, spectral])
def test_the_examples_of_the_docstrings(module):
    assert doctest.testmod(module).failed == 0
