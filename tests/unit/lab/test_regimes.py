"""Regimes: what each promises of the kernel's motion, and the wrapper that centres and scales a model's outputs."""

import io
import math
import pickle
import re

import numpy as np
import pytest
import torch
from avalanche_ntk.strategies.recipes import build
from torch import nn

from avalanche_ntk.errors import ArgumentError, ModelError
from avalanche_ntk.kernels import empirical_ntk, feature_kernel, reference_ntk
from avalanche_ntk.lab.benchmarks import load_data
from avalanche_ntk.lab.models import MLP, MODELS, NTKLinear, build_model
from avalanche_ntk.lab.regimes import REGIMES, CentredScaled, build_regime, kaiming_uniform_
from avalanche_ntk.measures import kernel_distance
from tests.support.lines import tiny_stream
from tests.support.places import DOCS

WIDTHS = (64, 128, 256, 512, 1024)
SEEDS = range(4)
SHAPE = {"input_shape": (1, 8, 8), "n_classes": 5}


def message(call, kind=ArgumentError) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits")
    few = data.train_labels < 5
    return data.train.x[few].double(), data.train_labels[few]


def motion(digits, regime, seed, *, steps, activation="tanh", **arguments) -> float:
    """Kernel distance between initialisation and the end of `steps` minibatches of 64, on 32 digits."""
    x, y = digits
    prepared = build_regime(regime, **SHAPE, activation=activation, seed=seed, **arguments)
    model, optimizer = prepared.model.double(), prepared.optimizer()
    before = empirical_ntk(model, x[:32])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kernel_distance(before, empirical_ntk(model, x[:32]))


def curve(values, digits, name, regime, **arguments) -> list[float]:
    """Log of S, averaged over seeds, for each value of the argument `name`."""
    return [
        float(np.mean([math.log(motion(digits, regime, seed, **{name: value}, **arguments)) for seed in SEEDS]))
        for value in values
    ]


def slope(values, logs) -> float:
    return float(np.polyfit(np.log(values), logs, 1)[0])


# What each promises. S is quadratic in the relative motion of the kernel, which is of order 1/width (Dyer & Gur-Ari
# 2020; Huang & Yau 2020) or 1/α (Chizat et al. 2019) when lazy: −2. Slopes of single seeds scatter by some 0.25, so
# that the mean over four has a standard error of about 0.12; 0.5 is four of them.


def test_lazy_by_ntk_parametrisation(digits):
    logs = curve(WIDTHS, digits, "width", "ntk", base_lr=0.1, steps=10)
    assert slope(WIDTHS, logs) == pytest.approx(-2, abs=0.5)


def test_lazy_by_learning_rate(digits):
    # In standard parametrisation the first layer's part of the kernel does not grow with width, as the others do; it
    # fades only beyond width 128, and until then S falls faster. The rate itself shows from there on.
    logs = curve(WIDTHS, digits, "width", "lazy", base_lr=0.03, steps=10)
    assert slope(WIDTHS, logs) < -1.5
    assert slope(WIDTHS[2:], logs[2:]) == pytest.approx(-2, abs=0.5)


def test_lazy_by_output_scale(digits):
    # At fixed width the rate is exact to first order in 1/α, and seeds share it: their slopes scatter by 0.03.
    alphas = (4, 16, 64, 256)
    logs = curve(alphas, digits, "alpha", "centred", width=64, base_lr=0.1, steps=10)
    assert slope(alphas, logs) == pytest.approx(-2, abs=0.1)


@pytest.mark.parametrize(
    ("regime", "arguments"),
    [
        # λ_max grows with width, and is beyond 2/η from the start: the kernel has to move for the loss to fall.
        ("rich", {"base_lr": 0.3, "steps": 20}),
        # The scale of the outputs falls as 1/√width, so that features have to move by the same amount at any width.
        ("mean_field", {"base_lr": 0.5, "steps": 20}),
    ],
)
def test_rich_kernels_keep_moving(digits, regime, arguments):
    # Corrections at width 64 still make a slope of −0.15 for mean_field; the lazy −2 is far away.
    assert slope(WIDTHS, curve(WIDTHS, digits, "width", regime, **arguments)) > -0.4


@pytest.mark.slow
def test_relu_flips_make_the_lazy_rate_slower(digits):
    # For small motions the flips of single units dominate: of order width^(1/2) of them, with random signs, each worth
    # 1/width, so a relative motion of width^(−3/4) and S of width^(−3/2). Single seeds scatter by 0.4.
    logs = curve(WIDTHS, digits, "width", "ntk", base_lr=0.03, steps=10, activation="relu")
    assert slope(WIDTHS, logs) == pytest.approx(-1.5, abs=0.5)


