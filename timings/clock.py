"""Seconds of a call on a device, and the device's name; what `kernels.py`, `overhead.py` and `memory.py` share."""

import time
from pathlib import Path

import torch

from avalanche_ntk.kernels.support import synchronise


def seconds(call, device):
    """Return the seconds that a call takes: by events on a CUDA card, by a clock that waits for any other device."""
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
    """Return what a device calls itself."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"
