"""Models: every formula against torch's own layers or by hand, every kernel against the oracle."""

import inspect
import math

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from avalanche_ntk.errors import ArgumentError
from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from avalanche_ntk.lab.models import (
    ACTIVATIONS,
    CNN,
    MLP,
    MODELS,
    RNN,
    SECOND_MOMENTS,
    NTKConv2d,
    NTKLinear,
    ResNet18,
    ViT,
    build_model,
    weight_scale,
    width_sweep,
)

DOUBLE = torch.float64


def message(call) -> str:
    with pytest.raises(ArgumentError) as error:
        call()
    return str(error.value)


def x_of(*shape, dtype=DOUBLE):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


# What each model computes


def test_mlp_draws_and_names_its_weights_as_a_plain_sequence_of_linear_layers():
    torch.manual_seed(3)
    model = MLP(6, 3, width=5, depth=2)
    torch.manual_seed(3)
    plain = [nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)]
    names = ["features.1", "features.3", "classifier"]
    state = model.state_dict()
    assert list(state) == [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    for name, layer in zip(names, plain, strict=True):
        assert torch.equal(state[f"{name}.weight"], layer.weight)
        assert torch.equal(state[f"{name}.bias"], layer.bias)
    x = x_of(2, 1, 2, 3, dtype=torch.float32)
    expected = plain[2](F.relu(plain[1](F.relu(plain[0](x.flatten(1))))))
    assert torch.equal(model(x), expected)


def test_mlp_signature_keeps_what_callers_use():
    named = inspect.signature(MLP).parameters
    assert {n: named[n].default for n in ("in_features", "n_classes", "width", "depth")} == {
        "in_features": 64,
        "n_classes": 10,
        "width": 256,
        "depth": 2,
    }
    assert named["width"].kind is named["depth"].kind is inspect.Parameter.KEYWORD_ONLY


def test_mlp_of_depth_0_is_linear():
    model = MLP(4, 2, depth=0).to(DOUBLE)
    x = x_of(3, 4)
    assert torch.allclose(model(x), x @ model.classifier.weight.T + model.classifier.bias)


def test_ntk_mlp_by_hand():
    model = MLP(4, 2, width=3, depth=2, parametrisation="ntk", activation="tanh").to(DOUBLE)
    w1, b1, w2, b2, w3, b3 = (p.detach() for p in model.parameters())
    sigma = 0.3942944904**-0.5
    x = x_of(5, 4)
    h1 = torch.tanh(x @ w1.T / math.sqrt(4) + 0.1 * b1)
    h2 = torch.tanh(sigma * h1 @ w2.T / math.sqrt(3) + 0.1 * b2)
    assert torch.allclose(model(x), sigma * h2 @ w3.T / math.sqrt(3) + 0.1 * b3, rtol=1e-9)


def test_ntk_layers_draw_standard_normal_parameters():
    # 4 standard errors of a mean and of a variance of 10,000 normal numbers.
    for layer in (NTKLinear(100, 100), NTKConv2d(4, 100, 5)):
        weight = layer.weight.detach().flatten()
        assert abs(weight.mean()) < 4 / 100
        assert abs(weight.var() - 1) < 4 * math.sqrt(2) / 100


def test_ntk_convolution_by_hand():
    layer = NTKConv2d(2, 3, 3, stride=2, padding=1, sigma_w=1.5, sigma_b=0.2).to(DOUBLE)
    x = x_of(2, 2, 5, 5)
    expected = F.conv2d(x, layer.weight * 1.5 / math.sqrt(2 * 9), 0.2 * layer.bias, stride=2, padding=1)
    assert torch.allclose(layer(x), expected)
    assert repr(layer) == "NTKConv2d(2, 3, kernel_size=3, stride=2, scale=0.3536)"
    assert repr(NTKLinear(4, 2, bias=False)) == "NTKLinear(4, 2, bias=False, scale=0.5)"


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_second_moments_by_quadrature(name):
    # Gauss–Legendre at each side of 0, where some have kinks; beyond 12 the density is 1e-32.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    z, w = np.concatenate([6 * nodes - 6, 6 * nodes + 6]), 6 * np.concatenate([weights, weights])
    expected = (w * ACTIVATIONS[name]()(torch.tensor(z)).numpy() ** 2 * np.exp(-(z**2) / 2)).sum() / math.sqrt(
        2 * math.pi
    )
    assert SECOND_MOMENTS[name] == pytest.approx(expected, rel=1e-9)
    assert weight_scale(name) == pytest.approx(1 / math.sqrt(expected), rel=1e-9)


def test_wide_ntk_network_has_the_analytic_kernel():
    # One hidden ReLU layer: Θ = σ_w² κ₁ + σ_b² + σ_w² κ₀ Σ₀ (Jacot et al. 2018 with Cho & Saul 2009), for each output.
    d, c, sigma_b = 6, 2, 0.1
    x = x_of(4, d) - 0.3
    model = MLP(d, c, width=20_000, depth=1, parametrisation="ntk").to(DOUBLE)
    s = x @ x.T / d + sigma_b**2
    norm = s.diagonal().sqrt()
    angle = (s / (norm[:, None] * norm)).clamp(-1, 1).arccos()
    k1 = norm[:, None] * norm / (2 * math.pi) * (angle.sin() + (math.pi - angle) * angle.cos())
    k0 = (math.pi - angle) / (2 * math.pi)
    expected = c * (2 * k1 + sigma_b**2 + 2 * k0 * s)
    # Fluctuations are of order width^(−1/2) = 0.7 %; 4 %, for some five of them.
    assert torch.allclose(empirical_ntk(model, x), expected, rtol=0.04)


def test_cnn_by_hand():
    model = CNN(2, 3, width=4, depth=3, pools=1, activation="gelu").to(DOUBLE)
    a, b, c = (m for m in model.features if isinstance(m, nn.Conv2d))
    x = x_of(2, 2, 6, 6)
    h = F.avg_pool2d(F.gelu(F.conv2d(x, a.weight, a.bias, padding=1)), 2)
    h = F.gelu(F.conv2d(F.gelu(F.conv2d(h, b.weight, b.bias, padding=1)), c.weight, c.bias, padding=1))
    assert torch.allclose(model(x), h.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias)


def test_cnn_with_a_head_that_reads_every_position():
    model = build_model("cnn", input_shape=(2, 6, 7), n_classes=3, width=4, depth=2, pools=1, flatten=True).to(DOUBLE)
    x = x_of(2, 2, 6, 7)
    assert model.classifier.weight.shape == (3, 4 * 3 * 3)  # 6×7 halved once is 3×3
    assert torch.allclose(model(x), model.features(x).flatten(1) @ model.classifier.weight.T + model.classifier.bias)
    with pytest.raises(ArgumentError) as caught:
        CNN(flatten=True)
    assert str(caught.value) == (
        "a head that reads every position needs the images' size, found image_size=None. Give "
        "image_size=(height, width), or leave flatten out."
    )


def test_resnet18_is_torchvisions_with_another_stem():
    theirs = torchvision.models.resnet18(weights=None, num_classes=7)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = ResNet18(3, 7)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = x_of(2, 3, 16, 16, dtype=torch.float32)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-6)


