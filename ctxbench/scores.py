"""Leaderboards of trained networks: what a block is worth, over seeds, with its spread."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

from ctxbench.record import FAILED, Row
from ctxbench.tables import MISSING, Column, Table, machine, number

SHARED = (
    *("task", "preset", "model", "dataset", "train_iterations", "scoring", "first_weights"),
    *("dtype", "device_name", "torch", "program_hash", "protocol_json"),
)
METRICS = {"context_iou": "context IoU (%)", "miou": "mIoU (%)"}
CHANCE = 1 / 3  # context IoU of a network that cannot see the cue, with perfect borders
NEAR_CHANCE = 0.35


@dataclass(frozen=True)
class Entry:
    """One block over all its seeds."""

    rows: list[Row]

    @property
    def spec(self) -> str:
        return str(self.rows[0]["spec"])

    @cached_property
    def done(self) -> list[Row]:
        return [row for row in self.rows if row["status"] == "ok"]

    def values(self, name: str) -> list[float]:
        return [row[name] for row in self.done if row[name] is not None]

    def middle(self, name: str) -> float | None:
        values = self.values(name)
        return mean(values) if values else None

    def range(self, name: str) -> tuple[float, float]:
        values = self.values(name)
        return min(values), max(values)


def score_tables(rows: list[Row]) -> list[Table[Entry]]:
    """One table per task, protocol, network and data: blocks by falling score, failures last."""
    return [score_table(members) for members in groups_of(rows)]


def groups_of(rows: list[Row]) -> list[list[Row]]:
    """The rows of each table: of one protocol, network, machine and version of the code."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (*(natural(row[it]) for it in SHARED), row["spec"], row["seed"])):
        groups.setdefault(tuple(row[name] for name in SHARED), []).append(row)
    return list(groups.values())


def natural(value: Any) -> list[tuple[float, str]]:
    """Sorts text with numbers in it by those: "legend-4" before "legend-14"."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?)", str(value)[:200])
    return [(float(part), "") if number % 2 else (-1.0, part) for number, part in enumerate(parts)]


def score_table(rows: list[Row]) -> Table[Entry]:
    entries, metric = entries_of(rows), metric_of(rows)
    names = [metric, *(["miou"] if metric != "miou" else [])]
    columns = [
        Column[Entry]("block", lambda it: it.spec, numeric=False),
        Column[Entry]("seeds", lambda it: str(len(it.done))),
        *(Column[Entry](METRICS[name], lambda it, name=name: percent(it, name)) for name in names),  # type: ignore[misc]
        Column[Entry]("seeds from - to", lambda it: ends(it, metric)),
        Column[Entry]("CPU time (s)", lambda it: number(it.middle("train_cpu_s"), 3)),
    ]
    if any(flags(it) for it in entries):
        columns.append(Column("flags", flags, numeric=False))
    return Table(title_of(rows[0]), columns, entries, notes(rows, entries, metric))


def metric_of(rows: list[Row]) -> str:
    """What the blocks are ranked by."""
    return "context_iou" if any(row["context_iou"] is not None for row in rows) else "miou"


def entries_of(rows: list[Row]) -> list[Entry]:
    """The blocks, best first, those that failed in every seed last; of a seed the latest record."""
    metric = metric_of(rows)
    latest = {(row["spec"], row["seed"]): row for row in sorted(rows, key=lambda row: row["created_utc"])}
    specs = sorted({row["spec"] for row in rows})
    entries = [Entry([row for (name, _), row in sorted(latest.items()) if name == spec]) for spec in specs]
    return sorted(entries, key=lambda it: (not it.done, -(it.middle(metric) or 0.0), it.spec))


def percent(entry: Entry, name: str) -> str:
    value = entry.middle(name)
    return MISSING if value is None else f"{100 * value:.1f}"


def ends(entry: Entry, metric: str) -> str:
    if len(entry.values(metric)) < 2:
        return MISSING
    low, high = entry.range(metric)
    return f"{100 * low:.1f} - {100 * high:.1f}"


def flags(entry: Entry) -> str:
    """What became of seeds that are not scored, and whether the cue was found."""
    found = [
        f"seed {row['seed']} {row['status']}: {row['reason']}"
        for row in entry.rows
        if row["status"] in FAILED
    ]
    value = entry.middle("context_iou")
    if value is not None and value < NEAR_CHANCE:
        found.append("at chance")
    return "; ".join(found)


def title_of(row: Row) -> str:
    precision = "" if row["dtype"] == "float32" else f", {row['dtype']}"
    scored = "" if row["scoring"] in (None, "single") else f", scored {row['scoring']}"
    trained = f"{row['train_iterations']:,} iterations" if row["train_iterations"] else "not trained"
    network = f"{row['task']} ({row['preset']}): {row['model']} on {row['dataset']}"
    return f"{network}, {trained}{precision}{scored}"


def notes(rows: list[Row], entries: list[Entry], metric: str) -> list[str]:
    found = [f"Trained on {', '.join(dict.fromkeys(machine(row) for row in rows))}."]
    if metric == "context_iou":
        found.append(
            "Context IoU: mean of the two classes of discs, which a cue tells apart that a local network cannot "
            "see. Guessing gives a third with perfect borders, and less without; below 35 % a block is flagged as "
            "at chance: it has not found the cue, or was not trained long enough to. mIoU holds the local classes "
            "beside them."
        )
    found += protocol_lines(rows[0]["protocol_json"])
    found.append(f"Version of the code of blocks and training: {rows[0]['program_hash'] or 'unknown'}.")
    return [*found, *ties(entries, metric)]


def protocol_lines(text: str) -> list[str]:
    """What the record says of each stage, if it can be read."""
    try:
        protocol = json.loads(text)
        found = [protocol_line(stage) for stage in protocol["stages"]]
        together = f"; {protocol['processes']:d} processes" if protocol["processes"] != 1 else ""
        return [*found, f"Data {protocol['data_digest'] or 'unknown'}{together}."]
    except (KeyError, TypeError, ValueError):
        return []


def protocol_line(stage: dict[str, Any]) -> str:
    first = f"first weights: {stage['first_weights']}. {stage['note']}"
    if not stage["iterations"]:
        return f"Scored as they are, {stage['scoring']}; {first}"
    crop = "x".join(map(str, stage["crop"]))
    return (
        f"Protocol: {stage['train']}, {stage['iterations']:,} iterations of {stage['batch']} crops {crop}, "
        f"{stage['optimizer']} {stage['learning_rate']:g}, scored {stage['scoring']}, last checkpoint; {first}"
    )


def ties(entries: list[Entry], metric: str) -> list[str]:
    """Which blocks the seeds do not tell from the best one."""
    scored = [it for it in entries if it.values(metric)]
    if len(scored) < 2:
        return []
    best = scored[0]
    if flags(best):
        return []
    if min(len(it.values(metric)) for it in scored) < 2:
        return ["One seed tells no scatter: small differences mean nothing."]
    same = [it.spec for it in scored[1:] if it.range(metric)[1] >= best.range(metric)[0]]
    if not same:
        return [f"Every seed of `{best.spec}` is above all seeds of the others."]
    return [f"Not told apart from `{best.spec}` by these seeds: {', '.join(same)}."]
