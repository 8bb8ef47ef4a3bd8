"""What a training takes: time, CPU time and memory of a process."""

from __future__ import annotations

import contextlib
import re
import resource
import time
from pathlib import Path

import psutil
import torch


def forget_peak(device: str) -> None:
    """Let `peak_bytes` start anew, as far as the system can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(device: str) -> int:
    """The most memory that was used: of CUDA's allocator, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def clocks() -> tuple[float, float]:
    """The time, and the CPU time of this process and all that it has started, in seconds."""
    process = psutil.Process()
    used = sum(process.cpu_times()[:4])  # of those that have ended, too
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            used += sum(child.cpu_times()[:2])
    return time.perf_counter(), used
