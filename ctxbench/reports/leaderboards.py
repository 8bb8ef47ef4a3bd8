"""Leaderboards of profiles: what each block costs, beside the others of its shape, mode and machine."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

from ctxbench.record import FAILED, METRICS, Row
from ctxbench.tables import MISSING, Column, Table, number

FVCORE_TOLERANCE = 0.01
PREEMPTED = 0.9  # of the wall time: a single thread that got less of the CPU had to wait for others
GROUP = ("batch", "channels", "height", "width", "dtype", "mode", "compiled", "estimated", "task", "preset")
MEASURED_BY = ("env_hash", "program_hash")
ORDER = ("batch", "channels", "dtype", "compiled", "mode", "device_name", "env_hash", "spec", "cell_id")


def metric_column(name: str) -> Column[Row]:
    return Column(METRICS[name].title, lambda row: number(scaled(row, name)))


def scaled(row: Row, name: str) -> float | None:
    """A measured value in the unit it is shown in."""
    value = row[name]
    return None if value is None else value / METRICS[name].scale


def latency(row: Row) -> str:
    """Median and half the width of its interval, in milliseconds."""
    middle = row["latency_ms_median"]
    if middle is None:
        return MISSING
    half = (row["latency_ms_ci_high"] - row["latency_ms_ci_low"]) / 2
    return f"{number(middle)} ±{100 * half / middle:.1f}%" if middle else number(middle)


def times(row: Row) -> str:
    return number(row["ratio"], 3)


def flags(row: Row) -> str:
    """What a reader must know of a row before trusting it."""
    found = []
    if row["status"] != "ok":
        found.append(f"{row['status']}: {row['reason']}" if row["reason"] else row["status"])
    found += doubts(row)
    if row["status"] == "ok" and row["macs_counted"] != row["macs_formula"]:
        found.append(f"closed form says {number(row['macs_formula'] / 1e9)} G")
    return "; ".join(found)


def doubts(row: Row) -> list[str]:
    """What makes a row's times less certain than its interval says."""
    settled = row["converged"] is not False
    return [*([] if settled else ["not converged"]), *(["preempted"] if preempted(row) else [])]


def preempted(row: Row) -> bool:
    """Whether other processes took the CPU away from a single thread."""
    if "preempted" in row:
        return bool(row["preempted"])
    wall, cpu = row["latency_ms_median"], row["latency_cpu_ms_median"]
    alone = row["device_type"] == "cpu" and row["threads"] == 1
    return bool(alone and wall and cpu is not None and cpu < PREEMPTED * wall)


def fvcore_excess(row: Row) -> float:
    """By what part fvcore's count is above ours (below: negative); 0 where either is missing."""
    count, counted = row["macs_fvcore"], row["macs_counted"]
    return count / counted - 1 if count is not None and counted else 0.0


def fvcore(row: Row) -> str:
    """fvcore's count, with how far it is off if that is more than 1 %."""
    count = row["macs_fvcore"]
    if count is None:
        return MISSING
    excess = fvcore_excess(row)
    shown = number(count / METRICS["macs_fvcore"].scale)
    return f"{shown} ({100 * excess:+.0f}%)" if abs(excess) > FVCORE_TOLERANCE else shown


