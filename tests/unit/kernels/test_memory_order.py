"""Images go to convolutions with channels last in memory where that changes nothing but time."""

from collections import UserList

import pytest
import torch
from torch import nn

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.kernels._device import order


class Net(nn.Module):
    """Two convolutions wide enough for it, and something between them and the head.

    Notes the order of every batch but the small ones that are run again by themselves.
    """

    def __init__(self, between):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, stride=2)
        self.head = nn.Linear(16 * 9, 3)
        self.between = between
        self.seen = UserList()  # a measurement puts plain lists back

    def forward(self, x):
        if len(x) > 3:
            self.seen.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
        return self.head(self.between(self.two(torch.tanh(self.one(x)))))


CASES = {
    "flatten": (lambda h: h.flatten(1), True),
    "view": (lambda h: h.view(len(h), -1), False),  # refused by torch for channels-last tensors
    "as_strided": (lambda h: h.as_strided((len(h), 144), (144, 1)), False),  # another result for them
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduction", ["trace", "full"])
def test_models_that_mind_get_their_own_order(case, reduction):
    torch.manual_seed(0)
    between, used = CASES[case]
    model, x = Net(between), torch.randn(7, 3, 6, 6)
    want = empirical_ntk(model, x, reduction=reduction, dtype=torch.float64, method="jacobian")
    assert not any(model.seen)
    for form in ("auto", "ghost", "explicit"):
        model.seen.clear()
        got = empirical_ntk(model, x, reduction=reduction, method=form)
        assert float((got.double() - want).norm() / want.norm()) <= 2e-6
        assert any(model.seen) is used
    model.seen.clear()
    empirical_ntk(model, x, reduction=reduction)
    assert model.seen == [used]  # asked once, and one pass a measurement


@pytest.mark.parametrize("functional", [False, True])
def test_group_norms_get_their_own_order(functional):
    """Torch's loses digits with channels last."""
    torch.manual_seed(0)
    norm = nn.Sequential(nn.GroupNorm(2, 16), nn.Flatten())
    model, x = (
        Net((lambda h: nn.functional.group_norm(h, 2).flatten(1)) if functional else norm),
        torch.randn(7, 3, 6, 6),
    )
    nn.init.constant_(model.two.bias, 3)  # what is subtracted again is large beside what is left
    want = empirical_ntk(model, x, dtype=torch.float64, method="jacobian")
    for _ in range(2):
        model.seen.clear()
        got = empirical_ntk(model, x)
        assert float((got.double() - want).norm() / want.norm()) <= 1e-6
        assert model.seen[-1] is False
    assert model.seen == [False]  # asked once, and never given another order again


def test_a_model_that_changes_is_asked_again_when_it_fails():
    torch.manual_seed(0)
    model, x = Net(lambda h: h.flatten(1)), torch.randn(4, 3, 6, 6)
    want = empirical_ntk(model, x)
    assert model.seen[-1] is True
    model.between = lambda h: h.view(len(h), -1)
    torch.testing.assert_close(empirical_ntk(model, x), want)
    assert model.seen[-1] is False


def test_narrow_ones_and_float64_keep_the_order_of_their_inputs():
    torch.manual_seed(0)
    model, x = Net(lambda h: h.flatten(1)), torch.randn(4, 3, 6, 6)
    empirical_ntk(model, x, dtype=torch.float64)
    assert not any(model.seen)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(empirical_ntk(model, last), empirical_ntk(model, x))
    narrow = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 2))
    empirical_ntk(narrow, x)
    assert list(order._CHANNELS_LAST[narrow].values()) == [False]
