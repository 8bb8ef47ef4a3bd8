"""Tables as text cells, ready for a terminal, Markdown or a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Generic, TypeVar

MISSING = "–"
R = TypeVar("R")


@dataclass(frozen=True)
class Column(Generic[R]):
    """A title, and how a row's cell is written."""

    title: str
    cell: Callable[[R], str]
    numeric: bool = True


@dataclass(frozen=True)
class Table(Generic[R]):
    """A title, columns and rows; `notes` explain what the rows cannot."""

    title: str
    columns: list[Column[R]]
    rows: list[R]
    notes: list[str] = field(default_factory=list)

    @property
    def header(self) -> list[str]:
        return [printable(column.title) for column in self.columns]

    @property
    def text(self) -> list[list[str]]:
        return [[printable(column.cell(row)) for column in self.columns] for row in self.rows]


def printable(text: str) -> str:
    """One line of text without what could steer a terminal or turn the direction of reading."""
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
    lines += ["| " + " | ".join(map(escape_markdown, row)) + " |" for row in table.text]
    lines += ["", *(f"* {escape_markdown(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def escape_markdown(text: str) -> str:
    """One line of text that neither ends a table cell nor starts HTML or emphasis."""
    text = " ".join(printable(text).split())
    return re.sub(r"[&<>|]", lambda mark: f"&#{ord(mark[0])};", re.sub(r"([\\`*_\[\]~$])", r"\\\1", text))
