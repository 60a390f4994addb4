"""What a model does with the samples may depend on values: on theirs, on its weights', on an attribute's."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avalanche_ntk.errors import ArgumentError, ModelError
from avalanche_ntk.kernels import (
    empirical_ntk,
    feature_kernel,
    jvp_prediction,
    ntk_operator,
    penultimate_features,
    reference_ntk,
    spot_check,
)
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._guard import known
from avalanche_ntk.kernels._structure.graph import Graph
from avalanche_ntk.kernels._structure.plan import pure_nodes
from avalanche_ntk.kernels._structure.routing import moves_by_values


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(model, *batches, ways=None, **kwargs):
    """Every reduction of every batch in turn, in the order in which plans are made and used again."""
    for x in batches:
        for reduction in ("full", "trace", "sum_logits"):
            got, info = empirical_ntk(model, x, reduction=reduction, return_info=True, **kwargs)
            want = reference_ntk(model, x, reduction=reduction, **kwargs)
            assert float((got - want).norm()) <= 1e-12 * float(want.norm()), (reduction, info.methods, info.reasons)
            assert ways is None or set(info.methods.values()) <= ways, (info.methods, info.reasons)


F64 = {"dtype": torch.float64}


class Body(nn.Module):
    """`head(between(tanh(layer(x))))`, of which the tests change the part between."""

    def __init__(self, width=6):
        super().__init__()
        self.layer, self.head, self.open = nn.Linear(4, width), nn.Linear(width, 3), False

    def forward(self, x):
        return self.head(self.between(torch.tanh(self.layer(x)), x))


# --- a gain that is broadcast: one number of the parameter is used for many entries


class Gain(Body):
    def __init__(self, how):
        super().__init__()
        self.gain, self.how = nn.Parameter(torch.randn(1)), how
        self.register_buffer("ones", torch.linspace(0.5, 1.5, 6))

    def between(self, h, x):
        if self.how == "kron":
            return h * torch.kron(self.gain, self.ones)
        return h * (self.gain * self.ones if self.how == "mul" else self.gain / self.ones)


@pytest.mark.parametrize("how", ["mul", "div", "kron"])
def test_a_gain_times_a_constant_of_a_larger_shape(how):
    model, x = Gain(how), torch.randn(9, 4)
    check(model, x)
    check(model, x, params="gain")
    nn.init.zeros_(model.head.weight)  # no signal arrives: nothing shows how the gain is used
    check(model, x)
    nn.init.normal_(model.head.weight)
    check(model, x)


class FirstDead(Gain):
    def between(self, h, x):
        return super().between(h, x) * (x[:, :1] > 0)


def test_a_gain_that_acts_on_none_of_the_first_samples():
    x = torch.randn(12, 4)
    x[:5, 0], x[5:, 0] = -1, 1
    check(FirstDead("mul"), x)
    check(FirstDead("mul"), x[:5], x, x.flip(0))


# --- samples moved by their values


class Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(order)
        return x[order]

    @staticmethod
    def backward(ctx, g):
        (order,) = ctx.saved_tensors
        return g[order.argsort()], None


class Sorted(Body):
    """Samples are sorted by their first number, and put back; five ways to do it."""

    def __init__(self, how):
        super().__init__()
        self.how, self.inner = how, nn.Linear(6, 6)

    def move(self, h, order):
        if self.how == "function":
            return Permute.apply(h, order)
        if self.how == "index":
            return h[order]
        if self.how == "gather":
            return h.gather(0, order[:, None].expand_as(h))
        if self.how == "embedding":
            return F.embedding(order, h)
        return F.one_hot(order, len(h)).to(h) @ h

    def between(self, h, x):
        order = x[:, 0].argsort()
        return self.move(torch.tanh(self.inner(self.move(h, order))), order.argsort()) * x[:, 1:2]


WAYS = ["function", "index", "gather", "embedding", "matrix"]


@pytest.mark.parametrize("how", WAYS)
def test_samples_sorted_by_a_value(how):
    x = torch.randn(9, 4)
    in_order = x[x[:, 0].argsort()]
    first_in_order = torch.cat([in_order[:5], x.flip(0)])
    check(Sorted(how), x)
    check(Sorted(how), in_order, x)  # what the first batch shows is not so in the second
    check(Sorted(how), first_in_order)


@pytest.mark.parametrize("how", WAYS)
def test_samples_of_very_different_sizes_show_their_places_too(how):
    x = torch.randn(9, 4)
    x[:5] = x[:5][x[:5, 0].argsort()]
    x[:5, 0] -= 10
    x[:, 1] = 0.5 + 0.1 * torch.rand(9)
    x[0, 1] = 1000.0
    check(Sorted(how), x)


class Experts(nn.Module):
    """A mixture of experts with capacities: samples are dispatched to, and combined from, slots by one-hot products."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(4, 2, bias=False), nn.Linear(3, 3)
        self.w1, self.w2 = nn.Parameter(torch.randn(2, 4, 8) / 2), nn.Parameter(torch.randn(2, 8, 3) / 2)

    def forward(self, x):
        share = self.gate(x).softmax(-1)
        chosen = F.one_hot(share.argmax(-1), 2).to(x)
        place = ((chosen.cumsum(0) - 1) * chosen).sum(-1).long()
        dispatch = torch.einsum("ne,nc->nec", chosen, F.one_hot(place, len(x)).to(x))
        h = torch.einsum("nec,nd->ecd", dispatch, x)
        h = torch.bmm(torch.tanh(torch.bmm(h, self.w1)), self.w2)
        return self.head(torch.einsum("nec,ecd->nd", dispatch * (share * chosen).sum(-1)[:, None, None], h))


