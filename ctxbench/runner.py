"""Carries out a plan: keeps what is known, has the rest settled, and records each cell as it comes."""

from __future__ import annotations

import datetime
import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import blocks
from ctxbench import devices, environment, pinning, workers
from ctxbench.cost import Cost
from ctxbench.errors import UsageError
from ctxbench.measure import Settings
from ctxbench.monitor import Reporter
from ctxbench.outcome import failure
from ctxbench.record import Record
from ctxbench.settle import Settled, batches, settle
from ctxbench.spec import Cell
from ctxbench.store import RunStore, tell

Where = Literal["workers", "inline"]


@dataclass(frozen=True)
class Run:
    """A plan to be carried out in one folder, on the devices of one kind.

    Attributes:
        cells: what is to be measured here.
        plan: the ids of all cells of the run, where others measure a part of it; None: those of `cells`.
        device: "cpu" or "cuda".
        where: in processes of their own ("workers"), or in this one ("inline"), where a cell that
            hangs or crashes takes the run with it.
        fresh: measure again what is known; it is set aside first, so that what follows can be resumed.
        command: the words this run was asked for with.
    """

    cells: Sequence[Cell]
    store: RunStore
    device: str
    settings: Settings = field(default_factory=Settings)
    where: Where = "workers"
    fresh: bool = False
    plan: list[str] | None = None
    command: str = field(default_factory=environment.command_line)

    @property
    def planned(self) -> list[str]:
        """The ids of all cells of the run, here or elsewhere."""
        return [cell.id for cell in self.cells] if self.plan is None else self.plan

    def execute(self, reporter: Reporter | None = None) -> list[Record]:
        """Carry out what has no record yet; returns the records of all cells, in their order.

        A record of older code counts as none.

        Raises:
            UsageError: when some of these cells were measured in another environment.
            RunError: when a record cannot be written, or no process be started.
        """
        reporter = reporter or Reporter()
        known = self.known_records(reporter)
        pinning.pin(self.settings.threads)
        columns = environment.capture(self.device, self.settings.threads)
        refuse_other_environment(list(known.values()), columns)
        missing = [cell for cell in self.cells if cell.id not in known]
        reporter.started(len(self.cells), list(known.values()))
        if missing:
            self.store.write_plan(self.planned)
            self.note_command(environment=columns, details=environment.details(self.device))
        with closing(self.settle(missing, reporter)) as settled:
            for it in settled:
                record = make_record(it, columns, self.store.name)
                self.store.write(record)
                known[it.cell.id] = record
                if it.cell.kind == "task" and record.status == "ok":
                    self.forget_checkpoints([it.cell])
                reporter.finished(record)
        return [known[cell.id] for cell in self.cells]

    def forget_checkpoints(self, cells: Sequence[Cell]) -> None:
        from ctxbench import training

        training.clear(cells, self.store.folder)

    def note_command(self, **about: Any) -> None:
        """Write down what was asked for, when, and what else is known of it."""
        self.store.write_command({"command": self.command, "started_utc": now()} | about)

    def settle(self, cells: list[Cell], reporter: Reporter) -> Generator[Settled, None, None]:
        found = devices.find(self.device)
        if self.where == "workers":
            yield from workers.settle_in_workers(batches(cells), self.settings, found, reporter)
        else:
            for batch in batches(cells):
                yield from settle(batch, self.settings, found[0], reporter)

    def known_records(self, reporter: Reporter) -> dict[str, Record]:
        """The records of this plan's cells that the folder holds, made by the present code.

        What was skipped is tried again: memory may have become free. A fresh run sets all aside, and
        any run those files that are no records and would be overwritten.
        """
        wanted = {cell.id: cell for cell in self.cells}
        if self.fresh:
            self.store.set_aside(wanted)
            self.forget_checkpoints([cell for cell in self.cells if cell.kind == "task"])
        records, unreadable = self.store.read()
        for file in unreadable:
            reporter.notice(f"cannot read {file.path.name}: {file.reason}; it is left out")
        self.store.set_aside({file.path.stem for file in unreadable} & wanted.keys())
        return {
            record.cell_id: record
            for record in records
            if record.cell_id in wanted
            and record.status != "skipped"
            and record.code_hash == environment.code_hash(record.block, wanted[record.cell_id].code)
        }


def refuse_other_environment(records: list[Record], columns: dict[str, Any]) -> None:
    """Timings of two environments must not stand in one table as if they were of one."""
    for record in records:
        if not record.estimated and record.env_hash != columns["env_hash"]:
            changed = environment.differences(record.model_dump(), columns)
            raise UsageError(
                f"run {record.run_id} was measured in another environment ({', '.join(changed)}); "
                "add --fresh to measure it again, or --out for a new run"
            )


def make_record(settled: Settled, columns: dict[str, Any], run_id: str) -> Record:
    """The record of a settled cell, with the environment's columns."""
    cell, outcome = settled.cell, settled.outcome
    fields: dict[str, Any] = {
        "cell_id": cell.id,
        "run_id": run_id,
        "created_utc": now(),
        "kind": cell.kind,
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
        "code_hash": environment.code_hash(cell.block, cell.code),
        "program_hash": environment.program_hash(cell.code),
    } | cell.columns
    try:
        return Record(**(fields | cost_columns(settled.cost) | outcome.columns | columns))
    except ValueError as error:  # a block may have meddled with the clock, or with torch itself
        failed = failure(error, 0.0)
        reason = {"reason": f"what was measured is no record: {tell(error)}"}
        return Record(**(fields | columns | failed.columns | reason | {"status": failed.status}))


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


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
