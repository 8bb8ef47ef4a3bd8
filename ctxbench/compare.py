"""Two runs cell by cell: what became slower or faster, what costs more, what fails or is missing."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ctxbench import environment
from ctxbench.errors import UsageError
from ctxbench.record import FAILED, METRICS, Record, Row
from ctxbench.reports.inputs import shape
from ctxbench.reports.leaderboards import doubts, trusted
from ctxbench.statistics import Median, median
from ctxbench.tables import Column, Table, number, printable

TOLERANCE = 0.05  # two runs of one code on a shared machine differ by about so much
LEVEL = 0.95  # of a ratio's interval; its two medians are independent, so each is given the root
FEWEST = 7  # samples: of fewer, not even the whole range covers the median that often
ROUNDING = 1e-9  # relative; by so little no threshold is crossed
NOT_KNOWN = "n/a"
VERDICTS = ("SLOWER", "UNCERTAIN", "FASTER", "SAME", NOT_KNOWN)
EXACT = ("params", "macs_counted", "macs_backward", "memory_predicted_bytes", "memory_measured_bytes")
GRAPH, CPU_TIME, REFERENCE = "latency_graph_ms_median", "latency_cpu_ms_median", "latency_ref_ratio"
LATENCY = "latency_ms_median"
# Metrics that scatter -> the one whose interval tells whether they changed.
SCATTERED = {name: name for name in (LATENCY, CPU_TIME, REFERENCE, GRAPH)} | {"images_per_s": LATENCY}
KNOWN = tuple(
    name for name in METRICS if name in Record.model_fields and name != "first_call_ms"
)  # timed once
TITLES = {
    "spec": "block",
    "device_type": "device",
    "base_ms": "base (ms)",
    "new_ms": "new (ms)",
    "ratio": "new / base",
    "matmul_ratio": "/ matmul ratio",
    "failed": "failed or skipped",
}
SIZE = ("batch", "channels", "height", "width")
ABOUT = ("cell_id", "spec", *SIZE, "mode", "dtype", "compiled", "device_type", "seed", "estimated")


@dataclass(frozen=True)
class Threshold:
    """By what fraction a metric may get worse: 0.05 for 5 %."""

    metric: str
    fraction: float


def parse_threshold(text: str) -> Threshold:
    """The threshold that "latency_ms_median:5%" means.

    Raises:
        UsageError: for a metric that is none, and for what is no percentage of 0 or more.
    """
    metric, _, percentage = text.partition(":")
    if metric not in KNOWN:
        raise UsageError(
            f"{metric!r} is no metric to fail on; type METRIC:NUMBER% with one of: {', '.join(KNOWN)}"
        )
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)%", percentage)
    if found is None or math.isinf(float(found[1])):
        raise UsageError(f"{percentage!r} is no percentage of 0 or more; type for example {metric}:5%")
    return Threshold(metric, float(found[1]) / 100)


@dataclass(frozen=True)
class Regression:
    """A cell that got worse by more than a threshold; `metric` is "status" where it fails now."""

    cell_id: str
    spec: str
    metric: str
    text: str


@dataclass(frozen=True)
class Pair:
    """One cell in both runs; `tolerance` is the change of latency, as a fraction, that does not count."""

    base: Row
    new: Row
    tolerance: float

    @property
    def ok(self) -> bool:
        return bool(self.base["status"] == self.new["status"] == "ok")

    @cached_property
    def ratio(self) -> Median | None:
        """NEW/BASE of the median wall latency; None where a run has none, or BASE's is zero."""
        return ratio_of(self.base, self.new, LATENCY) if self.ok else None

    @property
    def verdict(self) -> str | None:
        """SLOWER, FASTER, SAME or UNCERTAIN; None without a ratio."""
        ratio, tolerance = self.ratio, self.tolerance
        if ratio is None:
            return None
        if 1 - tolerance <= ratio.low and ratio.high <= 1 + tolerance:
            return "SAME"
        if ratio.high < 1 and ratio.value < 1 - tolerance:
            return "FASTER"
        return "SLOWER" if ratio.low > 1 and ratio.value > 1 + tolerance else "UNCERTAIN"

    @property
    def outcome(self) -> str:
        """What the summary counts this cell under."""
        without = "estimated" if self.new["estimated"] else NOT_KNOWN
        return self.verdict or (without if self.ok else "failed or skipped")

    @property
    def flags(self) -> str:
        """What a reader must know before trusting the times of either run."""
        sides = (("BASE", doubts(self.base)), ("NEW", doubts(self.new)))
        return "; ".join(f"{side} {', '.join(found)}" for side, found in sides if found)

    def regressions(self, thresholds: list[Threshold]) -> list[Regression]:
        """One for each metric that crosses its threshold, or just one if the cell was ok and fails now."""
        row = self.new
        found = {
            name: f"{name} {shown(self.base[name])} -> {shown(row[name])}, more than {limit} worse"
            for name, limit in ((it.metric, percent(it.fraction)) for it in thresholds if self.crosses(it))
        }
        if thresholds and self.base["status"] == "ok" and row["status"] in FAILED:
            found = {"status": f"was ok, now {outcome(row)}"}
        cell = f"{row['spec']} {shape(row)} {mode(row)} {row['dtype']}"
        doubt = f" ({self.flags})" if self.flags else ""
        return [
            Regression(row["cell_id"], row["spec"], metric, printable(f"{cell}: {what}{doubt}"))
            for metric, what in found.items()
        ]

    def crosses(self, threshold: Threshold) -> bool:
        """Whether the metric got worse by more than the fraction, and beyond doubt if it scatters."""
        name = threshold.metric
        old, now = self.base[name], self.new[name]
        if old is None or now is None:
            return False
        loss = now - old if METRICS[name].lower_is_better else old - now
        worse = loss > threshold.fraction * old * (1 + ROUNDING)
        if not worse or name not in SCATTERED:
            return bool(worse)
        ratio = ratio_of(self.base, self.new, SCATTERED[name])
        return ratio is not None and ratio.low > 1


