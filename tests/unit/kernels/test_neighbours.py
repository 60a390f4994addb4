"""What stands beside the kernel: operator, estimator, linearisation, features, spot checks, groups, the report."""

import numpy as np
import pytest
import torch
from torch import nn

from avalanche_ntk.kernels import (
    empirical_ntk,
    empirical_ntk_by_group,
    feature_kernel,
    jvp_prediction,
    ntk_operator,
    reference_jacobian,
    reference_ntk,
    spot_check,
)
from avalanche_ntk.lab.models import MLP


def small(c=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, c))


def transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 4)), layer, nn.Flatten(), nn.Linear(4, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.rnn(x.reshape(len(x), 2, 2))[0][:, -1])


@pytest.fixture
def x():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("make", [small, transformer, Recurrent])
@pytest.mark.parametrize("reduction", ["full", "trace", "sum_logits"])
def test_operator_agrees_with_the_kernel(make, reduction, x):
    model = make()
    theta = reference_ntk(model, x, reduction=reduction)
    if theta.dim() == 4:
        theta = theta.transpose(1, 2).reshape(theta.shape[0] * theta.shape[2], -1)
    operator = ntk_operator(model, x, reduction=reduction, dtype=torch.float64)
    v = torch.randn(len(theta), 2, dtype=torch.float64)
    assert operator.shape == tuple(theta.shape)
    assert torch.allclose(operator @ v, theta @ v, rtol=1e-10)
    values = torch.linalg.eigvalsh(theta).flip(0)
    assert torch.allclose(operator.top_eigenvalues(2), values[:2], rtol=1e-9)
    if make is small:
        trace, error = operator.trace(100)
        assert abs(trace - float(theta.trace())) < 4 * error
        norm, error = operator.squared_frobenius_norm(100)
        assert abs(norm - float(theta.norm() ** 2)) < 4 * error


def test_operator_is_of_the_moment_it_was_made(x):
    model = small()
    want = reference_ntk(model, x)
    operator = ntk_operator(model, x, reduction="trace", dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.mul_(3)
    assert torch.allclose(operator @ torch.eye(5, dtype=torch.float64), want, rtol=1e-10)


def test_estimator_is_unbiased_and_its_error_covers(x):
    model = small(40)
    want = empirical_ntk(model, x, dtype=torch.float64)
    estimates, inside, total = [], 0, 0
    for seed in range(60):
        got, info = empirical_ntk(
            model, x, dtype=torch.float64, estimator="rademacher", n_projections=16, seed=seed, return_info=True
        )
        estimates.append(got)
        # the diagonal of θ's linear last layer has no spread over outputs: compare where the error is not rounding
        inside += int(((got - want).abs() <= 2 * info.standard_error).sum())
        total += got.numel()
    mean = torch.stack(estimates).mean(0)
    spread = torch.stack(estimates).std(0) / 60**0.5
    # z of 25 correlated entries; 4.5 standard errors of a mean of 60
    assert bool(((mean - want).abs() <= 4.5 * spread).all())
    # Student's t with 15 degrees of freedom puts 93.6 % within 2 standard errors
    assert 0.88 <= inside / total <= 0.99


def test_estimator_repeats_with_its_seed_and_draws_from_no_other_generator(x):
    before = torch.get_rng_state()
    one = empirical_ntk(small(), x, estimator="rademacher", n_projections=4, seed=7)
    assert torch.equal(one, empirical_ntk(small(), x, estimator="rademacher", n_projections=4, seed=7))
    assert not torch.equal(one, empirical_ntk(small(), x, estimator="rademacher", n_projections=4, seed=8))
    torch.set_rng_state(before)


@pytest.mark.parametrize("make", [small, transformer, Recurrent])
def test_linearised_prediction_is_the_jacobian_times_the_displacement(make, x):
    model = make()
    base = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    delta = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    got = jvp_prediction(model, x, base, delta, dtype=torch.float64)
    with torch.no_grad():
        for k, p in model.named_parameters():
            p.copy_(base[k])
    flat = torch.cat([delta[k].double().reshape(-1) for k in delta])
    assert torch.allclose(got, reference_jacobian(model, x) @ flat, rtol=1e-9, atol=1e-12)


def test_a_linear_model_moves_by_its_linearisation_exactly(x):
    model = nn.Linear(4, 2)
    base = {k: p.detach().clone() for k, p in model.named_parameters()}
    before = model(x).detach()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    delta = {k: p.detach() - base[k] for k, p in model.named_parameters()}
    assert torch.allclose(jvp_prediction(model, x, base, delta), model(x).detach() - before, atol=1e-6)
    assert torch.equal(jvp_prediction(model, x, base, {}), torch.zeros(5, 2))


def test_feature_kernel_is_the_tangent_kernel_of_the_last_weight_for_one_output(x):
    model = small()
    want = reference_ntk(model, x, params="2.weight", outputs=[0])
    assert torch.allclose(feature_kernel(model, x, dtype=torch.float64), want, rtol=1e-12)
    cross = reference_ntk(model, x, x[:2], params="2.weight", outputs=[1])
    assert torch.allclose(feature_kernel(model, x, x[:2], dtype=torch.float64), cross, rtol=1e-12)


def test_features_are_what_a_linear_layer_of_another_class_reads(x):
    model = MLP(4, 3, width=6, depth=1, parametrisation="ntk")
    hidden = model.features(x)
    assert hidden.shape == (5, 6)
    assert torch.allclose(feature_kernel(model, x), hidden @ hidden.T)
    # Its factor 1/√6·√2 is in the tangent kernel of its weight and not in the features.
    tangent = reference_ntk(model, x, params="classifier.weight", outputs=[0])
    assert torch.allclose(feature_kernel(model, x, dtype=torch.float64) * model.classifier.scale**2, tangent)


def test_an_embedding_is_no_linear_layer():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2), nn.LayerNorm(2))
    tokens = torch.tensor([[0, 1], [2, 2], [4, 0]])
    h = model[0](tokens).flatten(1)
    assert torch.allclose(feature_kernel(model, tokens), h @ h.T)


