"""Each output of its own sample only: what is refused, what is not, and what rounding and masks may not hide."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels import (
    empirical_ntk,
    feature_kernel,
    jvp_prediction,
    ntk_operator,
    reference_ntk,
)
from tests.support.cases import error

MIXES = "mixes the samples"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def check(model, x, x2=None, tolerance=None, **kwargs):
    tolerance = tolerance or (1e-12 if next(model.parameters()).dtype == torch.float64 else 2e-6)
    for reduction in ("full", "trace", "sum_logits"):
        got, info = empirical_ntk(model, x, x2, reduction=reduction, return_info=True, **kwargs)
        kept = {k: v for k, v in kwargs.items() if k in ("params", "layers", "outputs")}
        want = reference_ntk(model, x, x2, reduction=reduction, **kept)
        assert error(got, want) <= tolerance, (reduction, info.methods, info.reasons)
    return info


def displacement(model):
    return {k: torch.randn_like(p) for k, p in model.named_parameters()}


class Net(nn.Module):
    """`head(between(tanh(layer(x))))`, of which a switch changes the part between."""

    def __init__(self, width=8, outputs=4):
        super().__init__()
        self.layer, self.head, self.open = nn.Linear(6, width), nn.Linear(width, outputs), False

    def between(self, h, x):
        return h

    def forward(self, x):
        return self.head(self.between(torch.tanh(self.layer(x)), x))


# --- a masked or shifted logit hides nothing


class Masked(Net):
    def __init__(self, how, value):
        super().__init__()
        self.how, self.value = how, value

    def between(self, h, x):
        return h + h.detach().mean(0) if self.open else h

    def forward(self, x):
        out = super().forward(x)
        if self.how == "fill":
            return out.masked_fill(torch.tensor([False, False, False, True]), self.value)
        return out + torch.tensor([0.0, 0.0, 0.0, self.value])


MASKS = [("fill", -1.0), ("fill", -1e9), ("fill", float("-inf")), ("add", -1e4), ("add", -1e9)]


@pytest.mark.parametrize(("how", "value"), MASKS)
@pytest.mark.parametrize("known", [True, False])
def test_masked_logits_do_not_hide_that_samples_mix(how, value, known):
    model, x = Masked(how, value), torch.randn(9, 6)
    if known:
        check(model, x)
    model.open = True
    with pytest.raises(ModelError, match=MIXES):
        empirical_ntk(model, x)


class Branching(Masked):
    def between(self, h, x):
        return h * (2.0 if bool(x[0, 0] > 0) else 1.0)


@pytest.mark.parametrize(("how", "value"), MASKS)
def test_nor_that_one_sample_decides_the_path_of_all(how, value):
    model, x = Branching(how, value), torch.randn(9, 6)
    check(model, torch.cat([x[:, :1].abs(), x[:, 1:]], 1))
    x[0, 0], x[1, 0] = 1.0, -1.0
    for method in ("auto", "jacobian", "loop"):
        with pytest.raises(ModelError, match=MIXES):
            empirical_ntk(model, x, method=method)


def test_an_offset_hides_nothing_either():
    model = Masked("add", 0.0)
    with torch.no_grad():
        model.head.bias.fill_(1e4)
    x = torch.randn(9, 6)
    check(model, x)
    model.open = True
    with pytest.raises(ModelError, match=MIXES):
        empirical_ntk(model, x)


class Ranged(Net):
    """Divides by the largest number of the batch, from a floor on."""

    def forward(self, x):
        return super().forward(x / x.detach().abs().amax().clamp(min=5.0))


@pytest.mark.parametrize(("n", "at"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (9, 0), (9, 2), (9, 4), (9, 8)])
def test_a_sample_that_changes_all_others(n, at):
    model, x = Ranged().double(), torch.randn(n, 6).double().clamp(-4, 4)
    check(model, x)
    large = x.clone()
    large[at, 0] = 50
    for method in ("auto", "jacobian", "loop"):
        with pytest.raises(ModelError, match=MIXES):
            empirical_ntk(model, large, method=method)
        with pytest.raises(ModelError, match=MIXES):
            empirical_ntk(model, x, large, method=method)
    with pytest.raises(ModelError, match=MIXES):
        ntk_operator(model, large)
    with pytest.raises(ModelError, match=MIXES):
        jvp_prediction(model, large, {}, displacement(model))


class Centred(nn.Module):
    """`α (f − f₀)`: what is left of outputs that nearly cancel is mostly rounding."""

    def __init__(self, alpha):
        super().__init__()
        net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3))
        self.net, self.start, self.alpha = net, copy.deepcopy(net).requires_grad_(False), alpha

    def forward(self, x):
        return self.alpha * (self.net(x) - self.start(x))


@pytest.mark.parametrize("alpha", [1.0, 1e3])
def test_outputs_that_nearly_cancel_are_not_taken_for_mixed_ones(alpha):
    model, x = Centred(alpha), torch.randn(100, 64)
    for step in (0.0, 1e-8, 1e-6, 1e-3):
        with torch.no_grad():
            for p in model.net.parameters():
                p += step * torch.randn_like(p)
        got = empirical_ntk(model, x)
    assert error(got[:6, :6], reference_ntk(model, x[:6])) <= 2e-6
    empirical_ntk(model.double(), x.double())


@pytest.mark.parametrize("seed", range(6))
def test_equal_samples_have_nothing_but_rounding_between_them(seed):
    torch.manual_seed(seed)
    attention = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (3, 4)), attention, nn.Flatten(), nn.Linear(12, 5))
    with torch.no_grad():
        model[-1].bias -= model.eval()(torch.zeros(1, 12))[0]
        model[-1].weight[0] = 0
    for dtype in (torch.float32, torch.float64):
        x = 1e-3 * torch.randn(1, 12, dtype=dtype)
        for n in (1, 2, 3, 7):
            check(model.to(dtype), x.repeat(n, 1))


# --- few samples that mix


class Pair(Net):
    """Two samples above a threshold share a part of what they are, by a matrix over the samples."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def between(self, h, x):
        above = (x[:, 0] > 3).to(h)
        return h + self.share * (torch.outer(above, above) - torch.diag(above)) @ h


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_samples_that_mix_far_from_those_that_are_looked_at(share, dtype):
    model, x = Pair(share).to(dtype), torch.randn(33, 6, dtype=dtype).clamp(-2, 2)
    check(model, x)
    x[22:24, 0] = 4
    with pytest.raises(ModelError, match=MIXES):
        empirical_ntk(model, x)


