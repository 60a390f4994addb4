"""Hooks that only look are silent in a measurement; hooks that change the function are part of it."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import empirical_ntk, feature_kernel, jvp_prediction, ntk_operator, reference_ntk
from tests.support.cases import error


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


X = torch.linspace(-1, 1, 21).reshape(7, 3)

MEASUREMENTS = {
    "graph": empirical_ntk,
    "float64": functools.partial(empirical_ntk, dtype=torch.float64),
    "jacobian": functools.partial(empirical_ntk, method="jacobian"),
    "loop": functools.partial(empirical_ntk, method="loop"),
    "oracle": reference_ntk,
    "features": feature_kernel,
    "jvp": lambda m, x: jvp_prediction(m, x, {}, {"0.weight": torch.ones(8, 3)}),
    "operator": lambda m, x: ntk_operator(m, x) @ torch.ones(14),
}


class Recorder:
    """Counts calls and sums activations, in every place where a hook may do so."""

    def __init__(self):
        self.calls, self.sums, self.by_layer = 0, [], {"0": {"n": 0}}

    def __call__(self, module, *args):
        self.calls += 1
        self.by_layer["0"]["n"] += 1

    def method(self, module, args, output):
        self.sums.append(float(output.detach().sum()))
        self.calls += 1

    def state(self):
        return self.calls, list(self.sums), self.by_layer["0"]["n"]


def looking(model):
    """Register a hook of each kind on a model; return what all of them have seen."""
    recorder, seen, counter, calls = Recorder(), [], {"n": 0}, 0

    def closure(module, args, output):
        nonlocal calls
        calls += 1
        counter["n"] += 1

    def bound(where, module, args, kwargs, output):
        where.append("kwargs")

    model[0].register_forward_hook(recorder)
    model[0].register_forward_hook(recorder.method)
    model[1].register_forward_hook(closure)
    model[1].register_forward_pre_hook(lambda m, args: seen.append(float(args[0].detach().mean())))
    model.register_forward_hook(functools.partial(bound, seen), with_kwargs=True)
    model[2].register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    model[2].register_full_backward_pre_hook(lambda m, go: seen.append("backward pre"))
    return lambda: (recorder.state(), list(seen), dict(counter), calls)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_hooks_that_only_look_see_nothing_of_a_measurement(name):
    want = MEASUREMENTS[name](net(), X)
    model = net()
    state = looking(model)
    model(X).sum().backward()
    before = state()
    assert before[0][0] == 2 and before[3] == 1 and before[1].count("backward") == 1
    tables = [m._forward_hooks for m in model]
    for _ in range(3):
        assert torch.equal(MEASUREMENTS[name](model, X), want)
    assert state() == before
    assert all(m._forward_hooks is t for m, t in zip(model, tables, strict=True))
    model(X)
    assert state()[3] == 2  # they are called again


def test_hooks_see_nothing_of_a_measurement_that_fails():
    model = net()
    state = looking(model)
    model.append(nn.Linear(3, 1))
    with pytest.raises(Exception, match="the forward pass of Sequential failed"):
        empirical_ntk(model, X)
    assert state() == ((0, [], 0), [], {"n": 0}, 0)
    assert all(m._forward_hooks for m in model[:2])


class Doubled(nn.Module):
    """What the hooks below make of `net`, written out: its hidden layer counts twice."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        return self.net[2](2 * torch.tanh(self.net[0](x)))


def returns(model):
    model[1].register_forward_hook(lambda m, args, out: 2 * out)


def returns_before(model):
    model[2].register_forward_pre_hook(lambda m, args: (2 * args[0],))


def writes(model):
    def double(module, args, out):
        out *= 2  # in place: nothing is returned

    model[1] = nn.Sequential(nn.Tanh(), nn.Hardtanh(-9, 9))
    model[1].register_forward_hook(double)


