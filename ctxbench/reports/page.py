"""The page: one HTML file that holds everything, asks no host for anything, and shows all text as text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from ctxbench.record import Record, Row
from ctxbench.reports.verdicts import Answer
from ctxbench.tables import Table, printable, prose

if TYPE_CHECKING:
    from ctxbench.figures.style import Picture
    from ctxbench.store import Commands

DIGITS = 7  # of floats in the page; the records' files hold all
SAMPLES = ("latency_samples_json", "latency_cpu_samples_json")  # too long for a page
COLUMNS = tuple(name for name in Record.model_fields if name not in SAMPLES)
COMMAND = "command"
FACETS = ("machine", "mode", "input", "precision", "resolution")
SENTENCE = 60  # characters; a column with longer text gets more room
LARGEST_SVG = 600_000  # characters, of a figure within the page
LONGEST_CELL = 500  # characters; what is opened shows the whole text


@dataclass(frozen=True)
class Line:
    """A row of a table on the page: its cells, and the places of its records among all."""

    cells: list[str]
    best: list[bool]
    records: str
    cost: str
    run: str
    flags: str
    kind: str
    source: str | None
    link: str | None


@dataclass(frozen=True)
class Board:
    """A table on the page."""

    table: Table[Any]
    lines: list[Line]

    @property
    def shown(self) -> list[int]:
        """The columns that are shown as such; flags stand below the name instead, where they are seen."""
        return [index for index, column in enumerate(self.table.columns) if column.role != "flags"]

    @property
    def columns(self) -> list[tuple[int, str, str]]:
        """Place, class and role of each column but the first."""
        classes = self.classes
        return [(index, classes[index], self.table.columns[index].role) for index in self.shown[1:]]

    @property
    def leads(self) -> bool:
        """Whether a column leads to where the rows were printed."""
        return any(column.role == "source" for column in self.table.columns)

    @cached_property
    def classes(self) -> list[str]:
        """How each column is set: numbers to the right, sentences with room."""
        found = []
        for place, column in enumerate(self.table.columns):
            longest = max((len(line.cells[place]) for line in self.lines), default=0)
            kind = "" if column.numeric else "text long" if longest > SENTENCE else "text"
            found.append(f"{kind} {column.role}".strip())
        return found

    @property
    def facets(self) -> dict[str, str]:
        return {name: printable(self.table.facets[name]) for name in FACETS if name in self.table.facets}


@dataclass(frozen=True)
class Illustration:
    """A figure on the page."""

    name: str
    caption: str
    wide: bool
    svg: Any  # markup, safe to put into a page


def render(
    title: str,
    summary: Sequence[str],
    sections: Sequence[tuple[str, Sequence[Table[Any]]]],
    *,
    answers: Sequence[Answer] = (),
    pictures: Sequence[Picture] = (),
    more: int = 0,
    home: str | None = None,
    method: Sequence[str] = (),
    specs: Sequence[str] = (),
    baseline: str = "",
    rows: Sequence[Row] = (),
    commands: Mapping[str, Commands] = MappingProxyType({}),
) -> str:
    """Tables in sections, with all that lets a reader choose among them, as one HTML file.

    Args:
        pictures: the figures to show; more: how many others there are.
        home: the address of the page that lists several of them.
        specs: what the ratios may refer to; baseline: what they do at first.
        rows: the records that rows of tables open to, and that can be downloaded.
        commands: that made them, by run.
    """
    places = {identity(row): str(number) for number, row in enumerate(rows)}
    runs = runs_of(rows)
    boards = [(name, [board(table, places, runs) for table in tables]) for name, tables in sections]
    script = asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment().get_template("report.html.j2")
    return template.render(
        title=printable(title),
        file=slug(title),
        home=home,
        summary=summary,
        answers=answers,
        sections=boards,
        pictures=[illustration(it) for it in pictures],
        more=more,
        method=method,
        choices=choices(it for _, found in boards for it in found),
        specs=specs,
        baseline=baseline,
        count=len(rows),
        data=packed(rows, commands),
        style=Markup(asset("report.css")),
        script=Markup(script),
        digest=digest,
    )


def slug(title: str) -> str:
    """A name for files that are downloaded."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "ctxbench"