def test_a_mixture_of_experts_that_dispatches_by_products():
    model, x = Experts(), torch.randn(30, 4)
    by_expert = x[model.gate(x).argmax(-1).argsort()]
    check(model, by_expert, x, torch.cat([by_expert[:6], x[:8]]))


class Weighted(nn.Module):
    """Convolutions whose weights are made from each sample, as groups of one convolution over all."""

    def __init__(self):
        super().__init__()
        self.make, self.head = nn.Linear(4, 2 * 3), nn.Linear(2 * 4, 3)

    def forward(self, x):
        weight = self.make(x).view(len(x) * 2, 1, 3)
        h = F.conv1d(x[None], weight, groups=len(x), padding=1)
        return self.head(torch.tanh(h).view(len(x), -1))


def test_convolutions_with_weights_made_from_samples():
    check(Weighted(), torch.randn(7, 4), torch.randn(3, 4))


TOKENS = nn.Unflatten(1, (2, 2))


class Along(Body):
    def __init__(self, between):
        super().__init__()
        self.between = lambda h, x: between(h)


def second_of_tokens(h):
    first = h.unflatten(1, (2, 3)).transpose(0, 1).flatten(0, 1)
    return first.unflatten(0, (2, -1))[1].repeat(1, 2)


@pytest.mark.parametrize(
    ("make", "moves"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)), False),
        (lambda: nn.Sequential(TOKENS, nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)), False),
        (lambda: nn.Sequential(TOKENS, nn.TransformerEncoderLayer(2, 1, 3, batch_first=True), nn.Flatten()), False),
        (lambda: Along(lambda h: h.unflatten(1, (2, 3)).roll(1, 2).flip(1).softmax(-1).cumsum(1).flatten(1)), False),
        (lambda: Along(lambda h: torch.cat([h[:, 1:], h[:, :1]], 1)), False),
        (lambda: Along(lambda h: h.unflatten(1, (2, 3))[:, 0].repeat(1, 2)), False),
        (lambda: Along(lambda h: torch.fft.irfft(torch.fft.rfft(h), n=6)), False),
        (lambda: Along(second_of_tokens), False),
        (lambda: Along(lambda h: F.avg_pool1d(h[:, None], 2, 1, 1)[:, 0, :6]), False),
        (lambda: Along(lambda h: h.view(6 * len(h) // 2, 2).view(-1, 6)), False),
        (lambda: Along(lambda h: F.instance_norm(h.view(-1, 2, 3)).flatten(1)), False),
        (Experts, True),
        (lambda: nn.Sequential(Weighted(), nn.Linear(3, 2)), True),
        *((partial(Sorted, how), True) for how in WAYS),
    ],
)
def test_which_graphs_may_move_samples_by_values(make, moves):
    model = make().train()  # in eval mode, an encoder layer has a kernel of its own without a graph
    own = {id(p): n for n, p in model.named_parameters()}
    small, large = (Graph.of(model(torch.randn(n, 4)), own) for n in (3, 5))
    assert moves_by_values(small, large, pure_nodes(small, large)) is moves


# --- gates that were closed when the model was first seen


class BatchMean(Body):
    """ReZero: a branch that starts at zero, and centres its samples once it has left it."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def between(self, h, x):
        return h + self.alpha * (h - h.mean(0))


class OverTheBatch(Body):
    """Attention between the samples whose projection starts at zero (samples taken for tokens by mistake)."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)
        nn.init.zeros_(self.attention.out_proj.weight)

    def between(self, h, x):
        return h + self.attention(h[:, None], h[:, None], h[:, None], need_weights=False)[0][:, 0]


class ClosedNorm(Body):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6, track_running_stats=False)
        nn.init.zeros_(self.norm.weight)

    def between(self, h, x):
        return h + self.norm(h)