# How they are made


def test_learning_rates_and_scales():
    def made(regime, **arguments):
        return build_regime(regime, **SHAPE, base_lr=0.2, **arguments)

    assert made("lazy", width=256).lr == pytest.approx(0.2 * 64 / 256)
    assert made("lazy", width=256, base_width=128).lr == pytest.approx(0.1)
    assert made("rich", width=256).lr == made("ntk", width=256).lr == 0.2
    assert made("centred", width=32, alpha=10.0).lr == pytest.approx(0.002)
    mean_field = made("mean_field", width=400, alpha=2.0)
    assert mean_field.model.alpha == pytest.approx(0.1) and mean_field.lr == pytest.approx(20)
    assert mean_field.sentence == ("NTK parametrisation, outputs s (f(θ) − f(θ_0)) with s = 2/√width = 0.1, η = 0.2/s²")
    assert made("lazy", width=256).sentence == "standard parametrisation, η = 0.2 · 64/width"
    optimizer = made("rich", width=8).optimizer(momentum=0.9)
    assert optimizer.defaults["lr"] == 0.2 and optimizer.defaults["momentum"] == 0.9


def test_parametrisation_and_seed():
    for regime in REGIMES:
        first, again, other = (build_regime(regime, **SHAPE, width=8, seed=s).model for s in (0, 0, 1))
        has_ntk = any(isinstance(m, NTKLinear) for m in first.modules())
        assert has_ntk == (regime in ("ntk", "mean_field"))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert not torch.equal(next(first.parameters()), next(other.parameters()))
    before = torch.get_rng_state()
    build_regime("rich", **SHAPE, width=8)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("activation", "nonlinearity"), [("relu", "relu"), ("tanh", "tanh"), ("identity", "linear"), ("gelu", "relu")]
)
def test_kaiming_uniform_is_torchs(activation, nonlinearity):
    model = kaiming_uniform_(
        build_model("cnn", input_shape=(2, 8, 8), n_classes=3, width=4), activation, torch.Generator().manual_seed(7)
    )
    generator = torch.Generator().manual_seed(7)
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert len(layers) == 4
    for layer in layers:
        expected = nn.init.kaiming_uniform_(
            torch.empty_like(layer.weight), nonlinearity=nonlinearity, generator=generator
        )
        assert torch.allclose(layer.weight, expected) and not layer.bias.any()


# The wrapper


@pytest.mark.parametrize("name", sorted(MODELS))
def test_outputs_are_centred_and_scaled_and_so_is_the_kernel(name):
    model = build_model(name, input_shape=(1, 8, 8), n_classes=3, width=4, seed=0).double().eval()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    wrapped = CentredScaled(model, 3.0)
    before = model(x).detach()
    # Fused and plain attention differ by rounding.
    assert wrapped(x).abs().max() < 1e-14
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    assert torch.allclose(wrapped(x), 3 * (model(x) - before), atol=1e-13)
    expected = 9 * reference_ntk(model, x)
    assert torch.linalg.norm(reference_ntk(wrapped, x) - expected) < 1e-12 * torch.linalg.norm(expected)
    got, info = empirical_ntk(wrapped, x, return_info=True)
    assert torch.linalg.norm(got - expected) < 1e-12 * torch.linalg.norm(expected)
    assert not {"jacobian", "loop"} & set(info.methods.values())


def test_a_batch_norm_model_is_0_at_first_in_both_modes():
    wrapped = CentredScaled(build_model("resnet18", input_shape=(1, 8, 8), n_classes=3, width=2, seed=0), 5.0)
    for _ in range(3):
        assert not wrapped.train()(torch.rand(8, 1, 8, 8)).any()
    assert not wrapped.eval()(torch.rand(8, 1, 8, 8)).any()


def test_the_initial_parameters_travel_with_the_module():
    wrapped = CentredScaled(build_model("mlp", input_shape=(4,), n_classes=2, width=3), 2.0)
    assert len(list(wrapped.parameters())) == len(list(wrapped.buffers())) == 6
    with torch.no_grad():
        wrapped.model.classifier.bias.add_(1)
    x = torch.rand(3, 4)
    assert torch.allclose(wrapped(x), torch.full((3, 2), 2.0))
    fresh = CentredScaled(build_model("mlp", input_shape=(4,), n_classes=2, width=3), 2.0)
    fresh.load_state_dict(wrapped.state_dict())
    assert torch.equal(fresh(x), wrapped(x))
    assert torch.equal(pickle.loads(pickle.dumps(wrapped))(x), wrapped(x))
    buffer = io.BytesIO()
    torch.save(wrapped.state_dict(), buffer)
    assert wrapped.double()(x.double()).dtype == torch.float64


