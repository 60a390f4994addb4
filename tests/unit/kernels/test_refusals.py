"""What has no kernel is refused, by name, reason and remedy; messages are compared whole."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from avalanche_ntk.errors import ArgumentError, KernelError, MemoryBudgetError, ModelError, PrecisionWarning
from avalanche_ntk.kernels import (
    empirical_ntk,
    empirical_ntk_by_group,
    feature_kernel,
    jvp_prediction,
    ntk_operator,
    reference_ntk,
    spot_check,
)
from tests.support.cases import error


class Fn(nn.Module):
    def __init__(self, fn, **parts):
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.fn(self, x)


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def refused(error, call):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


X = torch.arange(12.0).reshape(4, 3) / 10


def test_no_trainable_parameters():
    assert refused(ModelError, lambda: empirical_ntk(small().requires_grad_(False), X)) == (
        "Sequential has no trainable parameters: expected at least one parameter with requires_grad=True, found 4"
        " parameters, all frozen. Unfreeze what the kernel should cover (parameter.requires_grad_(True))."
    )
    assert refused(ModelError, lambda: empirical_ntk(nn.ReLU(), X)) == (
        "ReLU has no parameters: expected at least one parameter with requires_grad=True, found none. A"
        " function without"
        " parameters has no tangent kernel."
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Fn(lambda m, x: (m.l(x), x), l=nn.Linear(3, 2)),
            "the output of Fn is a tuple: expected a tensor of shape (N, C). Give output_selector=, a function from the"
            " model's output to that tensor.",
        ),
        (
            Fn(lambda m, x: m.l(x)[:, :, None], l=nn.Linear(3, 2)),
            "the output of Fn has shape (4, 2, 1): expected (N, C) with N = 4 samples. Give output_selector=,"
            " a function from"
            " the model's output to a tensor of that shape (lambda y: y.flatten(1)).",
        ),
        (
            Fn(lambda m, x: m.l(x).argmax(1, keepdim=True), l=nn.Linear(3, 2)),
            "the output of Fn has shape (4, 1) and dtype torch.int64: expected real numbers (N, C) with C ≥ 1. Give"
            " output_selector=, a function from the model's output to the logits.",
        ),
        (
            Fn(lambda m, x: m.l(x).detach(), l=nn.Linear(3, 2)),
            "the output of Fn in eval mode has no gradient: expected logits that depend on the parameters"
            " differentiably."
            " Something in the forward pass detaches them (torch.no_grad, argmax, a nearest-mean classifier);"
            " measure the"
            " part before it (output_selector=, or the feature extractor).",
        ),
    ],
)
def test_outputs_that_are_no_logits(model, message):
    model = model.to(X.device)
    assert refused(ModelError, lambda: empirical_ntk(model, X)) == message


def test_batch_norm_without_running_statistics():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    assert refused(ModelError, lambda: empirical_ntk(model, X)) == (
        "module '1' (BatchNorm1d) normalises by the statistics of the batch also in eval mode"
        " (track_running_stats=False):"
        " expected each output to depend on its own sample only, so that a per-sample kernel exists. Use"
        " running statistics,"
        " or a norm without batch statistics (GroupNorm, LayerNorm)."
    )


MIXES = (
    " mixes the samples of a batch: expected each output to depend on its own sample only, found that f(x)"
    " changes with the"
    " other samples given beside x, so no per-sample kernel exists. "
)
OVER_THE_BATCH = MIXES + (
    "Remove what goes over dimension 0 (a mean, a batch norm, attention over the batch, a branch that a value of the"
    " whole batch decides), or measure the part of the model before it."
)


@pytest.mark.parametrize(
    "mix",
    [
        lambda m, h: h - h.mean(0),
        lambda m, h: h - h.detach().mean(0),
        lambda m, h: h.softmax(0),
        lambda m, h: h + 0.01 * h.flip(0),
        lambda m, h: h / h.norm(),
        lambda m, h: h * (h @ h.T).sum(1, keepdim=True),
    ],
)
def test_cross_sample_mixing(mix):
    model = nn.Sequential(nn.Linear(3, 4), Fn(mix), nn.Linear(4, 2))
    for x in (X, torch.randn(7, 3)):
        assert refused(ModelError, lambda x=x: empirical_ntk(model, x)) == "module '1' (Fn)" + OVER_THE_BATCH
    assert all(not m._forward_hooks for m in model.modules())


def test_attention_over_the_batch():
    layer = nn.TransformerEncoderLayer(4, 2, 8)  # (T, N, D) expected: a (N, D) input is one sequence of N tokens
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
    assert refused(ModelError, lambda: empirical_ntk(model, X)) == (
        f"module '1.self_attn' (MultiheadAttention){MIXES}Module '1.self_attn' (MultiheadAttention){TIME_FIRST}"
    )


TIME_FIRST = (
    " takes dimension 0 of its input for time, not for samples: make it with batch_first=True and give it inputs of"
    " shape (N, T, features), or exchange the first two dimensions before and after it."
)


class Recurrent(nn.Module):
    """The last step's output of a recurrent layer made without `batch_first`."""

    def __init__(self, layer, layers):
        super().__init__()
        self.body, self.head = layer(2, 3, layers), nn.Linear(3, 2)

    def forward(self, x):
        out = self.body(x)[0]
        return self.head(out if x.dim() == 2 else out[:, -1])