def test_resnet_depth_and_width():
    model = ResNet18(1, 2, width=3, depth=1, norm="group")
    assert [len(getattr(model, f"layer{n}")) for n in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert model.fc.weight.shape == (2, 24)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_vit_block_is_torchs_encoder_layer():
    model = ViT(1, 3, image_size=4, patch_size=2, width=8, depth=1, heads=2, mlp_ratio=2).to(DOUBLE)
    ours = model.blocks[0]
    theirs = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, activation=F.gelu, norm_first=True, batch_first=True, dtype=DOUBLE
    )
    attention = ours.attention
    packed = [attention.query, attention.key, attention.value]
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([m.weight for m in packed]),
            "self_attn.in_proj_bias": torch.cat([m.bias for m in packed]),
            "self_attn.out_proj.weight": attention.out.weight,
            "self_attn.out_proj.bias": attention.out.bias,
            "linear1.weight": ours.up.weight,
            "linear1.bias": ours.up.bias,
            "linear2.weight": ours.down.weight,
            "linear2.bias": ours.down.bias,
            **{f"norm{n}.{p}": getattr(getattr(ours, f"norm{n}"), p) for n in (1, 2) for p in ("weight", "bias")},
        }
    )
    tokens = x_of(3, 4, 8)
    assert torch.allclose(ours(tokens), theirs(tokens), atol=1e-12)
    # A convolution with the patch as kernel and stride is the usual way to embed patches.
    x = x_of(3, 1, 4, 4)
    embedded = (
        F.conv2d(x, model.embed.weight.reshape(8, 1, 2, 2), model.embed.bias, stride=2).flatten(2).transpose(1, 2)
    )
    out = model.norm(theirs(embedded + model.positions)).mean(1)
    assert torch.allclose(model(x), model.classifier(out), atol=1e-12)