def test_strategies_train_it():
    benchmark = tiny_stream()
    prepared = build_regime("centred", input_shape=(6,), n_classes=4, width=16, alpha=4.0, base_lr=0.1)
    strategy = build("EWC", benchmark=benchmark, model=prepared.model, lr=prepared.lr, mb_size=8, epochs=3)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    x = torch.stack([row[0] for row in benchmark.train_stream[1].dataset])
    y = torch.tensor([int(row[1]) for row in benchmark.train_stream[1].dataset])
    assert (prepared.model(x).argmax(1) == y).float().mean() > 0.8


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x)


def test_a_head_that_grew_is_refused():
    model = Growing()
    wrapped = CentredScaled(model, 1.0)
    model.head = nn.Linear(3, 4)
    assert message(lambda: wrapped(torch.ones(5, 3)), ModelError) == (
        "the outputs of Growing have shape (5, 4) and had (5, 2) at initialisation: expected the same. Give the model"
        " its final number of outputs before it is wrapped."
    )


def test_dropout_is_refused():
    expected = (
        "module '{}' ({}) has dropout 0.5: expected a model that gives the same output twice, since its outputs at"
        " initialisation are subtracted. Set it to 0."
    )
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    assert message(lambda: CentredScaled(model, 1.0), ModelError) == expected.format("1", "Dropout")
    attention = nn.MultiheadAttention(4, 2, dropout=0.5)
    assert message(lambda: CentredScaled(attention, 1.0), ModelError) == expected.format("model", "MultiheadAttention")
    CentredScaled(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)), 1.0)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: build_regime("lasy", **SHAPE),
            "unknown regime 'lasy': expected one of 'centred', 'lazy', 'mean_field', 'ntk', 'rich'. Did you mean"
            " 'lazy'?",
        ),
        (
            lambda: build_regime("lazy", **SHAPE),
            "regime 'lazy' scales the learning rate with width and needs to know it, found width=None. Give width, and"
            " a model that has one.",
        ),
        (
            lambda: build_regime("mean_field", **SHAPE),
            "regime 'mean_field' scales the learning rate with width and needs to know it, found width=None. Give"
            " width, and a model that has one.",
        ),
        (
            lambda: build_regime("rich", **SHAPE, base_lr=-1.0),
            "base_lr must be a positive number, found -1.0. Give base_lr=1, for example.",
        ),
        (
            lambda: build_regime("centred", **SHAPE, alpha=0),
            "alpha must be a positive number, found 0. Give alpha=1, for example.",
        ),
        (
            lambda: build_regime("rich", **SHAPE, parametrisation="ntk"),
            "a regime sets the parametrisation itself, found parametrisation='ntk'. Leave it out, or use build_model.",
        ),
        (
            lambda: build_regime("ntk", "torchvision:resnet18", **SHAPE),
            "model 'torchvision:resnet18' has no argument 'parametrisation': it accepts none of these. Leave it out, "
            "or use a model that has it.",
        ),
        (
            lambda: kaiming_uniform_(nn.Sequential(NTKLinear(2, 2))),
            "Kaiming initialisation belongs to the standard parametrisation, found a layer in NTK parametrisation."
            " Build the model with parametrisation='standard'.",
        ),
        (
            lambda: CentredScaled(nn.Linear(1, 1), math.inf),
            "alpha must be a positive number, found inf. Use 1 for the model's own scale.",
        ),
    ],
)
def test_messages(call, expected):
    assert message(call) == expected


def test_the_examples_of_the_laboratory_run():
    text = (DOCS / "laboratory.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 5
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/laboratory.md", "exec"), names)
    tasks = [set(map(int, e.dataset.targets)) for e in names["stream"].train_stream]
    assert [len(task) for task in tasks] == [2, 2] and tasks[0] | tasks[1] == {0, 1, 2, 3}
    sequences = torch.stack([names["stream"].train_stream[0].dataset[i][0] for i in range(3)])
    assert names["reader"](sequences).shape == (3, 4)
    assert names["prepared"].lr == pytest.approx(0.1 * 64 / 512)
    first, second = (names[n].train_stream[0].dataset for n in ("shifted", "control"))
    assert list(first.targets) == list(second.targets)


def test_features_of_a_centred_model_are_those_of_the_model_not_of_its_start():
    torch.manual_seed(0)
    inner = MLP(4, 2, width=5, depth=1)
    centred = CentredScaled(inner, alpha=2.0)
    x = torch.randn(6, 4)
    at_start = feature_kernel(centred, x)
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.allclose(feature_kernel(centred, x), feature_kernel(inner, x))
    assert not torch.allclose(feature_kernel(centred, x), at_start)