@dataclass(frozen=True)
class Comparison:
    """Cells of two runs: those in both, and the rows of those only in NEW (`new`) or BASE (`removed`)."""

    pairs: list[Pair]
    new: list[Row]
    removed: list[Row]
    tolerance: float

    @property
    def failed(self) -> list[Pair]:
        """Cells that failed or were skipped in either run."""
        return [pair for pair in self.pairs if not pair.ok]

    @property
    def changed(self) -> list[Row]:
        """Exact quantities that differ: the cell, `quantity`, `before`, `after`, `change` (a fraction)."""
        return [change for pair in self.pairs for change in changes(pair.base, pair.new)]

    @cached_property
    def differences(self) -> list[str]:
        """What differs between the environments of measured cells, as "name old -> new"."""
        found: list[str] = []
        for old, now in ((pair.base, pair.new) for pair in self.pairs if not pair.new["estimated"]):
            if old["env_hash"] != now["env_hash"]:
                unnamed = [f"env_hash {old['env_hash']} -> {now['env_hash']}"]
                found += environment.differences(old, now) or unnamed
        return [printable(text) for text in dict.fromkeys(found)]

    @property
    def warnings(self) -> list[str]:
        """A line if the environments differ: times then tell apart more than the code."""
        different = ", ".join(self.differences)
        return [f"the runs were measured in different environments: {different}"] if different else []

    @property
    def summary(self) -> str:
        """How many cells have which verdict, in one line."""
        counts = Counter(pair.outcome for pair in self.pairs)
        counted = [f"{counts[it]} {it}" for it in (*VERDICTS, "estimated", "failed or skipped") if counts[it]]
        cells = f"{len(self.pairs)} cell{'s' if len(self.pairs) > 1 else ''} compared: {', '.join(counted)}"
        rest = (
            (len(self.changed), "quantity changed" if len(self.changed) == 1 else "quantities changed"),
            (len(self.new), "only in NEW"),
            (len(self.removed), "only in BASE"),
        )
        head = cells if self.pairs else "nothing to compare: the runs have no cell in common"
        return "; ".join([head, *(f"{count} {what}" for count, what in rest if count)])

    def regressions(self, thresholds: list[Threshold]) -> list[Regression]:
        """Cells that got worse by more than a threshold, or fail now; none without thresholds."""
        return [found for pair in self.pairs for found in pair.regressions(thresholds)]

    def tables(self) -> list[Table[Row]]:
        """Verdicts, changed quantities, new, removed and failed cells: those that have rows."""
        failures = [failure(pair) for pair in self.failed]
        found = [
            self.verdicts(),
            table("Changed quantities", self.changed, "quantity", "before", "after", "change"),
            table("New cells", [listed(row) for row in self.new], "outcome"),
            table("Removed cells", [listed(row) for row in self.removed], "outcome"),
            table("Failed and skipped cells", failures, "failed", "before", "after"),
        ]
        return [each for each in found if each.rows]

    def verdicts(self) -> Table[Row]:
        """Measured cells: SLOWER first, each verdict by falling ratio."""
        rows = [timing(pair) for pair in self.pairs if pair.ok and not pair.new["estimated"]]
        rows.sort(key=lambda row: (VERDICTS.index(row["verdict"] or NOT_KNOWN), -(row["ratio"] or 0)))
        reference = ["matmul_ratio"] if any(row["matmul_ratio"] is not None for row in rows) else []
        doubted = ["flags"] if any(row["flags"] for row in rows) else []
        columns = "base_ms", "new_ms", "ratio", "interval", *reference, "verdict", *doubted
        found = table("Median latency of NEW against BASE", rows, *columns)
        found.notes.extend(notes(self.tolerance))
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data; times are in milliseconds, changes are fractions."""
        return {
            "summary": self.summary,
            "tolerance": self.tolerance,
            "differences": self.differences,
            "cells": [timing(pair) for pair in self.pairs],
            "changed": self.changed,
            "new": [listed(row) for row in self.new],
            "removed": [listed(row) for row in self.removed],
            "failed": [failure(pair) for pair in self.failed],
        }


def compare(base: list[Row], new: list[Row], tolerance: float = TOLERANCE) -> Comparison:
    """The cells of two runs, paired by their ids; of a cell that a run holds twice, the latest record.

    Raises:
        UsageError: for a tolerance that is no fraction from 0 to below 1.
    """
    if not 0 <= tolerance < 1:
        raise UsageError(f"the tolerance {tolerance} is no fraction from 0 to below 1, such as 0.05")
    before, after = latest(base), latest(new)
    pairs = [Pair(before[cell], row, tolerance) for cell, row in after.items() if cell in before]
    added = [row for cell, row in after.items() if cell not in before]
    return Comparison(pairs, added, [row for cell, row in before.items() if cell not in after], tolerance)


def latest(rows: list[Row]) -> dict[str, Row]:
    """The last record of each cell, in the order of the tables."""
    newest = {row["cell_id"]: trusted(row) for row in sorted(rows, key=lambda row: row["created_utc"])}
    order = sorted(newest.values(), key=lambda row: (row["spec"], row["mode"], row["pixels"], row["cell_id"]))
    return {row["cell_id"]: row for row in order}


def ratio_of(base: Row, new: Row, metric: str) -> Median | None:
    """NEW/BASE of a metric that scatters, with its interval; None if one is missing, or BASE is zero.

    The samples of two runs are independent: if each interval covers its median with probability p,
    the quotients of their far ends enclose the ratio with at least p squared.
    """
    value = quotient(new[metric], base[metric])
    if value is None:
        return None
    above, below = interval(new, metric), interval(base, metric)
    return Median(value, above.low / below.high, above.high / below.low if below.low else math.inf)


def interval(row: Row, metric: str) -> Median:
    """A metric's value between the ends of its interval: 0 and infinity if too few samples tell.

    The recorded interval stands in for samples that were not kept. A metric that is proportional to
    the samples' median has an interval in the same proportion; that of the ratio to the reference is
    wider by the reference's own.
    """
    if samples := samples_of(row, metric):
        count, found = len(samples), median(samples, math.sqrt(LEVEL))
    else:
        name = "latency_graph_ms" if metric == GRAPH else "latency_ms"
        found = Median(row[f"{name}_median"], row[f"{name}_ci_low"], row[f"{name}_ci_high"])
        count = row["iterations"] or 0
    value = row[metric]
    if count < FEWEST or not found.value:
        return Median(value, 0, math.inf)
    scale = value / found.value
    narrow, wide = reference_interval(row) if metric == REFERENCE else (1.0, 1.0)
    return Median(value, min(value, narrow * scale * found.low), max(value, wide * scale * found.high))


def reference_interval(row: Row) -> tuple[float, float]:
    """By what factors the reference's scatter may have made the ratio to it too high or too low."""
    middle, low, high = (row[f"reference_ms_{part}"] for part in ("median", "ci_low", "ci_high"))
    return (middle / high, middle / low) if middle and low and high else (1.0, 1.0)