OPERATORS = {
    "products": lambda h, x: (h @ h.T).sum(1, keepdim=True),
    "logsumexp": lambda h, x: (h @ h.T).logsumexp(1, keepdim=True),
    "pad": lambda h, x: F.pad(h, (0, 0, 1, -1)),
    "read across": lambda h, x: h.T.reshape(len(h), -1),
    "view across": lambda h, x: h.view(-1, len(h)).T,
    "inputs": lambda h, x: x.mean(0, keepdim=True).sum(),
    "detached": lambda h, x: h.detach().flip(0),
    "detached mean": lambda h, x: h.detach().mean(0),
    "norm": lambda h, x: F.batch_norm(h, None, None, training=True) if len(h) > 1 else h,
}


class Rare(Net):
    """One sample alone gets a part that is made of all of them."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def between(self, h, x):
        return h + (x[:, :1] > 3) * OPERATORS[self.how](h, x)


@pytest.mark.parametrize("how", OPERATORS)
@pytest.mark.parametrize("at", [7, 12])
def test_one_sample_that_is_made_of_all_of_them(how, at):
    model, x = Rare(how).double(), torch.randn(20, 6).double().clamp(-2, 2)
    x[at, 0] = 4
    with pytest.raises(ModelError, match=MIXES):
        empirical_ntk(model, x)


class ReadAcross(Net):
    """A gain on what is read across the samples and put back again, where a mask lets it pass."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.1]))

    def between(self, h, x):
        mask = (x[:, :1] > 0) * torch.eye(8, dtype=x.dtype)[0]
        y = (h.T.reshape(len(x), 8) * self.gain).reshape(8, len(x)).T
        return h + 10 * y * mask