@pytest.mark.parametrize("method", ["auto", "jacobian", "loop"])
@pytest.mark.parametrize("n", [2, 3, 8, 64])
@pytest.mark.parametrize("shape", [(2,), (4, 2)], ids=["one unbatched sequence", "time and samples exchanged"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_that_take_the_samples_for_time(layer, layers, shape, n, method):
    torch.manual_seed(0)
    model = Recurrent(layer, layers)
    assert refused(ModelError, lambda: empirical_ntk(model, torch.randn(n, *shape), method=method)) == (
        f"module 'body' ({layer.__name__}){MIXES}Module 'body' ({layer.__name__}){TIME_FIRST}"
    )
    model.body.batch_first = True
    if len(shape) == 2:
        x = torch.randn(n, *shape)
        assert error(empirical_ntk(model, x, method=method), reference_ntk(model, x)) <= 2e-6


@pytest.mark.parametrize(
    ("measure", "few"),
    [
        (empirical_ntk, 5),
        (partial(empirical_ntk, method="ghost"), 5),
        (partial(empirical_ntk, method="jacobian"), 3),
        (partial(empirical_ntk, method="loop"), 3),
        (ntk_operator, 3),
        (lambda m, x: jvp_prediction(m, x, {}, {"0.weight": torch.ones(4, 3)}), 3),
    ],
)
@pytest.mark.parametrize("wide", [lambda _, h: torch.cat([h, h @ h.T], 1), lambda _, h: (h @ h.T).softmax(1)])
def test_as_many_outputs_as_there_are_samples(wide, measure, few):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Fn(wide))
    width = model(torch.zeros(1, 3)).shape[1] - 1
    assert refused(ModelError, lambda: measure(model, torch.randn(7, 3))) == (
        f"the output of Sequential has shape (7, {width + 7}) for 7 samples and ({few}, {width + few}) for {few}:"
        " expected as many outputs for each number of samples. Remove what pairs samples with each other (h @ h.T,"
        " attention weights over the batch), or pick the outputs that belong to one sample (output_selector=)."
    )


def test_randomness_in_eval_mode():
    model = nn.Sequential(nn.Linear(3, 4), Fn(lambda m, h: nn.functional.dropout(h, 0.5)), nn.Linear(4, 2))
    before = torch.get_rng_state()
    assert refused(ModelError, lambda: empirical_ntk(model, X)) == (
        "module '1' (Fn) is random in eval mode: expected the same output for the same input, found two"
        " different ones, so"
        " the kernel is not defined. Make it honour eval mode (F.dropout(x, p, self.training), no sampling),"
        " or fix its noise."
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_drawing_without_using_is_not_random():
    model = nn.Sequential(nn.Linear(3, 4), Fn(lambda m, h: h + 0 * torch.rand(1)), nn.Linear(4, 2))
    assert empirical_ntk(model, X).shape == (4, 4)


def test_complex_lazy_and_quantised():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))

        def forward(self, x):
            return (x.to(torch.complex64) @ self.w).real

    assert refused(ModelError, lambda: empirical_ntk(Complex(), X)) == (
        "parameter 'w' is complex (torch.complex64): the kernel is defined for real parameters only. Store"
        " real and imaginary"
        " parts as two real parameters (torch.view_as_real)."
    )
    assert refused(ModelError, lambda: empirical_ntk(nn.Sequential(nn.LazyLinear(2)), X)) == (
        "parameter '0.weight' is not initialised yet (a lazy module): expected a parameter with a shape. Run"
        " one forward pass"
        " before the first measurement."
    )

    class Quantised(nn.Linear):
        pass

    Quantised.__module__ = "torch.ao.nn.quantized.modules.linear"
    assert refused(ModelError, lambda: empirical_ntk(nn.Sequential(Quantised(3, 2)), X)) == (
        "module '0' (Quantised) is quantised: a quantised weight has no gradient, so no tangent kernel."
        " Measure the float"
        " model it was made from."
    )


