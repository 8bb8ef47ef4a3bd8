"""Leaderboards as text cells, ready for a terminal, Markdown or a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ctxbench.published import LABELS, Comparison
from ctxbench.record import METRICS, Row

MISSING = "–"
GROUP = ("batch", "channels", "height", "width", "dtype", "mode", "compiled", "device_name", "estimated")


@dataclass(frozen=True)
class Column:
    title: str
    cell: Callable[[Row], str]
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of text; `notes` explain what the rows cannot."""

    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    @property
    def header(self) -> list[str]:
        return [column.title for column in self.columns]

    @property
    def text(self) -> list[list[str]]:
        return [[column.cell(row) for column in self.columns] for row in self.rows]


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits, without an exponent; a dash for what was not measured."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    short = f"{value:.{digits}g}"
    return short if "e" not in short else f"{Decimal(short):f}"


def metric_column(name: str, title: str | None = None) -> Column:
    metric = METRICS[name]
    return Column(title or metric.title, lambda row: number(scaled(row, name)))


def scaled(row: Row, name: str) -> float | None:
    """A measured value in the unit it is shown in."""
    value = row[name]
    return None if value is None else value / METRICS[name].scale


def latency(row: Row) -> str:
    """Median and the half-width of its interval, in milliseconds."""
    middle = row["latency_ms_median"]
    if middle is None:
        return MISSING
    half = (row["latency_ms_ci_high"] - row["latency_ms_ci_low"]) / 2
    return f"{number(middle)} ±{100 * half / middle:.0f}%" if middle else number(middle)


def times(row: Row) -> str:
    return number(row["ratio"], 3)


def flags(row: Row) -> str:
    """What a reader must know of a row before trusting it."""
    found = []
    if row["status"] != "ok":
        found.append(f"{row['status']}: {row['reason']}" if row["reason"] else row["status"])
    if row["converged"] is False:
        found.append("not converged")
    if row["macs_counted"] != row["macs_formula"]:
        found.append(f"closed form says {number(row['macs_formula'] / 1e9)} G")
    return "; ".join(found)


def fvcore(row: Row) -> str:
    """fvcore's count beside ours: nothing if it is the same to 1 %, else how much it misses."""
    count, counted = row["macs_fvcore"], row["macs_counted"]
    if count is None:
        return MISSING
    shown = number(count / METRICS["macs_fvcore"].scale)
    if not counted or abs(count / counted - 1) <= 0.01:
        return shown
    return f"{shown} ({100 * (count / counted - 1):+.0f}%)"


