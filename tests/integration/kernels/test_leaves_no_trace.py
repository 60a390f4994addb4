"""A measurement changes nothing, also when it fails half-way."""

import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels import (
    empirical_ntk,
    feature_kernel,
    jvp_prediction,
    ntk_operator,
    reference_jacobian,
    reference_ntk,
    spot_check,
)


class Draws(nn.Module):
    """Draws from every generator and counts in a buffer, without an effect on the output."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("table", torch.tensor([1.0, float("nan")]))
        self.fail_at, self.seen = fail_at, 0

    def forward(self, x):
        torch.rand(3)
        np.random.rand(3)
        random.random()
        self.calls += 1
        self.table = self.table.clone()
        self.seen += 1
        if self.seen == self.fail_at:
            raise RuntimeError("half-way")
        return x


def build(fail_at=None):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5), Draws(fail_at), nn.Flatten(),
        nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip
    model.train()
    model[1].eval()
    model[6].bias.requires_grad_(False)
    x = torch.randn(4, 2, 6, 6)
    model[4].fail_at = None
    model(x).sum().backward()
    model[4].fail_at, model[4].seen = fail_at, 0
    return model, x


def snapshot(model):
    npy = np.random.get_state(legacy=False)
    return {
        "params": {k: (p, p.detach().clone(), p._version, p.requires_grad) for k, p in model.named_parameters()},
        "grads": {k: (p.grad, None if p.grad is None else p.grad.clone()) for k, p in model.named_parameters()},
        "buffers": {k: (b, b.clone()) for k, b in model.named_buffers()},
        "flags": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "rng": (torch.get_rng_state(), npy["state"]["key"].copy(), npy["state"]["pos"], random.getstate()),
        "modes": (
            torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(), torch.is_inference_mode_enabled(),
            torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled(),
            torch.utils.checkpoint.CheckpointFunction.__dict__.get("apply"),
        ),
    }  # fmt: skip


def same(a, b):
    for k, (p, value, version, needed) in a["params"].items():
        q, other, version2, needed2 = b["params"][k]
        assert p is q and torch.equal(value, other) and version == version2 and needed == needed2, k
    for kind in ("grads", "buffers"):
        for k, (t, value) in a[kind].items():
            t2, value2 = b[kind][k]
            assert t is t2, k
            assert value is None or torch.allclose(value, value2, rtol=0, atol=0, equal_nan=True), k
    assert a["flags"] == b["flags"] and a["hooks"] == b["hooks"] and a["modes"] == b["modes"]
    assert torch.equal(a["rng"][0], b["rng"][0]) and np.array_equal(a["rng"][1], b["rng"][1])
    assert a["rng"][2:] == b["rng"][2:]


MEASUREMENTS = {
    "graph": lambda m, x: empirical_ntk(m, x),
    "float64": lambda m, x: empirical_ntk(m, x, dtype=torch.float64),
    "jacobian": lambda m, x: empirical_ntk(m, x, method="jacobian"),
    "loop": lambda m, x: empirical_ntk(m, x, x[:2], method="loop"),
    "oracle": lambda m, x: reference_ntk(m, x),
    "features": lambda m, x: feature_kernel(m, x),
    "jvp": lambda m, x: jvp_prediction(m, x, {}, {"6.weight": torch.ones(5, 48)}),
    "operator": lambda m, x: ntk_operator(m, x) @ torch.ones(12),
    "spot": lambda m, x: spot_check(m, x, torch.zeros(4, 4)),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_everything_is_as_it_was(name):
    model, x = build()
    before = snapshot(model)
    MEASUREMENTS[name](model, x)
    same(before, snapshot(model))


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["graph", "float64", "loop", "oracle", "features"])
def test_everything_is_as_it_was_after_a_failure(name, fail_at):
    model, x = build(fail_at)
    before = snapshot(model)
    try:
        MEASUREMENTS[name](model, x)
    except ModelError as exc:
        assert "half-way" in str(exc)
    else:  # a way that needs fewer passes, or goes on without the one that failed
        assert fail_at > 1 or name in ("loop", "features")
    same(before, snapshot(model))


def test_modes_of_the_caller_do_not_change_the_kernel_and_are_restored():
    model, x = build()
    want = empirical_ntk(model, x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = snapshot(model)
        assert torch.equal(empirical_ntk(model, x), want)
        same(before, snapshot(model))
    with torch.inference_mode():
        assert torch.equal(empirical_ntk(model, x.clone()), want)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(empirical_ntk(model, x), want)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_two_calls_in_train_mode_with_dropout_agree():
    model, x = build()
    assert torch.equal(empirical_ntk(model, x), empirical_ntk(model, x))


def test_a_measurement_in_the_middle_of_a_training_step():
    """Between forward and backward: the step's own graph still gives the same gradients."""
    grads = []
    for measure in (False, True):
        model, x = build()
        model[4] = nn.Identity()
        model.zero_grad()
        torch.manual_seed(1)
        loss = model(x).square().sum()
        if measure:
            empirical_ntk(model, x)
            empirical_ntk(model, x, dtype=torch.float64)
        loss.backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_shared_modules_come_back_in_their_own_precision():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    held = layer.weight
    empirical_ntk(model, torch.randn(2, 3), dtype=torch.float64)
    assert layer.weight is held and layer.weight.dtype == torch.float32


