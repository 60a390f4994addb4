"""One forward pass and its graph, run so that the graph shows the uses of parameters."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels._device.order import LESS_EXACT, channels_last_pays, never_again, ordered
from avalanche_ntk.kernels._function.batch import Batch
from avalanche_ntk.kernels._function.subject import Subject, require_graph
from avalanche_ntk.kernels._structure.graph import Graph


@dataclass
class Pass:
    """One forward pass: the output, its graph, the number of samples."""

    out: Tensor
    graph: Graph
    n: int

    def mix(self, seed: int) -> Tensor:
        """Return a random combination of outputs, `(C,)`, from a separate generator."""
        return random_numbers(self.out.shape[1], seed).to(self.out)


def random_numbers(n: int, seed: int) -> Tensor:
    """Return normally distributed numbers, `(n,)`, on the CPU, whatever torch's default device is."""
    return torch.randn(n, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")


def forward(subject: Subject, batch: Batch) -> Pass:
    """Run the model with probe inputs marked as such in the graph.

    Inputs require a gradient (through a copy, so that in-place operations on them stay legal): only then does the graph
    show which tensors depend on the samples.

    Returns:
        The pass.

    Raises:
        ModelError: The model fails, or its output is not as expected.
    """
    batch = batch.cast(subject.dtype)
    if channels_last_pays(subject, batch):
        try:
            at = _forward(subject, batch, torch.channels_last)
            if LESS_EXACT.isdisjoint(at.graph.names):
                return at
            del at
        except ModelError:  # the model has changed since the check
            pass
        never_again(subject, batch)
    return _forward(subject, batch, torch.preserve_format)


def _forward(subject: Subject, batch: Batch, order: torch.memory_format) -> Pass:
    with plain_operators(subject.model):
        out = subject.forward(_marked(batch, order))
    require_graph(out, subject)
    own = {id(p): n for n, p in subject.everything().items()}
    graph = Graph.of(out, own)
    require_reached(subject, graph)
    return Pass(out, graph, len(batch))


def require_reached(subject: Subject, graph: Graph) -> None:
    """Refuse a forward pass that uses a parameter other than through the module that holds it.

    Raises:
        ModelError: It does, so the parameter's substitute is not used.
    """
    present = {id(p) for m in subject.model.modules() for p in m._parameters.values()}
    known = {id(t): n for table in (subject.originals, subject.substitutes, subject.leaves) for n, t in table.items()}
    for i in graph.owner:
        tensor = id(graph.nodes[i].variable)
        if tensor in known and tensor not in present:
            raise ModelError(
                f"the forward pass uses parameter {known[tensor]!r} other than through the module that holds it (a "
                "list, another attribute): expected it to be taken from its module, where another tensor replaces it "
                "(because of a hook, another precision, or derivatives by torch.func). Hold such"
                " lists as nn.ParameterList."
            )


def _marked(batch: Batch, order: torch.memory_format) -> Batch:
    return batch.with_tensors(
        [
            ordered(t.detach().requires_grad_(), order) if _is_real_or_complex(t) and i < batch.n_inputs else t
            for i, t in enumerate(batch.tensors())
        ]
    )


def _is_real_or_complex(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


@contextmanager
def plain_operators(model: nn.Module) -> Generator[None, None, None]:
    """Run recurrent layers as elementary products: fused kernels hide the uses of weights."""
    if not any(isinstance(m, nn.RNNBase) for m in model.modules()):
        yield
        return
    mkldnn, cudnn = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
        torch._C._set_cudnn_enabled(cudnn)