class Switched(Body):
    def between(self, h, x):
        return h - h.detach().mean(0) if self.open else h


@pytest.mark.parametrize("make", [BatchMean, OverTheBatch, ClosedNorm, Switched])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_samples_that_mix_only_after_a_while_are_refused_then(make, n):
    model, x = make(), torch.randn(n, 4)
    if make is not ClosedNorm:  # which does not run on a sample alone
        check(model, x, params=["layer.weight", "head.weight"])  # all but the gate have a kernel still
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    model.open = True
    with pytest.raises(ModelError, match=r"mixes the samples|batch statistics"):
        empirical_ntk(model, x)
    with pytest.raises(ModelError, match=r"mixes the samples|batch statistics"):
        ntk_operator(model, x)
    for method in ("jacobian", "loop"):
        with pytest.raises(ModelError, match=r"mixes the samples|batch statistics"):
            empirical_ntk(model, x, method=method)


class Noisy(Body):
    """Noise from a generator of its own, which no fingerprint of torch's shows."""

    def __init__(self):
        super().__init__()
        self.noise = torch.Generator("cpu").manual_seed(0)

    def between(self, h, x):
        return h + 0.1 * torch.randn(h.shape, generator=self.noise) if self.open else h


@pytest.mark.parametrize("method", ["auto", "jacobian", "loop"])
@pytest.mark.parametrize("n", [1, 2, 8])
def test_noise_from_a_generator_of_the_models_own(method, n):
    model, x = Noisy(), torch.randn(n, 4)
    check(model, x)
    model.open = True
    with pytest.raises(ModelError, match="random in eval mode"):
        empirical_ntk(model, x, method=method)
    with pytest.raises(ModelError, match="random in eval mode"):
        ntk_operator(model, x)


# --- paths that values decide


class Branching(Body):
    """Each sample takes its own of two layers, once a flag says so."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(6, 6)

    def between(self, h, x):
        if not self.open:
            return h
        return torch.cat([self.other(row[None]) if float(row.detach().sum()) > 0 else row[None] for row in h])


class Detached(Body):
    """Whether what a sample gives back is detached depends on its values: outputs do not show it."""

    def between(self, h, x):
        return torch.cat([row[None] if float(row.detach().sum()) > 0 else row[None].detach() for row in h])


@pytest.mark.parametrize("make", [Branching, Detached])
def test_paths_that_are_decided_by_values(make):
    model, x = make(), torch.randn(9, 4)
    check(model, x)
    model.open = True
    check(model, x, x.flip(0), torch.randn(4, 4))


class ByNorm(Body):
    """One branch for all samples, decided by a value of the whole batch."""

    def between(self, h, x):
        return h if float(x.detach().sum()) > 0 else torch.relu(h)


def test_a_path_decided_by_the_whole_batch_is_refused_where_it_changes_outputs():
    model, x = ByNorm(), torch.ones(6, 4)
    check(model, x, -x)
    assert torch.allclose(ntk_operator(model, x, reduction="trace") @ torch.eye(6), reference_ntk(model, x), rtol=1e-12)
    x[[0, 2]] = -1
    for measure in (empirical_ntk, partial(empirical_ntk, method="loop"), ntk_operator):
        with pytest.raises(ModelError, match=r"mixes the samples.* a branch that a value of the whole batch decides"):
            measure(model, x)


class WritesAfterwards(Body):
    """What the head has read is written into in evaluation, where no gradient asks for it."""

    def forward(self, x):
        h = torch.tanh(self.layer(x))
        y = self.head(h)
        if not h.requires_grad:
            h.zero_()
        return y


def test_features_that_are_written_into_afterwards():
    model, x = WritesAfterwards(), torch.randn(5, 4)
    assert torch.equal(penultimate_features(model, x), torch.tanh(model.layer(x)).detach())


class EndsInFloat(Body):
    """Logits are given in single precision, whatever came before (as language models do)."""

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x))).float()


def test_logits_in_single_precision_do_not_spoil_a_kernel_in_double():
    model, x = EndsInFloat().float(), torch.randn(7, 4).float()
    for reduction in ("trace", "full"):
        got, want = (f(model, x, reduction=reduction, **k) for f, k in ((empirical_ntk, F64), (reference_ntk, {})))
        assert got.dtype == torch.float64
        assert float((got - want).norm()) <= 1e-12 * float(want.norm())
    assert feature_kernel(model, x, **F64).dtype == torch.float64


# --- parameters that the forward pass takes from elsewhere


class Elsewhere(nn.Module):
    """One of its parameters is used through a plain list, which nothing that stands in for it reaches."""

    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(4, 5)), nn.Linear(5, 3)
        self.held = [self.w]

    def forward(self, x):
        return self.head(torch.tanh(x @ self.held[0].to(x)))


def test_a_parameter_used_through_a_plain_list():
    model, x = Elsewhere(), torch.randn(7, 4)
    check(model, x)
    told = "parameter 'w' other than through"
    with pytest.raises(ModelError, match=told):
        ntk_operator(model, x)
    with pytest.raises(ModelError, match=told):
        jvp_prediction(model, x, {}, {"w": torch.ones(4, 5)})
    for method in ("jacobian", "loop"):
        torch.testing.assert_close(empirical_ntk(model, x, method=method), reference_ntk(model, x))
    model.float()
    with pytest.raises(ModelError, match=told):
        empirical_ntk(model, x.float(), dtype=torch.float64)
    model.double()
    model.w.register_hook(lambda g: 2 * g)
    with pytest.raises(ModelError, match=told):
        empirical_ntk(model, x)


# --- tensors of other kinds and devices


class Adjacency(Body):
    """A fixed graph between the units, held as a sparse buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("graph", (torch.rand(6, 6) > 0.5).double().to_sparse())

    def between(self, h, x):
        return torch.sparse.mm(self.graph, h.T).T


