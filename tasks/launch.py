"""Several processes that train one network: joined as torchrun or Slurm's srun started them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import nn

PORTS = range(20_000, 30_000)
PATIENCE = timedelta(days=1)  # with the first process, which scores alone; one that ends is noticed at once


class JoinError(RuntimeError):
    """The other processes cannot be found, or what is said of them cannot be read."""


def join_processes(device: str) -> int:
    """Join the other processes that were started with this one; returns its rank, 0 without others.

    Raises:
        JoinError: with the reason.
    """
    if started_processes() == 1:
        return 0
    with join_errors():
        if not torch.distributed.is_initialized():
            if device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            backend = "nccl" if device == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, timeout=PATIENCE)
    return torch.distributed.get_rank()


def processes() -> int:
    """How many processes train together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def local_processes() -> int:
    """How many of the processes that train together run on this machine."""
    return gathered(socket.gethostname()).count(socket.gethostname())


def gathered(value: Any) -> list[Any]:
    """What each of the processes that train together has, by rank."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(found, value)
    return found


def share_buffers(network: nn.Module) -> None:
    """Give all processes the first one's statistics of normalisation, that they score and keep one network."""
    for buffer in network.buffers() if processes() > 1 else []:
        torch.distributed.broadcast(buffer, 0)


def started_processes() -> int:
    """How many processes torchrun or srun started to train together, joined or not.

    Raises:
        JoinError: when that cannot be told.
    """
    with join_errors():
        adopt_slurm()
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count < 1:
            raise ValueError(f"WORLD_SIZE is {count}")
        return count


@contextlib.contextmanager
def join_errors() -> Iterator[None]:
    """Whatever goes wrong within is told as one `JoinError`."""
    try:
        yield
    except KeyError as error:
        raise JoinError(f"cannot join the other processes: {error} is not set") from error
    except (ValueError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise JoinError(f"cannot join the other processes: {error}") from error


def adopt_slurm() -> None:
    """Give torch the names it knows for what srun says of its tasks; those that are set stay.

    A batch script by itself is no task of srun's, however many it has asked for.
    """
    slurm = os.environ
    if "WORLD_SIZE" in slurm or int(slurm.get("SLURM_STEP_NUM_TASKS", "1")) == 1:
        return
    port = PORTS[(101 * int(slurm["SLURM_JOB_ID"]) + int(slurm["SLURM_STEP_ID"])) % len(PORTS)]
    found = {
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "MASTER_PORT": str(port),
    }
    if "MASTER_ADDR" not in slurm:
        found["MASTER_ADDR"] = first_node(slurm["SLURM_STEP_NODELIST"], int(slurm["SLURM_STEP_NUM_NODES"]))
    for name, value in found.items():
        slurm.setdefault(name, value)


def first_node(nodes: str, count: int) -> str:
    """The host that the others find the first process on."""
    if count == 1:
        return "127.0.0.1"
    listed = subprocess.run(
        ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=60
    )
    return listed.stdout.split()[0]
