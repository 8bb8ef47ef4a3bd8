"""Carries out tasks: data, weights and trainings, and what is kept of them in a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ctxbench import environment, gate, pinning, together
from ctxbench.cost import Cost, estimate
from ctxbench.errors import RAISED, RunError, first_line
from ctxbench.monitor import Monitor
from ctxbench.outcome import Outcome, disagreement, failure
from ctxbench.spec import Cell
from ctxbench.taskcell import TaskCell

if TYPE_CHECKING:
    from ctxbench.measure import Settings


class TakenError(Exception):
    """Another process is at work on a cell."""


def settle_tasks(
    cells: Sequence[Cell], settings: Settings, monitor: Monitor
) -> Iterator[tuple[Cell, Cost | None, Outcome]]:
    """Train the cells one after the other."""
    import torch

    pinning.pin(settings.threads)
    for cell in cells:
        assert isinstance(cell, TaskCell)
        monitor.taking(cell)
        if settings.together and settings.rank == 0:
            together.broadcast_cell(cell.id)
        begun = settings.folder and any(work_folder(settings.folder, cell).glob(cell.starts))
        doing = "going on with" if begun else "training"
        monitor.measuring(f"{doing} {cell.label}, {cell.model} on {cell.dataset}, seed {cell.seed}")
        start = perf_counter()
        try:
            # Training asks torch for deterministic algorithms; whoever comes next must not get them.
            with alone(settings.folder, cell, settings.rank), pinning.restored():
                gate.check(cell.create, cell.device, torch.float32)
                outcome = disagreement(estimate(small(cell))) or cell.train(settings, monitor)
        except RAISED as error:
            if settings.together:  # the others wait for this process, and cannot go on without it
                raise RunError(f"{cell.label}: {first_line(original(error))}") from error
            outcome = failure(original(error), perf_counter() - start)
            if isinstance(error, TakenError):
                outcome = Outcome("skipped", outcome.columns)
        yield cell, None, outcome


def small(cell: TaskCell) -> TaskCell:
    """The cell with an input on which its block is quickly counted."""
    return replace(cell, batch=2, height=8, width=8)


def take_part(cells: Sequence[TaskCell], settings: Settings) -> None:
    """Train what the first of several processes announces, until it says that this was all."""
    by_id = {cell.id: cell for cell in cells}
    while cell := by_id.get(together.broadcast_cell("")):
        for _ in settle_tasks([cell], settings, Monitor()):
            pass


def work_folder(folder: Path, cell: TaskCell) -> Path:
    """Where a cell's checkpoints lie; those of older code are not gone on with."""
    return folder / "work" / f"{cell.id}-{environment.code_hash(cell.block, cell.code)}"


@contextlib.contextmanager
def alone(folder: Path | None, cell: TaskCell, rank: int) -> Iterator[None]:
    """While only this process trains the cell in this folder.

    Raises:
        TakenError: if another one does.
    """
    if folder is None or rank > 0:
        yield
        return
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with (folder / "work" / f"{cell.id}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TakenError("another process is training it") from None
        yield


def clear(cells: Sequence[Cell], folder: Path) -> None:
    """Remove the cells' checkpoints: they are done, or to be started over."""
    for cell in cells:
        for path in (folder / "work").glob(f"{cell.id}-*"):
            shutil.rmtree(path, ignore_errors=True)


def check_weights(cells: Sequence[TaskCell], settings: Settings) -> None:
    """See whether the user's files fit all networks.

    Raises:
        UsageError: naming what does not.
    """
    for cell in {(it.model, it.block, it.options): it for it in cells}.values():
        cell.check_weights(settings)


def original(error: BaseException) -> BaseException:
    """What went wrong in a process that loads data: torch tells it at the end of a long text."""
    lines = str(error).strip().splitlines()
    if not lines or "DataLoader worker" not in lines[0]:
        return error
    kind, _, words = lines[-1].rpartition("Error: ")
    return RuntimeError(words if kind else lines[-1])