@pytest.mark.parametrize(("cell", "torchs"), [("rnn", nn.RNN), ("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_recurrent_models_are_torchs(cell, torchs):
    model = RNN(6, 3, width=5, depth=2, cell=cell).to(DOUBLE)
    theirs = torchs(6, 5, num_layers=2, batch_first=True, dtype=DOUBLE)
    with torch.no_grad():
        for n in (0, 1):
            getattr(theirs, f"weight_ih_l{n}").copy_(model.inputs[n].weight)
            getattr(theirs, f"weight_hh_l{n}").copy_(model.states[n].weight)
            getattr(theirs, f"bias_ih_l{n}").copy_(model.inputs[n].bias)
            getattr(theirs, f"bias_hh_l{n}").zero_()
    image = x_of(4, 2, 7, 3)
    rows = torch.stack([torch.cat([image[:, 0, t], image[:, 1, t]], dim=1) for t in range(7)], dim=1)
    expected = model.classifier(theirs(rows)[0][:, -1])
    assert torch.allclose(model(image), expected, atol=1e-12)
    assert torch.allclose(model(rows), expected, atol=1e-12)


# Kernels


@pytest.mark.parametrize("parametrisation", ["standard", "ntk"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_kernel_is_the_oracles(name, parametrisation):
    model = build_model(
        name, input_shape=(2, 8, 8), n_classes=3, width=4, depth=2, parametrisation=parametrisation, seed=0
    ).to(DOUBLE)
    x = x_of(4, 2, 8, 8)
    exact = reference_ntk(model, x, reduction="full")
    got, info = empirical_ntk(model, x, reduction="full", return_info=True)
    assert torch.linalg.norm(got - exact) < 1e-12 * torch.linalg.norm(exact)
    # No parameter needs its Jacobian from torch.func: the fast rules reach all of them.
    assert not {"jacobian", "loop"} & set(info.methods.values())


RECURRENT = ("rnn", "gru", "lstm")


@pytest.mark.parametrize("parametrisation", ["standard", "ntk"])
@pytest.mark.parametrize("name", RECURRENT)
def test_kernel_of_tokens_is_the_oracles_in_every_reduction(name, parametrisation):
    model = build_model(
        name, input_shape=(6,), n_classes=3, width=5, depth=2, vocabulary=4, parametrisation=parametrisation, seed=0
    ).to(DOUBLE)
    # Tokens come twice in a sequence and in several: rows of the table are shared in time and between samples.
    x = torch.randint(4, (5, 6), generator=torch.Generator().manual_seed(2))
    for reduction in ("full", "trace", "sum_logits"):
        exact = reference_ntk(model, x, reduction=reduction)
        got, info = empirical_ntk(model, x, reduction=reduction, return_info=True)
        assert torch.linalg.norm(got - exact) < 1e-12 * torch.linalg.norm(exact)
        assert not {"jacobian", "loop"} & set(info.methods.values())


@pytest.mark.parametrize("name", RECURRENT)
def test_tokens_are_rows_of_the_table(name):
    model = build_model(name, input_shape=(7,), n_classes=3, width=4, vocabulary=5, seed=0).to(DOUBLE)
    read = RNN(4, 3, width=4, cell=name).to(DOUBLE)
    read.load_state_dict({k: v for k, v in model.state_dict().items() if k != "embedding.weight"})
    x = torch.tensor([[0, 1, 2, 3, 4, 0, 4], [3, 3, 3, 3, 3, 3, 3]])
    assert model.embedding.weight.shape == (5, 4)
    assert torch.equal(model(x), read(model.embedding.weight[x]))


@pytest.mark.parametrize("name", RECURRENT)
def test_a_width_sweep_over_tokens(name):
    for width, model in width_sweep(name, [4, 8], input_shape=(7,), n_classes=3, vocabulary=5):
        assert model.embedding.weight.shape == (5, width)
        assert model.classifier.weight.shape == (3, width)


# Building by name


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_width_sweep_keeps_everything_else(name):
    models = dict(width_sweep(name, [4, 8], input_shape=(1, 8, 8), n_classes=3, depth=2, activation="tanh"))
    narrow, wide = models[4], models[8]
    assert [type(m) for m in narrow.modules()] == [type(m) for m in wide.modules()]
    assert list(narrow.state_dict()) == list(wide.state_dict())
    sizes = [
        (a, b)
        for p, q in zip(narrow.parameters(), wide.parameters(), strict=True)
        for a, b in zip(p.shape, q.shape, strict=True)
    ]
    assert {b / a for a, b in sizes} == {1.0, 2.0}
    if name == "vit":
        assert [b.attention.heads for b in wide.blocks] == [b.attention.heads for b in narrow.blocks] == [4, 4]


def test_a_seed_fixes_the_weights_and_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (build_model("cnn", input_shape=(1, 8, 8), n_classes=2, seed=s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    build_model("cnn", input_shape=(1, 8, 8), n_classes=2)
    assert not torch.equal(torch.get_rng_state(), before)


def factory_for_tests(n_classes, input_shape, hidden=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), hidden), nn.Linear(hidden, n_classes))


def test_other_peoples_models():
    theirs = build_model("torchvision:resnet18", input_shape=(3, 32, 32), n_classes=4)
    assert isinstance(theirs, torchvision.models.ResNet) and theirs.fc.out_features == 4
    assert isinstance(build_model("resnet18", input_shape=(3, 32, 32), n_classes=4, width=4), ResNet18)
    assert isinstance(build_model("squeezenet1_1", input_shape=(3, 32, 32), n_classes=4), torchvision.models.SqueezeNet)
    by_call = build_model(factory_for_tests, input_shape=(1, 2, 2), n_classes=5, hidden=7)
    assert by_call(x_of(1, 1, 2, 2, dtype=torch.float32)).shape == (1, 5)
    by_path = build_model("torch.nn:Linear", input_shape=(4,), n_classes=2, in_features=4, out_features=2)
    assert isinstance(by_path, nn.Linear)


SHAPE = {"input_shape": (1, 8, 8), "n_classes": 3}


def bad(*args, **kwargs):
    return lambda: build_model(*args, **{**SHAPE, **kwargs})


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            bad("resnet81"),
            "unknown model 'resnet81': expected one of 'cnn', 'gru', 'lstm', 'mlp', 'resnet18', 'rnn', 'vit', a"
            " classifier of torchvision.models, or 'module:factory'. The nearest: 'resnet18', 'resnet152',"
            " 'resnet101'.",
        ),
        (
            bad("torchvision:zzz"),
            "unknown model 'torchvision:zzz': expected one of 'cnn', 'gru', 'lstm', 'mlp', 'resnet18', 'rnn', 'vit', a"
            " classifier of torchvision.models, or 'module:factory'.",
        ),
        (
            bad("torchvision:resnet18", width=3),
            "model 'torchvision:resnet18' has no argument 'width': it accepts none of these. Leave it out,"
            " or use a model that has it.",
        ),
        (
            bad("mlp", heads=3),
            "model 'mlp' has no argument 'heads': it accepts activation, depth, parametrisation, width. Leave it out, "
            "or use a model that has it.",
        ),
        (
            bad(factory_for_tests, depth=2),
            "model 'factory_for_tests' has no argument 'depth': it accepts hidden. Leave it out, or use a"
            " model that has it.",
        ),
        (
            bad("no_such_module:make"),
            "model 'no_such_module:make' cannot be imported (No module named 'no_such_module'): expected"
            " 'module:factory' with an importable module. Install it, or run where it can be found.",
        ),
        (
            bad("avalanche_ntk.lab.models:MLPP"),
            "module 'avalanche_ntk.lab.models' has no callable 'MLPP': expected a function or class. "
            "The nearest: 'MLP'.",
        ),
        (
            bad("math:sqrtt"),
            "module 'math' has no callable 'sqrtt': expected a function or class. The nearest: 'sqrt', 'isqrt'.",
        ),
        (
            bad(dict),
            "model 'dict' must build a torch.nn.Module, found dict. Return the module from the factory.",
        ),
        (
            bad(nn.Linear(1, 1)),
            "model must be a name or a callable that builds a module, found Linear. Give lambda: module, or a name.",
        ),
        (
            bad("cnn", input_shape=(64,)),
            "model 'cnn' reads images: expected input_shape (channels, height, width), found (64,). Reshape the inputs,"
            " or use model 'mlp'.",
        ),
        (
            bad("lstm", input_shape=()),
            "model 'lstm' reads sequences: expected input_shape (steps, features), (channels, rows, columns), or"
            " (steps,) of tokens, found (). Reshape the inputs, or use model 'mlp'.",
        ),
        (
            bad("lstm", input_shape=(64,)),
            "model 'lstm' looks tokens up in a table and needs its size, found vocabulary=None. Give vocabulary=16, for"
            " tokens 0 … 15.",
        ),
        (
            bad("vit", input_shape=(1, 8, 6)),
            "model 'vit' reads square images, found input_shape (1, 8, 6). Crop or resize the images, or use model"
            " 'cnn'.",
        ),
        (
            bad("vit", width=10),
            "width must be a multiple of the number of heads, found width=10 and heads=4. Use width=8 or 12.",
        ),
        (
            bad("vit", patch_size=3),
            "patch_size must divide image_size, found patch_size=3 and image_size=8. Use one of 1, 2, 4, 8.",
        ),
        (bad("mlp", width=0), "width must be an integer of at least 1, found 0. Give width=1 or more."),
        (bad("cnn", depth=True), "depth must be an integer of at least 1, found True. Give depth=1 or more."),
        (
            bad("mlp", activation="rely"),
            "unknown activation 'rely': expected one of 'elu', 'gelu', 'identity', 'leaky_relu', 'relu', 'sigmoid',"
            " 'silu', 'softplus', 'tanh'. Did you mean 'relu'?",
        ),
        (
            bad("mlp", parametrisation="mup"),
            "unknown parametrisation 'mup': expected one of 'ntk', 'standard'.",
        ),
        (
            bad("resnet18", norm="layer"),
            "unknown norm 'layer': expected one of 'batch', 'group', 'none'.",
        ),
        (
            lambda: RNN(cell="gur"),
            "unknown cell 'gur': expected one of 'gru', 'lstm', 'rnn'. Did you mean 'gru'?",
        ),
        (
            lambda: list(width_sweep("mlp", [1, 2], width=4, **SHAPE)),
            "width_sweep sets the width itself, found width=4 besides widths=[1, 2]. Leave width out.",
        ),
    ],
)
def test_messages(call, expected):
    assert message(call) == expected