def leaderboards(rows: list[Row], baseline: str | None = None) -> list[Table]:
    """One table per shape, dtype, mode and device: rows by rising cost, failures last.

    The cost is the latency where it was measured and the MACs otherwise; `baseline` names the spec
    that the ratios refer to.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["pixels"]):
        groups.setdefault(tuple(row[key] for key in GROUP), []).append(row)
    return [leaderboard(members, baseline) for members in groups.values()]


def leaderboard(rows: list[Row], baseline: str | None) -> Table:
    """The table of one group."""
    cost = "macs" if rows[0]["estimated"] else "latency_ms_median"
    unit = next((row[cost] for row in rows if row["spec"] == baseline), None)
    ranked = [row | {"ratio": row[cost] / unit if unit and row[cost] is not None else None} for row in rows]
    ranked.sort(key=lambda row: (row[cost] is None, row[cost] or 0, row["macs"] or 0))
    return Table(group_title(rows[0]), columns_for(ranked, baseline), ranked, notes_on(ranked))


def columns_for(rows: list[Row], baseline: str | None) -> list[Column]:
    """The columns that say something about these rows."""
    columns = [
        Column("block", lambda row: row["spec"], numeric=False),
        metric_column("params"),
        metric_column("macs"),
    ]
    if measured(rows, "macs_fvcore"):
        columns.append(Column("fvcore (G)", fvcore))
    if measured(rows, "macs_backward"):
        columns.append(metric_column("macs_backward"))
    allocator = any(row["memory_source"] == "allocator" for row in rows)
    columns.append(metric_column("memory_bytes"))
    if allocator:
        columns.append(metric_column("memory_predicted_bytes", "predicted (MiB)"))
    if measured(rows, "latency_ms_median"):
        columns += [
            Column("latency (ms)", latency),
            metric_column("latency_cpu_ms_median"),
            Column("/ matmul", lambda row: number(row["latency_ref_ratio"])),
        ]
    if measured(rows, "ratio"):
        columns.append(Column(f"/ {baseline}", times))
    if any(map(flags, rows)):
        columns.append(Column("flags", flags, numeric=False))
    return columns


def measured(rows: list[Row], name: str) -> bool:
    return any(row[name] is not None for row in rows)


def group_title(group: Row) -> str:
    shape = f"{group['batch']}x{group['channels']}x{group['height']}x{group['width']}"
    mode = "inference" if group["mode"] == "infer" else "training"
    how = "estimated" if group["estimated"] else f"on {group['device_name']}"
    return f"{shape}, {mode}, {group['dtype']}{', compiled' if group['compiled'] else ''}, {how}"


def notes_on(rows: list[Row]) -> list[str]:
    """Whether the MACs were confirmed, and what fvcore did not see where its count is off."""
    notes = []
    counted = [row for row in rows if row["macs_counted"] is not None]
    if counted and all(row["macs_counted"] == row["macs_formula"] for row in counted):
        notes.append("All counted MACs equal the closed form.")
    for row in rows:
        if "(" in fvcore(row):
            missed = ", ".join(json.loads(row["fvcore_missed_json"])) or "nothing that it reports"
            notes.append(f"fvcore on {row['spec']}: off by more than 1 %; it did not know {missed}.")
    return notes


def published_table(comparisons: list[Comparison]) -> Table:
    """Published numbers beside measured ones; where they differ, the reason if it is known."""
    columns = [
        Column("paper's name", lambda row: row["it"].method, numeric=False),
        Column("block", lambda row: row["it"].spec, numeric=False),
        Column("quantity", lambda row: LABELS[row["it"].metric], numeric=False),
        Column("printed", lambda row: f"{row['it'].published:,.{row['it'].digits}f}"),
        Column("here", lambda row: f"{row['it'].measured:,.{max(row['it'].digits, 1)}f}"),
        Column("difference", lambda row: f"{100 * row['it'].difference:+.1f}%"),
        Column("verdict", lambda row: verdict(row["it"]), numeric=False),
    ]
    sources = sorted({comparison.source for comparison in comparisons})
    notes = [f"Published: {source}, Table 3, input 1x512x128x128." for source in sources]
    notes += [
        f"{it.spec}, {LABELS[it.metric]}: {100 * it.difference:+.1f}%. {it.explanation}"
        for it in comparisons
        if it.explanation
    ]
    notes.append(
        "Published times are of another machine and are not compared. "
        "Measured memory counts the block's parameters and leaves its input out."
    )
    rows = [{"it": comparison} for comparison in comparisons]
    return Table("Published numbers beside measured ones", columns, rows, notes)


def verdict(it: Comparison) -> str:
    if it.reproduced:
        return "reproduced"
    return "differs, see note" if it.explanation else "differs"


def markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table under a heading."""
    lines = [f"### {escape_markdown(table.title)}", ""]
    lines.append("| " + " | ".join(map(escape_markdown, table.header)) + " |")
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|")
    lines += ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in table.text]
    lines += ["", *(f"* {escape_markdown(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def escape_markdown(text: str) -> str:
    """Text that cannot end a table cell, start HTML or become a link."""
    for mark in "\\`*_[]<>|&":
        text = text.replace(mark, f"&#{ord(mark)};" if mark in "<>&|" else f"\\{mark}")
    return " ".join(text.split())
