"""What a terminal shows: live progress and tables."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from ctxbench.monitor import Reporter
from ctxbench.record import FAILED, Record
from ctxbench.reports.scores import SCORES
from ctxbench.tables import Table, printable

if TYPE_CHECKING:
    from ctxbench.catalogue import Description

REDRAW_S = 0.2
SAY_S = 30.0  # of silence in a log
MAX_TEXT = 300
MIN_PLAIN_WIDTH = 180  # where output is no terminal, so that tables are not broken


def make_console(stderr: bool = False) -> Console:
    file = sys.stderr if stderr else sys.stdout
    return Console(
        file=file, width=None if file is not None and file.isatty() else MIN_PLAIN_WIDTH, highlight=False
    )


class LiveReporter(Reporter):
    """A progress bar with elapsed and remaining time; without a terminal, a line per cell.

    It writes to standard error, so that the results can be piped.
    """

    def __init__(self) -> None:
        self.console = make_console(stderr=True)
        self.live = self.console.is_terminal
        self.progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
            auto_refresh=False,  # a thread of its own would be in the timings
        )
        self.drawn, self.said = 0.0, time.monotonic()
        self.task = self.progress.add_task("", total=None)
        self.total = self.count = 0

    def __enter__(self) -> LiveReporter:
        if self.live:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.progress.stop()

    def started(self, total: int, known: list[Record]) -> None:
        self.total, self.count = total, len(known)
        self.progress.update(self.task, total=total, completed=len(known))
        if known:
            failed = sum(record.status in FAILED for record in known)
            again = f" ({failed} failed; --fresh tries again)" if failed else ""
            self.say(f"{len(known)} of {total} cells are known already{again}")
        if unsettled := sum(record.converged is False for record in known):
            self.say(f"{unsettled} of them did not settle; --fresh with a larger --budget measures longer")

    def working(self, text: str) -> None:
        self.progress.update(self.task, description=text)
        if not self.live and time.monotonic() - self.said > SAY_S:
            self.say(text)
        if self.live and time.monotonic() - self.drawn > REDRAW_S:
            self.progress.refresh()
            self.drawn = time.monotonic()

    def measuring(self, text: str) -> None:
        if not self.live:
            self.say(text)

    def finished(self, record: Record) -> None:
        self.count += 1
        self.progress.advance(self.task)
        line = f"[{self.count}/{self.total}] {description_of(record)}"
        if record.status != "ok":
            self.say(f"{line}: {record.status}, {record.reason}")
        elif not self.live or record.kind == "task":
            self.say(line + score_of(record))

    def notice(self, text: str) -> None:
        self.say(text)

    def say(self, text: str) -> None:
        self.said = time.monotonic()
        with contextlib.suppress(OSError):  # a full disk behind standard error stops no run
            self.console.print(Text(shortened(printable(text))), soft_wrap=True)


def description_of(record: Record) -> str:
    """Which cell this is the record of."""
    if record.kind == "task":
        return f"{record.spec}, {record.model} on {record.dataset}, seed {record.seed}"
    return f"{record.spec} {record.height}x{record.width} {record.mode} {record.dtype}"


def score_of(record: Record) -> str:
    """What a network reached, if it was trained."""
    if record.metric is None:
        return ""
    score = SCORES[record.metric]
    collapsed = f", {record.collapsed.partition(':')[0]}" if record.collapsed else ""
    return f": {score.name} {score.with_unit(getattr(record, record.metric))}{collapsed}"


def shortened(text: str) -> str:
    """Text for a terminal; the records keep it whole."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def print_lines(lines: Iterable[str]) -> None:
    console = make_console()
    for line in lines:
        console.print(Text(printable(line)))


def print_tables(tables: list[Table[Any]]) -> None:
    console = make_console()
    for table in tables:
        console.print(rich_table(table))
        if table.verdict:
            console.print(Text(printable(f"  {table.verdict}")))
        for note in table.notes:
            console.print(Text(printable(f"  {note}")), style="dim")
        console.print()


def rich_table(table: Table[Any]) -> RichTable:
    shown = RichTable(
        title=Text(printable(table.title)), title_justify="left", title_style="bold", header_style="bold"
    )
    for column in table.columns:
        shown.add_column(
            Text(printable(column.title)),
            justify="right" if column.numeric else "left",
            overflow="fold",
            no_wrap=column is table.columns[0],
            min_width=None if not column.numeric else len(column.title.split()[0]),
        )
    for row, cells in zip(table.rows, table.text, strict=True):
        best = [column.best(row) for column in table.columns]
        style = "italic magenta" if table.source(row) else ""
        shown.add_row(
            *(
                Text(shortened(cell), "bold green" if good else style)
                for cell, good in zip(cells, best, strict=True)
            )
        )
    return shown


def show_block(description: Description) -> None:
    """Print what is known of one block: facts, options, costs, and what its docstrings say."""
    info = description.info
    facts = [
        ("what it does", info.summary),
        ("family", info.family),
        ("complexity", info.complexity),
        ("formula", info.formula),
    ]
    if info.paper is not None:
        paper = info.paper
        stop = "" if paper.title.endswith("?") else "."
        reference = f"{paper.authors}: {paper.title}{stop} {paper.venue} {paper.year}. {paper.url}"
        facts.append(("paper", reference))
    facts += description.exports.items()
    chosen = dict(description.spec.options)
    options = []
    for it in info.options.values():
        usual = f" (default {it.default})" if it.name in chosen else ""
        options.append((f"{it.name}={chosen.get(it.name, it.default)}", f"{it.kind}{usual}"))
    print_pairs(f"{info.name}: {info.title}", facts)
    print_pairs("\noptions" if options else "\nno options", options)
    for text in description.explanations:
        make_console().print(Text(f"\n{text}"))
    make_console().print()
    print_tables([description.costs_table()])


def print_pairs(title: str, pairs: list[tuple[str, str]]) -> None:
    """A title and what belongs to it, one name and value a line."""
    console = make_console()
    console.print(Text(title), style="bold")
    grid = RichTable.grid(padding=(0, 2))
    for name, value in pairs:
        grid.add_row(Text(name), Text(value))
    console.print(grid)
