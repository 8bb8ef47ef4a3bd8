"""What several tests need: records for what reads them, and a signal for what is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctxbench.record import Record

IDENTITY: dict[str, Any] = {
    "cell_id": "0123456789abcdef",
    "run_id": "a-run",
    "created_utc": "2025-01-02T03:04:05+00:00",
    "kind": "profile",
    "block": "ham-nmf",
    "spec": "ham-nmf",
    "family": "decomposition",
    "options_json": "{}",
    "seed": 0,
    "estimated": False,
    "batch": 1,
    "channels": 16,
    "height": 8,
    "width": 8,
    "dtype": "float32",
    "mode": "infer",
    "compiled": False,
    "device_type": "cpu",
    "device_name": "a processor",
    "status": "ok",
    "ctxbench_version": "0.1.0",
    "git_commit": None,
    "git_dirty": None,
    "python": "3.11.0",
    "torch": "2.13.0",
    "cuda": None,
    "cudnn": None,
    "driver": None,
    "cpu": "a processor",
    "threads": 1,
    "tf32": False,
    "flags_json": "{}",
    "code_hash": "0123456789ab",
    "env_hash": "0123456789ab",
}
MEASURED: dict[str, Any] = {
    "params": 2**20,
    "macs_counted": 2_000_000_000,
    "macs_formula": 2_000_000_000,
    "memory_predicted_bytes": 3 * 2**20,
    "memory_source": "predicted",
    "latency_ms_median": 4.0,
    "latency_ms_ci_low": 3.9,
    "latency_ms_ci_high": 4.1,
    "latency_cpu_ms_median": 4.0,
    "latency_ref_ratio": 0.5,
    "iterations": 10,
    "converged": True,
}


def make_record(**fields: Any) -> Record:
    """A record of a measured cell with these fields changed."""
    return Record(**(IDENTITY | MEASURED | fields))


def no_times() -> dict[str, None]:
    """The columns of a record whose latency was not measured."""
    timed = ("latency", "images", "iterations", "converged")
    return dict.fromkeys(name for name in Record.model_fields if name.startswith(timed))


def failed_record(status: str, reason: str, **fields: Any) -> Record:
    """A record of a cell of which nothing was measured."""
    return Record(**(IDENTITY | {"status": status, "reason": reason} | fields))


class KilledError(Exception):
    """Stands for a signal."""


def killed_at(text: str) -> Callable[[str], None]:
    """Listens to a training, and ends it when it says something that begins so."""

    def kill(told: str) -> None:
        if told.startswith(text):
            raise KilledError

    return kill


def torchrun(folder: Path, *arguments: str) -> str:
    """What two processes that train together print."""
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        *arguments,
    ]
    done = subprocess.run(
        command, check=False, cwd=folder, env=environ, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