@pytest.mark.parametrize("opened", [[0, 9, 19], [0, 12, 13, 14], [3]])
def test_a_gain_on_what_is_read_across_the_samples(opened):
    model, x = ReadAcross().double(), torch.randn(20, 6).double()
    x[:, 0] = -1
    x[opened, 0] = 3
    check(model, x)
    check(model, x, params="gain")


class Straight(Net):
    """Adds nothing to the outputs, and the gradient of a statistic of the batch."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def between(self, h, x):
        c = {
            "mean": lambda: h.mean(0),
            "roll": lambda: h.roll(1, 0),
            "max": lambda: h.amax(0),
            "pad": lambda: F.pad(h, (0, 0, 1, -1)),
        }[self.how]()
        return torch.tanh(h + c - c.detach())


@pytest.mark.parametrize("how", ["mean", "roll", "max", "pad"])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_samples_that_mix_in_gradients_alone(how, n):
    check(Straight(how).double(), torch.randn(n, 6).double())


# --- numbers that are read


class Temperature(Net):
    """Reads a number that is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(1.3))

    def between(self, h, x):
        return h * self.t / max(self.t.item(), 0.1)


def test_a_number_that_is_the_same_for_all_is_no_reason_to_take_them_one_by_one():
    model = Temperature().double()
    assert "loop" not in check(model, torch.randn(9, 6).double()).methods.values()


class Unrolled(Net):
    """Iterates until the whole batch has converged, as deep equilibrium models do (Bai et al. 2019)."""

    tolerance = 1e-9

    def between(self, h, x):
        z = torch.zeros_like(h)
        for _ in range(200):
            new = torch.tanh(0.5 * z.flip(1) + h)
            done = bool((new - z).detach().norm() < self.tolerance)
            z = new
            if done:
                break
        return z


def test_iterations_that_stop_together_in_a_batch_and_apart_alone():
    model, x = Unrolled().double(), torch.randn(9, 6).double()
    # alone and in the batch outputs agree to 1e-9, and the kernels of both
    want = reference_ntk(model, x, reduction="trace")
    assert error(empirical_ntk(model, x), want) <= 1e-8
    assert error(ntk_operator(model, x, reduction="trace") @ torch.eye(9).double(), want) <= 1e-8
    delta = displacement(model)
    rows = [jvp_prediction(model, x[i : i + 1], {}, delta) for i in range(9)]
    torch.testing.assert_close(jvp_prediction(model, x, {}, delta), torch.cat(rows), rtol=0, atol=1e-7)


class NoiseAbove(Net):
    def between(self, h, x):
        return h * torch.rand_like(h) if x.max() > 50 else h


def test_noise_in_the_second_batch_alone():
    x, x2 = torch.randn(5, 6), torch.randn(5, 6)
    x2[2, 0] = 60
    with pytest.raises(ModelError, match="random in eval mode"):
        empirical_ntk(NoiseAbove(), x, x2)


# --- models that are called in fewer ways


class Squeezing(Net):
    """Cannot be called with one sample."""

    def between(self, h, x):
        return h.unsqueeze(1).squeeze()


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_models_that_cannot_be_called_with_one_sample(n):
    model, x = Squeezing().double(), torch.randn(n, 6).double()
    twice = [torch.cat([x[i : i + 1]] * 2) for i in range(n)]
    rows = [torch.func.jacrev(lambda p, t=t: torch.func.functional_call(model, p, t)[0]) for t in twice]
    params = {k: p.detach() for k, p in model.named_parameters()}
    found = [torch.cat([j.flatten(1) for j in row(params).values()], 1) for row in rows]
    want = torch.einsum("icp,jcp->ij", torch.stack(found), torch.stack(found))
    assert error(empirical_ntk(model, x), want) <= 1e-12
    delta = displacement(model)
    moved = torch.func.jvp(lambda p: torch.func.functional_call(model, p, x), (params,), (delta,))[1]
    torch.testing.assert_close(jvp_prediction(model, x, {}, delta), moved)


