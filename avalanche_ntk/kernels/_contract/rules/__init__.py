"""One rule per kind of use: from an autograd node and the signal at its output to per-sample gradients.

A rule is a function `(Site) -> Piece`, registered with its operator's properties by `@node("Addmm", …)`; adding a rule
means adding one function to one of these files. It may raise `NoRule` for a variant that it does not cover; the use is
then computed by `masked`, which is exact for every node.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.pieces import Dense, Piece
from avalanche_ntk.kernels._contract.rules import convolution, elementwise, norms, products, tables
from avalanche_ntk.kernels._contract.rules.site import Inseparable, NoRule, Site, need
from avalanche_ntk.kernels._structure.nodes import spec_of

__all__ = [
    "Inseparable",
    "NoRule",
    "Site",
    "convolution",
    "elementwise",
    "masked",
    "norms",
    "piece_of",
    "products",
    "tables",
]


def masked(s: Site) -> Piece:
    """Rule for any node: its own backward, with the signal of one sample at a time. Exact, at N·R times its cost.

    Returns:
        A `Dense` piece.
    """
    d = s.layout.dim + 1
    r = s.g.shape[0]
    shape = s.g.shape
    split = s.g.reshape(*shape[:d], s.layout.before, s.n, s.layout.after, *shape[d + 1 :])
    only = torch.zeros_like(split)  # and the gradient's buffer: new memory for each sample would be scattered
    found: Tensor | None = None
    for n in range(s.n):
        mine = only.select(d + 1, n)
        mine.copy_(split.select(d + 1, n))
        for k in range(r):
            grads = s.node(only.reshape(shape)[k])
            w = grads[s.slot] if isinstance(grads, tuple) else grads
            need(w is not None)
            # a node called by hand returns the gradient before torch sums it over broadcast dimensions
            w = w.to_dense().sum_to_size(s.shape)
            found = w.new_empty(s.n, r, *s.shape) if found is None else found
            found[n, k] = w
        mine.zero_()
    assert found is not None  # there is a sample, and an output
    return Dense(found)


def piece_of(s: Site, name: str) -> tuple[Piece, str]:
    """Apply the node's rule, or `masked` if it has none.

    Returns:
        The piece and the name of the rule used.
    """
    rule = spec_of(name).rule
    if rule is not None:
        try:
            return rule(s), "rule"
        except NoRule:
            pass
    return masked(s), "masked"
