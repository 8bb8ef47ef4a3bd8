"""From cells to outcomes, in this process: estimate, refuse what cannot be, measure the rest."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import torch

from ctxbench import environment, measure
from ctxbench.cost import Cost, estimate
from ctxbench.devices import Device
from ctxbench.errors import RAISED, first_line
from ctxbench.measure import Settings
from ctxbench.monitor import Monitor
from ctxbench.outcome import Outcome, disagreement, failure
from ctxbench.spec import Cell
from ctxbench.subject import Subject, reference_side

MEMORY_FACTOR = 1.15  # kernels' work space beyond the tensors
MAPS_BESIDE = 4  # input, output's gradient, and the copies a CPU convolution makes of a map
BEYOND_ADDRESSES = "needs more memory than can be addressed"
IMPOSSIBLE = {
    "Expected more than 1 value per channel": "normalisation needs more than one value per channel or group; "
    "use a larger batch or resolution",
    "Storage size calculation overflowed": BEYOND_ADDRESSES,
    "numel: integer multiplication overflow": BEYOND_ADDRESSES,
}


@dataclass(frozen=True)
class Settled:
    """A cell, its cost where that could be had, and what became of it."""

    cell: Cell
    cost: Cost | None
    outcome: Outcome


def batches(cells: list[Cell]) -> list[list[Cell]]:
    """What is settled together: the cells of one group, which are timed together, or all that are estimated."""
    together = itertools.groupby(cells, key=lambda cell: None if cell.estimated else cell.group)
    return [list(members) for _, members in together]


def settle(cells: list[Cell], settings: Settings, device: Device, monitor: Monitor) -> Iterator[Settled]:
    """Every cell of one batch with its cost and what became of it, as soon as it is known.

    While anything runs on a GPU, this is the only run of ctxbench there.
    """
    with contextlib.nullcontext() if cells[0].estimated else device.alone(monitor.working):
        if cells[0].kind == "task":
            from ctxbench.training import settle_tasks

            yield from itertools.starmap(Settled, settle_tasks(cells, settings, monitor))
        else:
            yield from settle_alone(cells, settings, monitor)


def settle_alone(cells: list[Cell], settings: Settings, monitor: Monitor) -> Iterator[Settled]:
    """Estimates all cells, then measures those that can be."""
    costs: dict[Cell, Cost] = {}
    for cell in cells:
        monitor.taking(cell)
        monitor.working(f"estimating {describe(cell)}")
        start = perf_counter()
        try:
            cost = cost_of(cell)
        except RAISED as error:
            yield Settled(cell, None, cannot_run(error, perf_counter() - start))
            continue
        if verdict := disagreement(cost) or (cell.estimated and estimated(start)) or too_large(cell, cost):
            yield Settled(cell, cost, verdict)
        else:
            costs[cell] = cost
            monitor.estimated(cell, cost)
    monitor.taking(None)
    if costs:
        members = list(costs)
        if members[0].device == "cpu":
            standing = sum(standing_bytes(cell, cost) for cell, cost in costs.items())
            monitor.needing(standing + max(needed_bytes(cell, cost) for cell, cost in costs.items()))
        what = members[0].label if len(members) == 1 else f"{len(members)} blocks"
        monitor.measuring(f"measuring {what}, {describe(members[0], block=False)}")
        for cell, outcome in measure.group(members, settings, monitor, subject_for(members[0])):
            yield Settled(cell, costs[cell], outcome)


def cost_of(cell: Cell) -> Cost:
    """What a block, or an update of networks with it, costs."""
    if cell.kind != "step":
        return estimate(cell)
    from ctxbench import updates

    return updates.cost_of(cell)


def subject_for(cell: Cell) -> type[Subject]:
    """What is timed of such cells."""
    if cell.kind != "step":
        return Subject
    from ctxbench.updates import UpdateSubject

    return UpdateSubject


def describe(cell: Cell, block: bool = True) -> str:
    """A cell, or its group, in a few words."""
    shape = "x".join(map(str, cell.shape))
    return f"{f'{cell.label} ' if block else ''}{shape} {cell.dtype} {cell.mode}"


def cannot_run(error: BaseException, seconds: float) -> Outcome:
    """What an estimate's failure means: some cells cannot be, which is a result; the rest is an error."""
    for words, reason in IMPOSSIBLE.items():
        if words in first_line(error):
            return Outcome("skipped", {"reason": reason, "wall_s": seconds})
    return failure(error, seconds)


def estimated(start: float) -> Outcome:
    """An estimate is all that was asked for."""
    return Outcome("ok", {"wall_s": perf_counter() - start})


def too_large(cell: Cell, cost: Cost) -> Outcome | None:
    """A refusal where the predicted peak, with the input and kernels' copies, does not fit."""
    need, free = needed_bytes(cell, cost), environment.free_bytes(cell.device)
    if need <= free:
        return None
    return Outcome("skipped", {"reason": f"needs {gib(need)} with a margin for kernels, {gib(free)} free"})


def needed_bytes(cell: Cell, cost: Cost) -> int:
    """The predicted peak with the input, the matrices of the reference, and a margin for kernels' work space."""
    one_map = math.prod(cell.shape) * getattr(torch, cell.dtype).itemsize
    reference = 3 * reference_side(cell.device, cell.dtype) ** 2 * getattr(torch, cell.dtype).itemsize
    return int(cost.memory_bytes * MEMORY_FACTOR) + MAPS_BESIDE * one_map + reference


def standing_bytes(cell: Cell, cost: Cost) -> int:
    """What a cell holds while others of its group are called: networks, their gradients and Adam's two states."""
    return 4 * cost.params * torch.float32.itemsize if cell.kind == "step" else 0


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
