"""Training with the plugin is bit-identical to training without it."""

import pytest
import torch
from avalanche.training import Naive, Replay
from avalanche.training.plugins import SupervisedPlugin

from avalanche_ntk import NTKPlugin, Probe, ProbeSpec, Schedule, ntk_metrics
from tests.support.lines import (
    BatchNormCNN,
    BatchRecorder,
    DropoutMLP,
    differences,
    fingerprint,
    make_strategy,
    run,
    seed_everything,
    step_hooks,
    tiny_stream,
)

MODELS = {"MLP with dropout": (DropoutMLP, (6,)), "CNN with BatchNorm": (BatchNormCNN, (1, 6, 6))}
STRATEGIES = {"Naive": (Naive, {}), "Replay": (Replay, {"mem_size": 10})}


def noisy(x):
    # A training transform that draws random numbers: an extra draw anywhere would change every later batch.
    return x + 0.1 * torch.randn_like(x)


def trained(model, strategy, with_ntk):
    model_class, shape = MODELS[model]
    strategy_class, arguments = STRATEGIES[strategy]
    seed_everything()
    benchmark = tiny_stream(n_experiences=2, shape=shape, transform=noisy)
    recorder = BatchRecorder()
    plugins, metrics = [recorder], []
    ntk = NTKPlugin(
        [ProbeSpec(size=8), ProbeSpec(size=4, from_experience=1)], Schedule.every_iterations(1), on_error="raise"
    )
    if with_ntk:
        plugins, metrics = [ntk, recorder], [ntk_metrics(ntk)]
    result = make_strategy(model=model_class(), plugins=plugins, metrics=metrics, strategy=strategy_class, **arguments)
    run(result, benchmark)
    if with_ntk:
        assert len(ntk.trajectory) >= 16  # the comparison must have measured something
    return {**fingerprint(result), "batches": recorder.batches}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("model", MODELS)
def test_training_is_bit_identical(model, strategy):
    assert differences(trained(model, strategy, False), trained(model, strategy, True)) == []


def test_the_comparison_can_fail():
    a, b = trained("MLP with dropout", "Naive", False), trained("MLP with dropout", "Naive", False)
    b["state"]["net.0.weight"][0, 0] += 1e-7
    b["batches"][3][0] += 1
    assert differences(a, b) == ["/state/net.0.weight", "/batches/3/0"]


def test_a_failing_measurement_does_not_disturb_either(monkeypatch):
    import avalanche_ntk.recorder.measurer

    def fails(*args, **kwargs):
        torch.randn(3)  # a failure half way through has drawn numbers already
        raise torch.OutOfMemoryError("no memory left")

    plain = trained("MLP with dropout", "Naive", False)
    monkeypatch.setattr(avalanche_ntk.recorder.measurer, "empirical_ntk", fails)
    seed_everything()
    benchmark = tiny_stream(transform=noisy)
    recorder = BatchRecorder()
    ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1))
    strategy = make_strategy(model=DropoutMLP(), plugins=[ntk, recorder], metrics=[ntk_metrics(ntk)])
    with pytest.warns(UserWarning, match="a measurement of the NTK failed at iteration 0 and training goes on"):
        run(strategy, benchmark)
    assert differences(plain, {**fingerprint(strategy), "batches": recorder.batches}) == []
    assert {m.failure for m in ntk.trajectory} == {"OutOfMemoryError: no memory left"}


def test_the_hooks_on_steps_are_gone_after_training():
    seen = []

    class Looks(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            seen.append(step_hooks())

    ntk = NTKPlugin(Probe.from_tensors(torch.randn(4, 6), [0, 0, 1, 1]))
    run(make_strategy(plugins=[ntk, Looks()]), tiny_stream())
    assert seen == [2] * 12
    assert step_hooks() == 0


def test_users_hooks_see_the_same_with_and_without_the_plugin():
    """A forward hook, one on a tensor's gradient, and one on a module's backward pass."""

    def seen(with_ntk, hooks):
        seed_everything()
        model, found = DropoutMLP(), []
        model.net[0].register_forward_hook(lambda module, inputs, output: found.append(output.detach().clone()))
        model.net[1].register_full_backward_hook(lambda module, ins, outs: found.append(outs[0].detach().clone()))
        model.net[3].weight.register_hook(lambda gradient: found.append(gradient.detach().clone()))
        ntk = NTKPlugin(ProbeSpec(size=8), Schedule.every_iterations(1), on_error="raise", hooks=hooks)
        run(make_strategy(model=model, plugins=[ntk] if with_ntk else []), tiny_stream(transform=noisy))
        assert not with_ntk or len(ntk.trajectory) >= 16
        return found

    without, beside = seen(False, None), seen(True, None)
    assert len(without) == len(beside)
    assert all(torch.equal(a, b) for a, b in zip(without, beside, strict=True))
    assert len(seen(True, "keep")) > len(without)  # the comparison can fail
