"""Reduced precision of float32 products, set by either of torch's interfaces, neither reaches a kernel nor is lost."""

import warnings

import pytest
import torch
from torch import nn

from avalanche_ntk.kernels import empirical_ntk, reference_ntk
from tests.support.cases import error

KEYS = [(b, o) for b in ("cuda", "mkldnn") for o in ("all", "matmul", "conv", "rnn")] + [("generic", "all")]

needs_new = pytest.mark.skipif(
    not hasattr(torch._C, "_get_fp32_precision_getter"), reason="torch before 2.9 has the older interface only"
)


def put(backend, operation, value):
    torch._C._set_fp32_precision_setter(backend, operation, value)


def told(read):
    try:
        return read()
    except RuntimeError:  # the two interfaces were set to different values
        return "mixed"


def seen():
    """What every getter says, with what stands above each key (backend, generic) set aside in turn."""
    found = [told(torch.get_float32_matmul_precision), told(torch._C._get_cublas_allow_tf32)]
    found.append(told(torch._C._get_cudnn_allow_tf32))
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        return found
    get = torch._C._get_fp32_precision_getter
    found += [get(*key) for key in KEYS]
    above = dict.fromkeys([("generic", "all"), ("cuda", "all"), ("mkldnn", "all")])
    for key in above:
        above[key] = get(*key)
        put(*key, "none")
        found += [get(*k) for k in KEYS]
    for key, value in above.items():
        put(*key, value)
    return found


@pytest.fixture
def restored():
    yield
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        for key in KEYS:
            put(*key, "none")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def new(*path):
    def set_():
        *where, value = path
        target = torch.backends
        for name in where:
            target = getattr(target, name)
        target.fp32_precision = value

    return pytest.param(set_, id=".".join(path), marks=needs_new)


SETTINGS = [
    new("tf32"),
    new("cuda", "matmul", "tf32"),
    new("cuda", "matmul", "ieee"),
    new("cudnn", "tf32"),
    new("cudnn", "conv", "tf32"),
    new("cudnn", "conv", "ieee"),
    new("cudnn", "rnn", "tf32"),
    new("mkldnn", "matmul", "bf16"),
    new("mkldnn", "conv", "bf16"),
    new("mkldnn", "rnn", "bf16"),
    pytest.param(lambda: torch.set_float32_matmul_precision("high"), id="matmul-high"),
    pytest.param(lambda: torch.set_float32_matmul_precision("medium"), id="matmul-medium"),
    pytest.param(lambda: setattr(torch.backends.cudnn, "allow_tf32", False), id="cudnn-off"),
    pytest.param(lambda: setattr(torch.backends.cudnn, "allow_tf32", True), id="cudnn-on"),
]


class Asks(nn.Module):
    """Switches cuDNN off for a while, as code with a gradient penalty does; the older interface is asked for that."""

    def forward(self, x):
        assert torch.get_float32_matmul_precision() == "highest"
        with torch.backends.cudnn.flags(enabled=False):
            return x.tanh()


@pytest.mark.parametrize("setting", SETTINGS)
def test_kernels_are_exact_and_the_setting_stays(setting, restored):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), Asks(), nn.Flatten(), nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 3))
    x = torch.randn(6, 16, 6, 6)
    want = reference_ntk(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that the older interface will go
        setting()
    before = seen()
    assert error(empirical_ntk(model, x), want) < 2e-6
    assert seen() == before


@needs_new
def test_both_interfaces_set_at_once_stay_as_mixed_as_they_were(restored):
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.mkldnn.fp32_precision = "bf16"
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    before = seen()
    assert "mixed" in before
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    assert error(empirical_ntk(model, x), reference_ntk(model, x)) < 2e-6
    assert seen() == before
