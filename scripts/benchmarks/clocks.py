"""Clocks that count what a step costs, not what else the machine does."""

from __future__ import annotations

import time

import torch

from benchmarks.ratio import Clock, Step


def cpu_clock(step: Step, count: int) -> float:
    """CPU seconds of this process: waiting for others who use the machine does not count."""
    started = time.process_time()
    for _ in range(count):
        step()
    return time.process_time() - started


def cuda_clock(step: Step, count: int) -> float:
    """Seconds between two events on the device, idle gaps while the host launches kernels included."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def find_clock(device: torch.device) -> Clock:
    return cuda_clock if device.type == "cuda" else cpu_clock