def environment() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("ctxbench"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    found.filters["prose"] = lambda text: Markup(
        prose(printable(text), escape, Markup("<code>{}</code>").format)
    )
    return found


def asset(name: str) -> str:
    """A file of ours that becomes part of the page."""
    return (resources.files("ctxbench") / "templates" / name).read_text(encoding="utf-8")


def board(table: Table[Any], places: dict[Any, str], runs: dict[Any, list[Row]]) -> Board:
    """A table with what its rows open to."""
    lines = []
    for row, cells in zip(table.rows, table.text, strict=True):
        source = table.source(row)
        cost = table.cost(row)
        told = [cell for cell, column in zip(cells, table.columns, strict=True) if column.role == "flags"]
        lines.append(
            Line(
                [cell if len(cell) <= LONGEST_CELL else f"{cell[:LONGEST_CELL]}…" for cell in cells],
                [column.best(row) for column in table.columns],
                ",".join(numbers(table.records(row), places, runs)),
                "" if cost is None or table.ratio is None else f"{cost:.{DIGITS}g}",
                printable(table.group(row)),
                " ".join(told)[:LONGEST_CELL],
                table.kind(row),
                source.url if source else None,
                table.link(row),
            )
        )
    return Board(table, lines)


def identity(row: Row) -> tuple[Any, ...]:
    return row["run_id"], row["cell_id"], row["env_hash"], row["created_utc"], row["rounds_id"]


def runs_of(rows: Iterable[Row]) -> dict[Any, list[Row]]:
    """The records of each cell, environment and code: what a row of several runs stands for."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault((row["cell_id"], row["env_hash"], row["code_hash"]), []).append(row)
    return found


def numbers(rows: Iterable[Row], places: dict[Any, str], runs: dict[Any, list[Row]]) -> list[str]:
    """The places of the records behind these rows."""
    found = []
    for row in rows:
        key = row["cell_id"], row["env_hash"], row["code_hash"]
        found += runs[key] if row["runs"] > 1 else [row]
    return [places[identity(row)] for row in found]


def choices(boards: Iterable[Board]) -> dict[str, list[str]]:
    """The values of each facet that has several, in the order of the tables."""
    found: dict[str, dict[str, None]] = {name: {} for name in FACETS}
    for it in boards:
        for name, value in it.facets.items():
            found[name].setdefault(value)
    return {name: list(values) for name, values in found.items() if len(values) > 1}


def packed(rows: Sequence[Row], commands: Mapping[str, Commands]) -> str:
    """All records by columns, compressed, as text that is safe in a page.

    A column is `{"all": value}` if it has one value, `{"of": [...], "at": [...]}` if few, and
    `{"each": [...]}` otherwise; one without any value is left out.
    """
    columns: dict[str, Any] = {}
    for name in (*COLUMNS, COMMAND):
        values = [command_of(row, commands) if name == COMMAND else brief(row[name]) for row in rows]
        if any(value is not None for value in values):
            columns[name] = column(values)
    text = json.dumps({"count": len(rows), "columns": columns}, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def brief(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def column(values: list[Any]) -> dict[str, Any]:
    unique = list(dict.fromkeys((type(value), value) for value in values))
    if len(unique) == 1:
        return {"all": values[0]}
    if 2 * len(unique) > len(values):
        return {"each": values}
    places = {it: place for place, it in enumerate(unique)}
    return {"of": [value for _, value in unique], "at": [places[type(value), value] for value in values]}


def command_of(row: Row, commands: Mapping[str, Commands]) -> str | None:
    """What makes this record again: of a profile the cell alone, else the last command before it, undivided."""
    if row["kind"] != "profile":
        typed = [words for begun, words in commands.get(row["run_id"], ()) if begun <= row["created_utc"]]
        return re.sub(r" --shard[= ]\S+", "", typed[-1]) if typed else None
    words = ["ctxbench", "profile", "--blocks", row["spec"]]
    words += ["--resolutions", f"{row['height']}x{row['width']}", "--channels", str(row["channels"])]
    words += ["--batch", str(row["batch"]), "--modes", row["mode"], "--dtypes", row["dtype"]]
    words += ["--compile"] if row["compiled"] else []
    words += ["--estimate"] if row["estimated"] else ["--device", row["device_type"]]
    words += ["--threads", str(row["threads"])] if row["threads"] != 1 and not row["estimated"] else []
    return shlex.join(words)


def illustration(picture: Picture) -> Illustration:
    inline = (
        inline_svg(picture.svg, picture.name, picture.caption) if len(picture.svg) < LARGEST_SVG else None
    )
    return Illustration(picture.name, picture.caption, picture.wide, inline)


def inline_svg(svg: str, name: str, caption: str) -> Markup:
    """The <svg> element alone, labelled, with ids of its own so that several fit into one page.

    matplotlib escapes the text it draws, and `name` is made of a record's closed choices.
    """

    def own_ids(tag: re.Match[str]) -> str:
        renamed = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag[0])
        return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", renamed)

    element = re.sub(r"<[^>]+>", own_ids, svg[svg.index("<svg") :])  # within tags, not in text
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1))
