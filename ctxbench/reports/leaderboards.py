"""Leaderboards of profiles: what each block costs, beside the others of its shape, mode and machine."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

from ctxbench.record import FAILED, GIGA, MEBI, METRICS, MIB, Record, Row
from ctxbench.reports.contests import CHEAPEST, CONTROL, LATENCY, MEMORY, amount, failures, leaders, named
from ctxbench.reports.inputs import group_title, input_facets
from ctxbench.reports.published import TABLE_3_INPUT, claims
from ctxbench.tables import MISSING, Column, Table, number

FVCORE_TOLERANCE = 0.01
PREEMPTED = 0.9  # of the wall time: a single thread that got less of the CPU had to wait for others
GROUP = ("batch", "channels", "height", "width", "dtype", "mode", "compiled", "estimated", "task", "preset")
PRINTED = "Rows marked as published are printed in the paper; they are not ranked."
PRINTED_COLUMNS = {
    "params": ("params", MEBI),
    "macs": ("macs", GIGA),
    "gpu_memory": ("memory_predicted_bytes", MIB),
    "gpu_time": (LATENCY, 1.0),
}
MEMORIES = (MEMORY, "memory_measured_bytes")
MEASURED_BY = {"program_hash": "code", "env_hash": "environment"}
ORDER = ("batch", "channels", "dtype", "compiled", "mode", "device_name", "env_hash", "spec", "cell_id")


def metric_column(name: str, rows: list[Row] | None = None) -> Column[Row]:
    """A measured value; of these rows the lowest stands out, if it is told apart from the others."""
    best = leaders(rows or [], name)
    return Column(
        METRICS[name].title,
        lambda row: number(scaled(row, name)),
        best=lambda row: len(best) == 1 and row is best[0],
    )


def scaled(row: Row, name: str) -> float | None:
    """A measured value in the unit it is shown in."""
    value = row[name]
    return None if value is None else value / METRICS[name].scale


def latency(row: Row) -> str:
    """Median and half the width of its interval, in milliseconds."""
    middle = row[LATENCY]
    if middle is None:
        return MISSING
    if row["latency_ms_ci_low"] is None:
        return number(middle)
    half = (row["latency_ms_ci_high"] - row["latency_ms_ci_low"]) / 2
    return f"{number(middle)} ±{100 * half / middle:.1f}%" if middle else number(middle)


def times(row: Row) -> str:
    return number(row["ratio"], 3)


def flags(row: Row) -> str:
    """What a reader must know of a row before trusting it."""
    found = []
    if "printed" in row:
        found.append("published; its time and memory are of the authors' GPU")
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
    wall, cpu = row[LATENCY], row["latency_cpu_ms_median"]
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
    for name in MEASURED_BY:
        titles = Counter(table.title for table in found)
        found = [
            dataclasses.replace(table, title=f"{table.title}, {version(table, name)}")
            if titles[table.title] > 1
            else table
            for table in found
        ]
    return found


def leaderboard_key(row: Row) -> tuple[Any, ...]:
    """What the rows of one table share."""
    return (
        *(row[name] for name in GROUP),
        *(None if row["estimated"] else row[name] for name in MEASURED_BY),
    )


def version(table: Table[Row], name: str) -> str:
    """What tells tables apart that were measured by different versions of the program, or in like environments."""
    return f"{MEASURED_BY[name]} {str(table.rows[0][name] or 'unknown')[:7]}"


def leaderboard(rows: list[Row], baseline: str | None) -> Table[Row]:
    """The table of one group."""
    cost = "macs" if rows[0]["estimated"] else LATENCY
    units = {
        row["run_id"]: row[cost] for row in rows if row["spec"] == baseline and row["status"] != "invalid"
    }
    ranked = [row | {"ratio": ratio(row[cost], units.get(row["run_id"]))} for row in map(trusted, rows)]
    ranked.sort(
        key=lambda row: (row["status"] in FAILED, row[cost] is None, row[cost] or 0, row["macs"] or 0)
    )
    printed = printed_rows(ranked, baseline, cost) if rows[0]["kind"] == "profile" else []
    columns = columns_for(ranked, baseline, cost, bool(printed))
    ratios = [index for index, column in enumerate(columns) if column.cell is times]
    return Table(
        group_title(rows[0]),
        columns,
        [*ranked, *printed],
        [*notes_on(ranked), *([PRINTED] if printed else [])],
        verdict=verdict(ranked, baseline),
        facets=facets(rows[0]),
        records=lambda row: () if "printed" in row else (row,),
        cost=lambda row: None if row["status"] == "invalid" else row[cost],
        group=lambda row: row["run_id"],
        kind=lambda row: "published" if "printed" in row else "failed" if row["status"] in FAILED else "",
        ratio=next(iter(ratios), None),
        source=lambda row: row.get("printed"),
    )


def printed_rows(rows: list[Row], baseline: str | None, cost: str) -> list[Row]:
    """What the paper prints of this input, as rows that stand after the measured ones and are not ranked."""
    if any(rows[0][name] != value for name, value in TABLE_3_INPUT.items()):
        return []
    mode = rows[0]["mode"]
    found: dict[str, Row] = {}
    for claim in claims():
        if claim.task != "profile":
            continue
        row = found.setdefault(
            claim.method,
            dict.fromkeys(Record.model_fields)
            | {"spec": f"{claim.method} (published)", "of": claim.spec, "printed": claim.origin}
            | {"status": "ok", "run_id": "published", "runs": 1, "macs": None, "ratio": None},
        )
        column, scale = PRINTED_COLUMNS.get(claim.metric.removesuffix(f"_{mode}"), (None, 0.0))
        if column is not None:
            row[column] = scale * claim.number
    unit = next((row[cost] for row in found.values() if row["of"] == baseline), None)
    return [row | {"ratio": ratio(row[cost], unit)} for row in found.values()]


def facets(row: Row) -> dict[str, str]:
    """What a reader chooses a leaderboard by; none for those of updates, which stand for themselves."""
    if row["kind"] == "step":
        return {}
    return input_facets(row) | {"resolution": f"{row['height']}x{row['width']}"}


def verdict(rows: list[Row], baseline: str | None) -> str:
    """The cheapest block by each measure, and how much faster it is than the baseline."""
    parts = []
    for column, words in reversed(CHEAPEST.items()):
        if not (best := leaders(rows, column)):
            continue
        both = ", forward and backward" if column == "macs_total" and rows[0]["mode"] == "train" else ""
        part = f"{words}{both}: `{best[0]['spec']}` ({amount(best[0], column)}"
        if column == LATENCY and (share := best[0]["ratio"]) and best[0]["spec"] != baseline:
            part += f", {number(share, 2)} times that of `{baseline}`"
        tied = [row["spec"] for row in best[1:] if row["spec"] != best[0]["spec"]]
        parts.append(f"{part}){', not told apart from ' + named(tied) if tied else ''}")
    if failed := failures(rows):
        parts.append(f"Failed: {failed}")
    return ". ".join(parts) + ("." if parts else "")


def trusted(row: Row) -> Row:
    """The row without the memory of a block that broke a rule."""
    return row | {"memory_predicted_bytes": None} if row["status"] == "invalid" else row


def ratio(value: float | None, unit: float | None) -> float | None:
    return value / unit if unit and value is not None else None


def columns_for(rows: list[Row], baseline: str | None, cost: str, printed: bool) -> list[Column[Row]]:
    """The columns that say something about these rows; `printed`: published ones stand below them."""
    columns = [Column[Row]("block", lambda row: row["spec"], numeric=False)]
    if len({row["run_id"] for row in rows}) > 1 or any(row["runs"] > 1 for row in rows):
        columns.append(Column("run", lambda row: row["run_id"], numeric=False))
    inference = all(row["mode"] == "infer" for row in rows)
    macs = metric_column("macs", rows if inference else None)
    counted = [macs, metric_column("macs_backward")] if measured(rows, "macs_backward") else [macs]
    memory = [
        metric_column(name, rows if name == MEMORY else None) for name in MEMORIES if measured(rows, name)
    ]
    share = [Column(f"{METRICS[cost].label} / {baseline}", times)] if measured(rows, "ratio") else []
    if measured(rows, LATENCY):
        latencies = [dataclasses.replace(metric_column(LATENCY, rows), cell=latency)]
        columns += [*latencies, *share, *memory, *counted, metric_column("params")]
        columns += [metric_column("latency_cpu_ms_median"), metric_column("latency_ref_ratio")]
    else:
        columns += [*counted, *share, *memory, metric_column("params")]
    if measured(rows, "macs_fvcore"):
        columns.append(Column(METRICS["macs_fvcore"].title, fvcore))
    if measured(rows, "latency_graph_ms_median"):
        columns.append(metric_column("latency_graph_ms_median"))
    if any(row["compiled"] for row in rows) and measured(rows, "first_call_ms"):
        columns.append(metric_column("first_call_ms"))
    if printed or any(map(flags, rows)):
        columns.append(Column("flags", flags, numeric=False, role="flags"))
    return columns


def measured(rows: list[Row], name: str) -> bool:
    return any(row[name] is not None for row in rows)


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
            notes.append(
                f"fvcore on {row['spec']} is above: it counts normalisation, pooling and interpolation too."
            )
        elif fvcore_excess(row) < -FVCORE_TOLERANCE:
            missed = ", ".join(json.loads(row["fvcore_missed_json"] or "{}"))
            notes.append(f"fvcore on {row['spec']} is below: it does not know {missed or 'what is missing'}.")
    for row in rows:
        if row["sdpa_backend"]:
            notes.append(f"{row['spec']} ran the kernel {row['sdpa_backend']}.")
    if control := [row["spec"] for row in rows if row["family"] == CONTROL]:
        notes.append(f"{', '.join(dict.fromkeys(control))} does no work and takes no part in the contest.")
    return [*dict.fromkeys(notes), *notes_on_times(rows)]


def notes_on_times(rows: list[Row]) -> list[str]:
    """How fast the machine was by its own measure, and which rows were not timed side by side."""
    notes = []
    if any(row["runs"] > 1 for row in rows):
        notes.append("Of several runs: the median of their medians, ± half of what their intervals span.")
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
