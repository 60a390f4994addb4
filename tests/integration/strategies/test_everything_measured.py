"""Everything that the plugin can measure at once, on every strategy: training is still what it was."""

import pytest
from avalanche_ntk.strategies.recipes import RECIPES

from avalanche_ntk import ProbeSpec, Schedule
from avalanche_ntk.observables import (
    BufferShare,
    ClassBlocks,
    FeatureKernel,
    KernelRegression,
    Linearisation,
    PerLayer,
    StaticKernelForecast,
    TaskOverlap,
)
from tests.integration.strategies.cases import HEAVY, job, plugin
from tests.integration.strategies.test_matrix import RUNS
from tests.integration.strategies.test_matrix import pytestmark as _marks
from tests.integration.strategies.unchanged import assert_training_unchanged

pytestmark = [*_marks, pytest.mark.filterwarnings("ignore::avalanche_ntk.errors.NTKWarning")]

# One of each kind of model in an ordinary run; the others behave as these do.
ORDINARY = {"Replay", "GDumb", "CWRStar", "ICaRL", "PackNet", "PNN", "LaMAML", "StreamingLDA", "VAETraining"}
# PackNet's layers wrap the weights of a linear layer and never call it.
CANNOT = {"PackNet": {"feature_kernel"}}


def everything(name):
    return plugin(
        probe=[ProbeSpec(size=6), ProbeSpec(size=6, split="test"), ProbeSpec(size=4, from_experience=1)],
        schedule=Schedule.every_iterations(8),
        output_selector=RECIPES[name].output_selector,
        spot_check_every=1,
        observe=[
            BufferShare(),
            ClassBlocks(),
            FeatureKernel(),
            KernelRegression(),
            Linearisation(),
            PerLayer(),
            StaticKernelForecast(size=8),
            TaskOverlap(),
        ],
        on_error="warn",
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ORDINARY else [pytest.mark.slow]) for n in RUNS if n not in HEAVY],
)
def test_training_is_bit_identical_with_everything_measured(name):
    _, run = assert_training_unchanged(lambda plugins: job(name, plugins), lambda: everything(name))
    ntk = run.plugins[0]
    failed = set()
    for trajectory in ntk.trajectories.values():
        assert [m.failure for m in trajectory if m.failure] == []
        for m in trajectory:
            failed |= {o.name for o in ntk.observables if o.name in m.reasons}
            # The oracle, in double precision, agrees with the kernel of every measurement.
            assert m.trust["spot_check_max_relative_error"] < 1e-3
    assert failed == CANNOT.get(name, set())


@pytest.mark.parametrize("name", ["PNN", "LaMAML", "PackNet"])
def test_the_probe_of_a_task_without_a_head_waits_for_its_task(name):
    _, run = assert_training_unchanged(lambda plugins: job(name, plugins), lambda: everything(name))
    first, second = (run.plugins[0].trajectories[p] for p in ("Exp000", "Exp001"))
    assert next(m.clock.experience for m in first) == 0
    assert next(m.clock.event for m in second) == "experience_start"
    assert {m.clock.experience for m in second} == {1}


def test_a_change_of_parameters_is_noted_for_every_probe():
    _, run = assert_training_unchanged(lambda plugins: job("LFL", plugins), lambda: everything("LFL"))
    note = "trainable parameters gone: classifier.bias, classifier.weight"
    for trajectory in run.plugins[0].trajectories.values():
        assert [m.clock.experience for m in trajectory if note in m.notes] == [1]
