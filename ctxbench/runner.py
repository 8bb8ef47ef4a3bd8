"""Walks the cells of a run: keeps what is known, estimates, guards memory, measures, records."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import blocks
from ctxbench import environment, measure
from ctxbench.cost import Cost, estimate
from ctxbench.errors import RAISED, UsageError, first_line
from ctxbench.measure import Outcome
from ctxbench.record import Record
from ctxbench.spec import Cell
from ctxbench.store import RunStore

MEMORY_FACTOR = 1.15  # kernels' work space beyond the tensors
MAPS_BESIDE = 4  # input, output's gradient, and the copies a CPU convolution makes of a map
IMPOSSIBLE = {
    "Expected more than 1 value per channel": "normalisation needs more than one value per channel or group; "
    "use a larger batch or resolution",
    "Storage size calculation overflowed": "needs more memory than can be addressed",
}


class Reporter:
    """Told how a run goes on; this one keeps silent."""

    def started(self, total: int, known: list[Record]) -> None:
        """Of `total` cells these have a record already."""

    def measuring(self, text: str) -> None:
        """A group of cells is begun; its records come as they settle."""

    def working(self, text: str) -> None:
        """What is being done now."""

    def finished(self, record: Record) -> None:
        """A record was written."""


@dataclass(frozen=True)
class Run:
    """A plan to be carried out in one folder, on one device.

    `fresh` measures again what is known; `budget_s` is how long a cell's timed calls may take.
    """

    cells: list[Cell]
    store: RunStore
    device: str
    threads: int
    fresh: bool = False
    budget_s: float | None = None

    def execute(self, reporter: Reporter | None = None) -> list[Record]:
        """Carry out what has no record yet; returns the records of all cells, in their order.

        A record of older code counts as none.

        Raises:
            UsageError: when the folder holds measurements of another environment.
            WriteError: when a record cannot be written.
        """
        reporter = reporter or Reporter()
        environment.pin_precision()
        columns = environment.capture(self.device, self.threads)
        known = {} if self.fresh else self.known_records()
        refuse_other_environment(list(known.values()), columns)
        missing = [cell for cell in self.cells if cell.id not in known]
        reporter.started(len(self.cells), list(known.values()))
        if missing:
            self.store.write_run(
                {
                    "command": environment.command_line(),
                    "started_utc": now(),
                    "environment": columns,
                    "details": environment.details(self.device),
                }
            )
        for cell, cost, outcome in outcomes(missing, self.threads, self.budget_s, reporter):
            record = make_record(cell, cost, outcome, columns, self.store.folder.resolve().name)
            self.store.write(record)
            known[cell.id] = record
            reporter.finished(record)
        return [known[cell.id] for cell in self.cells]

    def known_records(self) -> dict[str, Record]:
        """The records of this plan's cells that the folder holds, made by the present code.

        What was skipped is tried again: memory may have become free.
        """
        wanted = {cell.id for cell in self.cells}
        return {
            record.cell_id: record
            for record in self.store.read()[0]
            if record.cell_id in wanted
            and record.status != "skipped"
            and record.code_hash == environment.code_hash(record.block)
        }


def outcomes(
    cells: list[Cell], threads: int, budget_s: float | None, reporter: Reporter
) -> Iterator[tuple[Cell, Cost | None, Outcome]]:
    """Every cell with its cost and what became of it, group by group."""
    for _, members in itertools.groupby(cells, key=lambda cell: cell.group):
        costs: dict[Cell, Cost] = {}
        to_measure = []
        for cell in members:
            reporter.working(f"estimating {describe(cell)}")
            start = time.perf_counter()
            try:
                cost = costs[cell] = estimate(cell)
            except RAISED as error:
                yield cell, None, cannot_run(error, time.perf_counter() - start)
                continue
            if broken := disagreement(cost):
                yield cell, cost, broken
            elif cell.estimated:
                yield cell, cost, Outcome("ok", {"wall_s": time.perf_counter() - start})
            elif refusal := too_large(cell, cost):
                yield cell, cost, refusal
            else:
                to_measure.append(cell)
        if to_measure:
            where = describe(to_measure[0], block=False)

            def on_step(text: str, where: str = where) -> None:
                reporter.working(f"{where}: {text}")

            reporter.measuring(f"measuring {len(to_measure)} blocks, {where}")
            for cell, outcome in measure.group(to_measure, threads, budget_s, on_step):
                yield cell, costs[cell], outcome


def describe(cell: Cell, block: bool = True) -> str:
    """A cell, or its group, in a few words."""
    shape = "x".join(map(str, cell.shape))
    return f"{f'{cell.label} ' if block else ''}{shape} {cell.dtype} {cell.mode}"


def cannot_run(error: BaseException, seconds: float) -> Outcome:
    """What an estimate's failure means: some cells cannot be, which is a result; the rest is an error."""
    for words, reason in IMPOSSIBLE.items():
        if words in first_line(error):
            return Outcome("skipped", {"reason": reason, "wall_s": seconds})
    return measure.failure(error, seconds)


