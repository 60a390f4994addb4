"""Seconds of a call on a device, and the device's name, for `kernels.py`, `overhead.py` and `memory.py`."""

import time
from pathlib import Path

import torch

from avalanche_ntk.kernels.support import synchronise


def seconds(call, device):
    """Return the seconds of a call: by events on CUDA, otherwise by a clock with synchronisation."""
    device = torch.device(device)
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        synchronise(device)
        start.record()
        call()
        end.record()
        synchronise(device)
        return start.elapsed_time(end) / 1000
    synchronise(device)
    begin = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - begin


def name(device):
    """Return a device's name."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"