def test_a_last_block_of_one_sample_is_given_twice_to_them():
    model, x = Squeezing().double(), torch.randn(9, 6).double()
    assert error(empirical_ntk(model, x, block=4), empirical_ntk(model, x)) <= 1e-12


class OneOnly(Net):
    def forward(self, x):
        assert len(x) == 1
        return super().forward(x)


def test_loop_serves_models_that_take_one_sample_only():
    model, x = OneOnly(), torch.randn(7, 6)
    got = empirical_ntk(model, x, method="loop")
    assert error(got, reference_ntk(model, x)) <= 2e-6


@pytest.mark.parametrize("method", ["auto", "jacobian", "loop"])
def test_an_iteration_that_stops_early_for_some_is_refused(method):
    model, x = Unrolled().double(), torch.randn(9, 6).double()
    model.tolerance = 1e-2  # what a sample alone comes to is another fixed point by a hundredth
    with pytest.raises(ModelError, match=MIXES):
        empirical_ntk(model, x, method=method)
    with pytest.raises(ModelError, match=MIXES):
        ntk_operator(model, x)
    with pytest.raises(ModelError, match=MIXES):
        jvp_prediction(model, x, {}, displacement(model))


@pytest.mark.parametrize("method", ["jacobian", "loop"])
def test_forced_methods_take_samples_that_go_their_own_ways(method):
    model, x = Unrolled().double(), torch.randn(9, 6).double()
    assert error(empirical_ntk(model, x, method=method), reference_ntk(model, x)) <= 1e-12


