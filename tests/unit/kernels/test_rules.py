"""Rules of nodes that only another device makes, and nodes that do not keep what a rule asks for."""

import pytest
import torch
from torch import nn

from avalanche_ntk.kernels._contract.pieces import Dense
from avalanche_ntk.kernels._contract.rules import NoRule, Site, piece_of
from avalanche_ntk.kernels._structure.graph import NotKept, kept
from avalanche_ntk.kernels._structure.layout import Layout
from avalanche_ntk.kernels._structure.nodes import NODES, spec_of


class StandIn:
    """A node of another device: what it keeps, and its backward."""

    def __init__(self, name, backward=None, **saved):
        self._name, self._backward = name, backward
        for key, value in saved.items():
            setattr(self, f"_saved_{key}", value)

    def name(self):
        return self._name

    def __call__(self, g):
        return self._backward(g)


def batch_norm():
    """Batch norm by running statistics, and its gradient with respect to the scale, written out."""
    torch.manual_seed(0)
    x, mean, var = torch.randn(4, 3, 5), torch.randn(3), torch.rand(3) + 0.1
    g = torch.randn(2, 4, 3, 5)
    eps = 0.3  # so large that leaving it out shows
    normed = (x - mean[:, None]) / (var[:, None] + eps).sqrt()
    want = torch.einsum("rnct,nct->nrc", g, normed)
    saved = {"input": x, "running_mean": mean, "running_var": var, "training": False}
    return saved, eps, g, normed, want


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("NativeBatchNormBackward0", "eps"),
        ("CudnnBatchNormBackward0", "epsilon"),
        ("MiopenBatchNormBackward0", "epsilon"),
    ],
)
def test_batch_norm_finds_its_epsilon_under_every_devices_name(name, field):
    saved, eps, g, _, want = batch_norm()
    site = Site(StandIn(name, **saved, **{field: eps}), 1, g, Layout(0), 4, (3,))
    piece, way = piece_of(site, name)
    assert way == "rule" and isinstance(piece, Dense)
    torch.testing.assert_close(piece.j, want)


def test_a_field_that_is_missing_leads_to_the_nodes_own_backward():
    saved, _, g, normed, want = batch_norm()

    def backward(grad):
        return None, grad * normed, None

    name = "CudnnBatchNormBackward0"
    site = Site(StandIn(name, backward, **saved), 1, g, Layout(0), 4, (1, 3, 1))
    with pytest.raises(NoRule):
        spec_of(name).rule(site)
    piece, way = piece_of(site, name)
    assert way == "masked"
    torch.testing.assert_close(piece.dense((3,)), want)


@pytest.mark.parametrize("slot", [0, 1, 2])
@pytest.mark.parametrize("name", [name for name, spec in NODES.items() if spec.rule is not None])
def test_no_rule_puts_a_default_in_the_place_of_a_missing_field(name, slot):
    """A node that keeps nothing: a rule that needs nothing gives the signal summed, any other has no rule."""
    g = torch.randn(2, 4, 3, 5, 5)
    for shape in ((3,), (3, 5, 5), (5,)):
        try:
            piece = NODES[name].rule(Site(StandIn(name), slot, g, Layout(0), 4, shape))
        except NoRule:
            continue
        dims = {(3,): (3, 4), (3, 5, 5): (), (5,): (2, 3)}[shape]
        want = g.sum(dims) if dims else g
        torch.testing.assert_close(piece.dense(shape), want.transpose(0, 1))


def test_what_a_node_keeps_is_told_apart_from_what_it_does_not():
    node = nn.Linear(2, 1)(torch.ones(1, 2)).grad_fn
    assert kept(node, "no_such", "alpha") == 1
    with pytest.raises(NotKept, match="AddmmBackward0 keeps none of no_such, nor_this"):
        kept(node, "no_such", "nor_this")