def disagreement(cost: Cost) -> Outcome | None:
    """The verdict on a block whose closed forms are not what is counted."""
    if cost.macs_counted != cost.macs_formula:
        reason = f"macs() gives {cost.macs_formula}, but {cost.macs_counted} are counted"
    elif cost.params != cost.params_formula:
        reason = f"param_count() gives {cost.params_formula}, but there are {cost.params}"
    else:
        return None
    return Outcome("invalid", {"reason": f"broken rule: closed forms equal the count; {reason}"})


def too_large(cell: Cell, cost: Cost) -> Outcome | None:
    """A refusal where the predicted peak, with the input and kernels' copies, does not fit."""
    import torch

    free = environment.free_bytes(cell.device)
    one_map = math.prod(cell.shape) * getattr(torch, cell.dtype).itemsize
    need = int(cost.memory_bytes * MEMORY_FACTOR) + MAPS_BESIDE * one_map
    if need <= free:
        return None
    return Outcome("skipped", {"reason": f"needs {gib(need)} with a margin for kernels, {gib(free)} free"})


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def refuse_other_environment(records: list[Record], columns: dict[str, Any]) -> None:
    """Timings of two environments must not stand in one table as if they were of one."""
    for record in records:
        if not record.estimated and record.env_hash != columns["env_hash"]:
            changed = [
                f"{name} {getattr(record, name)} -> {columns[name]}"
                for name in environment.IDENTITY
                if getattr(record, name) != columns[name]
            ]
            raise UsageError(
                f"run {record.run_id} was measured in another environment "
                f"({', '.join(changed) or 'OpenMP wait policy'}); "
                "add --fresh to measure it again, or --out for a new run"
            )


def make_record(
    cell: Cell, cost: Cost | None, outcome: Outcome, columns: dict[str, Any], run_id: str
) -> Record:
    fields: dict[str, Any] = {
        "cell_id": cell.id,
        "run_id": run_id,
        "created_utc": now(),
        "kind": "profile",
        "block": cell.block,
        "spec": cell.label,
        "family": blocks.info(cell.block).family,
        "options_json": json.dumps(dict(cell.options)),
        "seed": cell.seed,
        "estimated": cell.estimated,
        "batch": cell.batch,
        "channels": cell.channels,
        "height": cell.height,
        "width": cell.width,
        "dtype": cell.dtype,
        "mode": cell.mode,
        "compiled": cell.compiled,
        "device_type": cell.device,
        "status": outcome.status,
        "code_hash": environment.code_hash(cell.block),
    }
    return Record(**(fields | cost_columns(cost) | outcome.columns | columns))


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def cost_columns(cost: Cost | None) -> dict[str, Any]:
    """The columns that need no execution; none if even they could not be had."""
    if cost is None:
        return {}
    return {
        "params": cost.params,
        "macs_counted": cost.macs_counted,
        "macs_formula": cost.macs_formula,
        "macs_backward": cost.macs_backward,
        "uncounted_ops_json": json.dumps(cost.uncounted_ops),
        "memory_predicted_bytes": cost.memory_bytes,
        "memory_source": "predicted",
    }
