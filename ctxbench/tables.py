"""Tables as text cells, ready for a terminal, Markdown or a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, TypeVar

MISSING = "–"
NAME = re.compile(r"`([\w.,;:=/+'\[\] -]{1,200})`", re.ASCII)  # of a block, in a sentence
MARKED = re.compile(r"[\\`*_\[\]~$#@&<>|]|  ")  # what means something in Markdown
R = TypeVar("R")


@dataclass(frozen=True)
class Column(Generic[R]):
    """A title, and how a row's cell is written.

    Attributes:
        best: whether a row's cell stands out among the others.
        role: what the column is to a page: "state" is coloured, "source" leads to where a row was printed.
    """

    title: str
    cell: Callable[[R], str]
    numeric: bool = True
    best: Callable[[R], bool] = lambda row: False
    role: str = ""


@dataclass(frozen=True)
class Table(Generic[R]):
    """A title, columns and rows.

    Attributes:
        notes: explain what the rows cannot.
        verdict: what the rows say, in a sentence.
        facets: what a reader chooses the table by, such as the device; a table is of one value of each.
        records: of a row, the rows of the records behind it.
        cost: of a row, what its ratio to another row is taken of; group: within what, such as a run.
        ratio: the column of that ratio.
        kind: how a row is to be seen at a glance: "", "failed", "published", or the state of a published number.
        source: of a published row, where it was printed, with an address.
        link: of a row, the page that it stands for.
    """

    title: str
    columns: list[Column[R]]
    rows: list[R]
    notes: list[str] = field(default_factory=list)
    verdict: str = ""
    facets: Mapping[str, str] = field(default_factory=dict)
    records: Callable[[R], Sequence[Any]] = lambda row: ()
    cost: Callable[[R], float | None] = lambda row: None
    group: Callable[[R], str] = lambda row: ""
    ratio: int | None = None
    kind: Callable[[R], str] = lambda row: ""
    source: Callable[[R], Source | None] = lambda row: None
    link: Callable[[R], str | None] = lambda row: None

    @property
    def header(self) -> list[str]:
        return [printable(column.title) for column in self.columns]

    @property
    def text(self) -> list[list[str]]:
        return [[printable(column.cell(row)) for column in self.columns] for row in self.rows]

    def formatted(self, escape: Callable[[str], str], strong: str) -> list[list[str]]:
        """The cells escaped; in `strong`, such as "**{}**", those that stand out."""
        return [
            [
                strong.format(escape(text)) if column.best(row) else escape(text)
                for column, text in zip(self.columns, cells, strict=True)
            ]
            for row, cells in zip(self.rows, self.text, strict=True)
        ]


@dataclass(frozen=True)
class Source:
    """Where a number was printed."""

    name: str
    url: str


def printable(text: str) -> str:
    """One line of text without what could steer a terminal or turn the direction of reading."""
    if text.isascii() and text.isprintable():
        return text
    line = "".join(" " if mark.isspace() else mark for mark in text)
    return "".join(mark if mark.isprintable() else "\ufffd" for mark in line)


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


def markdown(table: Table[Any]) -> str:
    """A GitHub-flavoured Markdown table under a heading."""
    lines = [f"### {escape_markdown(table.title)}", ""]
    lines.append("| " + " | ".join(map(escape_markdown, table.header)) + " |")
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|")
    lines += ["| " + " | ".join(cells) + " |" for cells in table.formatted(escape_markdown, "**{}**")]
    verdict = [table.verdict] if table.verdict else []
    lines += ["", *(f"* {markdown_prose(note)}" for note in [*verdict, *table.notes])]
    return "\n".join(lines).rstrip() + "\n"


def prose(text: str, escape: Callable[[str], str], code: Callable[[str], str]) -> str:
    """A sentence escaped, with `code` applied to the names that stand in it in backquotes."""
    parts = NAME.split(text)
    return "".join(code(part) if place % 2 else escape(part) for place, part in enumerate(parts))


def markdown_prose(text: str) -> str:
    return prose(text, escape_markdown, "`{}`".format)


def escape_markdown(text: str) -> str:
    """One line of text that neither ends a table cell nor starts HTML or emphasis."""
    text = printable(text)
    if not MARKED.search(text):
        return text
    text = re.sub(" +", " ", text)
    return re.sub(r"[&<>|]", lambda mark: f"&#{ord(mark[0])};", re.sub(r"([\\`*_\[\]~$#@])", r"\\\1", text))
