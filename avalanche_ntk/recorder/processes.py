"""Sharing of measurements between the processes of distributed training."""

from __future__ import annotations

from typing import Any

import torch

from avalanche_ntk.recorder.schedule import Schedule


def sharing_group(schedule: Schedule, *, resumed: bool) -> Any:
    """Return the group of all processes if each can decide by itself when a measurement is due; otherwise None.

    A schedule based on seconds depends on the time one process spent, and a continued run on a folder that only one
    process opens. In these cases one process measures while the others wait.

    Args:
        schedule: When measurements are due.
        resumed: Whether the run may continue one on disk.
    """
    parallel = torch.distributed
    if not (parallel.is_available() and parallel.is_initialized()) or parallel.get_world_size() == 1:
        return None
    return None if resumed or schedule.by_seconds else parallel.group.WORLD


def said_by_the_first(group: Any, value: Any) -> Any:
    """Broadcast a value of the first process."""
    told = [value]
    torch.distributed.broadcast_object_list(told, src=torch.distributed.get_global_rank(group, 0), group=group)
    return told[0]