def test_a_forward_pass_that_fails():
    assert refused(ModelError, lambda: empirical_ntk(small(), torch.randn(4, 5))) == (
        "the forward pass of Sequential failed in eval mode on the probe (RuntimeError: mat1 and mat2 shapes cannot be"
        " multiplied (4x5 and 3x4)). Expected model(x) to work on 4 samples; check the inputs' shape, dtype"
        " and device, and"
        " task_labels for multi-task models."
    )


def test_kernels_that_are_not_finite():
    model = small()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    assert refused(KernelError, lambda: empirical_ntk(model, X)) == (
        "the kernel has 16 of 16 entries that are not finite: expected finite numbers. Weights, activations or"
        " gradients"
        " overflow or are NaN; check the training loss, or measure with dtype=torch.float64."
    )
    x = X.clone()
    x[1] = float("inf")
    assert refused(KernelError, lambda: empirical_ntk(small(), x)).startswith("the kernel has 7 of 16 entries")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"reduction": "trce"},
            "unknown reduction 'trce': expected one of 'full', 'projected', 'sum_logits', 'trace'. Did you mean"
            " 'trace'?",
        ),
        (
            {"method": "gost"},
            "unknown method 'gost': expected one of 'auto', 'explicit', 'ghost', 'jacobian', 'loop'. Did you"
            " mean 'ghost'?",
        ),
        (
            {"params": "0.wieght"},
            "unknown parameter '0.wieght': expected one of '0.bias', '0.weight', '2.bias', '2.weight'. Did you mean"
            " '0.weight'?",
        ),
        ({"layers": "3"}, "unknown layer '3': expected one of '0', '1', '2'."),
        (
            {"layers": "1"},
            "layer '1' has no parameter that requires a gradient: the kernel covers trainable parameters only."
            " Unfreeze it, or"
            " leave it out.",
        ),
        ({"params": []}, "params must be a name or a non-empty sequence of names, found []."),
        (
            {"outputs": [0, 2]},
            "outputs must be distinct indices of the model's 2 outputs, at least one, found [0, 2]. Give a"
            " list of indices or"
            " a slice.",
        ),
        (
            {"outputs": slice(5, 9)},
            "outputs must be distinct indices of the model's 2 outputs, at least one, found slice(5, 9, None)."
            " Give a list of"
            " indices or a slice.",
        ),
        (
            {"dtype": torch.float16},
            "unknown dtype torch.float16: expected torch.float32 or torch.float64. Half precision is too"
            " coarse for a kernel;"
            " leave dtype out to compute in float32.",
        ),
        (
            {"memory_budget": 0},
            "memory_budget must be a positive number of bytes, found 0. Leave it out for the default.",
        ),
        (
            {"n_projections": 8},
            "n_projections=8 was given for reduction='trace', which is exact. Give reduction='projected', or leave"
            " n_projections out.",
        ),
        ({"estimator": "gauss"}, "unknown estimator 'gauss': expected one of 'rademacher'."),
        (
            {"reduction": "projected"},
            "n_projections must be an integer of at least 1 for reduction='projected', found None. Give the number of"
            " random sign vectors, for example 32.",
        ),
        (
            {"reduction": "projected", "n_projections": 4, "estimator": "rademacher"},
            "estimator='rademacher' estimates the trace kernel from independent signs, found reduction='projected',"
            " which has its own. Leave the estimator out.",
        ),
        (
            {"estimator": "rademacher", "n_projections": 8, "reduction": "full"},
            "estimator='rademacher' estimates the trace kernel, found reduction='full'. Use reduction='trace',"
            " or leave the"
            " estimator out.",
        ),
        (
            {"estimator": "rademacher"},
            "n_projections must be an integer of at least 2 (a standard error needs two) for estimator='rademacher',"
            " found None. Give the"
            " number of random"
            " sign vectors, for example 32.",
        ),
        (
            {"task_labels": [0, 1]},
            "task_labels must be one integer or one per sample: expected shape (4,), found (2,). Give the task"
            " label of every"
            " probe sample.",
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    assert refused(ArgumentError, lambda: empirical_ntk(small(), X, **kwargs)) == message


def test_bad_inputs():
    assert refused(ArgumentError, lambda: empirical_ntk(small(), "probe")) == (
        "the inputs hold no tensor: expected a tensor, a tuple or a dict of tensors with samples in dimension"
        " 0, found str."
        " Convert arrays with torch.as_tensor first."
    )
    assert refused(ArgumentError, lambda: empirical_ntk(small(), (X, X[:2]))) == (
        "every input tensor must have the samples in dimension 0, found shapes [(4, 3), (2, 3)]. Bind"
        " arguments that are"
        " shared by all samples into the model (functools.partial, a wrapper module)."
    )
    assert refused(ArgumentError, lambda: empirical_ntk(small(), X[:0])) == (
        "the inputs hold 0 samples: expected at least 1. Give a probe that is not empty."
    )
    assert refused(ArgumentError, lambda: empirical_ntk(lambda x: x, X)) == (
        "model must be a torch.nn.Module, found function. Wrap a function in a module that holds its parameters."
    )
    assert refused(ArgumentError, lambda: empirical_ntk_by_group(small(), X, {})) == (
        "groups must name at least one group of parameters, found none. Give a dict from a name to a list of"
        " parameter or"
        " module names."
    )
    groups = {"a": ["0.bias"]}
    assert refused(ArgumentError, lambda: empirical_ntk_by_group(small(), X, groups, params="0.*")) == (
        "params='0.*' selects the parameters of the whole kernel, found whole=False. Add whole=True, or leave params "
        "out."
    )
    assert refused(ArgumentError, lambda: empirical_ntk_by_group(small(), X, {"": ["0"]}, whole=True)) == (
        "a group is called '', which is the name of the whole kernel. Give it another name."
    )
    weights = {"params": "*.weight", "whole": True}
    assert refused(ArgumentError, lambda: empirical_ntk_by_group(small(), X, groups, **weights)) == (
        "group 'a' (0.bias) has no parameter in common with the whole (0.weight, 2.weight). Leave the group out, or let"
        " params cover it."
    )


def test_sparse_and_nested_tensors():
    assert refused(ArgumentError, lambda: empirical_ntk(small(), X.to_sparse())) == (
        "an input is a sparse tensor (torch.sparse_coo): expected dense tensors with the samples in dimension 0. Give"
        " it as x.to_dense(), or wrap a model that wants sparse inputs."
    )
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged)
    assert refused(ArgumentError, lambda: feature_kernel(small(), nested)) == (
        "an input is a nested tensor (torch.jagged): expected dense tensors with the samples in dimension 0. Give it"
        " as torch.nested.to_padded_tensor(x, 0.0) with a mask."
    )
    model = Fn(lambda m, x: torch.sparse.mm(m.w, x.T).T, w=nn.Parameter(torch.eye(3).to_sparse()))
    for measure in (empirical_ntk, reference_ntk, feature_kernel):
        assert refused(ModelError, lambda measure=measure: measure(model, X)) == (
            "parameter 'w' is sparse (torch.sparse_coo): expected dense parameters, whose entries a kernel sums over."
            " Store its values as a dense parameter and its pattern as a buffer."
        )


