"""How far several runs of the same cells are apart: what a latency of one run is worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from ctxbench.record import Row
from ctxbench.reports.contests import LATENCY
from ctxbench.reports.inputs import group_title
from ctxbench.reports.leaderboards import leaderboard_key, preempted
from ctxbench.tables import Column, Table, number

REPEATABLE = 0.10  # the spread up to which a cell counts as repeatable
METRIC = "latency_ref_ratio"
MOST_NAMED = 3
TIMES = (
    LATENCY,
    "latency_cpu_ms_median",
    METRIC,
    "latency_graph_ms_median",
    "first_call_ms",
    "images_per_s",
    "reference_gflops",
)


@dataclass(frozen=True)
class Repetition:
    """One cell in several runs of one environment."""

    row: Row
    runs: int
    ratio_spread: float
    wall_spread: float


Group = list[Repetition]


def spread(values: list[float]) -> float:
    """(largest - smallest) / median; infinite where the median is 0 and the rest is not."""
    middle, width = median(values), max(values) - min(values)
    return width / middle if middle else float("inf") if width else 0.0


def repetitions(rows: list[Row]) -> list[Repetition]:
    """Cells that several runs timed with the same code and environment, the largest spread first."""
    found = []
    for members in same_cells(row for row in rows if row[METRIC] is not None):
        if len(members) > 1:
            ratios, walls = ([row[name] for row in members] for name in (METRIC, LATENCY))
            found.append(Repetition(members[0], len(members), spread(ratios), spread(walls)))
    return sorted(found, key=lambda it: (-it.ratio_spread, it.row["spec"], it.row["cell_id"]))


def same_cells(rows: Iterable[Row]) -> list[list[Row]]:
    """Timed rows of one cell, environment and code, one of each run: the latest."""
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row["created_utc"]):
        if row[LATENCY] is not None:
            key = row["cell_id"], row["env_hash"], row["code_hash"]
            groups.setdefault(key, {})[row["run_id"]] = row
    return [list(runs.values()) for runs in groups.values()]


def pooled(rows: list[Row]) -> list[Row]:
    """One row for a cell that several runs timed with the same code and environment; others as they are.

    Its times are medians over the runs; their intervals hold those of all runs.
    """
    others = [row for row in rows if row[LATENCY] is None]
    return others + [together(members) for members in same_cells(rows)]


def together(rows: list[Row]) -> Row:
    """What several runs found of one cell, as one row."""
    if len(rows) == 1:
        return rows[0]
    names = sorted(row["run_id"] for row in rows)
    shown = names if len(names) <= MOST_NAMED else [names[0], "…", names[-1]]
    pool: Row = {
        "runs": len(rows),
        "run_id": f"{len(rows)} runs: {', '.join(shown)}",
        "rounds_id": None,
        "converged": all(row["converged"] for row in rows),
        "preempted": any(map(preempted, rows)),
        "latency_samples_json": None,
        "latency_cpu_samples_json": None,
    }
    for name in TIMES:
        values = [row[name] for row in rows if row[name] is not None]
        pool[name] = median(values) if values else None
    for stem in ("latency_ms", "latency_graph_ms"):
        timed = [row for row in rows if row[f"{stem}_median"] is not None]
        pool[f"{stem}_ci_low"] = min((row[f"{stem}_ci_low"] for row in timed), default=None)
        pool[f"{stem}_ci_high"] = max((row[f"{stem}_ci_high"] for row in timed), default=None)
    return rows[-1] | pool


def repeatability_table(rows: list[Row]) -> Table[Group] | None:
    """One line per shape, dtype, mode and environment; None where no cell was timed twice."""
    found = repetitions(rows)
    if not found:
        return None
    groups: dict[tuple[object, ...], list[Repetition]] = {}
    for it in found:
        groups.setdefault(leaderboard_key(it.row), []).append(it)
    lines = sorted(groups.values(), key=lambda group: (group[0].row["pixels"], group_title(group[0].row)))
    columns = [
        Column[Group]("input", lambda group: group_title(group[0].row), numeric=False),
        Column[Group]("cells", lambda group: str(len(group))),
        Column[Group]("runs", lambda group: str(max(it.runs for it in group))),
        Column[Group]("/ matmul, median", lambda group: percent(median(it.ratio_spread for it in group))),
        Column[Group]("largest", lambda group: percent(group[0].ratio_spread)),
        Column[Group]("of", lambda group: group[0].row["spec"], numeric=False),
        Column[Group]("latency, median", lambda group: percent(median(it.wall_spread for it in group))),
        Column[Group]("latency, largest", lambda group: percent(unsteadiest(group).wall_spread)),
        Column[Group]("of", lambda group: unsteadiest(group).row["spec"], numeric=False),
    ]
    within = sum(it.ratio_spread <= REPEATABLE for it in found)
    notes = [
        "Spread: (largest - smallest) / median over runs of the same cell in the same environment.",
        f"{within} of {len(found)} cells, each in {counted({it.runs for it in found})} runs, repeat within "
        f"{percent(REPEATABLE)} in the ratio to the matrix product.",
    ]
    if worse := [it for it in found if it.ratio_spread > REPEATABLE]:
        named = ", ".join(f"{it.row['spec']} {it.row['height']}x{it.row['width']}" for it in worse[:5])
        more = f" and {len(worse) - 5} more" if len(worse) > 5 else ""
        notes.append(f"Do not rely on smaller differences for: {named}{more}.")
    return Table("Repeatability: spread over runs", columns, lines, notes)


def unsteadiest(group: Group) -> Repetition:
    return max(group, key=lambda it: it.wall_spread)


def counted(numbers: set[int]) -> str:
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))


def percent(fraction: float) -> str:
    return f"{number(100 * fraction, 2)}%"
