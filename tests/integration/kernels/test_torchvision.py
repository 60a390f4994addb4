"""Architectures of torchvision, narrow where their class allows it, on small images, against the oracle."""

import functools

import pytest
import torch
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

from avalanche_ntk.kernels import empirical_ntk, reference_ntk, spot_check


def warm(model):
    """Scales, shifts and statistics that are not 0 and 1 (ConvNeXt's layer scale of 1e-6 would hide its blocks)."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    for name, p in model.named_parameters():
        if "layer_scale" in name or p.dim() == 1:
            p.data = p.data + 0.3 * torch.randn_like(p)
    return model


def mobilenet():
    conf = functools.partial(InvertedResidualConfig, width_mult=1.0)
    blocks = [conf(16, 3, 16, 16, True, "RE", 2, 1), conf(16, 5, 24, 16, True, "HS", 1, 1)]
    return MobileNetV3(blocks, last_channel=32, num_classes=3)


def convnext():
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3)


def swin():
    return tv.SwinTransformer(
        patch_size=[2, 2], embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=[2, 2], num_classes=3
    )


def vit():
    return tv.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    )


CASES = {"mobilenet_v3": (mobilenet, 32), "convnext": (convnext, 16), "swin": (swin, 16), "vit": (vit, 16)}


@pytest.mark.parametrize("name", CASES)
def test_narrow(name):
    make, size = CASES[name]
    torch.manual_seed(0)
    model = warm(make())
    x = torch.randn(3, 3, size, size)
    full = reference_ntk(model, x, reduction="full")
    got, info = empirical_ntk(model, x, reduction="full", dtype=torch.float64, return_info=True)
    assert float((got - full).norm() / full.norm()) <= 1e-12
    assert not set(info.methods.values()) & {"jacobian", "loop"}, info.reasons
    trace = full.diagonal(dim1=2, dim2=3).sum(-1)
    assert float((empirical_ntk(model, x).double() - trace).norm() / trace.norm()) <= 2e-6


def test_resnet18():
    torch.manual_seed(0)
    model = warm(tv.resnet18(num_classes=2))
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    x = torch.randn(6, 3, 8, 8)
    kernel, info = empirical_ntk(model, x, return_info=True)
    assert set(info.methods.values()) == {"dense", "explicit", "ghost", "gram"} and info.reasons == {}
    assert spot_check(model, x, kernel, 3) <= 2e-6
    groups = empirical_ntk(model, x, layers=["layer1", "fc"], dtype=torch.float64)
    want = reference_ntk(model, x[:2], layers=["layer1", "fc"])
    assert float((groups[:2, :2] - want).norm() / want.norm()) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (tv.mobilenet_v3_small, 32),
        (tv.convnext_tiny, 32),
        (tv.swin_t, 32),
        (functools.partial(tv.vit_b_16, image_size=32), 32),
    ],
)
def test_full_width(make, size):
    torch.manual_seed(0)
    model = warm(make(num_classes=2))
    x = torch.randn(3, 3, size, size)
    kernel, info = empirical_ntk(model, x, return_info=True)
    assert not set(info.methods.values()) & {"jacobian", "loop"}, info.reasons
    assert spot_check(model, x, kernel, 2) <= 2e-6