def samples_of(row: Row, metric: str) -> list[float]:
    """The samples that tell a metric's scatter, in ms; none if they were not kept or are no times."""
    by_cpu_time = metric == CPU_TIME or (metric == REFERENCE and row["device_type"] == "cpu")
    kept = (by_cpu_time and row["latency_cpu_samples_json"]) or row["latency_samples_json"]
    samples = json.loads(kept) if kept and metric != GRAPH else []
    return samples if all(isinstance(it, int | float) and 0 <= it < 1e15 for it in samples) else []


def quotient(value: float | None, unit: float | None) -> float | None:
    """None where there is none: of what is missing, by zero, or too large for a number."""
    found = value / unit if unit and value is not None else None
    return None if found is None or math.isinf(found) else found


def changes(base: Row, new: Row) -> list[Row]:
    """The exact quantities of a cell that differ, with their relative change (None from 0)."""
    return [
        about(new) | {"quantity": name, "before": old, "after": now, "change": quotient(now - old, old)}
        for name in EXACT
        if (old := base[name]) is not None and (now := new[name]) is not None and old != now
    ]


def timing(pair: Pair) -> Row:
    """The times of a cell as plain data; `low` and `high` are None where no interval is known."""
    ratio, on_cpu = pair.ratio, pair.ok and pair.new["device_type"] == "cpu"
    known = ratio if ratio and math.isfinite(ratio.high) else None
    return about(pair.new) | {
        "base_ms": pair.base[LATENCY],
        "new_ms": pair.new[LATENCY],
        "ratio": ratio and ratio.value,
        "low": known and known.low,
        "high": known and known.high,
        "matmul_ratio": quotient(pair.new[REFERENCE], pair.base[REFERENCE]) if on_cpu else None,
        "verdict": pair.verdict,
        "flags": pair.flags,
    }