@pytest.mark.parametrize("size", [(2, 3), (3, 3)])
def test_the_scales_of_a_norm_that_form_a_matrix_are_no_linear_layer(size, x):
    rows, columns = size
    model = nn.Sequential(nn.Linear(4, rows * columns), nn.Unflatten(1, size), nn.LayerNorm(size), nn.Flatten())
    nn.init.normal_(model[2].weight)
    assert torch.allclose(feature_kernel(model, x), x @ x.T, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(
    "call",
    [
        lambda layer, x: layer(x.transpose(0, 1))[-1],
        lambda layer, x: layer(x.transpose(0, 1).reshape(-1, 4)).view(x.shape[1], len(x), 2)[0],
        lambda layer, x: layer(x.reshape(-1, 4)).view(len(x), -1, 2)[:, 0],
        lambda layer, x: layer(input=x).mean(1),
    ],
)
def test_features_wherever_the_samples_are(call, n):
    """As many tokens as samples, tokens first, all in one dimension, given by name."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return call(self.layer, x)

    model, x, x2 = Tokens(), torch.randn(n, 5, 4), torch.randn(3, 5, 4)
    assert torch.allclose(feature_kernel(model, x, x2), x.flatten(1) @ x2.flatten(1).T, rtol=1e-5)


def test_a_layer_beside_the_outputs_is_not_the_last(x):
    """An autoencoder whose code is measured, with noise in its decoder; and a classifier that no gradient passes."""

    class Coder(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.code, self.decoder = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 4)

        def forward(self, x):
            code = self.code(self.first(x).tanh_())
            return code, self.decoder(code + torch.randn_like(code))

    model = Coder()
    h = model.first(x).tanh()
    assert torch.allclose(feature_kernel(model, x, output_selector=lambda y: y[0]), h @ h.T, rtol=1e-5)
    hard = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3), Sign())
    g = hard[0](x)
    assert torch.allclose(feature_kernel(hard, x), g @ g.T, rtol=1e-5)


class Sign(nn.Module):
    def forward(self, x):
        return x.detach().sign()


def test_displacements_by_every_name_of_a_parameter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids):
            return self.out(self.embed(ids).mean(1))

    model, ids, delta = Tied().double(), torch.randint(9, (5, 3)), torch.randn(9, 4, dtype=torch.float64)
    want = reference_jacobian(model, ids) @ delta.flatten()
    for given in ({"embed.weight": delta}, {"out.weight": delta}, {"embed.weight": delta, "out.weight": delta.clone()}):
        assert torch.allclose(jvp_prediction(model, ids, model.state_dict(), given), want)
    compiled = torch.compile(model, backend="eager")
    moved = dict.fromkeys(compiled.state_dict(), delta)
    assert torch.allclose(jvp_prediction(compiled, ids, compiled.state_dict(), moved), want)


def test_names_of_a_wrapped_model_are_those_of_the_wrapper_too(x):
    model = small()
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model)):
        names = [k for k, _ in wrapped.named_parameters()]
        assert names[0] in ("_orig_mod.0.weight", "module.0.weight")
        assert torch.equal(empirical_ntk(wrapped, x, params=names[0]), empirical_ntk(model, x, params="0.weight"))
        layer = names[0].removesuffix(".weight")
        assert torch.equal(empirical_ntk(wrapped, x, layers=layer), empirical_ntk(model, x, layers="0"))
        groups = empirical_ntk_by_group(wrapped, x, {"all": names})
        assert torch.allclose(groups["all"], empirical_ntk(model, x))


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1)])
def test_one_task_label_of_any_kind_is_that_of_both_batches(label, x):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

        def forward(self, x, task):
            return self.heads[task](x)

    model = Heads()
    want = 2 * (x @ x[:2].T + 1)
    for measure in (empirical_ntk, reference_ntk):
        assert torch.allclose(measure(model, x, x[:2], task_labels=label, params="heads.1.*").to(x), want, rtol=1e-5)
    assert torch.allclose(feature_kernel(model, x, x[:2], task_labels=label), x @ x[:2].T)


def test_task_labels_as_an_array(x):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x, task):
            return self.layer(x) * (1 + task)[:, None]

    labels = np.arange(5)
    scale = torch.arange(5) + 1.0
    want = 2 * scale[:, None] * scale * (x @ x.T + 1)
    assert torch.allclose(empirical_ntk(Scaled(), x, task_labels=labels), want, rtol=1e-5)


def test_spot_check_finds_a_wrong_entry_and_passes_a_right_kernel(x):
    model = small()
    for reduction in ("full", "trace", "sum_logits"):
        kernel = empirical_ntk(model, x, reduction=reduction)
        assert spot_check(model, x, kernel, 25, reduction=reduction) < 1e-6
        assert spot_check(model, x, kernel * 1.01, 25, reduction=reduction) > 1e-3
    cross = empirical_ntk(model, x, x[:2])
    assert spot_check(model, x, cross, 10, x2=x[:2]) < 1e-6
    one = spot_check(model, x, cross, 3, x2=x[:2], generator=torch.Generator().manual_seed(0))
    assert one == spot_check(model, x, cross, 3, x2=x[:2], seed=0)


def test_groups_by_module_parameter_and_pattern(x):
    model = small()
    got = empirical_ntk_by_group(
        model, x, {"first": ["0"], "weights": ["*.weight"], "bias": ["2.bias", "0.bias"]}, dtype=torch.float64
    )
    for name, chosen in (
        ("first", {"layers": "0"}),
        ("weights", {"params": "*.weight"}),
        ("bias", {"params": "*.bias"}),
    ):
        assert torch.allclose(got[name], reference_ntk(model, x, **chosen), rtol=1e-12)


@pytest.mark.parametrize("reduction", ["trace", "full"])
def test_the_whole_kernel_beside_its_groups(x, reduction):
    model = small()
    for params in (None, "*.weight"):
        want, about = empirical_ntk(model, x, params=params, reduction=reduction, return_info=True)
        got, info = empirical_ntk_by_group(
            model, x, {"first": ["0"], "rest": ["2.*"]}, whole=True, params=params, reduction=reduction,
            return_info=True,
        )  # fmt: skip
        assert torch.equal(got[""], want) and list(got) == ["", "first", "rest"]
        assert len(info.symmetric) == 1  # the whole; those of the groups are not held
        assert (info.asymmetry, info.min_eigenvalue, info.methods) == (
            about.asymmetry, about.min_eigenvalue, about.methods,
        )  # fmt: skip
        mine = {"layers": "0"} if params is None else {"params": "0.weight"}
        assert torch.allclose(got["first"], reference_ntk(model, x, reduction=reduction, **mine).float(), rtol=1e-5)


def test_the_report(x):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model.register_parameter("spare", nn.Parameter(torch.zeros(2)))
    kernel, info = empirical_ntk(model, x, return_info=True, dtype=torch.float64)
    assert info.methods == {
        "spare": "unused", "0.weight": "gram", "0.bias": "gram", "2.weight": "gram", "2.bias": "gram",
    }  # fmt: skip
    values = torch.linalg.eigvalsh(kernel)
    assert info.max_eigenvalue == pytest.approx(float(values[-1])) and info.min_eigenvalue == pytest.approx(
        float(values[0])
    )
    assert info.block == 5 and info.asymmetry < 1e-14 and info.flops > 0 and info.peak_bytes > 0
    assert info.standard_error is None and info.reasons == {}
    _, info = empirical_ntk(model, x, x, return_info=True)
    assert info.asymmetry is None and info.max_eigenvalue is None


def test_a_compiled_model_is_measured_as_its_original(x):
    model = small()
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(empirical_ntk(compiled, x), empirical_ntk(model, x))
    outer = nn.Sequential(torch.compile(model, backend="eager"), nn.ReLU())
    assert torch.allclose(empirical_ntk(outer, x, dtype=torch.float64), reference_ntk(outer, x), rtol=1e-12)
    model.compile(backend="eager")
    assert torch.allclose(empirical_ntk(model, x, dtype=torch.float64), reference_ntk(model, x), rtol=1e-12)


def test_a_table_of_fifty_thousand_rows_is_never_formed():
    """Per-sample gradients of the table would take 16·10·50000·32·4 bytes = 1 GB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50000, 32), nn.Flatten(), nn.Linear(128, 10))
    x = torch.randint(50000, (16, 4))
    x[3] = x[5]
    _, info = empirical_ntk(model, x, memory_budget=256 * 2**20, return_info=True)
    assert info.methods["0.weight"] == "lookup" and info.peak_bytes < 2**20


def test_hooks_on_parameters_and_modules_do_not_change_the_kernel(x):
    model = small()
    want = empirical_ntk(model, x)
    handle = model[0].weight.register_hook(lambda g: g * 0)
    assert torch.equal(empirical_ntk(model, x), want)
    handle.remove()
    fired = []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: fired.append(p))
    assert torch.equal(empirical_ntk(model, x), want) and not fired
