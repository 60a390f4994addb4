"""The registry of recipes: what it accepts, what it refuses and in which words."""

import doctest
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised.strategy_wrappers import PackNet
from avalanche_ntk.strategies import recipes
from avalanche_ntk.strategies.recipes import RECIPES, build

from avalanche_ntk import NTKPlugin, ntk_metrics
from avalanche_ntk.errors import ArgumentError, PluginError
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.lab.models import MLP
from tests.integration.strategies.cases import job, plugin_for
from tests.integration.strategies.unchanged import Job, differences, digest, generators, train

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:No loggers specified:UserWarning"),
    pytest.mark.filterwarnings("ignore:Importing from timm:FutureWarning"),
]


def test_the_example_of_the_docstring():
    assert doctest.testmod(recipes) == (0, 2)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ArgumentError) as error:
        build("EWC_onlin", benchmark=split_digits(5))
    names = ", ".join(repr(name) for name in sorted(RECIPES))
    assert str(error.value) == f"unknown strategy 'EWC_onlin': expected one of {names}. Did you mean 'EWC_online'?"


def test_a_strategy_that_makes_its_own_model_takes_no_other():
    with pytest.raises(ArgumentError) as error:
        build("AR1", benchmark=split_digits(5), model=MLP())
    assert str(error.value) == "AR1 makes its own model: expected model=None, found MLP. Leave model out."


def test_a_stream_of_the_wrong_size_is_refused():
    with pytest.raises(ArgumentError) as error:
        build("LearningToPrompt", benchmark=split_digits(5))
    assert str(error.value) == (
        "LearningToPrompt is built with a model for 6 features: expected samples of 6 numbers, found shape [1, 8, 8]. "
        "Give a stream of such samples, or model_name= for another model."
    )


def test_images_of_the_wrong_shape_are_refused():
    with pytest.raises(ArgumentError) as error:
        build("AR1", benchmark=split_digits(5))
    assert str(error.value) == (
        "AR1 is built with a model for samples of shape [3, 128, 128], found shape [1, 8, 8]. "
        "Resize the images of the stream."
    )


def test_task_labels_are_asked_for():
    with pytest.raises(ArgumentError) as error:
        build("PNN", benchmark=split_digits(5))
    assert str(error.value) == (
        "PNN learns tasks by their labels: expected a task label of its own for each of the 5 experiences, "
        "found 1 different. Make the benchmark with task_labels=True."
    )


def test_arguments_reach_the_strategy():
    own = MLP(64, 10, width=8)
    evaluator = EvaluationPlugin()
    made = build(
        "Replay",
        benchmark=split_digits(5),
        model=own,
        lr=0.3,
        epochs=2,
        mb_size=7,
        evaluator=evaluator,
        mem_size=11,
        eval_every=1,
    )
    assert made.model is own and made.evaluator is evaluator
    assert (made.train_epochs, made.train_mb_size, made.eval_every) == (2, 7, 1)
    assert [group["lr"] for group in made.optimizer.param_groups] == [0.3]
    assert next(p for p in made.plugins if type(p).__name__ == "ReplayPlugin").storage_policy.max_size == 11


def test_a_seed_makes_two_builds_alike_and_no_seed_touches_no_generator():
    benchmark = split_digits(5)
    a, b = (build("EWC", benchmark=benchmark, seed=3) for _ in range(2))
    assert digest(a.model.state_dict()) == digest(b.model.state_dict())
    before = generators()
    build("EWC", benchmark=benchmark, model=a.model)
    assert generators() == before


def test_the_callers_list_of_plugins_is_not_changed():
    mine = [NTKPlugin()]
    build("RAR", benchmark=split_digits(5), plugins=mine)
    build("LwF", benchmark=split_digits(5), plugins=mine)
    assert len(mine) == 1


def test_packnet_would_never_call_the_plugin_and_its_metrics_say_so():
    benchmark = split_digits(5, task_labels=True)
    recipe = build("PackNet", benchmark=benchmark, plugins=[NTKPlugin()])
    assert isinstance(recipe.plugins[0], NTKPlugin)
    ntk = NTKPlugin()
    model = recipe.model
    direct = PackNet(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        post_prune_epochs=1,
        prune_proportion=0.5,
        train_epochs=2,
        plugins=[ntk],
        evaluator=EvaluationPlugin(ntk_metrics(ntk)),
    )
    with pytest.raises(PluginError) as error:
        direct.train(benchmark.train_stream[0])
    assert str(error.value) == (
        "the metric NTK_SpectralNorm reads an NTKPlugin that PackNet does not have: expected that plugin among its "
        "plugins, found no NTKPlugin. Give the same object to both: plugins=[ntk] for the strategy and "
        "ntk_metrics(ntk) for the evaluator."
    )


