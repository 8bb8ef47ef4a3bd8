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
from ctxbench.errors import UsageError
from ctxbench.measure import Outcome
from ctxbench.record import Record
from ctxbench.spec import Cell
from ctxbench.store import RunStore

MEMORY_FACTOR = 1.15  # kernels' work space beyond the tensors
SINGLE_VALUE = "Expected more than 1 value per channel"


class Reporter:
    """Told how a run goes on; this one keeps silent."""

    def started(self, total: int, known: int) -> None:
        """`known` of `total` cells have a record already."""

    def working(self, text: str) -> None:
        """What is being done now."""

    def finished(self, record: Record) -> None:
        """A record was written."""


@dataclass(frozen=True)
class Run:
    """A plan to be carried out in one folder, on one device."""

    cells: list[Cell]
    store: RunStore
    device: str
    threads: int

    def execute(self, reporter: Reporter | None = None) -> list[Record]:
        """Carry out what has no record yet; returns the records of all cells, in their order.

        Raises:
            UsageError: when the folder holds measurements of another environment.
        """
        reporter = reporter or Reporter()
        columns = environment.capture(self.device, self.threads)
        known = {record.cell_id: record for record in self.store.read()[0]}
        refuse_other_environment([known[cell.id] for cell in self.cells if cell.id in known], columns)
        missing = [cell for cell in self.cells if cell.id not in known]
        reporter.started(len(self.cells), len(self.cells) - len(missing))
        if missing:
            self.store.write_run(
                {
                    "command": environment.command_line(),
                    "environment": columns,
                    "details": environment.details(self.device),
                }
            )
        for cell, cost, outcome in outcomes(missing, self.threads, reporter):
            record = make_record(cell, cost, outcome, columns, self.store.folder.name)
            self.store.write(record)
            known[cell.id] = record
            reporter.finished(record)
        return [known[cell.id] for cell in self.cells]


def outcomes(
    cells: list[Cell], threads: int, reporter: Reporter
) -> Iterator[tuple[Cell, Cost | None, Outcome]]:
    """Every cell with its cost and what became of it, group by group."""
    for _, members in itertools.groupby(cells, key=lambda cell: cell.group):
        start = time.perf_counter()
        costs: dict[Cell, Cost] = {}
        to_measure = []
        for cell in members:
            reporter.working(f"estimating {describe(cell)}")
            try:
                cost = costs[cell] = estimate(cell)
            except Exception as error:
                yield cell, None, cannot_run(error)
                continue
            if cell.estimated:
                yield cell, cost, Outcome("ok")
            elif refusal := too_large(cell, cost):
                yield cell, cost, refusal
            else:
                to_measure.append(cell)
        if to_measure:
            where = describe(to_measure[0], block=False)

            def on_round(text: str, where: str = where) -> None:
                reporter.working(f"{where}: {text}")

            for cell, outcome in measure.group(to_measure, threads, on_round):
                outcome.columns["wall_s"] = time.perf_counter() - start
                yield cell, costs[cell], outcome


def describe(cell: Cell, block: bool = True) -> str:
    """A cell, or its group, in a few words."""
    shape = f"{cell.batch}x{cell.channels}x{cell.height}x{cell.width}"
    return f"{f'{cell.label} ' if block else ''}{shape} {cell.dtype} {cell.mode}"


def cannot_run(error: Exception) -> Outcome:
    if SINGLE_VALUE in str(error):
        reason = "batch normalisation cannot train on one value per channel; use a larger batch or resolution"
        return Outcome("skipped", {"reason": reason})
    return measure.failure(error)


def too_large(cell: Cell, cost: Cost) -> Outcome | None:
    """A refusal where the predicted peak does not fit the free memory."""
    free = environment.free_bytes(cell.device)
    own_input = math.prod(cell.shape) * itemsize(cell.dtype) * (2 if cell.training else 1)
    need = int(cost.memory_bytes * MEMORY_FACTOR) + 2 * own_input
    if need <= free:
        return None
    return Outcome("skipped", {"reason": f"needs {gib(need)} of memory, {gib(free)} free"})


def itemsize(dtype: str) -> int:
    """Bytes of one number."""
    import torch

    return int(getattr(torch, dtype).itemsize)


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
        "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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
    }
    return Record(**(fields | cost_columns(cost) | outcome.columns | columns))


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
