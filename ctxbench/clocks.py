"""How long one call takes, on a CPU and on CUDA, and how fast the device ran meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter_ns, process_time_ns

import psutil
import torch


@dataclass
class Sample:
    """One call: wall and CPU milliseconds. On CUDA the wall time is that between two events."""

    wall_ms: float
    cpu_ms: float


def cpu_clock(call: Callable[[], object]) -> Sample:
    """Wall and CPU time of one call; the CPU time is that of all threads of this process."""
    wall, cpu = perf_counter_ns(), process_time_ns()
    call()
    cpu, wall = process_time_ns() - cpu, perf_counter_ns() - wall
    return Sample(wall / 1e6, cpu / 1e6)


@cache
def cuda_clock(device: int) -> Callable[[Callable[[], object]], Sample]:
    """A clock that reads CUDA events, with the level-2 cache emptied before each call.

    The device is idle when a call begins, so that its time includes the launches of an eager run.
    """
    cache_bytes = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(cache_bytes, dtype=torch.int8, device=device)

    def clock(call: Callable[[], object]) -> Sample:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        torch.cuda.synchronize(device)
        cpu = process_time_ns()
        start.record()
        call()
        end.record()
        cpu = process_time_ns() - cpu
        torch.cuda.synchronize(device)
        return Sample(start.elapsed_time(end), cpu / 1e6)

    return clock


def frequency_mhz(device: str) -> float | None:
    """The frequency the device runs at now; None where it is not told."""
    with contextlib.suppress(Exception):  # a missing library, a virtual machine, a container
        if device == "cuda":
            return float(torch.cuda.clock_rate())
        return float(psutil.cpu_freq().current) or None
    return None


@cache
def rated_mhz() -> float | None:
    """The frequency the CUDA device is meant to run at; None where it is not told."""
    with contextlib.suppress(Exception):  # the library is an extra
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
        return float(pynvml.nvmlDeviceGetApplicationsClock(handle, pynvml.NVML_CLOCK_SM))
    return None
