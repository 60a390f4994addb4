"""Whether the processes that train one model share its measurements, and what the others do while one records."""

from __future__ import annotations

from typing import Any

import torch

from avalanche_ntk.recorder.schedule import Schedule


def sharing_group(schedule: Schedule, *, resumed: bool) -> Any:
    """Return the group of all processes where each can tell by itself when a measurement is due; else None.

    A schedule that goes by seconds decides by what one process spent, and a run that goes on with a folder stands where
    that folder says, which the other processes do not open: there one process measures while the others wait.

    Args:
        schedule: When measurements are due.
        resumed: Whether the run may go on with one on disk.
    """
    parallel = torch.distributed
    if not (parallel.is_available() and parallel.is_initialized()) or parallel.get_world_size() == 1:
        return None
    return None if resumed or schedule.by_seconds else parallel.group.WORLD


def said_by_the_first(group: Any, value: Any) -> Any:
    """Return what the first process gave, in every process."""
    told = [value]
    torch.distributed.broadcast_object_list(told, src=torch.distributed.get_global_rank(group, 0), group=group)
    return told[0]
