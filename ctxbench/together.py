"""Several processes that train each network: how they meet, and what the first one tells the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctxbench.errors import UsageError

if TYPE_CHECKING:
    pass


def count_processes() -> int:
    """How many processes torchrun or srun started to train together.

    Raises:
        UsageError: when that is no number.
    """
    from tasks import launch

    try:
        return launch.started_processes()
    except launch.JoinError as error:
        raise UsageError(str(error)) from None


def join_others(device: str) -> int:
    """Join the processes that torchrun or srun started with this one; returns its rank.

    Raises:
        UsageError: when they cannot be joined.
    """
    from tasks import launch

    try:
        return launch.join_processes(device)
    except launch.JoinError as error:
        raise UsageError(str(error)) from None


def broadcast_cell(cell_id: str) -> str:
    """What the first of the processes that train together says is next; "" at the end."""
    import torch

    words = [cell_id]
    torch.distributed.broadcast_object_list(words, src=0)
    return words[0]