def test_recurrent_layers_keep_their_flat_weights():
    model = nn.LSTM(3, 4, batch_first=True)
    held = model._flat_weights
    last = {"output_selector": lambda y: y[0][:, -1]}
    empirical_ntk(nn.Sequential(model), torch.randn(2, 5, 3), dtype=torch.float64, **last)
    assert model._flat_weights is held and all(a is b for a, b in zip(held, model.parameters(), strict=True))


class MadeAtFirstCall(nn.Module):
    """Makes a parameter, a buffer and a layer when it is called first."""

    def __init__(self):
        super().__init__()
        self.layer, self.gain = nn.Linear(4, 4), None

    def forward(self, x):
        if self.gain is None:
            self.gain, self.out = nn.Parameter(torch.randn(4).to(x)), nn.Linear(4, 2).to(x)
            self.register_buffer("shift", torch.ones(4).to(x))
        return self.out(self.layer(x) * self.gain + self.shift)


@pytest.mark.parametrize("way", ["graph", "float64", "jacobian", "loop", "features", "oracle"])
def test_what_is_made_at_the_first_call_is_left_to_training(way):
    torch.manual_seed(0)
    model, x = MadeAtFirstCall(), torch.randn(4, 4)
    MEASUREMENTS[way](model, x)
    assert model.gain is None and set(dict(model.named_parameters())) == {"layer.weight", "layer.bias"}
    assert not model._buffers and set(model._modules) == {"layer"}
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(1)
    other = MadeAtFirstCall()
    other.layer.load_state_dict(model.layer.state_dict())
    torch.manual_seed(1)
    assert torch.equal(first, other(x)) and model.gain.dtype == torch.float32


