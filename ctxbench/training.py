"""Carries out tasks: data, weights and trainings, and what is kept of them in a run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ctxbench import data, environment, gate, inspection, panels, pinning, together
from ctxbench.cost import Cost
from ctxbench.errors import RAISED, RunError, UsageError, first_line
from ctxbench.monitor import Monitor
from ctxbench.outcome import Outcome, failure
from ctxbench.spec import Cell
from ctxbench.store import write_atomically
from ctxbench.taskgrid import TaskCell

if TYPE_CHECKING:
    from ctxbench.measure import Settings

SHOWN = 4  # images on a sheet


class TakenError(Exception):
    """Another process is at work on a cell."""


def settle_tasks(
    cells: Sequence[Cell], settings: Settings, monitor: Monitor
) -> Iterator[tuple[Cell, Cost | None, Outcome]]:
    """Train the cells one after the other."""
    pinning.pin(settings.threads)
    for cell in cells:
        assert isinstance(cell, TaskCell)
        monitor.taking(cell)
        if settings.together and settings.rank == 0:
            together.broadcast_cell(cell.id)
        begun = settings.folder and list(work_folder(settings.folder, cell).glob("*/iter_*.pth"))
        doing = "going on with" if begun else "training"
        monitor.measuring(f"{doing} {cell.label}, {cell.model} on {cell.dataset}, seed {cell.seed}")
        start = perf_counter()
        try:
            # Training asks torch for deterministic algorithms; whoever comes next must not get them.
            with alone(settings.folder, cell, settings.rank), pinning.restored():
                outcome = train(cell, settings, monitor)
        except RAISED as error:
            if settings.together:  # the others wait for this process, and cannot go on without it
                raise RunError(f"{cell.label}: {first_line(original(error))}") from error
            outcome = failure(original(error), perf_counter() - start)
            if isinstance(error, TakenError):
                outcome = Outcome("skipped", outcome.columns)
        yield cell, None, outcome


def train(cell: TaskCell, settings: Settings, monitor: Monitor) -> Outcome:
    """Train one cell through all its stages, and keep what came of it in the run's folder."""
    import io

    import torch

    from tasks.segmentation import training

    assert settings.folder is not None
    folder, start = settings.folder, perf_counter()
    gate.check(cell.create, cell.device, torch.float32)
    data_root = data.root_of(cell, settings)
    state, seconds, cpu = weights_for(cell, settings), 0.0, 0.0
    curve: list[dict[str, float]] = []
    for number in range(len(cell.stages)):
        job = cell.job(number, data_root, state)
        work = work_folder(folder, cell) / str(number)
        trained = training.train(job, work, lambda text: monitor.working(f"{cell.label}: {text}"))
        state = {name: value.cpu() for name, value in trained.network.state_dict().items()}
        result = trained.result
        curve += [{"stage": number + 1} | point for point in result.curve]
        seconds, cpu = seconds + result.seconds, cpu + result.cpu_seconds
    if settings.rank > 0:
        return Outcome("ok", {})
    for part in ("curves", "panels", "weights"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "curves" / f"{cell.id}.csv", replace(result, curve=curve).curve_csv())
    palette = np.array(trained.dataset.metainfo["palette"], dtype=np.uint8)
    write_atomically(panels.path_of(folder, cell.id), panels.sheet(trained.samples(SHOWN), palette))
    weights = io.BytesIO()
    torch.save(state, weights)
    write_atomically(folder / "weights" / f"{cell.id}.pt", weights.getvalue())
    columns: dict[str, Any] = {
        "wall_s": perf_counter() - start,
        "metric": "context_iou" if result.context_iou is not None else "miou",
        "miou": result.miou,
        "context_iou": result.context_iou,
        "pixel_accuracy": result.pixel_accuracy,
        "iou_json": json.dumps(result.iou),
        "train_s": seconds,
        "train_cpu_s": cpu,
        "memory_measured_bytes": result.peak_bytes,
        "memory_source": "allocator" if cell.device == "cuda" else "resident",
    }
    return Outcome("ok", columns)


def weights_for(cell: TaskCell, settings: Settings) -> Any:
    """The weights of the files that the user named, checked; None without any."""
    if settings.checkpoint is None and settings.backbone is None:
        return None
    from tasks.segmentation import checkpoints, training

    job = cell.job(0)
    if settings.checkpoint is not None:
        return checkpoints.load(settings.checkpoint, training.build(job).state_dict())
    assert settings.backbone is not None
    first = training.starting_weights(job)
    return first | checkpoints.load_backbone(settings.backbone, first)


def check_weights(cells: Sequence[TaskCell], settings: Settings) -> None:
    """Whether the files' weights fit every network.

    Raises:
        UsageError: naming the first misfits.
    """
    from tasks.segmentation.checkpoints import CheckpointError

    try:
        for cell in {(it.model, it.block, it.options): it for it in cells}.values():
            weights_for(cell, settings)
    except CheckpointError as error:
        raise UsageError(str(error)) from None


def missing_backbone(cells: Sequence[TaskCell]) -> str | None:
    """A word where real images meet a backbone of random weights."""
    for cell in cells:
        if cell.stages[-1].data.name != "legend" and cell.first_weights == "random":
            return (
                f"{cell.model} starts from random weights; published results start from ImageNet's: name them "
                "with --backbone FILE"
            )
    return None


def work_folder(folder: Path, cell: TaskCell) -> Path:
    """Where a cell's checkpoints lie; those of older code are not gone on with."""
    return folder / "work" / f"{cell.id}-{environment.code_hash(cell.block, 'task')}"


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


def inspect(cells: Sequence[TaskCell], settings: Settings) -> list[Path]:
    """Look at the blocks of trained cells, whose weights the run's folder holds; returns the pictures' paths."""
    import torch

    from tasks.segmentation import training

    folder = settings.folder
    assert folder is not None
    found = []
    for cell in cells:
        weights = folder / "weights" / f"{cell.id}.pt"
        if not weights.exists():
            continue
        state = torch.load(weights, map_location="cpu", weights_only=True)
        data_root = data.root_of(cell, settings)
        trained = training.loaded(cell.job(len(cell.stages) - 1, data_root, state, "single"))
        title = f"{cell.label} in {cell.model} on {cell.dataset}, seed {cell.seed}"
        found.append(
            inspection.inspect(
                trained, folder, f"{cell.label}-{cell.dataset}-{cell.seed}-{cell.id[:6]}", title
            )
        )
    return found


def original(error: BaseException) -> BaseException:
    """What went wrong in a process that loads data: torch tells it at the end of a long text."""
    lines = str(error).strip().splitlines()
    if not lines or "DataLoader worker" not in lines[0]:
        return error
    kind, _, words = lines[-1].rpartition("Error: ")
    return RuntimeError(words if kind else lines[-1])