# ---------------------------------------------------------------------- what fails, with and without the plugin


def same_error(make, ntk):
    without, with_plugin = train(make), train(make, [ntk])
    assert differences(without, with_plugin) == []
    return type(without.error), str(without.error)


def test_gss_greedy_with_a_small_memory():
    error = same_error(lambda plugins: job("GSS_greedy", plugins, mem_size=32), plugin_for("GSS_greedy"))
    with pytest.raises(ValueError) as python:  # noqa: PT011  (its wording depends on the version)
        max([])
    assert error == (ValueError, str(python.value))


def test_the_vision_transformers_of_learning_to_prompt():
    make = lambda plugins: job("LearningToPrompt", plugins, model_name="vit_base_patch16_224", use_vit=True)  # noqa: E731
    error = same_error(make, plugin_for("LearningToPrompt"))
    if importlib.util.find_spec("timm") is None:
        assert error == (
            ModuleNotFoundError,
            "timm is not found, if you want to use L2P please install avalanche with the detection dependencies: "
            "pip install avalanche-lib[l2p]",
        )
    else:
        assert error == (TypeError, "'PretrainedCfg' object is not subscriptable")


# ---------------------------------------------------------------------- the comparison itself


def test_the_comparison_sees_a_draw_a_weight_and_a_step():
    class Draws(NTKPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            super().after_training_iteration(strategy, **kwargs)
            torch.rand(1)

    class Moves(NTKPlugin):
        def before_training_exp(self, strategy, **kwargs):
            super().before_training_exp(strategy, **kwargs)
            with torch.no_grad():
                strategy.model.classifier.bias[0] += 1e-7

    class Steps(NTKPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            super().after_training_iteration(strategy, **kwargs)
            strategy.optimizer.step()

    def make(plugins):
        benchmark = split_digits(5)
        return Job(build("Naive", benchmark=benchmark, plugins=plugins, mb_size=64), benchmark.train_stream[:1])

    without = train(make)
    assert differences(without, train(make)) == []
    assert "fingerprint 0: torch generator" in differences(without, train(make, [Draws()]))
    assert "fingerprint 0: parameter classifier.bias" in differences(without, train(make, [Moves()]))
    assert "steps" in differences(without, train(make, [Steps()]))


FRESH = """
import importlib.util, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("unchanged", {path!r})
unchanged = importlib.util.module_from_spec(spec)
sys.modules["unchanged"] = unchanged
spec.loader.exec_module(unchanged)
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche_ntk import NTKPlugin, ProbeSpec, ntk_metrics
from avalanche_ntk.lab.benchmarks import split_digits
from avalanche_ntk.strategies.recipes import build

benchmark = split_digits(5)
ntk = NTKPlugin(ProbeSpec(size=4), "around_boundaries", run_folder={folder!r}, on_error="raise")
plugins = [ntk] if sys.argv[1] == "with" else []

def make(given):
    evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), *[ntk_metrics(p) for p in plugins])
    strategy = build("Replay", benchmark=benchmark, plugins=given, evaluator=evaluator, mb_size=32)
    return unchanged.Job(strategy, benchmark.train_stream[:2], benchmark.test_stream[:1])

run = unchanged.train(make, plugins)
assert run.error is None, run.error
print(unchanged.digest([run.prints, run.recorder.series]), len(ntk.trajectories))
"""


@pytest.mark.slow
def test_what_is_imported_at_the_first_measurement_draws_nothing(tmp_path):
    # In a process of its own, so that nothing was imported before: scikit-learn, for one, draws when it is.
    path = str(Path(__file__).with_name("unchanged.py"))
    code = FRESH.format(path=path, folder=str(tmp_path / "run"))
    started = [
        subprocess.Popen([sys.executable, "-c", code, which], stdout=subprocess.PIPE, text=True)
        for which in ("without", "with")
    ]
    (without, with_plugin) = (process.communicate(timeout=240)[0].split() for process in started)
    assert [process.returncode for process in started] == [0, 0]
    assert without[0] == with_plugin[0]
    assert (without[1], with_plugin[1]) == ("0", "1")
