"""A site of reports: one for each run, a page that lists and compares them, and all published numbers."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ctxbench.benchmarks import Benchmarks
from ctxbench.benchmarks import tables as benchmark_tables
from ctxbench.record import FAILED, Row
from ctxbench.reports.contests import LATENCY, amount, interval
from ctxbench.reports.inputs import input_facets, machine
from ctxbench.reports.page import render
from ctxbench.reports.published import compare_all
from ctxbench.reports.published_table import published_table, summary
from ctxbench.reports.report import Report
from ctxbench.store import Reading, make_folder, write_atomically
from ctxbench.tables import MISSING, Column, Table, number

COMPARED = ("mode", "batch", "channels", "dtype", "compiled", "height", "width")
PUBLISHED = "published.html"


@dataclass(frozen=True)
class Member:
    """One run of the site, in a folder of its own."""

    name: str
    folder: str
    report: Report

    @property
    def machines(self) -> str:
        measured = dict.fromkeys(machine(row) for row in self.report.rows if not row["estimated"])
        return "; ".join(measured) or "estimated"

    @property
    def what(self) -> str:
        """Which tasks were trained, and what was profiled."""
        rows = self.report.rows
        tasks = [f"{row['task']} ({row['preset']})" for row in rows if row["kind"] == "task"]
        kinds = {"profile": "profile", "step": "updates of GANs"}
        return ", ".join(
            dict.fromkeys([*(kinds[row["kind"]] for row in rows if row["kind"] in kinds), *tasks])
        )

    @property
    def short(self) -> str:
        """The first answer of its report."""
        return self.report.answers[0].said if self.report.answers else MISSING

    @property
    def failed(self) -> int:
        return sum(row["status"] in FAILED for row in self.report.rows)


def write_site(
    reading: Reading, out: Path, baseline: str | None = None, benchmarks: Sequence[Benchmarks] = ()
) -> Path:
    """Write `index.html`, `published.html` and a folder for each run; returns the index.

    Raises:
        UsageError: if `out` cannot be a folder.
        WriteError: if a file cannot be written.
    """
    whole = Report.of(reading, baseline, benchmarks)
    members = []
    for name, folder in zip(reading.names, folder_names(reading.names), strict=True):
        own = reading.of_run(name)
        specs = {record.spec for record in own.records if record.kind != "task"}
        found = Report.of(own, whole.baseline if whole.baseline in specs else None)
        found.write(out / folder, home="../index.html")
        members.append(Member(name, folder, found))
    make_folder(out)
    comparisons = compare_all(whole.rows)
    everything = published_table(comparisons, "All published numbers")
    published = render(
        "Published numbers", [summary(comparisons)], [("Published numbers", [everything])], home="index.html"
    )
    write_atomically(out / PUBLISHED, published)
    across = across_machines(whole.blocks, whole.baseline)
    sections: list[tuple[str, Sequence[Table[Any]]]] = [("Reports", [list_of(members)])]
    sections += [("Across machines", across)] if across else []
    sections += [("Benchmarks", benchmark_tables(list(benchmarks)))] if benchmarks else []
    sections.append(("Published numbers", [by_source(comparisons)]))
    index = render(
        "ctxbench",
        whole.summary,
        sections,
        answers=whole.answers,
        rows=whole.rows,
        commands=whole.commands,
    )
    write_atomically(out / "index.html", index)
    return out / "index.html"


def folder_names(names: Sequence[str]) -> list[str]:
    """Names that are safe as folders and in addresses, each once."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:60] or "run"
        choices = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        found.append(next(it for it in choices if it not in found))
    return found


def list_of(members: Sequence[Member]) -> Table[Member]:
    columns = [
        Column[Member]("report", lambda it: it.name, numeric=False),
        Column[Member]("what", lambda it: it.what or MISSING, numeric=False),
        Column[Member]("in short", lambda it: it.short, numeric=False),
        Column[Member]("machine", lambda it: it.machines, numeric=False),
        Column[Member]("records", lambda it: number(len(it.report.rows))),
        Column[Member]("failed", lambda it: number(it.failed)),
        Column[Member](
            "last", lambda it: max((row["created_utc"][:10] for row in it.report.rows), default=MISSING)
        ),
    ]
    return Table("One for each run", columns, list(members), link=lambda it: f"{it.folder}/index.html")


def across_machines(rows: Sequence[Row], baseline: str | None) -> list[Table[str]]:
    """For each input that several machines measured: the blocks' latencies, and their ratios to the baseline."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if interval(row, LATENCY):
            groups.setdefault(tuple(row[name] for name in COMPARED), []).append(row)
    several = [members for members in groups.values() if len({row["env_hash"] for row in members}) > 1]
    ordered = sorted(
        several, key=lambda it: (it[0]["mode"], it[0]["pixels"], it[0]["channels"], it[0]["dtype"])
    )
    return [across(members, baseline) for members in ordered]


def across(rows: Sequence[Row], baseline: str | None) -> Table[str]:
    latest: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row["created_utc"]):
        latest[row["env_hash"], row["spec"]] = row
    machines = {
        row["env_hash"]: machine(row) for row in sorted(rows, key=lambda row: (machine(row), row["env_hash"]))
    }
    alike = Counter(machines.values())

    def column(env: str, name: str) -> Column[str]:
        unit = latest.get((env, baseline or ""))

        def cell(spec: str) -> str:
            row = latest.get((env, spec))
            if row is None:
                return MISSING
            share = f" ({number(row[LATENCY] / unit[LATENCY], 3)})" if unit else ""
            return amount(row, LATENCY) + share

        return Column(name if alike[name] == 1 else f"{name}, {env[:6]}", cell)

    facets = {name: value for name, value in input_facets(rows[0]).items() if name != "machine"}
    facets["resolution"] = f"{rows[0]['height']}x{rows[0]['width']}"
    note = f"In brackets: the ratio to `{baseline}` on the same machine." if baseline else ""
    return Table(
        f"Latency, {', '.join(facets.values())}",
        [Column[str]("block", lambda spec: spec, numeric=False), *(column(*it) for it in machines.items())],
        sorted({row["spec"] for row in rows}),
        [note] if note else [],
        facets=facets,
    )


def address(source: str) -> str:
    """The page of published numbers, searched for those of a source."""
    phrase = f'"{source}"'
    return f"{PUBLISHED}#{urlencode({'search': phrase})}"


def by_source(comparisons: Sequence[Any]) -> Table[str]:
    """How many numbers of each source are in which state."""
    states = Counter((it.claim.origin.name, it.state) for it in comparisons)

    def count(state: str) -> Column[str]:
        return Column(state, lambda name: number(states[name, state]))

    columns = [Column[str]("source", lambda name: name, numeric=False)]
    columns += [count(state) for state in ("reproduced", "not reproduced", "cannot be checked here")]
    names = list(dict.fromkeys(it.claim.origin.name for it in comparisons))
    notes = ["Each of them, with its reason, is on the page that the names lead to."]
    return Table("Published numbers by source", columns, names, notes, link=address)