def leaderboards(rows: list[Row], baseline: str | None = None) -> list[Table[Row]]:
    """One table per shape, dtype, mode and, if measured, environment and code: by rising cost, failures last.

    The cost is the latency where it was measured and the MACs otherwise; `baseline` names the spec
    that the ratios refer to, each within its own run.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["pixels"], *(str(row[name]) for name in ORDER))):
        groups.setdefault(leaderboard_key(row), []).append(row)
    found = [leaderboard(members, baseline) for members in groups.values()]
    titles = Counter(table.title for table in found)
    return [
        table
        if titles[table.title] == 1
        else dataclasses.replace(table, title=f"{table.title}, {code(table)}")
        for table in found
    ]


def leaderboard_key(row: Row) -> tuple[Any, ...]:
    """What the rows of one table share."""
    return (
        *(row[name] for name in GROUP),
        *(None if row["estimated"] else row[name] for name in MEASURED_BY),
    )


def code(table: Table[Row]) -> str:
    """What tells tables apart that were measured by different versions of the program."""
    return f"code {(table.rows[0]['program_hash'] or 'unknown')[:6]}"


def leaderboard(rows: list[Row], baseline: str | None) -> Table[Row]:
    """The table of one group."""
    cost = "macs" if rows[0]["estimated"] else "latency_ms_median"
    units = {
        row["run_id"]: row[cost] for row in rows if row["spec"] == baseline and row["status"] != "invalid"
    }
    ranked = [row | {"ratio": ratio(row[cost], units.get(row["run_id"]))} for row in map(trusted, rows)]
    ranked.sort(
        key=lambda row: (row["status"] in FAILED, row[cost] is None, row[cost] or 0, row["macs"] or 0)
    )
    return Table(group_title(rows[0]), columns_for(ranked, baseline, cost), ranked, notes_on(ranked))


def trusted(row: Row) -> Row:
    """The row without the memory of a block that broke a rule."""
    return row | {"memory_predicted_bytes": None} if row["status"] == "invalid" else row


def ratio(value: float | None, unit: float | None) -> float | None:
    return value / unit if unit and value is not None else None


def columns_for(rows: list[Row], baseline: str | None, cost: str) -> list[Column[Row]]:
    """The columns that say something about these rows."""
    columns = [Column[Row]("block", lambda row: row["spec"], numeric=False)]
    if len({row["run_id"] for row in rows}) > 1 or any(row["runs"] > 1 for row in rows):
        columns.append(Column("run", lambda row: row["run_id"], numeric=False))
    columns += [metric_column("params"), metric_column("macs")]
    if measured(rows, "macs_fvcore"):
        columns.append(Column(METRICS["macs_fvcore"].title, fvcore))
    if measured(rows, "macs_backward"):
        columns.append(metric_column("macs_backward"))
    columns.append(metric_column("memory_predicted_bytes"))
    if measured(rows, "memory_measured_bytes"):
        columns.append(metric_column("memory_measured_bytes"))
    if measured(rows, "latency_ms_median"):
        columns += [
            Column(METRICS["latency_ms_median"].title, latency),
            metric_column("latency_cpu_ms_median"),
            metric_column("latency_ref_ratio"),
        ]
    if measured(rows, "latency_graph_ms_median"):
        columns.append(metric_column("latency_graph_ms_median"))
    if any(row["compiled"] for row in rows) and measured(rows, "first_call_ms"):
        columns.append(metric_column("first_call_ms"))
    if measured(rows, "sdpa_backend"):
        columns.append(Column("attention kernel", lambda row: row["sdpa_backend"] or MISSING, numeric=False))
    if measured(rows, "ratio"):
        columns.append(Column(f"{METRICS[cost].label} / {baseline}", times))
    if any(map(flags, rows)):
        columns.append(Column("flags", flags, numeric=False))
    return columns


def measured(rows: list[Row], name: str) -> bool:
    return any(row[name] is not None for row in rows)


def group_title(row: Row) -> str:
    """What the rows of a group share."""
    if row["kind"] == "step":
        what = f"{row['task']} ({row['preset']}): one update of both networks, {row['batch']} images"
        return f"{what}, {row['dtype']}, {machine(row)}"
    mode = "inference" if row["mode"] == "infer" else "training"
    parts = [shape(row), mode, row["dtype"], *(["compiled"] if row["compiled"] else [])]
    if row["estimated"]:
        return ", ".join([*parts, "estimated"])
    return ", ".join([*parts, machine(row)])


def shape(row: Row) -> str:
    return "x".join(str(row[side]) for side in ("batch", "channels", "height", "width"))


def machine(row: Row) -> str:
    """The environment of a measurement, in short."""
    threads = (
        f", {row['threads']} thread{'s' if row['threads'] > 1 else ''}" if row["device_type"] == "cpu" else ""
    )
    return f"{row['device_name']}{threads}, torch {row['torch'].partition('+')[0]}"


def notes_on(rows: list[Row]) -> list[str]:
    """Whether the MACs were confirmed, why fvcore's count is off, and how the times were taken."""
    notes = []
    if any(row["kind"] == "step" for row in rows):
        notes.append(
            "MACs: of one forward of each network for the batch; an update has several, and backwards."
        )
    counted = [row for row in rows if row["macs_counted"] is not None]
    if counted and all(row["macs_counted"] == row["macs_formula"] for row in counted):
        notes.append("All counted MACs equal the closed form.")
    for row in rows:
        if fvcore_excess(row) > FVCORE_TOLERANCE:
            notes.append(f"fvcore on {row['spec']} is above: it counts normalisation too.")
        elif fvcore_excess(row) < -FVCORE_TOLERANCE:
            missed = ", ".join(json.loads(row["fvcore_missed_json"] or "{}"))
            notes.append(f"fvcore on {row['spec']} is below: it does not know {missed or 'what is missing'}.")
    return [*dict.fromkeys(notes), *notes_on_times(rows)]


def notes_on_times(rows: list[Row]) -> list[str]:
    """How fast the machine was by its own measure, and which rows were not timed side by side."""
    notes = []
    if any(row["runs"] > 1 for row in rows):
        notes.append("Of several runs: the median, ± half the range of their medians.")
    if speeds := [row["reference_gflops"] for row in rows if row["reference_gflops"] is not None]:
        ends = dict.fromkeys(number(speed, 3) for speed in (min(speeds), max(speeds)))
        notes.append(f"The reference matrix product ran at {' to '.join(ends)} GFLOP/s.")
    for run in dict.fromkeys(row["run_id"] for row in rows):
        timed = [row for row in rows if row["run_id"] == run and row["rounds_id"] is not None]
        together = [
            ", ".join(row["spec"] for row in timed if row["rounds_id"] == rounds)
            for rounds in dict.fromkeys(row["rounds_id"] for row in timed)
        ]
        if len(together) > 1:
            notes.append(f"Timed apart, in rounds of their own: {'; '.join(together)}.")
    return notes