def test_inside_a_transform_of_torch_func():
    message = (
        "a measurement was started inside a torch.func transform (vmap, grad, jvp, …): expected ordinary tensors. "
        "Measure outside of the transform."
    )
    model = small()
    assert refused(ArgumentError, lambda: torch.func.vmap(lambda x: empirical_ntk(model, x[None]))(X)) == message
    assert refused(ArgumentError, lambda: torch.func.grad(lambda x: feature_kernel(model, x).sum())(X)) == message


def test_features_of_other_sizes():
    model = Fn(lambda m, x: m.layer(x).mean(1), layer=nn.Linear(3, 2))
    message = refused(ModelError, lambda: feature_kernel(model, torch.zeros(2, 5, 3), torch.zeros(4, 6, 3)))
    assert message == (
        "the features of Fn have 15 numbers for a sample of the first batch and 18 for one of the second: expected as"
        " many. Give both batches sequences (or images) of one size."
    )


def test_a_tied_weight_with_two_displacements():
    model = Fn(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 3), b=nn.Linear(3, 3))
    model.b.weight = model.a.weight
    delta = {"a.weight": torch.zeros(3, 3), "b.weight": torch.ones(3, 3)}
    assert refused(ArgumentError, lambda: jvp_prediction(model, X, {}, delta)) == (
        "delta gives two values to one parameter, as 'a.weight' and as 'b.weight', which are tied: expected one value."
        " Leave one of the names out."
    )


