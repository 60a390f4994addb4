"""Sharing of a measurement by the processes of a `torch.distributed` group, or a single process.

Every process calls the same functions in the same order. A failure in one process is raised in all, so that none waits
in a collective that another never enters. A terminated process is detected by the group itself (a closed connection, or
the group's timeout).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avalanche_ntk.errors import ArgumentError, ProcessError


class Alone:
    """A single process."""

    rank, size = 0, 1

    @contextmanager
    def together(self) -> Generator[None, None, None]:
        """Raise an error inside in all processes if one of them fails."""
        yield

    def agreed(self, model: nn.Module, batches: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Refuse processes with different parameters or inputs, and take the first process's buffers.

        Args:
            model: The model.
            batches: Tensors of each batch.

        Returns:
            Copies of these buffers; empty if this process has them.

        Raises:
            ProcessError: Parameters or inputs differ, or another process did not answer.
        """
        return {}

    def sum(self, t: Tensor) -> Tensor:
        """Return the sum over processes."""
        return t


class Group(Alone):
    """The processes of a group.

    Args:
        group: A `torch.distributed` group that this process belongs to.

    Raises:
        ArgumentError: It is not a group, or this process does not belong to it.
    """

    def __init__(self, group: Any) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ArgumentError(
                "process_group was given, found no initialised torch.distributed. Call"
                " torch.distributed.init_process_group first, or leave process_group out."
            )
        if not isinstance(group, dist.ProcessGroup):
            raise ArgumentError(
                f"process_group must be a torch.distributed process group, found {type(group).__name__}. Give"
                " torch.distributed.group.WORLD for all processes, or one made by torch.distributed.new_group."
            )
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ArgumentError(
                f"process_group has {self.size} processes, and this one (rank {dist.get_rank()} of all) is not among "
                "them. Only processes of the group may call."
            )

    @contextmanager
    def together(self) -> Generator[None, None, None]:
        """What happens inside fails in all processes where it fails in one.

        Raises:
            ProcessError: It failed in another one.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - told to the others, then raised
            error = exc
        told: list[str | None] = [None] * self.size
        own = None if error is None else f"{type(error).__name__}: {error}"
        try:
            with _answered():
                dist.all_gather_object(told, own, group=self.group)
        except ProcessError:
            if error is None:
                raise
        if error is not None:
            raise error
        failed = {rank: text for rank, text in enumerate(told) if text is not None}
        if failed:
            rank, text = next(iter(failed.items()))
            raise ProcessError(
                f"process {rank} of the {self.size} that share this measurement failed ({text}). Fix the error there; "
                "the others need its part of the sum."
            )

    def agreed(self, model: nn.Module, batches: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Compare parameters and inputs, and take the first process's buffers.

        Returns:
            Copies of these buffers.

        Raises:
            ProcessError: Parameters or inputs differ, or another process did not answer.
        """
        self._require_equal("parameter", dict(model.named_parameters()))
        inputs = {f"{k} of batch {i}": t for i, batch in enumerate(batches, 1) for k, t in enumerate(batch)}
        self._require_equal("input", inputs)
        return self._of_the_first(dict(model.named_buffers()))

    def _require_equal(self, what: str, tensors: dict[str, Tensor]) -> None:
        """Compare sums and sums of squares."""
        if not tensors:
            return
        numbers = (
            t.detach().double() if not t.is_complex() else torch.view_as_real(t.detach()).double()
            for t in tensors.values()
        )
        own = torch.stack([part for t in numbers for part in (t.sum(), t.square().sum())])
        every = [torch.empty_like(own) for _ in range(self.size)]
        with _answered():
            dist.all_gather(every, own, group=self.group)
        apart = [(one - every[0]).abs() > 1e-9 * every[0].abs() for one in every]
        for rank, differs in enumerate(torch.stack(apart).tolist()):
            if any(differs):
                name = list(tensors)[differs.index(True) // 2]
                raise ProcessError(
                    f"{what} {name!r} of process {rank} differs from that of process 0: expected the same in all"
                    f" {self.size} processes that share a measurement. Give every process the same model and inputs, or"
                    " leave process_group out."
                )

    def _of_the_first(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        first = dist.get_global_rank(self.group, 0)
        for name, t in tensors.items():
            copy = t.detach().clone(memory_format=torch.contiguous_format)
            with _answered():
                dist.broadcast(copy, src=first, group=self.group)
            found[name] = copy
        return found

    def sum(self, t: Tensor) -> Tensor:
        """Return the sum over processes, bit-identical in all.

        Raises:
            ProcessError: Another process did not answer.
        """
        with _answered():
            dist.all_reduce(t, group=self.group)
        return t


@contextmanager
def _answered() -> Generator[None, None, None]:
    """Convert a collective's error about a terminated process into a `ProcessError`."""
    try:
        yield
    except RuntimeError as exc:
        raise ProcessError(
            "another process of the group did not answer while a measurement was shared"
            f" ({str(exc).splitlines()[0]}). Expected every process to call with the same arguments; look for errors "
            "in the output of the others."
        ) from exc