def test_a_sparse_buffer():
    model, x = Adjacency(), torch.randn(7, 4)
    check(model, x)
    assert model.graph.is_sparse


def test_with_another_default_device():
    model, x = Body(), torch.randn(7, 4)
    model.between = lambda h, x: h
    torch.set_default_device("meta")
    try:
        got = empirical_ntk(model, x)
        estimated = empirical_ntk(model, x, estimator="rademacher", n_projections=4)
    finally:
        torch.set_default_device(None)
    assert torch.allclose(got, reference_ntk(model, x), rtol=1e-12)
    assert torch.equal(estimated, empirical_ntk(model, x, estimator="rademacher", n_projections=4))


# --- memory of layers that are used many times


class Repeated(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times, self.layer, self.head = times, nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        for _ in range(self.times):
            x = torch.tanh(self.layer(x))
        return self.head(x)


def test_all_uses_of_a_layer_count_in_what_is_held():
    held = {}
    for times in (1, 40):
        model, x = Repeated(times), torch.randn(6, 8)
        check(model, x, ways={"gram", "ghost", "explicit"})
        held[times] = known.latest_needs(Subject.of(model), Batch.of(x))
    # 40 signals of 8 numbers for a sample are held together, where there was one
    assert held[40].passing >= 40 * 8 > held[1].passing >= 8
    # and as many inputs and signals for each output, where they are held until all samples are there
    (many,), (one,) = held[40].pieces["layer.weight"], held[1].pieces["layer.weight"]
    assert (many.fixed, many.factors) == (40 * 8, 40 * 8) and (one.fixed, one.factors) == (8, 8)


# --- arguments


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"outputs": 1}, "outputs must be indices"),
        ({"outputs": [0.5]}, "outputs must be indices"),
        ({"outputs": [True, False, True]}, "outputs must be indices"),
        ({"params": 3}, "params must be a name"),
        ({"layers": []}, "layers must be a name"),
        ({"estimator": "rademacher", "n_projections": 2.5}, "n_projections must be an integer"),
        ({"estimator": "rademacher", "n_projections": "8"}, "n_projections must be an integer"),
    ],
)
def test_arguments_of_another_kind(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        empirical_ntk(nn.Linear(4, 3), torch.randn(5, 4), **kwargs)


def test_arguments_of_an_operator():
    operator = ntk_operator(nn.Linear(4, 3), torch.randn(5, 4))
    with pytest.raises(ArgumentError, match="multiplied by a tensor"):
        operator @ [1.0] * 15
    for k in (0, 15, 2.0, True):
        with pytest.raises(ArgumentError, match="k must be an integer from 1"):
            operator.top_eigenvalues(k)
    with pytest.raises(ArgumentError, match="n_probes must be an integer of at least 2"):
        operator.trace(1.5)


def test_arguments_of_a_spot_check():
    model, x = nn.Linear(4, 3), torch.randn(5, 4)
    kernel = empirical_ntk(model, x)
    with pytest.raises(ArgumentError, match="kernel must be a tensor, found str"):
        spot_check(model, x, "kernel")
    with pytest.raises(ArgumentError, match="unknown reduction 'all'"):
        spot_check(model, x, kernel, reduction="all")
    with pytest.raises(ArgumentError, match="for reduction='full' only"):
        spot_check(model, x, kernel, reduction="full")
