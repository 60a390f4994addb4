"""Patches of convolutions: their rows, and their Gram matrix that needs none."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from avalanche_ntk.kernels import empirical_ntk
from avalanche_ntk.kernels._contract import ghost, patches
from avalanche_ntk.kernels._contract.contraction import Tally, contract
from avalanche_ntk.kernels._contract.patches import Patches, gram, gram_cost
from avalanche_ntk.kernels._contract.pieces import Outer
from avalanche_ntk.kernels._device.profile import PROCESSOR

CONV = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}


def by_hand(p: Patches) -> torch.Tensor:
    """Rows read entry by entry from the definition of a convolution."""
    n, c = p.x.shape[:2]
    rows = torch.zeros(n, *p.out, c, *p.kernel, dtype=p.x.dtype)
    for at in torch.cartesian_prod(*(torch.arange(o) for o in p.out)).reshape(-1, len(p.out)).tolist():
        for k in torch.cartesian_prod(*(torch.arange(o) for o in p.kernel)).reshape(-1, len(p.kernel)).tolist():
            u = [a * s + i * d - q for a, s, i, d, q in zip(at, p.stride, k, p.dilation, p.padding, strict=True)]
            if all(0 <= v < size for v, size in zip(u, p.x.shape[2:], strict=True)):
                rows[(slice(None), *at, slice(None), *k)] = p.x[(slice(None), slice(None), *u)]
    return rows.reshape(n, -1, c * torch.tensor(p.kernel).prod())


@st.composite
def convolutions(draw):
    nd = draw(st.integers(1, 3))
    most = {1: 9, 2: 6, 3: 4}[nd]

    def each(low, high):
        return [draw(st.integers(low, high)) for _ in range(nd)]

    kernel, stride, padding, dilation = each(1, 3), each(1, 3), each(0, 2), each(1, 2)
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    shapes = []
    for _ in range(2):
        sizes = [draw(st.integers(max(1, e - 2 * p), most + 2)) for e, p in zip(extent, padding, strict=True)]
        shapes.append((draw(st.integers(1, 3)), draw(st.just(2)), *sizes))
    return shapes, kernel, stride, padding, dilation


@settings(max_examples=150, deadline=None, derandomize=True)
@given(convolutions())
def test_gram_of_patches_is_that_of_the_rows(case):
    shapes, kernel, stride, padding, dilation = case
    sides = []
    for seed, shape in enumerate(shapes):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weight = torch.ones(1, shape[1], *kernel, dtype=torch.float64)
        out = CONV[len(kernel)](x, weight, None, stride, padding, dilation)
        p = Patches(x, kernel, stride, padding, dilation, list(out.shape[2:]))
        rows = by_hand(p)
        torch.testing.assert_close(p.make(slice(None)), rows, rtol=0, atol=0)
        assert torch.allclose(rows.sum(2), out.reshape(len(x), -1))  # ones as weights: a second way to the rows
        assert p.shape == rows.shape
        torch.testing.assert_close(p.positions_first().make(slice(None)), rows, rtol=0, atol=0)
        sides.append((p, rows))
    (p, a), (q, b) = sides
    for one, two, left, right in ((p, q, a, b), (p, p, a, a), (p.positions_first(), q.some(slice(0, 1)), a, b[:1])):
        want = torch.einsum("nta,msa->tnsm", left, right)
        torch.testing.assert_close(gram(one, two), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("workspace", [2**30, 2**16, 1])
def test_ghost_products_by_pixels(monkeypatch, full, workspace):
    monkeypatch.setattr(ghost, "profile_of", lambda device: replace(PROCESSOR, pairs=400))
    generator = torch.Generator().manual_seed(0)
    sides = []
    for n in (7, 5):
        x = torch.randn(n, 40, 5, 4, generator=generator, dtype=torch.float64)
        a = Patches(x, [3, 3], [1, 1], [1, 1], [1, 1], [5, 4])
        sides.append(Outer(a, torch.randn(3, n, 20, 2, generator=generator, dtype=torch.float64), a_first=False))
    p, q = sides
    assert gram_cost(p.a, q.a) < p.a.shape[2]  # by pixels, then
    for one, two in ((p, q), (p, p)):
        jacobians = [torch.einsum("nta,rntb->nrab", s.a.make(slice(None)), s.g) for s in (one, two)]
        want = torch.einsum("nrab,mqab->nmrq" if full else "nrab,mrab->nm", *jacobians)
        got, peak = ghost.ghost(one, two, full, workspace)
        keep = torch.ones(7, 7, dtype=torch.bool).triu() if one is two else slice(None)
        torch.testing.assert_close(got[keep], want[keep], rtol=1e-12, atol=1e-12)
        assert peak <= max(workspace, 4 * 400 * 9 * 8)
        if not full:
            known = torch.zeros(20, len(one.g[0]), 20, len(two.g[0]), dtype=torch.float64)
            first, _ = ghost.ghost(one, two, full, workspace, known, fill=True)
            again, _ = ghost.ghost(one, two, full, workspace, known)
            assert torch.equal(first, got) and torch.equal(again, got)


@pytest.mark.parametrize("form", ["ghost", "explicit"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 40])
@pytest.mark.parametrize("turned", [(False, True), (True, False), (True, True)])
def test_batches_that_lie_in_memory_in_different_orders(turned, channels, full, form):
    generator = torch.Generator().manual_seed(0)
    sides = []
    for n, last in zip((3, 2), turned, strict=True):
        x = torch.randn(n, channels, 4, 4, generator=generator, dtype=torch.float64)
        if last:
            x = x.to(memory_format=torch.channels_last)
        a = Patches(x, [3, 2], [1, 2], [1, 1], [1, 1], [4, 3])
        sides.append(Outer(a, torch.randn(2, n, 12, 5, generator=generator, dtype=torch.float64), a_first=False))
    jacobians = [torch.einsum("nta,rntb->nrab", by_hand(s.a), s.g) for s in sides]
    want = torch.einsum("nrab,mqab->nmrq" if full else "nrab,mrab->nm", *jacobians)
    got, used = contract(*sides, full, 2**20, Tally(), form)
    assert used == form
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["auto", "ghost", "explicit"])
@pytest.mark.parametrize("reduction", ["trace", "sum_logits", "full"])
def test_wide_convolutions_against_the_oracle(form, reduction):
    """Wide enough that Gram matrices are made from pixels; strides, dilation, sizes that a stride does not divide."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1), nn.Tanh(), nn.Conv2d(40, 24, 3, stride=2, padding=1), nn.Tanh(),
        nn.Conv2d(24, 24, (3, 2), dilation=(1, 2), padding=2), nn.Tanh(), nn.Conv2d(24, 8, 1, stride=3), nn.Flatten(),
        nn.LazyLinear(3),
    )  # fmt: skip
    x, y = torch.randn(6, 3, 9, 8), torch.randn(3, 3, 9, 8)
    model(x)
    for other in (None, y):
        want = empirical_ntk(model, x, other, reduction=reduction, dtype=torch.float64, method="jacobian")
        for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
            got = empirical_ntk(model, x, other, reduction=reduction, dtype=dtype, method=form)
            assert float((got.double() - want).norm() / want.norm()) <= tol