def failure(pair: Pair) -> Row:
    """What became of a cell that is not ok in both runs, with the reasons."""
    before, after = pair.base["status"], pair.new["status"]
    failed = "no longer" if after == "ok" else "newly" if before == "ok" else "in both"
    return about(pair.new) | {"before": outcome(pair.base), "after": outcome(pair.new), "failed": failed}


def about(row: Row) -> Row:
    """Which cell it is."""
    return {name: row[name] for name in ABOUT}


def listed(row: Row) -> Row:
    return about(row) | {"outcome": outcome(row)}


def outcome(row: Row) -> str:
    return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])


def table(title: str, rows: list[Row], *names: str) -> Table[Row]:
    """These values beside those that name the cell, and beside what else tells these cells apart."""
    apart = [name for name in ("device_type", "seed") if len({row[name] for row in rows}) > 1]
    names = ("spec", "input", "mode", "dtype", *apart, *names)
    return Table(title, [column(name, rows) for name in names], rows)


def column(name: str, rows: list[Row]) -> Column[Row]:
    """A value of each row; words stand to the left, numbers to the right."""
    combined = {
        "input": shape,
        "mode": mode,
        "interval": ends,
        "change": change,
        "flags": lambda row: str(row["flags"]),
    }
    cell = combined.get(name, lambda row: shown(row[name]))
    words = name == "input" or any(isinstance(row.get(name), str) for row in rows)
    return Column(TITLES.get(name, name), cell, numeric=not words)


def shown(value: str | float | None) -> str:
    """Words as they are, counts to the last digit, other numbers to four digits."""
    if value is None or isinstance(value, str):
        return value or NOT_KNOWN
    return f"{value:,}" if isinstance(value, int) else number(value)


def mode(row: Row) -> str:
    return ", ".join([row["mode"], *(name for name in ("compiled", "estimated") if row[name])])


def ends(row: Row) -> str:
    return NOT_KNOWN if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"


def change(row: Row) -> str:
    part = row["change"]
    return NOT_KNOWN if part is None else "+" * (part > 0) + percent(part)


def percent(fraction: float) -> str:
    return f"{number(100 * fraction, 3)}%"


def notes(tolerance: float) -> list[str]:
    """What the verdicts mean, and what they do not."""
    part = percent(tolerance)
    return [
        f"SLOWER or FASTER: the ratio is off by more than {part} and its whole interval on that side of 1. "
        f"SAME: the whole interval is within {part} of 1. UNCERTAIN: the samples do not tell. "
        f"{NOT_KNOWN}: a time is missing, or BASE's is zero.",
        f"The interval holds the ratio of the true medians with at least {percent(LEVEL)} "
        f"({percent(LEVEL**2)} where samples were not kept), whatever their distribution. It speaks of "
        "these two runs alone: two more runs of the same code may differ by more, as machines drift.",
    ]