def sets_the_weight(model):
    """As weight norm did by hooks: the weight is made anew at each call, from parameters that the hook reads."""
    layer = model[2]
    layer.made_from = nn.Parameter(layer.weight.detach().clone())
    del layer._parameters["weight"]
    layer.weight = layer.made_from.detach()
    layer.register_forward_pre_hook(lambda m, args: setattr(m, "weight", 2 * m.made_from))


@pytest.mark.parametrize("change", [returns, returns_before, writes, sets_the_weight])
def test_hooks_that_change_the_function_are_part_of_it(change):
    model = net()
    change(model)
    state = looking(model) if change is not writes else lambda: None
    before = state()
    want = reference_ntk(Doubled(), X)
    if change is sets_the_weight:  # the parameter counts twice, not the layer's input
        bare, doubled = net(), net()
        with torch.no_grad():
            doubled[2].weight *= 2
        want = reference_ntk(doubled, X, params=["0.*", "2.bias"]) + 4 * reference_ntk(bare, X, params="2.weight")
    for _ in range(2):
        assert error(empirical_ntk(model, X), want) <= 2e-6
    assert error(empirical_ntk(model, X, method="loop"), want) <= 2e-6
    assert state() == before


def test_a_hook_that_comes_later_is_told_apart_then():
    model = net()
    state = looking(model)
    empirical_ntk(model, X)
    handle = model[1].register_forward_hook(lambda m, args, out: 2 * out)
    assert error(empirical_ntk(model, X), reference_ntk(Doubled(), X)) <= 2e-6
    handle.remove()
    assert error(empirical_ntk(model, X), reference_ntk(net(), X)) <= 2e-6
    assert state() == ((0, [], 0), [], {"n": 0}, 0)


def test_a_hook_that_changes_another_module_is_found_by_the_outputs():
    model = net()
    scale = torch.ones(())
    model[0].register_forward_hook(lambda m, args, out: scale.fill_(2.0) and None)
    model[1].register_forward_hook(lambda m, args, out: out * scale)
    assert error(empirical_ntk(model, X), reference_ntk(Doubled(), X)) <= 2e-6


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*spectral_norm.*:FutureWarning")
def test_torchs_own_hooks_are_part_of_the_function(norm):
    model = net()
    norm(model[0])
    state = looking(model)
    model(X)
    before = state()
    for scale in (1.0, 0.5):
        with torch.no_grad():
            model[2].weight *= scale
            next(model[0].parameters()).mul_(scale)
        assert error(empirical_ntk(model, X), reference_ntk(model, X)) <= 2e-6
    assert state() == before


def test_pruned_layers():
    model = net()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    want = net()
    with torch.no_grad():
        want[0].weight *= model[0].weight_mask
    mask = model[0].weight_mask
    got = empirical_ntk(model, X, params=["2.*", "0.bias"])
    assert error(got, reference_ntk(want, X, params=["2.*", "0.bias"])) <= 2e-6
    assert mask.sum() == 12


def test_all_hooks_are_called_where_they_are_asked_to_be_kept():
    model = net()
    state = looking(model)
    want = empirical_ntk(net(), X)
    torch.testing.assert_close(empirical_ntk(model, X, hooks="keep"), want)
    (calls, _, _), seen, _, _ = state()
    assert calls > 2 and "kwargs" in seen and "backward" in seen
    with pytest.raises(ArgumentError, match="unknown hooks 'silent': expected one of 'auto', 'keep'"):
        empirical_ntk(model, X, hooks="silent")


def test_models_wrapped_for_differential_privacy():
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")
    model = net()
    want = empirical_ntk(net(), X)
    wrapped = opacus.GradSampleModule(model)
    assert torch.equal(empirical_ntk(wrapped, X), want)
    assert torch.equal(empirical_ntk(wrapped, X, params="_module.0.weight"), empirical_ntk(net(), X, params="0.weight"))
    wrapped(X.clone().requires_grad_()).sum().backward()
    grads = [p.grad_sample.clone() for p in model.parameters()]
    empirical_ntk(wrapped, X)
    assert all(torch.equal(p.grad_sample, g) for p, g in zip(model.parameters(), grads, strict=True))