@settings(max_examples=60, deadline=None, derandomize=True)
@given(convolutions(), st.sampled_from([1, 5, 4096]), st.booleans())
def test_gradients_of_weights_by_convolutions_are_those_of_the_rows(case, strip, last):
    (shape, _), kernel, stride, padding, dilation = case
    if len(kernel) != 2:
        return
    make = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=make)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    out = CONV[2](x, torch.ones(1, shape[1], *kernel), None, stride, padding, dilation).shape[2:]
    p = Patches(x, kernel, stride, padding, dilation, list(out), 4)
    assert not p.by_convolution  # as small as that, it is a matrix product
    g = torch.randn(shape[0], 4, *out, generator=make)
    j = torch.full((shape[0], 4, p.shape[2]), float("nan"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "STRIP", strip)
        patch.setattr(patches, "LARGE", 0)
        assert p.by_convolution
        p.weight_gradients(g, slice(0, shape[0]), j)
    rows = by_hand(Patches(x.double(), kernel, stride, padding, dilation, list(out)))
    want = torch.einsum("nta,nbt->nba", rows, g.double().flatten(2))
    want = by_channels_last(want, shape[1])  # as `make_fast` has them
    torch.testing.assert_close(j.double(), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(p.make_fast(slice(None)).double(), by_channels_last(rows, shape[1]), atol=0, rtol=0)


def by_channels_last(rows, channels):
    return rows.unflatten(2, (channels, -1)).transpose(2, 3).flatten(2)


def test_long_sums_of_gradients_by_convolutions_are_as_exact_as_matrix_products():
    torch.manual_seed(0)
    x, g = torch.randn(1, 4, 256, 256) + 1, torch.randn(1, 8, 256, 256) + 1  # sums of 65,536 numbers that do not cancel
    p = Patches(x, [3, 3], [1, 1], [1, 1], [1, 1], [256, 256])
    j = torch.empty(1, 8, 36)
    p.weight_gradients(g, slice(0, 1), j)
    rows = Patches(x.double(), [3, 3], [1, 1], [1, 1], [1, 1], [256, 256]).make(slice(0, 1))
    want = by_channels_last(torch.einsum("nta,nbt->nba", rows, g.double().flatten(2)), 4)
    assert float((j - want).norm() / want.norm()) < 5e-7
