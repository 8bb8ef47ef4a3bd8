"""What the numbers depend on besides the cell: versions, device, threads, flags, state of the code."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from ctxbench import __version__

# OpenMP threads that spin while they wait ruin timings on a shared machine.
WAIT_POLICY = "OMP_WAIT_POLICY"
CODE = ("blocks", "tasks", "ctxbench")

# The columns of a record that decide, with the wait policy, whether timings may be compared.
IDENTITY = ("device_name", "python", "torch", "cuda", "cudnn", "driver", "cpu", "threads", "tf32")


def wait_passively() -> None:
    """Make OpenMP threads sleep while they wait, unless the user chose; before torch is imported."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


def pin_precision() -> None:
    """Full float32 in products and convolutions alike, and no search among cuDNN's kernels.

    Out of the box, CUDA convolutions round to TF32 and matrix products do not, which would favour
    blocks made of convolutions.
    """
    import torch

    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def capture(device: str, threads: int) -> dict[str, Any]:
    """The environment columns of a record for `device` ("cpu" or "cuda").

    `env_hash` is equal where timings may be compared: it leaves out the state of the code and
    whatever changes from minute to minute.
    """
    import torch

    cuda = device == "cuda"
    commit, dirty = git_state()
    columns: dict[str, Any] = {
        "ctxbench_version": __version__,
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": str(torch.backends.cudnn.version()) if cuda else None,
        "driver": nvidia_driver() if cuda else None,
        "cpu": cpu_name(),
        "threads": threads,
        "tf32": cuda and "tf32" in precisions(),
        "device_name": torch.cuda.get_device_name() if cuda else cpu_name(),
    }
    identity = {name: columns[name] for name in IDENTITY} | {"wait_policy": os.environ.get(WAIT_POLICY)}
    columns["env_hash"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return columns


def precisions() -> tuple[str, str]:
    """How float32 products and convolutions are calculated on CUDA: "ieee" or "tf32"."""
    import torch

    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return matmul.fp32_precision, convolution.fp32_precision


def details(device: str) -> dict[str, Any]:
    """What else a reader may want to know of the machine, for the run's own file."""
    import torch

    memory = psutil.virtual_memory()
    return {
        "platform": platform.platform(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_total_bytes": memory.total,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        WAIT_POLICY: os.environ.get(WAIT_POLICY),
        "float32_precisions": precisions(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "mkldnn": torch.backends.mkldnn.is_available(),
        "device_properties": str(torch.cuda.get_device_properties(0)) if device == "cuda" else None,
    }


def free_bytes(device: str) -> int:
    """Memory that a cell may still take; one GiB of a host's memory is left to others."""
    if device == "cuda":
        import torch

        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + unused
    return int(max(0, min(psutil.virtual_memory().available, free_in_cgroup()) - 2**30))


def free_in_cgroup() -> int | float:
    """Bytes that a container's limit (control groups, version 2) leaves; infinite without one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return float("inf")
    return limit - used


@cache
def cpu_name() -> str:
    """The processor's model, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def nvidia_driver() -> str | None:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


@cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of ctxbench's checkout and whether it has changes; (None, None) when installed."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None, None
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit, bool(_git(here, "status", "--porcelain", "--", *CODE))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


@cache
def code_hash(block: str) -> str:
    """Changes with the catalogue's source, the file the block is in, and ctxbench's version."""
    import blocks

    own = Path(inspect.getsourcefile(blocks.info(block).cls) or "")
    digest = hashlib.sha256(__version__.encode())
    for path in sorted({*Path(blocks.__file__).parent.glob("*.py"), own}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def command_line() -> str:
    """The command that was typed, without the path of the program."""
    import shlex

    return shlex.join(["ctxbench", *sys.argv[1:]])
