"""What the numbers depend on besides the cell: versions, device, threads, flags, state of the code."""

from __future__ import annotations

import contextlib
import ctypes
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
MEASURING = (
    "clocks",
    "cost",
    "gate",
    "graphs",
    "measure",
    "meta",
    "pinning",
    "settle",
    "statistics",
    "subject",
)
TRAINING = ("gate", "pinning", "taskcell", "training")  # the same of a score, beside tasks/ and its own
UPDATES = ("gans", "generation", "updates")  # the same of a GAN's update, beside MEASURING
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h

# The columns of a record that decide whether timings may be compared.
IDENTITY = (
    "device_name",
    "python",
    "torch",
    "cuda",
    "cudnn",
    "driver",
    "cpu",
    "threads",
    "tf32",
    "flags_json",
)
# Variables of the environment that change how fast PyTorch is, by their beginnings.
FLAGS: tuple[str, ...] = (
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "ONEDNN_",
    "DNNL_",
    "ATEN_",
    "OPENBLAS_",
    "TORCH_",
    "PYTORCH_",
)
FLAGS += ("TORCHINDUCTOR_", "TRITON_", "CUDA_LAUNCH_", "CUDA_DEVICE_MAX_", "CUBLAS", "CUDNN_", "NVIDIA_TF32_")
FLAGS += ("MALLOC_", "GLIBC_TUNABLES")
PLACES = ("_HOME", "_DIR", "_PATH", "_FILE")  # where something lies is nobody's business
LONGEST_VALUE = 500
SET_BY_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def keeps_freed_memory() -> bool:
    """Whether memory is kept from call to call here: with glibc, unless the user chose by a variable."""
    others = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    chosen = any(name.startswith(others) for name in os.environ)
    return platform.libc_ver()[0] == "glibc" and not chosen


@cache
def keep_freed_memory() -> None:
    """Make this process keep the memory it frees, as CUDA's allocator does.

    Otherwise glibc gives large tensors back to the system after each call, and the next one pays for
    getting them anew, page by page: a price that differs from process to process.
    """
    if keeps_freed_memory():
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def wait_passively() -> None:
    """Make OpenMP threads sleep while they wait, unless the user chose; before torch is imported."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


def flags() -> dict[str, str]:
    """Settings from outside that change how fast PyTorch is: variables, and the CPU's instruction set."""
    import torch

    found = {
        name: shortened(value)
        for name, value in sorted(os.environ.items())
        if name.startswith(FLAGS) and not name.endswith(PLACES) and name not in SET_BY_THREADS
    }
    if preloaded := os.environ.get("LD_PRELOAD"):  # another allocator, as a rule
        found["LD_PRELOAD"] = " ".join(Path(library).name for library in preloaded.replace(":", " ").split())
    if keeps_freed_memory():
        found["freed_memory"] = "kept"
    return found | {"instruction_set": torch.backends.cpu.get_cpu_capability()}


def shortened(value: str) -> str:
    """A variable's value; a long one is told by its beginning and a digest."""
    value = value.encode(errors="replace").decode()
    if len(value) <= LONGEST_VALUE:
        return value
    return f"{value[:LONGEST_VALUE]}… {hashlib.sha256(value.encode()).hexdigest()[:12]}"


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
        "flags_json": json.dumps(flags()),
    }
    identity = {name: columns[name] for name in IDENTITY}
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
        "load_average": load_average(),
        "cpu_quota": cpu_quota(),
        "governor": governor(),
        "float32_precisions": precisions(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "mkldnn": torch.backends.mkldnn.is_available(),
        "device_properties": str(torch.cuda.get_device_properties(0)) if device == "cuda" else None,
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two environments, as "name old -> new"; empty where timings may be compared."""
    changed = []
    for name in IDENTITY:
        if name == "flags_json":
            old, new = json.loads(before[name]), json.loads(after[name])
            changed += [
                f"{flag} {old.get(flag, 'unset')} -> {new.get(flag, 'unset')}"
                for flag in sorted({*old, *new})
                if old.get(flag) != new.get(flag)
            ]
        elif before[name] != after[name]:
            changed.append(f"{name} {before[name]} -> {after[name]}")
    return changed


def cpu_quota() -> float | None:
    """How many CPUs a container's limit (control groups, version 2) grants; None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def governor() -> str | None:
    """The rule by which the first CPU's frequency is chosen, where the system tells it."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def load_average() -> float | None:
    """Processes that wished to run, averaged over the last minute."""
    with contextlib.suppress(OSError, AttributeError):  # not told, or not on this system
        return os.getloadavg()[0]
    return None


def free_bytes(device: str) -> int:
    """Memory that a cell may still take; one GiB of a host's memory is left to others."""
    if device == "cuda":
        import torch

        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + unused
    return int(max(0, min(psutil.virtual_memory().available, free_in_cgroup()) - 2**30))


def free_in_cgroup(folder: Path = Path("/sys/fs/cgroup")) -> int | float:
    """Bytes that a container's limit (control groups, version 2) leaves; infinite without one.

    Copies of files that nobody is using count as free: the system drops them when it needs room.
    """
    try:
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (folder / "memory.stat").read_text().splitlines()
        spare = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, IndexError):
        return float("inf")
    return limit - used + spare


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
def program_hash(code: str = "profile") -> str:
    """Changes with the catalogue's source, with that of what measures or trains, and with ctxbench's version.

    Args:
        code: "profile", "step" for a GAN's update, or the kind of task: "segmentation" or "generation".
    """
    here = Path(__file__).parent
    tasks = here.parent / "tasks"
    if code in ("profile", "step"):
        own = [here / f"{name}.py" for name in (*MEASURING, *(UPDATES if code == "step" else ()))]
        own += (tasks / "generation").glob("*.py") if code == "step" else []
    else:
        shared = [*(here / f"{name}.py" for name in (*TRAINING, code)), *tasks.glob("*.py")]
        own = [*shared, *(tasks / code).glob("*.py")]
    return digest_of([*catalogue(), *own])


@cache
def code_hash(block: str, code: str = "profile") -> str:
    """Changes with `program_hash`, and with the file of a block that is the user's own."""
    import blocks

    own = Path(inspect.getsourcefile(blocks.info(block).cls) or "")
    whole = program_hash(code)
    return whole if own in catalogue() else digest_of([own], whole)


def catalogue() -> list[Path]:
    """The source of the blocks that come with ctxbench."""
    import blocks

    return sorted(Path(blocks.__file__).parent.rglob("*.py"))


def digest_of(paths: list[Path], start: str = __version__) -> str:
    digest = hashlib.sha256(start.encode())
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def command_line() -> str:
    """The command that was typed, without the path of the program."""
    import shlex

    return shlex.join(["ctxbench", *sys.argv[1:]])
