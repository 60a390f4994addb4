"""Pieces of many samples, held until all pieces to contract them with are available."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from avalanche_ntk.kernels._contract.contraction import Tally, explicit_gradients
from avalanche_ntk.kernels._contract.engine import Waiting, output_parts, outputs_at_once, scales_of
from avalanche_ntk.kernels._contract.patches import Patches
from avalanche_ntk.kernels._contract.pieces import Dense, Lookup, Outer, Piece
from avalanche_ntk.kernels._contract.side import Side, Unreadable
from avalanche_ntk.kernels._function.subject import Subject
from avalanche_ntk.kernels._structure import signals
from avalanche_ntk.kernels._structure.passes import Pass
from avalanche_ntk.kernels._structure.plan import Plan


class Held:
    """Pieces of several blocks of samples and outputs, by parameter, written block by block.

    Args:
        n: Samples.
        r: Outputs.
        explicit: Parameters that are held as explicit gradients.
    """

    def __init__(self, n: int, r: int, explicit: frozenset[str]) -> None:
        self.n, self.r, self.explicit = n, r, explicit
        self.pieces: dict[str, list[Piece | None]] = {}
        self.scales: dict[str, list[float]] = {}
        self.by_own_backward: set[str] = set()

    def put(self, name: str, made: list[Piece | None], scales: list[float], samples: range, rows: slice) -> None:
        """Write the pieces of some samples and outputs; surplus samples (one that was given twice) are ignored.

        Raises:
            Unreadable: Their form differs from that of earlier blocks.
        """
        held = self.pieces.setdefault(name, [None] * len(made))
        if len(held) != len(made) or self.scales.setdefault(name, scales) != scales:
            raise Unreadable(f"blocks of samples use {name} in different ways")
        for k, piece in enumerate(made):
            if piece is None:
                continue
            room = held[k] = self._room(piece) if held[k] is None else held[k]
            assert room is not None
            _write(room, piece, samples, rows)

    def formed(self, name: str, piece: Piece | None, workspace: int, tally: Tally) -> Piece | None:
        """Return a piece in its held form: explicit gradients if chosen."""
        if name not in self.explicit or not isinstance(piece, Outer):
            return piece
        return explicit_gradients(piece, workspace, tally)

    def _room(self, piece: Piece) -> Piece:
        """Return a piece like this one for all samples and outputs; parts not written to have zero gradient."""
        n, r = self.n, self.r
        if isinstance(piece, Dense):
            return Dense(piece.j.new_zeros(n, r, *piece.j.shape[2:]))
        if isinstance(piece, Lookup):
            ids = piece.ids.new_full((n, *piece.ids.shape[1:]), -1)
            return Lookup(ids, piece.g.new_zeros(r, n, *piece.g.shape[2:]), piece.rows)
        g = piece.g.new_zeros(r, n, *piece.g.shape[2:])
        if isinstance(piece.a, Patches):
            x = piece.a.x
            last = piece.a.channels_last and x.dim() == 4
            order = torch.channels_last if last else torch.contiguous_format
            room = torch.empty((n, *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=order).zero_()
            return replace(piece, a=replace(piece.a, x=room), g=g)
        return replace(piece, a=piece.a.new_zeros(n, *piece.a.shape[1:]), g=g)


def _parts(piece: Piece) -> dict[str, Tensor]:
    """Return a piece's tensors by their first dimensions: samples n, outputs r."""
    if isinstance(piece, Dense):
        return {"nr": piece.j}
    if isinstance(piece, Lookup):
        return {"rn": piece.g, "n": piece.ids}
    return {"rn": piece.g, "n": piece.a.x if isinstance(piece.a, Patches) else piece.a}


def _write(room: Piece, piece: Piece, samples: range, rows: slice) -> None:
    here, few = slice(samples.start, samples.stop), slice(len(samples))
    into, source = _parts(room), _parts(piece)
    if into.keys() != source.keys() or any(t.shape[len(k) :] != source[k].shape[len(k) :] for k, t in into.items()):
        raise Unreadable("blocks of samples have gradients of different forms")
    for kind, t in into.items():
        if kind == "nr":
            t[here, rows] = source[kind][few]
        elif kind == "rn":
            t[rows, here] = source[kind][:, few]
        else:
            t[here] = source[kind][few]


@torch.no_grad()
def fill(
    held: Held, subject: Subject, plan: Plan, at: Pass, samples: range, cotangents: Tensor, budget: int, tally: Tally
) -> None:
    """Run the backward passes of a block of samples, and write their pieces.

    Args:
        held: Where to write them.
        subject: The model.
        plan: Plan of the pass.
        at: The pass of the block.
        samples: Their positions among the held ones.
        cotangents: `(R, C)` combinations of outputs, those that are held.
        budget: Bytes for the signals.
        tally: Statistics to update.
    """
    r, total = cotangents.shape[0], budget / at.out.element_size()
    step = outputs_at_once(plan, [at], r, total)
    parts = signals.segments([at.graph], plan.edges(), total * 0.3 / step)
    for start in range(0, r, step):
        rows = slice(start, min(start + step, r))
        side = Side(subject, plan, at)
        waiting = Waiting([side])
        for arrived in signals.stream(at.out, at.graph, parts, cotangents[rows], plan.vectorised):
            side.signals |= arrived
            for name in waiting.ready():
                scales = scales_of([side], name)
                if side.silent(name):
                    continue
                for some in output_parts([side], name, budget):
                    made = [held.formed(name, piece, budget // 4, tally) for piece in side.pieces(name, some)]
                    here = slice(start + some.start, start + some.stop)
                    held.put(name, made, scales, samples, here)
                    del made
            arrived.clear()
        held.by_own_backward |= side.by_own_backward