class Remembers(nn.Module):
    """Keeps its last features, and counts its calls, as plain attributes."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.last = nn.Linear(4, 3), 0, None

    def forward(self, x):
        self.calls, self.last, self.new = self.calls + 1, self.layer(x), x
        return self.last


@pytest.mark.parametrize("way", [*MEASUREMENTS])
def test_what_a_forward_pass_sets_on_its_module_is_as_it_was(way):
    model, x = build()
    model[4], model[6] = Remembers(), nn.Linear(3, 5)
    model[3], model[5] = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), nn.Identity()
    if way == "jvp":

        def run(m, x):
            return jvp_prediction(m, x, {}, {"6.weight": torch.ones(5, 3)})
    else:
        run = MEASUREMENTS[way]
    run(model, x)
    assert model[4].calls == 0 and model[4].last is None and not hasattr(model[4], "new")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("way", [k for k in MEASUREMENTS if k != "jvp"])
def test_weights_made_by_hooks_come_back(norm, way):
    model = nn.Sequential(nn.Flatten(), norm(nn.Linear(72, 4)), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(4, 2, 6, 6)
    model(x)
    before, value = model[1].weight, model[1].weight.detach().clone()
    MEASUREMENTS[way](model, x)
    assert model[1].weight is before and torch.equal(before, value)


@pytest.mark.parametrize("way", ["graph", "float64", "jacobian", "loop", "oracle", "features", "spot", "operator"])
def test_embeddings_that_rescale_their_rows_do_not_during_a_measurement(way):
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=0.5), nn.Flatten(), nn.Linear(12, 3))
    x = torch.randint(9, (4, 3))
    before = model[0].weight.detach().clone()
    MEASUREMENTS[way](model, x)
    assert torch.equal(model[0].weight, before)
    model(x)
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_cached_parametrisations_are_neither_used_nor_replaced(with_gradients):
    model, x = (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 2)),
        torch.randn(4, 4),
    )
    want = reference_ntk(model, x)
    with parametrize.cached():
        with torch.set_grad_enabled(with_gradients):
            model(x)
        before = model[0].weight
        assert torch.allclose(empirical_ntk(model, x, dtype=torch.float64), want, rtol=1e-10)
        assert model[0].weight is before
    with parametrize.cached():
        empirical_ntk(model, x, dtype=torch.float64)
        assert model[0].weight.dtype == torch.float32


def test_autocast_in_the_model_is_off_during_a_measurement_and_on_again_after_it():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)

        @torch.autocast("cpu", dtype=torch.bfloat16)
        def forward(self, x):
            y = self.a(x)
            kinds.append(y.dtype)
            return y.float()

    kinds = []
    model, x = Half(), torch.randn(5, 4)
    kernel = empirical_ntk(model, x)
    assert set(kinds) == {torch.float32}
    assert torch.allclose(kernel, 3 * (x @ x.T + 1), rtol=1e-5)
    model(x)
    assert kinds[-1] == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_modules_compiled_to_torchscript_stay_in_train_mode():
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 2)).train())
    x = torch.randn(4, 4)
    assert torch.allclose(empirical_ntk(model, x).double(), reference_ntk(model, x), rtol=1e-5)
    assert all(m.training for m in model.modules())


def test_models_made_in_inference_mode_are_measured():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
        model[1].running_mean.normal_()
    x = torch.randn(4, 4)
    want = reference_ntk(model, x)
    assert torch.allclose(empirical_ntk(model, x).double(), want, rtol=1e-5)
    assert torch.allclose(empirical_ntk(model, x, dtype=torch.float64), want, rtol=1e-10)
    v = torch.randn(4, dtype=torch.float64)
    operator = ntk_operator(model, x, reduction="trace", dtype=torch.float64)
    assert torch.allclose(operator @ v, want @ v, rtol=1e-10)
    assert feature_kernel(model, x).shape == (4, 4)
    delta = {"0.weight": torch.randn(5, 4)}
    moved = jvp_prediction(model, x, {}, delta, dtype=torch.float64)
    assert torch.allclose(moved, reference_jacobian(model, x, params="0.weight") @ delta["0.weight"].double().flatten())
    assert jvp_prediction(model, x, {}, delta).shape == (4, 2)
    assert all(p.is_inference() for p in model.parameters())


def test_nothing_is_kept_alive():
    import gc
    import weakref

    model, x = build()
    empirical_ntk(model, x)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_measurements_of_different_models_in_threads():
    model, _ = build()
    model[4] = nn.Identity()
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(4)]
    y = torch.randn(5, 3)
    wanted = [reference_ntk(m, y) for m in models]
    found = [None] * 4

    def work(i):
        for _ in range(3):
            found[i] = empirical_ntk(models[i], y, dtype=torch.float64)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.allclose(f, w, rtol=1e-12) for f, w in zip(found, wanted, strict=True))


def test_importing_kernels_imports_no_avalanche():
    code = (
        "import sys, avalanche_ntk.kernels;"
        "print([m for m in sys.modules if m == 'avalanche' or m.startswith('avalanche.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    proof = code.replace("avalanche_ntk.kernels", "avalanche_ntk.kernels, types; sys.modules['avalanche'] = types")
    done = subprocess.run([sys.executable, "-c", proof], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['avalanche']"


class Writes(nn.Module):
    def forward(self, x):
        return x.mul_(2)


@pytest.mark.parametrize("name", [n for n in MEASUREMENTS if n not in ("jvp", "operator")])
def test_a_model_that_writes_into_its_input_does_not_change_the_probe(name):
    model, x = build()
    model = nn.Sequential(Writes(), *model)
    held = x.clone()
    MEASUREMENTS[name](model, x)
    assert torch.equal(x, held)


@pytest.mark.parametrize("method", ["auto", "jacobian", "loop"])
def test_a_model_that_writes_into_its_input_is_measured_right(method):
    model = nn.Sequential(Writes(), nn.Linear(3, 2, bias=False))
    x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0]])
    # f(x) = 2Wx with two outputs: the trace kernel is 2·4·XXᵀ
    assert torch.equal(empirical_ntk(model, x, method=method), 8 * x @ x.T)
