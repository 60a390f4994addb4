"""`Site`, a use of a parameter in the computation, and the errors of rules."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from avalanche_ntk.kernels._structure.graph import NotKept, kept
from avalanche_ntk.kernels._structure.layout import Layout


class NoRule(Exception):
    """This variant of a node has no rule."""


class Inseparable(Exception):
    """The gradient of this node is not a sum over samples."""


@dataclass
class Site:
    """Where a parameter enters the computation.

    Attributes:
        node: The autograd node that consumes it.
        slot: Which of the node's inputs it is.
        g: `(R, *output shape)` backpropagated signals at the node's output.
        layout: Where the samples are in that output.
        n: Number of samples.
        shape: Shape of the consumed tensor W.

    For complex numbers, gradients follow autograd's convention: W's factor is conjugated.
    """

    node: Any
    slot: int
    g: Tensor
    layout: Layout
    n: int
    shape: tuple[int, ...]

    def kept(self, *names: str) -> Any:
        """Return the value that the node saves for its backward pass under one of these names.

        Raises:
            NoRule: It saves none of them: other versions of torch or other devices may use other names.
        """
        try:
            return kept(self.node, *names)
        except NotKept as exc:
            raise NoRule from exc

    def positions(self, t: Tensor, features: int) -> Tensor:
        """Reshape `(R, *shape)` to `(R, N, T, features…)`; the last `features` dimensions are kept.

        Returns:
            A view where strides allow.
        """
        first = self.layout.samples_first(t, self.n)
        keep = first.shape[first.dim() - features :]
        return first.reshape(first.shape[0], self.n, prod(first.shape[2 : first.dim() - features]), *keep)


def need(condition: bool) -> None:
    if not condition:
        raise NoRule