@pytest.mark.parametrize(
    ("x", "told"),
    [
        ({"u": X, "v": X[:, :1]}, "model(**x) to work on 4 samples (x is a dict)"),
        ((X, X[:, :1]), "model(*x) to work on 4 samples (x is a tuple)"),
    ],
)
def test_the_way_in_which_a_model_was_called_is_told(x, told):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, u, v):
            return self.layer(u @ v)

    message = refused(ModelError, lambda: empirical_ntk(Two(), x))
    assert message.endswith(
        f"Expected {told}; check the inputs' shape, dtype and device, and task_labels for multi-task models."
    )


def test_of_very_many_names_those_most_like_it_are_listed():
    model, x = torchvision.models.resnet18(), torch.zeros(1, 3, 32, 32)
    message = refused(ArgumentError, lambda: empirical_ntk(model, x, params="layer2.0.con1.*"))
    begin = "unknown parameter 'layer2.0.con1.*': expected one of 62 names, such as 'layer2.0.conv1.weight', "
    end = ". Did you mean 'layer2.0.conv1.weight'?"
    assert message.startswith(begin) and message.endswith(end)
    others = message.removeprefix(begin).removesuffix(end).split(", ")
    assert len(set(others)) == 4 and {name.strip("'") for name in others} < set(dict(model.named_parameters()))


def test_a_budget_too_small_for_one_block_says_how_much_is_needed():
    model = nn.Sequential(nn.Linear(3, 1000), nn.ReLU(), nn.Linear(1000, 2))
    message = refused(MemoryBudgetError, lambda: empirical_ntk(model, X, memory_budget=1000))
    assert message == (
        "memory_budget=1000 bytes is too small for a block of one sample: about 12000 bytes are needed for"
        " Sequential with 2"
        " outputs. Raise memory_budget to that."
    )
    assert torch.allclose(empirical_ntk(model, X, memory_budget=12000), empirical_ntk(model, X), rtol=1e-5)


def test_nearly_equal_inputs_in_float32_warn_and_float64_does_not(recwarn):
    from avalanche_ntk.kernels.diagnostics import finished
    from avalanche_ntk.kernels.info import KernelInfo

    kernel = torch.tensor([[1.0, 1.01], [1.01, 1.0]])
    with pytest.warns(PrecisionWarning) as caught:
        finished(kernel, "", True, KernelInfo(), False)
    assert str(caught[0].message) == (
        "the kernel's smallest eigenvalue is -0.01, its largest 2.01: expected none below -1e-5 of the"
        " largest. The inputs are"
        " nearly equal for this precision; measure with dtype=torch.float64."
    )
    x = torch.randn(1, 3) + 1e-6 * torch.randn(8, 3)
    kernel, info = empirical_ntk(small(), x, return_info=True)
    assert info.min_eigenvalue >= -1e-5 * info.max_eigenvalue and torch.equal(kernel, kernel.T)


def test_neighbours_refuse_too():
    conv = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten())
    assert refused(ModelError, lambda: feature_kernel(conv, X[:, None])) == (
        "Sequential calls no linear layer in its forward pass: expected a last one, whose input is the feature vector."
        " Leave the feature kernel out for this model."
    )
    model = small()
    base = {k: torch.zeros_like(p) for k, p in model.named_parameters()}
    assert refused(ArgumentError, lambda: jvp_prediction(model, X, base, {"5.weight": X})) == (
        "delta names '5.weight', which the model does not have: expected names of its parameters. The model"
        " has changed since;"
        " compare only what both have."
    )
    assert refused(ArgumentError, lambda: jvp_prediction(model, X, {"2.bias": torch.zeros(5)}, base)) == (
        "params_base['2.bias'] has shape (5,): expected (2,), the model's own. The model has changed since (a"
        " head that has"
        " grown); start a new base point."
    )
    assert refused(ArgumentError, lambda: ntk_operator(model, X) @ torch.ones(3)) == (
        "the operator has shape (8, 8), the vector (3,): expected (8,) or (8, k). Flatten (sample, output)"
        " pairs with the"
        " sample first."
    )
    assert refused(ArgumentError, lambda: spot_check(model, X, torch.zeros(3, 3))) == (
        "the kernel has shape (3, 3): expected (4, 4), the numbers of samples, and two numbers of outputs after them"
        " for reduction='full' only (reduction='trace' was given). Give the inputs and the reduction that it was"
        " computed from."
    )
