"""What is read off a graph is used again only where it still holds, and for each of two batches what is its own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from avalanche_ntk.kernels._contract.rules.elementwise import broadcast
from avalanche_ntk.kernels._structure.nodes import NODES
from tests.support.cases import error

FAST = {"gram", "ghost", "explicit", "dense", "lookup", "unused"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def check(model, x, x2=None, ways=FAST, **kwargs):
    for reduction in ("full", "trace", "sum_logits"):
        got, info = empirical_ntk(model, x, x2, reduction=reduction, dtype=torch.float64, return_info=True, **kwargs)
        assert error(got, reference_ntk(model, x, x2, reduction=reduction)) <= 1e-12, (reduction, info)
        assert set(info.methods.values()) <= ways, info.reasons


class Turned(nn.Module):
    """Over which dimension its weight is transposed is a Python attribute, which no operator's name shows."""

    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Parameter(torch.randn(4, 4)), 0

    def forward(self, x):
        return x @ self.a.transpose(self.d, 1) + x.tanh() @ self.a.transpose(0, 1)


class Permuted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.dims = nn.Parameter(torch.randn(3, 3, 3)), (0, 1, 2)

    def forward(self, x):
        return x @ self.a.permute(self.dims).reshape(3, 9) + x.sin() @ self.a.permute(0, 1, 2).reshape(3, 9)


class TokenOrder(nn.Module):
    """As many tokens as samples, in an order that is a Python attribute."""

    def __init__(self):
        super().__init__()
        self.layer, self.out, self.token_major = nn.Linear(3, 4), nn.Linear(4, 2), False

    def forward(self, x):
        order = (1, 0, 2) if self.token_major else (0, 1, 2)
        h = self.layer(x.permute(order).reshape(-1, 3)).tanh()
        h = (
            h.view(len(x), len(x) if x.shape[1] == len(x) else x.shape[1], 4)
            if not self.token_major
            else h.view(x.shape[1], len(x), 4)
        )
        return self.out(h.permute(order).mean(1))


class Cut(nn.Module):
    """How much of the weight is used is a Python attribute."""

    def __init__(self):
        super().__init__()
        self.w, self.parts, self.rows = nn.Parameter(torch.randn(6, 2)), (2, 4), 3

    def forward(self, x):
        first, second = self.w.split(self.parts)
        return x[:, : len(first)] @ first + x[:, -len(second) :] @ second + x[:, : self.rows] @ self.w[: self.rows]


@pytest.mark.parametrize(
    ("make", "shape", "attribute", "values"),
    [
        (Turned, (4,), "d", (0, 1, 0)),
        (Permuted, (3,), "dims", ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 1, 2))),
        (TokenOrder, (5, 3), "token_major", (False, True, False)),
        (Cut, (6,), "parts", ((2, 4), (3, 3), (5, 1))),
        (Cut, (6,), "rows", (3, 4, 1)),
    ],
)
def test_an_attribute_of_the_model_changes_between_two_measurements(make, shape, attribute, values):
    model = make()
    for n in (5, 7):
        x = torch.randn(n, *shape)
        for value in values:
            setattr(model, attribute, value)
            check(model, x)


class TwoBranches(nn.Module):
    """One weight used token-major, where it may be dead, and sample-major."""

    def __init__(self):
        super().__init__()
        self.w, self.out = nn.Linear(3, 3, bias=False), nn.Linear(3, 2)

    def forward(self, x):
        tokens = x.transpose(0, 1)
        a = torch.relu(self.w(tokens.reshape(-1, 3)).reshape(tokens.shape) - 30).mean(0)
        return self.out(0.5 * a + torch.tanh(self.w(x.mean(1))))


def test_a_use_that_is_dead_in_one_batch_only():
    """No signal shows the order of the samples there: what was guessed for one batch says nothing of the other."""
    dead, alive = torch.randn(6, 4, 3), 60 * torch.randn(6, 4, 3)
    for x, x2 in ((dead, alive), (alive, dead), (dead, None), (alive, None)):
        check(TwoBranches(), x, x2)
    both = torch.cat([dead, alive])
    for block in (2, 3, 4, 6, 12):  # where a guess for the first samples fails for the rest, no rule is used
        check(TwoBranches(), both, block=block, ways=FAST | {"jacobian"})
        check(TwoBranches(), both, alive, block=block, ways=FAST | {"jacobian"})


def tokens():
    return Sequences(nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2))


class Sequences(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.positions, self.out = inner, nn.Parameter(torch.randn(9, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.inner(x + self.positions[: x.shape[1]]).mean(1))


def images():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "one", "two"),
    [
        (tokens, (5, 4), (3, 4)),
        (lambda: Sequences(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))), (5, 4), (1, 4)),
        (images, (3, 12, 12), (3, 13, 10)),
    ],
)
def test_batches_of_other_sizes_go_the_same_fast_way(make, one, two):
    for n, m in ((5, 3), (1, 4), (4, 1)):
        x, x2 = torch.randn(n, *one), torch.randn(m, *two)
        check(make(), x, x2)
        check(make(), x, x2, block=2)
        check(make(), x, x2, memory_budget=2**19)


def test_weights_made_otherwise_for_each_length_are_compared_as_themselves():
    """The same entries, as one matrix for each length: their gradients are carried to the parameter first."""

    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(12, 2))

        def forward(self, x):
            width = x.shape[1]
            return x @ self.w.view(width, -1).t().reshape(-1, width).t()[:, :2]

    check(Folded(), torch.randn(4, 3), torch.randn(3, 6), ways=FAST)


class Swapped(nn.Module):
    """An operator whose gradient with respect to the weight exchanges the two outputs of different samples."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        return torch.view_as_real(torch.complex(x, x.tanh()) * torch.view_as_complex(self.w)).sum(1)


def test_a_rule_that_exchanges_pairs_of_outputs_is_found_out(monkeypatch):
    """Without the conjugate, `K(v, v)` of every combination v is right and `K(v, v')` is not."""
    wrong = replace(NODES["Mul"], rule=lambda s: broadcast(s, s.node._saved_self.conj()))
    monkeypatch.setitem(NODES, "Mul", wrong)
    model, x = Swapped(), torch.randn(5, 4)
    got, info = empirical_ntk(model, x, reduction="full", dtype=torch.float64, return_info=True)
    assert error(got, reference_ntk(model, x, reduction="full")) <= 1e-12
    assert info.methods == {"w": "jacobian"} and "disagreed with autograd" in info.reasons["w"]


@pytest.mark.parametrize("order", ["ends in float64", "begins in float32", "begins in float64", "float32 between"])
def test_models_of_several_precisions_are_as_exact_as_their_least(order):
    first, last = nn.Linear(4, 8), nn.Linear(8, 2)
    steps = {
        "ends in float64": lambda m, x: last(first(x).tanh()).double(),
        "begins in float32": lambda m, x: last(first(x).double().tanh()),
        "begins in float64": lambda m, x: last(first(x.double()).float().tanh()),
        "float32 between": lambda m, x: last((first(x).float().tanh() * 2).double()),
    }
    if order in ("begins in float32", "float32 between"):
        last.double()
    if order in ("begins in float64", "float32 between"):
        first.double()

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x):
            return steps[order](self, x)

    model = Mixed()
    x = torch.randn(6, 4, dtype=torch.float64 if order == "float32 between" else torch.float32)
    for reduction in ("full", "trace"):
        got, info = empirical_ntk(model, x, reduction=reduction, return_info=True)
        assert error(got, reference_ntk(model, x, reduction=reduction, dtype=None).double()) <= 1e-6
        assert set(info.methods.values()) <= FAST, info.reasons
