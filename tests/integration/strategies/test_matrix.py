"""Every strategy of Avalanche, with the plugin and without it."""

import inspect

import avalanche.training
import pytest
from avalanche.training.templates import BaseSGDTemplate
from avalanche_ntk.strategies.recipes import RECIPES

from tests.integration.strategies.cases import check_trajectory, job, plugin, plugin_for, summary
from tests.integration.strategies.scenarios import SCENARIOS
from tests.integration.strategies.unchanged import assert_training_unchanged, differences, train

pytestmark = [
    # Probes of two samples, where images are large, have no direction after centring.
    pytest.mark.filterwarnings("ignore::avalanche_ntk.errors.UndefinedMeasureWarning"),
    # What Avalanche's strategies themselves do that is deprecated, and what two of them say about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The AR1 strategy implementation is in an alpha stage:UserWarning"),
    pytest.mark.filterwarnings("ignore:This strategy is currently in the alpha stage:UserWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
    pytest.mark.filterwarnings("ignore:Plugin .* implements incompatible callbacks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Avalanche is transitioning to strategy constructors:UserWarning"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Metric .* used by the EarlyStopping plugin:UserWarning"),
]

RUNS = [name for name, recipe in RECIPES.items() if recipe.broken_because is None]
# What stands in for the pretrained weights, so that nothing is downloaded.
STAND_INS = {
    "AR1": "random weights in place of the pretrained ones",
    "ExpertGate": "a small random network, of the three parts that AlexNet has, in place of the pretrained AlexNet",
}
BROKEN = {
    "BiC": (TypeError, "MultiStepLR.__init__() got an unexpected keyword argument 'verbose'"),
}


@pytest.mark.parametrize("name", RUNS)
def test_strategy(name, compatibility):
    recipe = RECIPES[name]
    _, run = assert_training_unchanged(lambda plugins: job(name, plugins), lambda: plugin_for(name))
    check_trajectory(run)
    notes = recipe.measured + (f"; {recipe.note}" if recipe.note else "")
    if recipe.downloads:
        notes += f"; tried with {STAND_INS[name]}"
    if recipe.package:
        notes += f"; needs {recipe.package}"
    compatibility.add(name, "yes", "yes", summary(run), notes)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.broken_because])
def test_what_is_broken_without_the_plugin_is_broken_in_the_same_way_with_it(name, compatibility):
    without = train(lambda plugins: job(name, plugins))
    with_plugin = train(lambda plugins: job(name, plugins), [plugin_for(name)])
    assert (type(without.error), str(without.error)) == BROKEN[name]
    assert differences(without, with_plugin) == []
    # It is measured for as long as it runs.
    assert all(m.failure is None for m in with_plugin.plugins[0].trajectory)
    error = f"fails with `{type(without.error).__name__}: {without.error}`: {RECIPES[name].broken_because}"
    compatibility.add(
        name, "no", "yes, up to the same error", "complete until the error", f"{RECIPES[name].measured}; {error}"
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name, compatibility):
    scenario = SCENARIOS[name]
    _, run = assert_training_unchanged(scenario.make, lambda: plugin(**scenario.plugin))
    check_trajectory(run, scenario.pieces)
    compatibility.add(name, "yes", "yes", summary(run), scenario.note)


def test_every_exported_strategy_has_a_recipe():
    exported = {
        cls for _, cls in inspect.getmembers(avalanche.training, inspect.isclass) if issubclass(cls, BaseSGDTemplate)
    }
    assert len(exported) > 30
    assert sorted(cls.__name__ for cls in exported - {recipe.strategy_class for recipe in RECIPES.values()}) == []
