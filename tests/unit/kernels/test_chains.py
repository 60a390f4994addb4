"""Weights made of parameters: low-rank updates keep their factors; frozen parts cost no signals."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from tests.support.cases import error


class LowRank(nn.Module):
    """`W + s·B A`, as low-rank adaptation makes a weight by parametrisation; B starts at zero."""

    def __init__(self, rows, columns, rank=2, how="plus"):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        self.register_buffer("s", torch.tensor(0.5))
        self.how = how

    def forward(self, w):
        return {
            "plus": lambda: w + 2.0 * (self.b @ self.a),
            "tensor": lambda: w + self.s * self.b @ self.a,
            "divided": lambda: w - (-(self.b @ self.a) / 4),
            "turned": lambda: (w.T + self.a.T @ self.b.T).T,
            "thrice": lambda: w + self.b @ (self.a @ torch.eye(self.a.shape[1]).to(w)),
        }[self.how]()


def adapted(how, freeze=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    for layer in (model[0], model[2]):
        layer.requires_grad_(not freeze)
        parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape, how=how))
    return model.double()


X, X2 = torch.randn(7, 6).double(), torch.randn(4, 6).double()


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("how", ["plus", "tensor", "divided", "turned", "thrice"])
def test_low_rank_updates_by_parametrisation_go_through_their_factors(how, filled):
    model = adapted(how)
    if filled:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith(".b"):
                    p.normal_()
    for second in (None, X2):
        for kwargs in ({}, {"reduction": "full"}, {"block": 2}):
            got, info = empirical_ntk(model, X, second, return_info=True, **kwargs)
            reduction = kwargs.get("reduction", "trace")
            assert error(got, reference_ntk(model, X, second, reduction=reduction)) <= 1e-12
            low_rank = {m for n, m in info.methods.items() if n.endswith((".a", ".b"))}
            # one position a sample: no gradient of a matrix is formed, not even one of low rank
            assert low_rank == ({"gram"} if how != "divided" else {"dense"}), info.methods
    assert not info.plan_not_kept


def test_a_weight_that_is_trained_beside_its_low_rank_update():
    model = adapted("plus", freeze=False)
    got, info = empirical_ntk(model, X, return_info=True)
    assert error(got, reference_ntk(model, X)) <= 1e-12
    assert set(info.methods.values()) == {"gram"}


def test_tokens_and_shared_factors():
    class Shared(nn.Module):
        """One A for two weights, and a B that is used twice in one of them: more than one path, so explicit."""

        def __init__(self):
            super().__init__()
            self.v, self.w = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5, 3))
            self.a, self.b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(4, 2))
            self.c = nn.Parameter(torch.randn(5, 5))

        def forward(self, x):
            h = torch.tanh(x @ (self.v + self.b @ self.a))
            return (h @ (self.w + self.c @ self.c.T @ self.w) + h[..., :3] @ (self.a[:, :3].T @ self.a[:, :3])).mean(1)

    torch.manual_seed(0)
    model, x = Shared().double(), torch.randn(6, 3, 4).double()
    for second in (None, x[:2, :2]):
        got, info = empirical_ntk(model, x, second, return_info=True)
        assert error(got, reference_ntk(model, x, second)) <= 1e-12
        assert info.methods["b"] in ("ghost", "explicit") and info.methods["c"] == "dense"


class Counted(torch.autograd.Function):
    """The identity; its backward passes are counted."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        Counted.calls += 1
        return g


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = Counted.apply(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return self.head(h)


def test_frozen_parts_carry_no_signals():
    torch.manual_seed(0)
    model = Backbone().double()
    model.first.requires_grad_(False)
    model.second.requires_grad_(False)
    want = reference_ntk(model, X)
    empirical_ntk(model, X)
    Counted.calls = 0
    assert error(empirical_ntk(model, X), want) <= 1e-12
    assert Counted.calls == 0
    model.second.requires_grad_(True)  # the test can fail
    empirical_ntk(model, X)
    assert Counted.calls > 0