class Force(nn.Module):
    """A gradient as output, by a model that turns no gradients on itself."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.head(torch.tanh(self.layer(x))).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


def test_models_that_differentiate_in_their_forward_pass():
    model, x = Force().double(), torch.randn(9, 6).double()
    for method in ("auto", "jacobian", "loop"):
        check(model, x, method=method)
    want = reference_ntk(model, x, reduction="trace")
    top = ntk_operator(model, x, reduction="trace").top_eigenvalues(1)
    torch.testing.assert_close(top, torch.linalg.eigvalsh(want)[-1:])
    assert feature_kernel(model, x).shape == (9, 9)
    assert jvp_prediction(model, x, {}, displacement(model)).shape == (9, 6)


class Freezing(Net):
    def between(self, h, x):
        self.head.bias.requires_grad_(False)
        return h


@pytest.mark.parametrize("measure", [empirical_ntk, ntk_operator])
def test_a_forward_pass_that_freezes_what_was_chosen(measure):
    model = Freezing()
    with pytest.raises(ModelError, match=r"freezes parameter 'head\.bias'"):
        measure(model, torch.randn(5, 6))
    assert model.head.bias.requires_grad


class OfAClass(Net):
    def forward(self, x):
        class Logits(torch.Tensor):
            pass

        return super().forward(x).as_subclass(Logits)


def test_outputs_of_a_class_of_their_own():
    check(OfAClass(), torch.randn(5, 6))


class Listed(Net):
    """Uses a parameter through a list, which copies that stand in for it do not reach."""

    def __init__(self):
        super().__init__()
        self.held = [self.layer.weight]

    def forward(self, x):
        return self.head(torch.tanh(x @ self.held[0].T))


def test_an_operator_of_other_parameters_does_not_follow_one_in_a_list():
    with pytest.raises(ModelError, match=r"'layer\.weight' other than through"):
        ntk_operator(Listed(), torch.randn(5, 6), params="head.*")
    model = Listed()
    model.layer.weight.requires_grad_(False)
    with pytest.raises(ModelError, match=r"'layer\.weight' other than through"):
        jvp_prediction(model, torch.randn(5, 6), {}, {"layer.weight": torch.ones(8, 6)})
    assert not model.layer.weight.requires_grad


# --- outputs in another precision than the layers: what is made for a moment is not taken for what it replaces


class Precise(Net):
    def __init__(self, how):
        super().__init__(16, 3)
        self.how = how
        self.more = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())

    def forward(self, x):
        h = self.more(torch.tanh(self.layer(x)))
        if self.how == "head":
            return F.linear(h.double(), self.head.weight.double(), self.head.bias.double())
        out = self.head(h)
        return F.log_softmax(out, -1, dtype=torch.float64) if self.how == "softmax" else out.double()


@pytest.mark.parametrize("how", ["logits", "softmax", "head"])
@pytest.mark.parametrize("kwargs", [{}, {"block": 7}, {"memory_budget": 150_000}])
def test_outputs_more_exact_than_the_layers(how, kwargs):
    model = Precise(how)
    check(model, torch.randn(20, 6), **kwargs)
    check(model, torch.randn(20, 6), torch.randn(9, 6), **kwargs)


class Single(Net):
    def forward(self, x):
        return super().forward(x).float()


def test_precision_that_is_asked_for_of_a_model_that_has_it():
    model, x = Single().double(), torch.randn(9, 6).double()
    assert empirical_ntk(model, x, dtype=torch.float64).dtype == torch.float64
    check(model, x, dtype=torch.float64)


class Multiples(nn.Module):
    """Products whose signals are scaled before they are used."""

    def __init__(self):
        super().__init__()
        self.w = nn.ParameterList(nn.Parameter(torch.randn(16, 16) / 4) for _ in range(5))

    def forward(self, x):
        for w in self.w:
            x = torch.addmm(x.new_zeros(16), torch.tanh(x), w, alpha=0.5)
        return x[:, :3]


def test_products_times_a_number():
    check(Multiples().double(), torch.randn(20, 16).double())


# --- arguments


def test_whole_numbers_and_indices_of_every_kind():
    model, x = Net(), torch.randn(7, 6)
    operator = ntk_operator(model, x)
    assert operator.top_eigenvalues(np.int64(2)).shape == (2,)
    assert operator.trace(np.int64(4)) == operator.trace(4)
    got = empirical_ntk(model, x, estimator="rademacher", n_projections=np.int64(4))
    torch.testing.assert_close(got, empirical_ntk(model, x, estimator="rademacher", n_projections=4))
    want = empirical_ntk(model, x, outputs=[0, 2])
    for outputs in (list(torch.tensor([0, 2])), (i for i in (0, 2)), np.array([0, 2])):
        assert torch.equal(empirical_ntk(model, x, outputs=outputs), want)


class MixesAbove(Net):
    """A sample with a large number sees the mean of the others, by a constant that no graph shows."""

    def between(self, h, x):
        return h + torch.where(x[:, :1] > 20, h.detach().mean(0), 0)


def test_a_new_batch_in_the_memory_of_an_old_one_is_looked_at_in_full():
    model = MixesAbove().double()
    memory = np.random.default_rng(0).uniform(-4, 4, (9, 6))
    check(model, torch.from_numpy(memory))  # the fourth measurement runs samples 2, 5 and 7 again by themselves
    memory[4, 0] = 50  # at the same address, and with no write that torch counts
    with pytest.raises(ModelError, match=MIXES):
        empirical_ntk(model, torch.from_numpy(memory))


@pytest.mark.parametrize("labels", [None, 3, [0, 1] * 4, np.arange(8), torch.arange(8)])
def test_a_batch_is_known_again_by_the_tensors_that_were_given(labels):
    passes = []

    class Counted(Net):
        def forward(self, x, labels=None):
            passes.append(len(x))
            return super().forward(x)

    model, x = Counted(), torch.randn(8, 6)
    seen = []
    for given in (x, x, x, x.clone(), x):
        empirical_ntk(model, given, task_labels=labels)
        seen.append(sum(passes))
        passes.clear()
    # the batch; for a new one three samples by themselves, and all samples once more in other company
    assert seen[1:] == [8, 8, 19, 8]
    x += 1
    for checks, want in (("auto", 19), ("always", 11), ("never", 8)):
        passes.clear()
        empirical_ntk(model, x, task_labels=labels, checks=checks)
        assert sum(passes) == want
